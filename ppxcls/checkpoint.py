"""A model's and an optimizer's state: taken from them and set again exactly, whatever process and library wrote it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn

from ppxcls.ema import EMA
from ppxcls.foreign_weights import SUFFIXES, read_foreign_weights, write_safetensors
from ppxcls.state_files import (
    CheckpointError,
    State,
    beside,
    read_checkpoint,
    read_manifest,
    read_part,
    read_state,
    unpickle,
    write_checkpoint,
    write_state,
)

_NAMES = "StructuredToParameterName@@"  # where Paddle keeps the parameters' names in a saved state dict


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        epoch: the epoch in progress, from 1.
        batches_done: global batches of that epoch that are done.
        step: optimizer steps done.
        best: ``{"metric": name, "value": ..., "epoch": ...}`` of the best evaluation, or empty.
        totals: sums of the epoch so far: samples, and each loss and metric times samples.
        scaler: state of AMP's loss scaling.
        plateau: state of a schedule that needs the evaluations.
        skipped: steps that AMP left out in a row until now, since a gradient was not finite.
        skipped_total: steps that it left out in the whole run.
        started: when the run began, ISO 8601: one that began later in the same folder is the newer one, wherever it stands.
    """

    epoch: int = 1
    batches_done: int = 0
    step: int = 0
    best: dict[str, Any] = field(default_factory=dict)
    totals: dict[str, float] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)
    plateau: dict[str, float] = field(default_factory=dict)
    skipped: int = 0
    skipped_total: int = 0
    started: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"epoch {self.epoch}, batch {self.batches_done}, step {self.step}"


def weights_file(path: str | Path) -> Path:
    """The file that a prefix such as ``output/Xception41/best_model`` names; a path with the extension names itself."""
    path = Path(path)
    return path if path.suffix in (".pdparams", *SUFFIXES) else path.with_name(path.name + ".pdparams")


def load_weights(model: nn.Layer, path: str | Path, keep_trunk: bool = False, average: bool = False) -> list[str]:
    """Set a model's parameters and batch-norm statistics by state key.

    Args:
        path: ``.pdparams`` file, with or without its extension, which is checked against the manifest where it belongs to a
            checkpoint; or a file of timm's or Keras's with its extension.
        average: take the run's average of the weights (EMA), where the checkpoint has one.
        keep_trunk: where the classifier has another number of classes than the weights, leave it as it is instead of raising.

    Returns:
        Keys of the classifier that were left as they are.

    Raises:
        CheckpointError: the file can't be used, or tensors are missing, unknown or of another shape; names them.
    """
    file = weights_file(path)
    prefix = file.with_suffix("")
    if file.suffix in SUFFIXES:
        state = read_foreign_weights(file)
    elif beside(prefix, ".json").exists():
        manifest = read_manifest(prefix)
        state = read_part(prefix, manifest, ".pdema" if average and ".pdema" in manifest["parts"] else ".pdparams")
    else:
        state = read_state(file)
    return _set_weights(model, state, file, keep_trunk)


def save_weights(model: nn.Layer, file: Path) -> None:
    """Write a model's weights as ``.pdparams`` or ``.safetensors``.

    Raises:
        CheckpointError: another extension, or safetensors is not installed.
        OSError: the file can't be written.
    """
    if file.suffix == ".safetensors":
        write_safetensors(file, _numpy(model.state_dict()))
    elif file.suffix == ".pdparams":
        write_state(file, _model_state(model))
    else:
        raise CheckpointError(f"{file}: expected .pdparams or .safetensors")


def _set_weights(model: nn.Layer, state: State, file: Path, keep_trunk: bool) -> list[str]:
    state = {key: value for key, value in state.items() if key != _NAMES}
    left = _check_fits(state, model, file, _classifier_keys(model) if keep_trunk else set())
    model.set_state_dict({key: paddle.to_tensor(value) for key, value in state.items() if key not in left})
    return list(left.values())


