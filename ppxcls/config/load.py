"""YAML to a checked ``Config``: sections are typed here, components are checked against their own signatures.

The schema is PaddleClas's, so that its YAMLs run unchanged. Keys that PaddleClas reads and that have nothing to do here are
declared with the only value they may have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml

from ppxcls.config.checks import (
    BelowOne,
    ConfigError,
    Count,
    CountOrZero,
    KeyPath,
    NotNegative,
    Positive,
    Share,
    Where,
    check_section,
    unknown,
)
from ppxcls.config.registry import Component, Components

_CONSTRUCTOR = yaml.SafeLoader("")
_MAX_DEPTH, _MAX_KEYS = 50, 20_000  # an alias can repeat or contain itself
_PACKAGED_CLASS_NAMES = Path(__file__).parents[1] / "data" / "imagenet1k_classes.txt"


@dataclass
class Global:
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
    eval_mode: Literal["classification"] = "classification"
    task: Literal["classification"] = "classification"
    train_mode: Literal["classification"] | None = None
    to_static: Literal[False] = False
    use_dali: Literal[False] = False
    use_multilabel: Literal[False] = False


@dataclass
class AMP:
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
class EMA:
    """An average of the weights, evaluated and kept as the run's result; PaddleClas turns it on by the section alone.

    Attributes:
        decay: of the average, an optimizer step.
        warmup: a smaller decay in the first steps: (1 + n) / (10 + n).
    """

    use_ema: bool = True
    decay: BelowOne = 0.9999
    warmup: bool = False


@dataclass
class Loss:
    """Losses of training and of evaluation, each a weighted sum."""

    Train: Annotated[list, Components("loss")]
    Eval: Annotated[list, Components("loss")] | None = None


@dataclass
class Metric:
    """Metrics of training and of evaluation; null for none."""

    Train: Annotated[list, Components("metric")] | None = None
    Eval: Annotated[list, Components("metric")] | None = None


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

    dataset: Annotated[dict, Component("dataset")]
    sampler: Annotated[dict, Component("sampler")]
    loader: LoaderSection = field(default_factory=LoaderSection)


@dataclass
class DataLoader:
    """The data sets of training and of evaluation."""

    Train: DatasetSection | None = None
    Eval: DatasetSection | None = None


@dataclass
class PostProcess:
    """From logits to the answer: the ``topk`` classes, with names from a file of ``id name`` lines."""

    name: Literal["Topk"] = "Topk"
    topk: Count = 5
    class_id_map_file: str | None = None


@dataclass
class Infer:
    """What to predict and how."""

    infer_imgs: str | None = None
    batch_size: Count = 10
    transforms: Annotated[list, Components("transform")] = field(default_factory=list)
    PostProcess: PostProcess | None = None


@dataclass
class Config:
    """A checked config: typed sections; components are open blocks whose keys read as attributes too
    (``config.Optimizer.lr.learning_rate``).
    """

    Arch: Annotated[dict, Component("model")]
    Global: Global = field(default_factory=Global)
    AMP: AMP | None = None
    EMA: EMA | None = None
    Loss: Loss | None = None
    Optimizer: Annotated[dict, Component("optimizer")] | None = None
    DataLoader: DataLoader | None = None
    Infer: Infer | None = None
    Metric: Metric | None = None
    sources: dict[KeyPath, str] = field(default_factory=dict, init=False, repr=False)

    def where(self, path: str = "") -> Where:
        """The place of a key, such as ``DataLoader.Train``, for error messages."""
        return Where(tuple(path.split(".")) if path else (), self.sources)

    @property
    def run_folder(self) -> Path:
        """Where a run of this config writes."""
        return Path(self.Global.output_dir) / str(self.Arch["name"])

    def to_yaml(self) -> str:
        """The config as YAML that loads to the same config."""
        sections = {f.name: plain(getattr(self, f.name)) for f in fields(self) if f.init}
        return yaml.safe_dump({k: v for k, v in sections.items() if v is not None}, sort_keys=False, allow_unicode=True)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML, apply the overrides, check everything.

    Args:
        overrides: ``A.b.c=value``, the value in YAML; list items by index, a component of a list by its index, its name or both.

    Raises:
        ConfigError: the file is missing, is no YAML, or a key, name, type or value is wrong; says file, line and key.
    """
    sources: dict[KeyPath, str] = {}
    raw = _read_yaml(Path(path), sources)
    for override in overrides:
        _apply_override(raw, override, sources)
    config: Config = check_section(raw, Config, Where((), sources))
    config.sources = sources
    _resolve_class_names(config)
    return config


