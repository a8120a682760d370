"""The typed sections of a config.

Components are marked by their kind and checked by the registry of that kind.

The schema is PaddleClas's, so that its YAMLs run unchanged. Keys of PaddleClas that have no effect here are
declared with the only value that is allowed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from ppxcls.config.checks import BelowOne, Count, CountOrZero, KeyPath, NotNegative, Positive, Share, Where
from ppxcls.config.registry import Block, Component, Components
from ppxcls.config.yaml_values import write_yaml


@dataclass
class GlobalSection:
    """Settings of the whole run.

    Attributes:
        device: ``gpu``, ``cpu``, ``xpu`` or the name of a custom device that the installed Paddle knows.
        output_dir: all files are written to ``<output_dir>/<Arch.name>/``.
        save_interval: epochs between ``epoch_N`` checkpoints, which are never removed.
        latest_interval: epochs between writes of ``latest`` and ``step_N``; they are also written at the end
            and at a signal.
        save_interval_steps: optimizer steps between checkpoints inside an epoch; null for none.
        save_interval_minutes: minutes between checkpoints inside an epoch; null for none.
        keep_last: number of ``step_N`` checkpoints that are kept.
        best_model_optimizer: write the optimizer's state with ``best_model`` too, so that a run can go on
            from it.
        weights_format: of the weights in checkpoints, ``.pdparams`` as Paddle's or ``.safetensors``.
        eval_during_train: evaluate while training.
        eval_interval: epochs between evaluations.
        start_eval_epoch: first epoch after which to evaluate.
        epochs: epochs of the whole run.
        print_batch_step: iterations between log lines.
        use_visualdl: write curves for VisualDL to ``vdl/``.
        seed: decides the initial weights, the order of the samples, and every random choice about a sample;
            null is 0.
        pretrained_model: weights to start from or to evaluate; ``.pdparams`` may be left out.
        checkpoints: checkpoint to resume from, without extension; ``auto`` takes the newest whole one of the
            run, if there is one.
        allow_changes: resume even if network, optimizer, seed, training list or samples per step have
            changed.
        update_freq: micro-batches whose gradients are accumulated for one optimizer step.
        samples_per_step: samples of all processes in one optimizer step. It decides ``update_freq``, for any
            number of processes.
        hang_timeout: seconds without progress after which a run ends.
        on_bad_image: ``raise`` stops at an unreadable sample; ``skip`` leaves it out and lists it.
        max_bad_share: largest share of unreadable samples in a list; with more, the run stops.
        deterministic: use the device's deterministic operators.
        check_data: look for every listed file before the first step.
        image_shape: PaddleClas's key, ``[3, H, W]``. The transforms decide the size; a warning says if this
            differs from it.
        image_channel: PaddleClas's key; it has no effect.
        save_inference_dir: folder of exported models.
        eval_mode, task, train_mode: PaddleClas's keys with the only value that is supported.
        to_static: compile the network to a static graph for training and evaluation.
        cudnn_search: let cuDNN try all algorithms for each shape of convolution, and use its persistent batch
            norm; GPUs only.
        pin_memory: copy training batches from pinned memory without waiting for the copy; GPUs only.
        comm_buffer_size: megabytes of gradients that processes exchange at once.
        scale_lr: multiply the whole schedule by the samples per step over ``base_batch_size``: ``linear``
            (arXiv:1706.02677), or by the root of it, ``sqrt`` (arXiv:1404.5997).
        base_batch_size: samples per step of all processes for which the learning rate was chosen.
        use_dali, use_multilabel: PaddleClas's keys for what is not supported.
        plugins: modules with your own components: names, or paths of ``.py`` files. They are imported before
            the config is checked.
        trackers: components that receive the figures of the run, in addition to ``metrics.jsonl``.
    """

    checkpoints: str | None = None
    pretrained_model: str | None = None
    output_dir: str = "./output/"
    device: str = "gpu"
    save_interval: Count = 1
    save_interval_steps: Count | None = None
    save_interval_minutes: Positive | None = None
    latest_interval: Count = 1
    keep_last: Count = 2
    best_model_optimizer: bool = False
    weights_format: Literal["pdparams", "safetensors"] = "pdparams"
    eval_during_train: bool = True
    eval_interval: Count = 1
    start_eval_epoch: CountOrZero = 0
    epochs: Count = 120
    print_batch_step: Count = 10
    use_visualdl: bool = False
    seed: CountOrZero | None = None
    update_freq: Count = 1
    samples_per_step: Count | None = None
    check_data: bool = False
    allow_changes: bool = False
    hang_timeout: Positive = 600.0
    on_bad_image: Literal["raise", "skip"] = "raise"
    max_bad_share: Share = 0.001
    deterministic: bool = False
    image_shape: tuple[Count, Count, Count] | None = None
    image_channel: Literal[3, 4] | None = None
    save_inference_dir: str = "./inference"
    plugins: list[str] | None = None
    trackers: Annotated[list[Block], Components("tracker")] | None = None
    eval_mode: Literal["classification"] = "classification"
    task: Literal["classification"] = "classification"
    train_mode: Literal["classification"] | None = None
    to_static: bool = False
    cudnn_search: bool = False
    pin_memory: bool = False
    comm_buffer_size: Count = 25
    scale_lr: Literal["linear", "sqrt"] | None = None
    base_batch_size: Count | None = None
    use_dali: Literal[False] = False
    use_multilabel: Literal[False] = False


@dataclass
class AMPSection:
    """Automatic mixed precision. The section alone turns it on, as in PaddleClas.

    Attributes:
        use_amp: False turns it off.
        scale_loss: initial loss scale.
        use_fp16_test: evaluate under AMP as well.
        use_dynamic_loss_scaling: adapt the loss scale to what overflows.
        dtype: type of the computation. On a CPU ``bfloat16`` takes effect under O1, for dense convolutions in
            training, if the processor has AVX512-BF16 or AMX; ``float16`` has none.
        level: O1 casts operator by operator; O2 keeps the weights in ``dtype``, with float32 master copies.
        use_promote: under O2, compute in float32 if an operator's inputs differ in type.
        max_skipped_steps: the run stops if loss scaling skips more steps in a row.
    """

    use_amp: bool = True
    use_fp16_test: bool = False
    scale_loss: Positive = 1.0
    use_dynamic_loss_scaling: bool = False
    use_promote: bool = False
    dtype: Literal["float16", "bfloat16"] = "float16"
    level: Literal["O1", "O2"] = "O1"
    max_skipped_steps: Count = 100


@dataclass
class EMASection:
    """A moving average of the weights, which is evaluated and exported in their place.

    The section alone turns it on.

    Attributes:
        use_ema: False turns it off.
        decay: decay of the average in each optimizer step.
        warmup: limit the decay of step n to (1 + n) / (10 + n).
    """

    use_ema: bool = True
    decay: BelowOne = 0.9999
    warmup: bool = False


@dataclass
class LossSection:
    """Losses. Several losses are added, each with its ``weight``.

    Attributes:
        Train: training losses.
        Eval: evaluation losses; null is CELoss.
    """

    Train: Annotated[list[Block], Components("loss")]
    Eval: Annotated[list[Block], Components("loss")] | None = None


@dataclass
class MetricSection:
    """Metrics.

    Attributes:
        Train: training metrics, skipped if labels are mixed; null for none.
        Eval: evaluation metrics; the first figure decides which checkpoint is ``best_model``.
    """

    Train: Annotated[list[Block], Components("metric")] | None = None
    Eval: Annotated[list[Block], Components("metric")] | None = None


@dataclass
class LoaderSection:
    """How samples are read.

    Attributes:
        num_workers: number of threads that read and decode; 0 uses the loop's own thread.
        use_shared_memory: PaddleClas's key; it has no effect, because threads share their memory anyway.
        read_patience: seconds to retry a disk that reports EIO, ESTALE or a similar error.
        collate_fn, persistent_workers, prefetch_factor, timeout: keys of Paddle's loader; they have no
            effect, because there are no processes.
    """

    num_workers: CountOrZero = 4
    use_shared_memory: bool = True
    read_patience: NotNegative = 60.0
    collate_fn: str | None = None
    persistent_workers: bool = False
    prefetch_factor: Count | None = None
    timeout: NotNegative = 0.0


@dataclass
class DatasetSection:
    """One data set.

    Attributes:
        dataset: the samples and how they are prepared.
        sampler: the order of the samples, and the size of a batch.
        loader: the threads that read them.
    """

    dataset: Annotated[Block, Component("dataset")]
    sampler: Annotated[Block, Component("sampler")]
    loader: LoaderSection = field(default_factory=LoaderSection)


@dataclass
class DataLoaderSection:
    """The data sets.

    Attributes:
        Train: training data.
        Eval: evaluation data.
    """

    Train: DatasetSection | None = None
    Eval: DatasetSection | None = None


@dataclass
class PostProcessSection:
    """What is printed of a prediction.

    Attributes:
        name: PaddleClas's key with the only value that is supported.
        topk: number of classes.
        class_id_map_file: class names, a file of ``id name`` lines.
    """

    name: Literal["Topk"] = "Topk"
    topk: Count = 5
    class_id_map_file: str | None = None


@dataclass
class InferSection:
    """Prediction.

    Attributes:
        infer_imgs: a file, a folder or a pattern.
        batch_size: images per batch.
        transforms: preparation of the images; empty for that of the evaluation.
        PostProcess: what is printed.
    """

    infer_imgs: str | None = None
    batch_size: Count = 10
    transforms: Annotated[list[Block], Components("transform")] = field(default_factory=list)
    PostProcess: PostProcessSection | None = None


@dataclass
class Config:
    """A checked config: typed sections, and a ``Block`` for each component.

    Attributes:
        Arch: the network.
        Optimizer: the optimizer and its learning-rate schedule.
        sources: where each key was written, for error messages.
        overrides: the keys that the command line gave, list items by their indices.
        own_folder: folder of the run whose ``config.yaml`` this is; None for any other YAML.
    """

    Arch: Annotated[Block, Component("model")]
    Global: GlobalSection = field(default_factory=GlobalSection)
    AMP: AMPSection | None = None
    EMA: EMASection | None = None
    Loss: LossSection | None = None
    Optimizer: Annotated[Block, Component("optimizer")] | None = None
    DataLoader: DataLoaderSection | None = None
    Infer: InferSection | None = None
    Metric: MetricSection | None = None
    sources: dict[KeyPath, str] = field(default_factory=dict, init=False, repr=False)
    overrides: list[KeyPath] = field(default_factory=list, init=False, repr=False, compare=False)
    own_folder: Path | None = field(default=None, init=False, repr=False, compare=False)

    def where(self, path: str = "") -> Where:
        """The place of a key, such as ``DataLoader.Train``, for error messages."""
        return Where(tuple(path.split(".")) if path else (), self.sources)

    @property
    def run_folder(self) -> Path:
        """The folder of the run: the one that its ``config.yaml`` lies in, or else ``<output_dir>/<Arch.name>``."""
        return self.own_folder or Path(self.Global.output_dir) / self.Arch.name

    @property
    def evaluation_transforms(self) -> list[Block]:
        """``transform_ops`` of ``DataLoader.Eval``; empty if there are none."""
        section = self.DataLoader.Eval if self.DataLoader else None
        return list(section.dataset.get("transform_ops") or []) if section else []

    def is_override(self, path: str) -> bool:
        """Whether the command line, or ``overrides`` in a notebook, gave this key, a part of it, or what it is a part of."""
        keys = tuple(path.split("."))
        return any(given[: len(keys)] == keys[: len(given)] for given in self.overrides)

    def to_yaml(self, is_run: bool = False) -> str:
        """The config as YAML that loads to the same config.

        Args:
            is_run: leave out what belongs to one start of a run, not to the run: the checkpoint to resume
                from.
        """
        sections = {f.name: plain(getattr(self, f.name)) for f in fields(self) if f.init}
        if is_run:
            sections["Global"] |= {"checkpoints": None, "allow_changes": False}
        return write_yaml({k: v for k, v in sections.items() if v is not None})


def plain(value: Any) -> Any:
    """A value of a config as YAML's own types."""
    if is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(v) for key, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value