def _check_fits(state: State, model: nn.Layer, file: Path, may_differ: Set[str] = frozenset()) -> dict[str, str]:
    """What of ``may_differ`` has another shape, and how; raises CheckpointError where anything else does not fit."""
    own = model.state_dict()
    state = {key: value for key, value in state.items() if key != _NAMES}
    problems = [f"{key} is not in the file" for key in own if key not in state]
    problems += [f"{key} is not in the model" for key in state if key not in own]
    problems += [f"{key} is no array of numbers" for key in own if key in state and not _is_numeric(state[key])]
    shapes = {
        key: f"{key} is {list(np.shape(state[key]))} in the file, {list(own[key].shape)} in the model"
        for key in own
        if key in state and tuple(np.shape(state[key])) != tuple(own[key].shape)
    }
    problems += [text for key, text in shapes.items() if key not in may_differ]
    if problems:
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise CheckpointError(f"{file} does not fit the model: {'; '.join(problems[:8])}{more}")
    return shapes


def _is_numeric(value: Any) -> bool:
    return isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "fiu"


def _classifier_keys(model: nn.Layer) -> set[str]:
    """Keys of the last linear layer."""
    names = [name for name, layer in model.named_sublayers() if isinstance(layer, nn.Linear)]
    return {f"{names[-1]}.weight", f"{names[-1]}.bias"} if names else set()


def snapshot(model: nn.Layer, optimizer: paddle.optimizer.Optimizer, ema: EMA | None = None) -> dict[str, State]:
    """Copies of the states in the host's memory, by the extension of their files.

    Raises:
        CheckpointError: a weight is not finite, so it is not worth saving; names it.
    """
    states = {".pdparams": _model_state(model), ".pdopt": _optimizer_state(optimizer)}
    for key, value in states[".pdparams"].items():
        if isinstance(value, np.ndarray) and not np.isfinite(value).all():
            raise CheckpointError(f"{key} has values that are not finite: no checkpoint is made of it")
    if ema is not None:
        states[".pdema"] = ema.state_dict()
    return states