def _read_yaml(path: Path, sources: dict[KeyPath, str]) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can't be read: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: not valid YAML: {_reason(error)}") from None
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{path}: expected a mapping of sections, such as Global and Arch")
    sources[()] = str(path)
    return _construct(node, path, (), sources)


def _construct(node: yaml.Node, path: Path, keys: KeyPath, sources: dict[KeyPath, str]) -> Any:
    """The node's plain value; notes the line of every key path, and refuses a key written twice."""
    if keys:
        sources[keys] = f"{path}:{node.start_mark.line + 1}"
    if len(keys) > _MAX_DEPTH or len(sources) > _MAX_KEYS:
        raise ConfigError(
            f"{path}: nested more than {_MAX_DEPTH} deep or more than {_MAX_KEYS} keys: anchors that repeat themselves?"
        )
    if isinstance(node, yaml.MappingNode):
        _CONSTRUCTOR.flatten_mapping(node)  # merge keys, <<
        value: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            if key in value:
                line = key_node.start_mark.line + 1
                raise ConfigError(f"{path}:{line}: {'.'.join((*keys, key))}: written twice in the same mapping")
            below = (*keys, key)
            value[key] = _construct(value_node, path, below, sources)
            sources[below] = f"{path}:{key_node.start_mark.line + 1}"
        return value
    if isinstance(node, yaml.SequenceNode):
        return [_construct(item, path, (*keys, str(i)), sources) for i, item in enumerate(node.value)]
    try:
        return _CONSTRUCTOR.construct_object(node)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{sources[keys]}: {'.'.join(keys)}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """PyYAML's own words, in one line."""
    return getattr(error, "problem", None) or " ".join(str(error).split())


def _apply_override(raw: dict[str, Any], override: str, sources: dict[KeyPath, str]) -> None:
    """Set one key; that it is a declared one is seen when the whole is checked."""
    source = f"-o {override}"
    name, equals, text = override.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"{source}: expected KEY.KEY=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: the value is not valid YAML: {_reason(error)}") from None
    parent, key, done = _descend(raw, keys, source, sources)
    if isinstance(parent, list):
        parent[int(key)] = value
    else:
        parent[key] = value
    for below in [k for k in sources if k[: len(done)] == done]:
        del sources[below]
    sources[done] = source


def _descend(
    raw: dict[str, Any], keys: list[str], source: str, sources: dict[KeyPath, str]
) -> tuple[dict[str, Any] | list[Any], str, KeyPath]:
    """The mapping or list that holds an override's key, the key in it, and the full key path; makes sections that are not there."""
    target: Any = raw
    done: KeyPath = ()
    remaining = list(keys)
    while True:
        key = remaining.pop(0)
        if isinstance(target, list) and not key.isdigit():
            remaining.insert(0, key)  # a component's name: the item, then the name in it
        if isinstance(target, list):
            key = _list_index(target, key, Where(done, {(): source}))
        done = (*done, key)
        if not remaining:
            return target, key, done
        if isinstance(target, dict) and target.get(key) is None:
            target[key] = {}
            sources[done] = source
        target = target[int(key)] if isinstance(target, list) else target[key]
        if not isinstance(target, dict | list):
            raise ConfigError(f"{source}: {'.'.join(done)} is {target!r}: it has no keys")


def _list_index(items: list[Any], key: str, where: Where) -> str:
    """The index that a key of an override means: a number, or the name of a component."""
    if key.isdigit() and int(key) < len(items):
        return key
    names = [str(next(iter(item), "")) if isinstance(item, dict) else str(item) for item in items]
    if names.count(key) == 1:
        return str(names.index(key))
    raise where.error(unknown(key, [str(i) for i in range(len(items))] + names, "list index"))


def plain(value: Any) -> Any:
    """A value of a config as YAML's own types."""
    if is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value


def _resolve_class_names(config: Config) -> None:
    """PaddleClas's YAMLs name a file of its own source tree; where it is not there, the same names ship with this package."""
    process = config.Infer and config.Infer.PostProcess
    if process and process.class_id_map_file and not Path(process.class_id_map_file).exists():
        if Path(process.class_id_map_file).name != "imagenet1k_label_list.txt":
            raise config.where("Infer.PostProcess.class_id_map_file").error(
                f"expected a file of lines 'id name', received {process.class_id_map_file!r}, which does not exist"
            )
        process.class_id_map_file = str(_PACKAGED_CLASS_NAMES)
