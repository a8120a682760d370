"""Maps the layers of Keras's Xception to this package's state keys.

Keras's block 2 is block 1 here, and so on. Keras's blocks 1 and 14 are single convolutions here. Keras gives
no names to the four projections; their shapes tell them apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ppxcls.checkpoints.files import CheckpointError, State
from ppxcls.models.keras_layers import KerasLayer

LayerKind = Literal["convolution", "separable", "norm"]
Shapes = tuple[tuple[int, ...], ...]
_FEATURES = 2048
_MAX_SHOWN_LAYERS = 4  # layers in a message


@dataclass(frozen=True)
class TrunkLayer:
    """A layer of Keras's Xception before the classifier.

    Attributes:
        name: name that Keras gives to it; None for a projection.
        kind: kind of the layer.
        key: beginning of its state keys here.
        shapes: shapes of its variables. The first convolution may have any number of input channels, so its
            number is 0 here.
    """

    name: str | None
    kind: LayerKind
    key: str
    shapes: Shapes


def _block(number: int, widths: Sequence[int]) -> Iterator[TrunkLayer]:
    """Returns the separable convolutions of a block, and their batch norms."""
    for place, (in_channels, out_channels) in enumerate(zip(widths, widths[1:], strict=False), 1):
        name = f"block{number}_sepconv{place}"
        shapes = ((3, 3, in_channels, 1), (1, 1, in_channels, out_channels))
        # The first block has no ReLU at its start.
        index = 3 * (place - 1) + (number > 2)
        keys = (f"block{number - 1}.rep.{index}", f"block{number - 1}.rep.{index + 1}")
        if number == 14:
            keys = (f"conv{place + 2}", f"bn{place + 2}")
        yield TrunkLayer(name, "separable", keys[0], shapes)
        yield _norm(f"{name}_bn", keys[1], out_channels)


def _norm(name: str | None, key: str, channels: int) -> TrunkLayer:
    return TrunkLayer(name, "norm", key, ((channels,),) * 4)


def _projection(number: int, in_channels: int, out_channels: int) -> Iterator[TrunkLayer]:
    shapes = ((1, 1, in_channels, out_channels),)
    yield TrunkLayer(None, "convolution", f"block{number - 1}.skip", shapes)
    yield _norm(None, f"block{number - 1}.skipbn", out_channels)


def _trunk() -> Iterator[TrunkLayer]:
    """Returns the layers in Keras's order, in which it also numbers layers of one class."""
    for place, (in_channels, out_channels) in enumerate(((0, 32), (32, 64)), 1):
        shapes = ((3, 3, in_channels, out_channels),)
        yield TrunkLayer(f"block1_conv{place}", "convolution", f"conv{place}", shapes)
        yield _norm(f"block1_conv{place}_bn", f"bn{place}", out_channels)
    for number, in_channels, out_channels in ((2, 64, 128), (3, 128, 256), (4, 256, 728)):
        yield from _block(number, (in_channels, out_channels, out_channels))
        yield from _projection(number, in_channels, out_channels)
    for number in range(5, 13):
        yield from _block(number, (728,) * 4)
    yield from _block(13, (728, 728, 1024))
    yield from _projection(13, 728, 1024)
    yield from _block(14, (1024, 1536, _FEATURES))


TRUNK = tuple(_trunk())
_NAMES = {layer.name: layer for layer in TRUNK if layer.name}


def trunk_and_head(
    layers: Sequence[KerasLayer], file: Path
) -> tuple[dict[str, KerasLayer], list[KerasLayer]]:
    """Returns the layers of Xception by the beginning of their state keys, and all other layers.

    Layers are taken by their names. If they have none, they are taken by kind and order, and only if the
    shapes of all of them are those of Xception: no other order of layers has the same shapes.

    Args:
        layers: layers of a file.
        file: name of the file, for messages.

    Raises:
        CheckpointError: the file has two networks, or a layer twice, or no layer of Xception. The message
            names them.
    """
    containers: dict[tuple[str, ...], list[KerasLayer]] = {}
    for layer in layers:
        containers.setdefault(layer.container, []).append(layer)
    scores = {path: sum(map(_is_of_trunk, content)) for path, content in containers.items()}
    best = max(scores, key=lambda path: scores[path])
    rivals = [path for path in scores if scores[path] == scores[best]]
    if len(rivals) > 1 and scores[best]:
        names = ", ".join("/".join(path) or "the model itself" for path in rivals[:_MAX_SHOWN_LAYERS])
        raise CheckpointError(f"{file}: expected one network, received {len(rivals)}: {names}")
    content = containers[best]
    if any(layer.name in _NAMES for layer in content):
        trunk = _by_name(content, file)
        missing_names = [layer.name or layer.key for layer in TRUNK if layer.key not in trunk]
        if missing_names:
            examples = ", ".join(missing_names[:_MAX_SHOWN_LAYERS])
            more = ", ..." if len(missing_names) > _MAX_SHOWN_LAYERS else ""
            raise CheckpointError(
                f"{file}: {len(missing_names)} of {len(TRUNK)} layers of Xception are missing: "
                f"{examples}{more}"
            )
    elif scores[best]:
        trunk = _by_order(content, file)
    else:
        trunk = {}
    ids = {id(layer) for layer in trunk.values()}
    # Layers of single numbers are counters of the training, and compute nothing.
    return trunk, [layer for layer in layers if id(layer) not in ids and any(layer.shapes)]