def manifest_of(progress: Progress, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint's manifest says beside its parts."""
    return {**facts, "progress": asdict(progress)}


def save_checkpoint(
    prefixes: Sequence[Path],
    model: nn.Layer,
    optimizer: paddle.optimizer.Optimizer,
    progress: Progress,
    facts: Mapping[str, Any],
) -> None:
    """Save one state under one or more prefixes, each whole or not at all.

    Args:
        facts: written into the manifest for readers: the package's version, the config.

    Raises:
        OSError: it can't be written; earlier checkpoints stay whole.
        CheckpointError: a weight is not finite.
    """
    prefixes[0].parent.mkdir(parents=True, exist_ok=True)
    write_checkpoint(prefixes, snapshot(model, optimizer), manifest_of(progress, facts))


def load_checkpoint(
    prefix: str | Path,
    model: nn.Layer,
    optimizer: paddle.optimizer.Optimizer,
    check: Callable[[Mapping[str, Any]], None] = lambda manifest: None,
    ema: EMA | None = None,
) -> tuple[Progress, dict[str, Any]]:
    """Load weights and optimizer state of a checkpoint, PaddleClas's included.

    Args:
        check: sees the manifest before anything is set, and may raise.

    Returns:
        Where the run stood, and the manifest; of PaddleClas's, whose files do not say the step, an empty one and step 0.

    Raises:
        CheckpointError: missing, damaged, of a newer format, or of another model or optimizer.
    """
    prefix = checkpoint_prefix(prefix)
    if not beside(prefix, ".json").exists() and beside(prefix, ".pdstates").exists():
        states, progress, manifest = _read_paddleclas(prefix)
    else:
        states, manifest = read_checkpoint(prefix)
        progress = _progress(manifest["progress"], prefix)
    check(manifest)
    weights = states[".pdparams"]
    _set_weights(model, weights, beside(prefix, ".pdparams"), keep_trunk=False)
    _set_optimizer_state(optimizer, states[".pdopt"], weights.get(_NAMES, {}), model, beside(prefix, ".pdopt"))
    if ema is not None:
        average = states.get(".pdema", weights)  # a run that had none begins it with the weights
        _check_fits(average, model, beside(prefix, ".pdema"))
        ema.load_state_dict(average)
    return progress, manifest


def checkpoint_prefix(path: str | Path) -> Path:
    """The prefix that a user means, who may name one of the files."""
    path = Path(path)
    return path.with_suffix("") if path.suffix in (".json", ".pdparams", ".pdopt", ".pdstates") else path


def _progress(values: Mapping[str, Any], prefix: Path) -> Progress:
    known = {f.name: type(getattr(Progress(), f.name)) for f in fields(Progress)}
    wrong = [key for key, value in values.items() if not isinstance(value, known.get(key, ()))]
    if wrong:
        raise CheckpointError(f"{beside(prefix, '.json')}: the progress has {', '.join(wrong)}, which mean nothing here")
    return Progress(**values)


def _read_paddleclas(prefix: Path) -> tuple[dict[str, State], Progress, dict[str, Any]]:
    """PaddleClas writes ``metric`` and ``epoch``, the last one that was done, into ``.pdstates``."""
    file = beside(prefix, ".pdstates")
    said = unpickle(file.read_bytes(), file)
    epoch = said.get("epoch") if isinstance(said, dict) else None
    if not isinstance(epoch, int | float) or not 0 <= epoch < 1e6 or epoch != int(epoch):
        raise CheckpointError(f"{file}: expected the epoch that was done, received {epoch!r}")
    states = {extension: read_state(beside(prefix, extension)) for extension in (".pdparams", ".pdopt")}
    return states, Progress(epoch=int(epoch) + 1), {}


def _numpy(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _numpy(value) for key, value in tree.items()}
    return tree.numpy() if isinstance(tree, paddle.Tensor) else tree


def _model_state(model: nn.Layer) -> dict[str, Any]:
    state = model.state_dict()
    return {**_numpy(state), _NAMES: {key: tensor.name for key, tensor in state.items()}}


def _optimizer_state(optimizer: paddle.optimizer.Optimizer) -> dict[str, Any]:
    return _numpy({key: value for key, value in optimizer.state_dict().items() if key != "LR_Scheduler"})


def _set_optimizer_state(
    optimizer: paddle.optimizer.Optimizer,
    state: dict[str, Any],
    saved_names: dict[str, str],
    model: nn.Layer,
    file: Path,
) -> None:
    """Set the state under this process's names of the parameters, which depend on what was built before them."""
    own_names = {key: tensor.name for key, tensor in model.state_dict().items()}
    renamed = {saved: own_names[key] for key, saved in saved_names.items() if key in own_names}
    trained = {p.name for p in optimizer._parameter_list if not p.stop_gradient}

    longest_first = sorted(renamed, key=len, reverse=True)  # one name can begin another

    def rename(key: str) -> str | None:
        """``conv2d_0.w_0_velocity_0`` is the parameter's name and the accumulator's."""
        name = next((n for n in longest_first if key.startswith(n + "_")), None)
        return None if name is None else renamed[name] + key[len(name) :]

    values: dict[str, Any] = {}
    for key, value in state.items():
        if key == "master_weights" and isinstance(value, dict):
            values[key] = {renamed[name]: paddle.to_tensor(v) for name, v in value.items() if name in renamed}
        elif _is_numeric(value) and (new := rename(key)) is not None:
            values[new] = paddle.to_tensor(value)
    covered = {name for name in trained if any(key.startswith(name + "_") for key in values)}
    if values and covered != trained:
        raise CheckpointError(f"{file}: has no state for {len(trained - covered)} of {len(trained)} parameters of this model")
    try:
        optimizer.set_state_dict(values)
    except (AssertionError, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{file}: not the state of this optimizer: {reason}") from None
