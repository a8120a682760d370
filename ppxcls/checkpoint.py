"""Weights and checkpoints: saved whole or not at all, loaded without running anything, resumed exactly.

A checkpoint is three files under one prefix, such as ``latest``: ``.pdparams`` (weights) and ``.pdopt`` (optimizer), both as Paddle
writes them, and ``.json``, the manifest: where the run stands, size and SHA-256 of the other two. The manifest's rename commits:
before it the parts lie complete beside their names as ``.new``, after it they are renamed into place. Wherever a save is cut off,
each part that the manifest means is at its name or at ``.new``, so the checkpoint that the manifest describes can be read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import paddle
from paddle import nn

FORMAT = 1
PARTS = (".pdparams", ".pdopt")
_NAMES = "StructuredToParameterName@@"  # where Paddle keeps the parameters' names in a saved state dict


class CheckpointError(Exception):
    """A weights or checkpoint file that can't be used; names the file and what is wrong."""


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
    """

    epoch: int = 1
    batches_done: int = 0
    step: int = 0
    best: dict[str, Any] = field(default_factory=dict)
    totals: dict[str, float] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)


class _ArraysOnly(pickle.Unpickler):
    """Admits numpy arrays and plain containers: a pickle can ask for nothing else, so it can run nothing."""

    _ALLOWED: ClassVar = {
        *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("collections", "OrderedDict"),
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):  # how protocol 2 writes bytes
            return _encode_latin1
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, and weights need arrays only")
        return super().find_class(module, name)


def _encode_latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding!r}")
    return text.encode("latin1")


def read_state(file: str | Path) -> dict[str, Any]:
    """Read a ``.pdparams`` or ``.pdopt`` without running what a hostile pickle asks for.

    Returns:
        Numpy arrays by key, and whatever plain values stand beside them.

    Raises:
        CheckpointError: missing, no such pickle, or one that asks for more than arrays.
    """
    try:
        with open(file, "rb") as stream:
            state = _ArraysOnly(stream).load()
    except FileNotFoundError:
        raise CheckpointError(f"{file}: no such file") from None
    except OSError as error:
        raise CheckpointError(f"{file}: can't be read: {error.strerror}") from None
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{file}: refused, not a file of weights: {error}") from None
    except Exception as error:  # a damaged pickle fails in ways of its own
        raise CheckpointError(f"{file}: not a file of weights, or damaged: {type(error).__name__}: {error}") from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{file}: expected a dictionary of arrays, received {type(state).__name__}")
    return state


def weights_file(path: str | Path) -> Path:
    """The file that a prefix such as ``output/Xception41/best_model`` names; a path with the extension names itself."""
    path = Path(path)
    return path if path.suffix == ".pdparams" else path.with_name(path.name + ".pdparams")


def load_weights(model: nn.Layer, path: str | Path, keep_trunk: bool = False) -> list[str]:
    """Set a model's parameters and batch-norm statistics by state key.

    Args:
        path: ``.pdparams`` file, with or without its extension; one that belongs to a checkpoint is checked against its manifest.
        keep_trunk: where the classifier has another number of classes than the weights, leave it as it is instead of raising.

    Returns:
        Keys of the classifier that were left as they are.

    Raises:
        CheckpointError: the file can't be used, or tensors are missing, unknown or of another shape; names them.
    """
    file = weights_file(path)
    manifest = file.with_suffix(".json")
    source = _verified(file.with_suffix(""), _read_manifest(manifest), PARTS[:1])[0] if manifest.exists() else file
    return _set_weights(model, read_state(source), file, keep_trunk)


def _set_weights(model: nn.Layer, state: dict[str, Any], file: Path, keep_trunk: bool) -> list[str]:
    state = {key: value for key, value in state.items() if key != _NAMES}
    own = model.state_dict()
    problems = [f"{key} is not in the file" for key in own if key not in state]
    problems += [f"{key} is not in the model" for key in state if key not in own]
    mismatched = [key for key in own if key in state and tuple(np.shape(state[key])) != tuple(own[key].shape)]
    left = [key for key in mismatched if keep_trunk and key in _classifier_keys(model)]
    shapes = {key: f"{key} is {list(np.shape(state[key]))} in the file, {list(own[key].shape)} in the model" for key in mismatched}
    problems += [shapes[key] for key in mismatched if key not in left]
    if problems:
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise CheckpointError(f"{file} does not fit the model: {'; '.join(problems[:8])}{more}")
    for key in left:
        del state[key]
    model.set_state_dict({key: paddle.to_tensor(value) for key, value in state.items()})
    return [shapes[key] for key in left]


def _classifier_keys(model: nn.Layer) -> set[str]:
    """Keys of the last linear layer."""
    names = [name for name, layer in model.named_sublayers() if isinstance(layer, nn.Linear)]
    return {f"{names[-1]}.weight", f"{names[-1]}.bias"} if names else set()


def save_checkpoint(
    prefixes: Iterable[Path],
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
    """
    states = [_model_state(model), _optimizer_state(optimizer)]
    first, *others = prefixes
    first.parent.mkdir(parents=True, exist_ok=True)
    _recover(first)
    with _cleared_on_error(first):
        parts = {e: _write_new(_beside(first, e + ".new"), state) for e, state in zip(PARTS, states, strict=True)}
    manifest = {"format": FORMAT, **facts, "progress": asdict(progress), "parts": parts}
    _commit(first, manifest)
    for prefix in others:
        _recover(prefix)
        with _cleared_on_error(prefix):
            for extension in PARTS:
                _link(_beside(first, extension), _beside(prefix, extension + ".new"))
        _commit(prefix, manifest)


