"""The typed sections of a config.

An annotation gives the kind of a component, and the registry of that kind checks it.

The schema is PaddleClas's, so its YAMLs run unchanged. Keys of PaddleClas that have no effect here are
declared with the only allowed value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from ppxcls.config.checks import (
    BelowOne,
    Bound,
    ConfigPlace,
    Count,
    CountOrZero,
    KeyPath,
    Minutes,
    NotNegative,
    OpenShare,
    Positive,
    Seconds,
    SecondsOrZero,
    Share,
)
from ppxcls.config.paths import with_absolute_paths
from ppxcls.config.registry import Block, Component, Components
from ppxcls.config.yaml_values import write_yaml

_LoaderCount = Annotated[int, Bound(ge=0, le=1024)]  # more would only use up the machine's memory


@dataclass
class EarlyStopSection:
    """Ends the run if the figure that chooses ``best_model`` has stopped improving.

    The presence of the section turns it on. A smaller loss at an equal figure is no improvement.

    Attributes:
        patience: number of evaluations in a row without an improvement after which the run ends. With an
            ``eval_interval`` of 2, each of them stands for two epochs.
        min_delta: difference from the last improvement, in the unit of the figure; 0.001 is 0.1 % of an
            accuracy. Only a larger difference is an improvement.
        start_epoch: first epoch whose evaluation counts, such as the end of the warm-up.
    """

    patience: Count = 10
    min_delta: NotNegative = 0.0
    start_epoch: CountOrZero = 0


@dataclass
class GlobalSection:
    """Settings of the whole run.

    Attributes:
        device: kind of device: ``gpu``, ``cpu``, ``xpu`` or the name of a custom device that the installed
            Paddle knows. A number may follow, as in ``gpu:1``; under a launcher, it has no effect.
        output_dir: folder of all runs. A run writes its files to ``<output_dir>/<Arch.name>/``.
        save_interval: number of epochs between ``epoch_N`` checkpoints, which are never removed.
        latest_interval: number of epochs between writes of ``latest`` and ``step_N``. They are also written
            at the end and after a signal.
        save_interval_steps: number of optimizer steps between checkpoints within an epoch; null for no such
            checkpoints.
        save_interval_minutes: minutes between checkpoints within an epoch; null for no such checkpoints.
        keep_last: number of ``step_N`` checkpoints to keep.
        best_model_optimizer: True to write the optimizer's state with ``best_model`` too, so that a run can
            resume from it.
        weights_format: format of the weights in checkpoints: Paddle's ``.pdparams``, or ``.safetensors``.
        eval_during_train: True to evaluate during training.
        eval_interval: number of epochs between evaluations.
        start_eval_epoch: first epoch that is followed by an evaluation.
        best_metric: figure of the evaluations that decides which checkpoint is ``best_model``, spelled as in
            ``metrics.jsonl``, such as ``AUC``; null for the first figure of ``Metric.Eval``. The smallest
            loss or error rate is the best, and the largest value of any other figure.
        calibrate: True to fit a temperature to each evaluation that is the best so far. Scores of
            predictions are then softmax(logits / temperature); see docs/calibration.md. A list of fewer than
            50 images has none.
        epochs: number of epochs of the whole run.
        early_stop: end of the run if its evaluations have stopped improving; null to train all epochs.
        max_hours: hours that one start of the run may train. Then it saves and ends with exit code 0, and
            can be resumed. Each start, also a restart by ``ppxcls launch``, has all of these hours. Null for
            no limit.
        print_batch_step: number of iterations between log lines.
        use_visualdl: True to write curves for VisualDL to ``vdl/``.
        seed: seed of the initial weights, the order of the samples, and every random choice about a sample;
            null is 0.
        pretrained_model: weights to start from or to evaluate: a file, whose extension ``.pdparams`` may be
            omitted, or a word as in ``Arch.pretrained``.
        checkpoints: checkpoint to resume, without extension; ``auto`` takes the newest whole one of the run,
            if there is one.
        allow_changes: True to resume even if network, optimizer, seed, training list or samples per step have
            changed.
        update_freq: number of micro-batches per optimizer step. Their gradients are accumulated.
        samples_per_step: number of samples of all processes in one optimizer step. It sets ``update_freq``,
            for any number of processes.
        hang_timeout: seconds without progress until the run is ended. The first step of the training and of
            the evaluation gets three times as long, because it may compile.
        on_bad_image: reaction to an unreadable sample: ``raise`` stops the run; ``skip`` leaves the sample
            out and lists it.
        max_bad_share: largest fraction of unreadable samples in a list. The run stops if there are more. One
            unreadable sample is always allowed, unless the fraction is 0.
        deterministic: True to use the device's deterministic operators; on GPUs, only with
            ``Arch.data_format: NCHW``.
        check_data: True to look for every listed file before the first step.
        image_shape: PaddleClas's key, ``[3, H, W]``. The transforms determine the size; a warning reports if
            this key differs from it.
        image_channel: PaddleClas's key; it has no effect.
        save_inference_dir: folder of exported models. The config of somebody else's run may name only the
            default or a folder in the run's folder.
        eval_mode, task, train_mode: PaddleClas's keys, each with the only supported value.
        to_static: True to run the network as a static graph in training and evaluation; ``CINN`` to compile
            this graph with Paddle's compiler too, which takes minutes.
        cudnn_search: True to let cuDNN try all algorithms for each shape of convolution; GPUs only.
        pin_memory: key of earlier versions; it has no effect, because batches are always copied to GPUs from
            pinned memory, without waiting for the copy.
        comm_buffer_size: megabytes of gradients that processes exchange at once.
        scale_lr: scaling of the whole schedule. The ratio is the samples per step over ``base_batch_size``.
            ``linear`` multiplies by the ratio (arXiv:1706.02677), ``sqrt`` by its square root
            (arXiv:1404.5997).
        base_batch_size: samples per step of all processes for which the learning rate was chosen.
        use_dali, use_multilabel: PaddleClas's keys for features that are not supported.
        plugins: modules with your own components: names, or paths of ``.py`` files. They are imported before
            the config is checked, if you have agreed to run them (``--trust``).
        trackers: components that receive the metrics of the run, in addition to ``metrics.jsonl``.
    """

    checkpoints: str | None = None
    pretrained_model: str | bool | None = None
    output_dir: str = "./output/"
    device: str = "gpu"
    save_interval: Count = 1
    save_interval_steps: Count | None = None
    save_interval_minutes: Minutes | None = None
    latest_interval: Count = 1
    keep_last: Count = 2
    best_model_optimizer: bool = False
    weights_format: Literal["pdparams", "safetensors"] = "pdparams"
    eval_during_train: bool = True
    eval_interval: Count = 1
    start_eval_epoch: CountOrZero = 0
    best_metric: str | None = None
    calibrate: bool = True
    epochs: Count = 120
    early_stop: EarlyStopSection | None = None
    max_hours: Positive | None = None
    print_batch_step: Count = 10
    use_visualdl: bool = False
    seed: CountOrZero | None = None
    update_freq: Count = 1
    samples_per_step: Count | None = None
    check_data: bool = False
    allow_changes: bool = False
    hang_timeout: Seconds = 600.0
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
    to_static: bool | Literal["CINN"] = False
    cudnn_search: bool = False
    pin_memory: bool = False
    comm_buffer_size: Count = 25
    scale_lr: Literal["linear", "sqrt"] | None = None
    base_batch_size: Count | None = None
    use_dali: Literal[False] = False
    use_multilabel: Literal[False] = False


@dataclass
class AMPSection:
    """Automatic mixed precision. The presence of the section turns it on, as in PaddleClas.

    Attributes:
        use_amp: False to turn it off.
        scale_loss: initial loss scale.
        use_fp16_test: True to use AMP in evaluations too.
        use_dynamic_loss_scaling: True to adapt the loss scale to overflows of the gradients.
        dtype: type of the computation. On a CPU, ``bfloat16`` has an effect under O1, for dense convolutions
            in training, if the processor has AVX512-BF16 or AMX; ``float16`` has none.
        level: level of AMP. O1 casts operator by operator; O2 keeps the weights in ``dtype``, with float32
            master copies.
        half_depthwise: True to compute depthwise convolutions in ``dtype`` under O1 too. Without it, they,
            their batch norms and activations stay in float32, and a network that is limited by the memory's
            speed gains little.
        use_promote: True to compute in float32 under O2 if the inputs of an operator differ in type.
        max_skipped_steps: largest number of consecutive steps that loss scaling may skip. The run stops after
            more.
    """

    use_amp: bool = True
    use_fp16_test: bool = False
    scale_loss: Positive = 1.0
    use_dynamic_loss_scaling: bool = False
    half_depthwise: bool = True
    use_promote: bool = True
    dtype: Literal["float16", "bfloat16"] = "float16"
    level: Literal["O1", "O2"] = "O1"
    max_skipped_steps: Count = 100


@dataclass
class EMASection:
    """A moving average of the weights, which is evaluated and exported instead of the weights.

    The presence of the section turns it on.

    Attributes:
        use_ema: False to turn it off.
        decay: decay of the average in each optimizer step.
        warmup: True to limit the decay of step n to (1 + n) / (10 + n).
    """

    use_ema: bool = True
    decay: BelowOne = 0.9999
    warmup: bool = False


@dataclass
class LossSection:
    """Losses. Several losses are added, each multiplied by its ``weight``.

    Attributes:
        Train: training losses.
        Eval: evaluation losses; null for CELoss.
    """

    Train: Annotated[list[Block], Components("loss")]
    Eval: Annotated[list[Block], Components("loss")] | None = None


@dataclass
class MetricSection:
    """Metrics.

    Attributes:
        Train: training metrics, skipped if labels are mixed; null for no metrics.
        Eval: evaluation metrics; null for no metrics. Without ``Global.best_metric``, the first figure
            decides which checkpoint is ``best_model``; without metrics, the first loss does.
    """

    Train: Annotated[list[Block], Components("metric")] | None = None
    Eval: Annotated[list[Block], Components("metric")] | None = None


@dataclass
class LoaderSection:
    """Settings for reading the samples.

    Attributes:
        num_workers: number of threads that read and decode, in all processes; 0 uses the thread of the
            training loop.
        num_processes: number of processes per rank among which the threads are divided; 0 uses threads of
            the training process. Null uses one process for every two threads on an accelerator, up to the
            number of cores, and 0 on a CPU. The batches are the same.
        use_shared_memory: PaddleClas's key; it has no effect, because the processes share memory without
            ``/dev/shm``.
        read_patience: seconds during which reads are retried if a disk reports EIO, ESTALE or a similar
            error.
        collate_fn, persistent_workers, prefetch_factor, timeout: keys of Paddle's loader; they have no
            effect.
    """

    num_workers: _LoaderCount = 4
    num_processes: _LoaderCount | None = None
    use_shared_memory: bool = True
    read_patience: SecondsOrZero = 60.0
    collate_fn: str | None = None
    persistent_workers: bool = False
    prefetch_factor: Count | None = None
    timeout: NotNegative = 0.0


@dataclass
class DatasetSection:
    """One data set.

    Attributes:
        dataset: samples and their preparation.
        sampler: order of the samples, and size of a batch.
        loader: threads and processes that read the samples.
    """

    dataset: Annotated[Block, Component("dataset")]
    sampler: Annotated[Block, Component("sampler")]
    loader: LoaderSection = field(default_factory=LoaderSection)


@dataclass
class JudgingSection:
    """Images that judge a finished model. They are prepared and loaded as those of ``DataLoader.Eval``.

    Attributes:
        cls_label_path: list file.
        image_root: folder to which the paths in the list are relative; null for that of ``DataLoader.Eval``.
    """

    cls_label_path: str
    image_root: str | None = None


@dataclass
class DataLoaderSection:
    """The data sets.

    Attributes:
        Train: training data.
        Eval: evaluation data, which choose the best epoch.
        Test: images that neither train nor choose. Only ``ppxcls eval --test`` and the end of ``ppxcls fit``
            use them.
    """

    Train: DatasetSection | None = None
    Eval: DatasetSection | None = None
    Test: JudgingSection | None = None


@dataclass
class PostProcessSection:
    """The output of a prediction.

    Attributes:
        name: kind of output: ``Topk`` for the best classes; ``ThreshOutput`` for one of two classes, by the
            score of class 1.
        topk: number of classes to print.
        class_id_map_file: file of class names, with lines ``id name``.
        threshold: smallest score of class 1 for which ``ThreshOutput`` answers it, from 0 to 1.
        label_0: name of class 0 in an answer of ``ThreshOutput``; null for its own name.
        label_1: name of class 1 in an answer of ``ThreshOutput``; null for its own name.
        unknown_share: largest share of known images that are turned away as unknown, such as 0.05; null for
            no such answer. The run needs a calibration.
        coverage: share of images whose set of classes contains the true class, such as 0.95; null for no
            sets. The run needs a calibration.
    """

    name: Literal["Topk", "ThreshOutput"] = "Topk"
    topk: Count = 5
    class_id_map_file: str | None = None
    threshold: Share | None = None
    label_0: str | None = None
    label_1: str | None = None
    unknown_share: OpenShare | None = None
    coverage: OpenShare | None = None


@dataclass
class InferSection:
    """Prediction.

    Attributes:
        infer_imgs: image file, folder or pattern.
        batch_size: number of images per batch.
        transforms: preparation of the images; empty for that of the evaluation.
        PostProcess: output of a prediction.
    """

    infer_imgs: str | None = None
    batch_size: Count = 10
    transforms: Annotated[list[Block], Components("transform")] = field(default_factory=list)
    PostProcess: PostProcessSection | None = None


@dataclass
class Config:
    """A checked config: typed sections, and a ``Block`` for each component.

    Attributes:
        Arch: network.
        Optimizer: optimizer and its learning-rate schedule.
        sources: source of each key, for error messages.
        overrides: key paths that the command line gave, with list items as indices.
        own_folder: folder of the run that wrote this ``config.yaml``; None for any other YAML, and if the
            command line chooses another run.
        untrusted_folder: folder of a run that the config was read from, also if the command line chooses
            another run; None if the user has trained or trusts this run, and for a YAML in no such folder.
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
    untrusted_folder: Path | None = field(default=None, init=False, repr=False, compare=False)

    def where(self, path: str = "") -> ConfigPlace:
        """Returns the place of a key, such as ``DataLoader.Train``, for error messages."""
        return ConfigPlace(tuple(path.split(".")) if path else (), self.sources)

    @property
    def run_folder(self) -> Path:
        """The folder of the run.

        It is the folder that contains the run's ``config.yaml``, or else ``<output_dir>/<Arch.name>``.
        """
        return self.own_folder or Path(self.Global.output_dir) / self.Arch.name

    @property
    def evaluation_transforms(self) -> list[Block]:
        """``transform_ops`` of ``DataLoader.Eval``; empty if there are none."""
        section = self.DataLoader.Eval if self.DataLoader else None
        return list(section.dataset.get("transform_ops") or []) if section else []

    def is_override(self, path: str) -> bool:
        """True if the command line, or ``overrides`` in a notebook, gave a key or a part of it.

        An override of a section above the key counts too.
        """
        keys = tuple(path.split("."))
        return any(override[: len(keys)] == keys[: len(override)] for override in self.overrides)

    def to_yaml(self, *, is_run: bool = False, has_absolute_paths: bool = False) -> str:
        """Returns the config as YAML, which loads to the same config.

        Args:
            is_run: True to leave out the keys of one start of a run, such as the checkpoint to resume.
            has_absolute_paths: True to write paths that are valid from any folder.
        """
        sections = {f.name: to_plain(getattr(self, f.name)) for f in fields(self) if f.init}
        if is_run:
            sections["Global"] |= {"checkpoints": None, "allow_changes": False}
        if has_absolute_paths:
            sections = with_absolute_paths(sections)
        return write_yaml({k: v for k, v in sections.items() if v is not None})


def to_plain(value: Any) -> Any:
    """Returns a value of a config as YAML's own types."""
    if is_dataclass(value):
        return {f.name: to_plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        # The attribute ``items`` of an EasyDict may be the value of a key of this name.
        pairs = dict.items(value) if isinstance(value, dict) else value.items()
        return {key: to_plain(v) for key, v in pairs}
    return [to_plain(v) for v in value] if isinstance(value, list | tuple) else value