def _is_of_trunk(layer: KerasLayer) -> bool:
    return layer.name in _NAMES or _kind(layer.shapes) == "separable"


def _kind(shapes: Shapes) -> LayerKind | None:
    """Returns the kind of a layer by the shapes of its variables; None for another kind."""
    dimensions = [len(shape) for shape in shapes]
    if dimensions == [4]:
        return "convolution"
    if dimensions == [4, 4]:
        return "separable"
    is_norm = dimensions == [1] * 4 and len(set(shapes)) == 1
    return "norm" if is_norm else None


def _by_name(layers: Sequence[KerasLayer], file: Path) -> dict[str, KerasLayer]:
    trunk: dict[str, KerasLayer] = {}
    for layer in layers:
        if layer.name in _NAMES:
            key = _NAMES[layer.name].key
            if key in trunk:
                raise CheckpointError(f"{file}: two layers have the name {layer.name}")
            if not _fits(layer.shapes, _NAMES[layer.name].shapes):
                raise CheckpointError(
                    f"{file}: {layer.name} has the shapes {_text(layer.shapes)}; "
                    f"that of Xception has {_text(_NAMES[layer.name].shapes)}"
                )
            trunk[key] = layer
    nameless = [layer for layer in layers if layer.name not in _NAMES]
    for expected in TRUNK:
        if expected.name is None:
            candidates = [layer for layer in nameless if layer.shapes == expected.shapes]
            if candidates:
                trunk[expected.key] = candidates[0]
    return trunk


def _by_order(layers: Sequence[KerasLayer], file: Path) -> dict[str, KerasLayer]:
    trunk: dict[str, KerasLayer] = {}
    kinds: tuple[LayerKind, ...] = ("convolution", "separable", "norm")
    for kind in kinds:
        expected_layers = [layer for layer in TRUNK if layer.kind == kind]
        received = [layer for layer in layers if _kind(layer.shapes) == kind]
        # A head may have further convolutions and batch norms, which follow.
        is_complete = len(received) >= len(expected_layers)
        if kind == "separable":
            is_complete = len(received) == len(expected_layers)
        if not is_complete:
            raise CheckpointError(
                f"{file}: its layers have no names, and it has {len(received)} layers of the kind {kind}; "
                f"Xception has {len(expected_layers)}"
            )
        for expected, layer in zip(expected_layers, received, strict=False):
            if not _fits(layer.shapes, expected.shapes):
                raise CheckpointError(
                    f"{file}: its layers have no names, and {layer.name} has the shapes "
                    f"{_text(layer.shapes)}; {expected.name or expected.key} of Xception has "
                    f"{_text(expected.shapes)}"
                )
            trunk[expected.key] = layer
    return trunk


def _fits(shapes: Shapes, expected_shapes: Shapes) -> bool:
    """True if shapes are equal. A zero stands for any number of channels."""
    return len(shapes) == len(expected_shapes) and all(
        len(shape) == len(expected)
        and all(size == number or not number for size, number in zip(shape, expected, strict=True))
        for shape, expected in zip(shapes, expected_shapes, strict=True)
    )


def _text(shapes: Shapes) -> str:
    return ", ".join("x".join(map(str, shape)) for shape in shapes[:4]) or "none"


def classifier(head: Sequence[KerasLayer]) -> KerasLayer | None:
    """Returns the layer that is a linear classifier on the features; None if the head is another one."""
    if len(head) != 1:
        return None
    shapes = head[0].shapes
    is_linear = len(shapes) == 2 and len(shapes[0]) == 2 and shapes[1] == (shapes[0][1],)
    return head[0] if is_linear and shapes[0][0] == _FEATURES else None


def head_text(head: Sequence[KerasLayer]) -> str:
    """Describes the layers of a head, such as ``dense (2048x100, 100), dense_1 (100x6, 6)``."""
    texts = [f"{layer.name} ({_text(layer.shapes)})" for layer in head[:_MAX_SHOWN_LAYERS]]
    more = f" and {len(head) - _MAX_SHOWN_LAYERS} more" if len(head) > _MAX_SHOWN_LAYERS else ""
    return ", ".join(texts) + more


def layer_state(key: str, layer: KerasLayer) -> State:
    """Returns the arrays of a layer by state key, in this package's layout."""
    arrays = layer.arrays()
    if key == "fc":
        state = {"fc.weight": arrays[0], "fc.bias": arrays[1]}
    elif len(arrays) == 4:
        names = ("weight", "bias", "_mean", "_variance")
        state = {f"{key}.{name}": array for name, array in zip(names, arrays, strict=True)}
    elif [array.ndim for array in arrays] == [4, 4]:
        state = {
            f"{key}.conv1.weight": arrays[0].transpose(2, 3, 0, 1),
            f"{key}.pointwise.weight": arrays[1].transpose(3, 2, 0, 1),
        }
    else:
        state = {f"{key}.weight": arrays[0].transpose(3, 2, 0, 1)}
    return {name: np.ascontiguousarray(array) for name, array in state.items()}