def load_checkpoint(prefix: str | Path, model: nn.Layer, optimizer: paddle.optimizer.Optimizer) -> tuple[Progress, dict[str, Any]]:
    """Load weights and optimizer state of a checkpoint.

    Returns:
        Where the run stood, and the manifest.

    Raises:
        CheckpointError: missing, damaged, of a newer format, or of another model or optimizer.
    """
    prefix = Path(prefix)
    prefix = prefix.with_suffix("") if prefix.suffix in (".json", *PARTS) else prefix
    manifest = _read_manifest(_beside(prefix, ".json"))
    weights, optimizer_file = _verified(prefix, manifest)
    state = read_state(weights)
    _set_weights(model, state, weights, keep_trunk=False)
    _set_optimizer_state(optimizer, read_state(optimizer_file), state.get(_NAMES, {}), model, optimizer_file)
    return Progress(**manifest["progress"]), manifest


def _beside(prefix: Path, extension: str) -> Path:
    return prefix.with_name(prefix.name + extension)


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
        if key == "master_weights":
            values[key] = {renamed[name]: paddle.to_tensor(v) for name, v in value.items() if name in renamed}
        elif isinstance(value, np.ndarray) and (new := rename(key)) is not None:
            values[new] = paddle.to_tensor(value)
    covered = {name for name in trained if any(key.startswith(name + "_") for key in values)}
    if values and covered != trained:
        raise CheckpointError(f"{file}: has no state for {len(trained - covered)} of {len(trained)} parameters of this model")
    optimizer.set_state_dict(values)


def _write_new(file: Path, state: dict[str, Any]) -> dict[str, Any]:
    """Write a part under its temporary name; returns its size and digest."""
    with open(file, "wb") as stream:
        writer = _HashingWriter(stream)
        pickle.dump(state, writer, protocol=4)
        stream.flush()
        os.fsync(stream.fileno())
    return {"size": writer.size, "sha256": writer.digest.hexdigest()}


class _HashingWriter:
    """A file for pickle to write to, that takes size and SHA-256 on the way."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.size = 0
        self.digest = hashlib.sha256()

    def write(self, data: Any) -> int:
        self.digest.update(data)
        self.size += memoryview(data).nbytes
        return int(self._stream.write(data))


def _commit(prefix: Path, manifest: dict[str, Any]) -> None:
    temporary, final = _beside(prefix, ".json.new"), _beside(prefix, ".json")
    with _cleared_on_error(prefix):
        with open(temporary, "w", encoding="utf-8") as stream:
            json.dump(manifest, stream, indent=1)
            stream.flush()
            os.fsync(stream.fileno())
        _sync_folder(prefix.parent)  # the parts' names first
        os.replace(temporary, final)
    _sync_folder(prefix.parent)
    for extension in PARTS:
        os.replace(_beside(prefix, extension + ".new"), _beside(prefix, extension))
    _sync_folder(prefix.parent)


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # some file systems can't
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _link(source: Path, target: Path) -> None:
    """A second name for a finished file, which is never written again but only replaced; a copy where there are no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        with open(target, "rb") as stream:
            os.fsync(stream.fileno())


def _leftovers(prefix: Path) -> list[Path]:
    return [file for extension in (".json", *PARTS) if (file := _beside(prefix, extension + ".new")).exists()]


@contextlib.contextmanager
def _cleared_on_error(prefix: Path) -> Iterator[None]:
    """Before the commit: leave a full disk's space to the checkpoints that are whole, and say what was being written."""
    try:
        yield
    except OSError as error:
        for file in _leftovers(prefix):
            file.unlink()
        raise OSError(error.errno, f"can't save the checkpoint: {error.strerror}", str(prefix)) from error


def _recover(prefix: Path) -> None:
    """Finish a save that was cut off after its commit; remove what one left that was cut off before."""
    if not _leftovers(prefix):
        return
    with contextlib.suppress(CheckpointError):
        sources = _verified(prefix, _read_manifest(_beside(prefix, ".json")))
        for source, extension in zip(sources, PARTS, strict=True):
            if source.suffix == ".new":
                os.replace(source, _beside(prefix, extension))
    for file in _leftovers(prefix):
        file.unlink()


def _read_manifest(file: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        number = manifest["format"]
        complete = isinstance(manifest["progress"], dict) and all(
            isinstance(manifest["parts"][e]["size"], int) and isinstance(manifest["parts"][e]["sha256"], str) for e in PARTS
        )
    except FileNotFoundError:
        raise CheckpointError(f"{file}: no such checkpoint") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: not a checkpoint's manifest: {type(error).__name__}: {error}") from None
    if number != FORMAT or not complete:
        raise CheckpointError(f"{file}: expected a manifest of format {FORMAT}, received format {number!r}")
    return dict(manifest)


def _verified(prefix: Path, manifest: dict[str, Any], parts: tuple[str, ...] = PARTS) -> list[Path]:
    """For each part, the file that has the manifest's size and digest.

    Raises:
        CheckpointError: neither the part nor its ``.new`` has.
    """
    found = []
    for extension in parts:
        expected = manifest["parts"][extension]
        candidates = [_beside(prefix, extension), _beside(prefix, extension + ".new")]
        match = next((c for c in candidates if _matches(c, expected)), None)
        if match is None:
            reason = "is missing" if not candidates[0].exists() else "is damaged: its size or SHA-256 is not the manifest's"
            raise CheckpointError(f"{candidates[0]}: {reason} ({prefix.name}.json)")
        found.append(match)
    return found


def _matches(file: Path, expected: dict[str, Any]) -> bool:
    try:
        if file.stat().st_size != expected["size"]:
            return False
        with open(file, "rb") as stream:
            digest = hashlib.sha256()
            while block := stream.read(1 << 20):
                digest.update(block)
        return digest.hexdigest() == expected["sha256"]
    except OSError:
        return False
