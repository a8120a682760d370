"""The sections of a config, typed. Components, which are open, are marked by their kind and checked by its registry.

The schema is PaddleClas's, so that its YAMLs run unchanged. Keys that PaddleClas reads and that have nothing to do here are
declared with the only value they may have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml

from ppxcls.config.checks import BelowOne, Count, CountOrZero, KeyPath, NotNegative, Positive, Share, Where
from ppxcls.config.registry import Block, Component, Components


@dataclass
class GlobalSection:
    """What is not about one component.

    Attributes:
        device: ``gpu``, ``cpu``, ``xpu`` or the name of a custom device that the installed Paddle knows.
        output_dir: everything is written below ``<output_dir>/<Arch.name>/``.
        save_interval: epochs between ``epoch_N`` checkpoints, which are kept; ``latest`` is written every epoch.
        save_interval_steps, save_interval_minutes: between checkpoints inside an epoch; null for none.
        keep_last: checkpoints ``step_N`` that are kept, to fall back on.
        eval_interval: epochs between evaluations.
        start_eval_epoch: first epoch that is evaluated.
        print_batch_step: iterations between log lines.
        seed: of the initial weights, the order and every random choice about a sample.
        pretrained_model: weights to start from, without ``.pdparams``.
        checkpoints: checkpoint to resume from, without extension; ``auto`` is the run's newest whole one, or none.
        allow_changes: resume although network, optimizer, data or samples a step are not those of the checkpoint.
        update_freq: micro-batches whose gradients are accumulated for one optimizer step.
        hang_timeout: seconds without progress, or without a batch from the loader, after which a run ends.
        on_bad_image: ``skip`` leaves out samples that can't be read and lists them.
        max_bad_share: of a list's samples; where more can't be read, the run stops.
        deterministic: choose operators on the device that give the same bits every time.
        check_data: look for every listed file before the first step.
        image_shape: ``[3, H, W]`` of exported models.
        save_inference_dir: where exported models go.
        plugins: modules with components of your own, imported before the config is checked: names, or paths of ``.py`` files.
        trackers: where figures go beside ``metrics.jsonl``.
    """

    checkpoints: str | None = None
    pretrained_model: str | None = None
    output_dir: str = "./output/"
    device: str = "gpu"
    save_interval: Count = 1
    save_interval_steps: Count | None = None
    save_interval_minutes: Positive | None = None
    keep_last: Count = 2
    eval_during_train: bool = True
    eval_interval: Count = 1
    start_eval_epoch: CountOrZero = 0
    epochs: Count = 120
    print_batch_step: Count = 10
    use_visualdl: bool = False
    seed: CountOrZero | None = None
    update_freq: Count = 1
    check_data: bool = False
    allow_changes: bool = False
    hang_timeout: Positive = 600.0
    on_bad_image: Literal["raise", "skip"] = "raise"
    max_bad_share: Share = 0.001
    deterministic: bool = False
    image_shape: tuple[int, int, int] = (3, 299, 299)
    save_inference_dir: str = "./inference"
    plugins: list[str] | None = None
    trackers: Annotated[list[Block], Components("tracker")] | None = None
    eval_mode: Literal["classification"] = "classification"
    task: Literal["classification"] = "classification"
    train_mode: Literal["classification"] | None = None
    to_static: Literal[False] = False
    use_dali: Literal[False] = False
    use_multilabel: Literal[False] = False


@dataclass
class AMPSection:
    """Automatic mixed precision; PaddleClas turns it on by the section alone, so ``use_amp`` is true unless it says otherwise.

    Attributes:
        scale_loss: initial loss scale.
        use_fp16_test: evaluate under AMP as well.
        dtype: of the computation.
        level: O1 casts by operator, O2 keeps the weights in float16 with float32 master copies.
        use_promote: under O2, compute in float32 where an operator's inputs differ.
        max_skipped_steps: steps in a row that loss scaling may leave out before the run stops.
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
    """An average of the weights, evaluated and kept as the run's result; PaddleClas turns it on by the section alone.

    Attributes:
        decay: of the average, an optimizer step.
        warmup: a smaller decay in the first steps: (1 + n) / (10 + n).
    """

    use_ema: bool = True
    decay: BelowOne = 0.9999
    warmup: bool = False


@dataclass
class LossSection:
    """Losses of training and of evaluation, each a weighted sum."""

    Train: Annotated[list[Block], Components("loss")]
    Eval: Annotated[list[Block], Components("loss")] | None = None


@dataclass
class MetricSection:
    """Metrics of training and of evaluation; null for none."""

    Train: Annotated[list[Block], Components("metric")] | None = None
    Eval: Annotated[list[Block], Components("metric")] | None = None


@dataclass
class LoaderSection:
    """How samples are read.

    Attributes:
        num_workers: threads that decode; 0 decodes in the loop's own thread.
        use_shared_memory: PaddleClas's; threads share memory as they are.
        read_patience: seconds during which a disk that is away (EIO, ESTALE and the like) is tried again.
    """

    num_workers: CountOrZero = 4
    use_shared_memory: bool = True
    read_patience: NotNegative = 60.0


@dataclass
class DatasetSection:
    """One data set with its order and its reader."""

    dataset: Annotated[Block, Component("dataset")]
    sampler: Annotated[Block, Component("sampler")]
    loader: LoaderSection = field(default_factory=LoaderSection)


@dataclass
class DataLoaderSection:
    """The data sets of training and of evaluation."""

    Train: DatasetSection | None = None
    Eval: DatasetSection | None = None


@dataclass
class PostProcessSection:
    """From logits to the answer: the ``topk`` classes, with names from a file of ``id name`` lines."""

    name: Literal["Topk"] = "Topk"
    topk: Count = 5
    class_id_map_file: str | None = None


@dataclass
class InferSection:
    """What to predict and how."""

    infer_imgs: str | None = None
    batch_size: Count = 10
    transforms: Annotated[list[Block], Components("transform")] = field(default_factory=list)
    PostProcess: PostProcessSection | None = None


@dataclass
class Config:
    """A checked config: typed sections, and a ``Block`` for each component."""

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

    def where(self, path: str = "") -> Where:
        """The place of a key, such as ``DataLoader.Train``, for error messages."""
        return Where(tuple(path.split(".")) if path else (), self.sources)

    @property
    def run_folder(self) -> Path:
        """Where a run of this config writes."""
        return Path(self.Global.output_dir) / self.Arch.name

    def to_yaml(self) -> str:
        """The config as YAML that loads to the same config."""
        sections = {f.name: plain(getattr(self, f.name)) for f in fields(self) if f.init}
        return yaml.safe_dump({k: v for k, v in sections.items() if v is not None}, sort_keys=False, allow_unicode=True)


def plain(value: Any) -> Any:
    """A value of a config as YAML's own types."""
    if is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(v) for key, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value
