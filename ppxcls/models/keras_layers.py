"""Reads the layers of Keras's files: ``.keras``, ``.weights.h5`` and the older ``.h5``.

A file of Keras 3 has a group of numbered variables for each layer. The older layout has lists of names as
attributes: those of the layers, and for each layer those of its variables. Only objects of the file itself
are used, and their numbers are read when they are needed.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ppxcls.checkpoints.archives import open_archive, read_member
from ppxcls.checkpoints.file_formats import HDF5_SIGNATURE, KERAS_MEMBER
from ppxcls.checkpoints.files import CheckpointError
from ppxcls.models.keras_config import layer_names
from ppxcls.models.keras_texts import TextReader
from ppxcls.system.arrays import Array
from ppxcls.system.atomic_files import open_regular

_CONFIG_MEMBER = "config.json"  # name inside a .keras archive
_MAX_WEIGHTS_BYTES, _MAX_CONFIG_BYTES = 1 << 30, 1 << 24
_MAX_OBJECTS, _MAX_DEPTH = 20_000, 16  # groups and variables in a file; a network has about 500
# Groups that contain the layers of a model, which are no layers themselves.
_CONTAINER_WORDS = ("layers", "_layer_checkpoint_dependencies", "_functional")
# Groups beside those of the layers: states of the training. Keras 2 saves its metrics too.
_TRAINING_WORDS = (
    "optimizer",
    "_optimizer",
    "optimizer_weights",
    "metrics",
    "compiled_metrics",
    "compiled_loss",
)
# Names of variables in the order of Keras 3, which numbers them. Keras 1 has the names after the comma.
_VARIABLES = {
    name: place
    for place, names in enumerate(
        (
            ("kernel", "W"),
            ("depthwise_kernel",),
            ("pointwise_kernel",),
            ("gamma",),
            ("beta", "bias", "b"),
            ("moving_mean", "running_mean"),
            ("moving_variance", "running_std"),
        )
    )
    for name in names
}


@dataclass(frozen=True)
class KerasLayer:
    """A layer with variables.

    Attributes:
        container: names of the models within each other that contain the layer.
        name: name that Keras or the user gave to the layer; otherwise that of its group.
        variables: datasets of the variables, in Keras's order.
    """

    container: tuple[str, ...]
    name: str
    variables: Sequence[Any]

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the variables."""
        return tuple(tuple(variable.shape) for variable in self.variables)

    def arrays(self) -> list[Array]:
        """Reads the variables. bfloat16 numbers are returned as their bits, uint16."""
        arrays = [np.asarray(variable) for variable in self.variables]
        return [array.view(np.uint16) if array.dtype.kind == "V" else array for array in arrays]


@contextlib.contextmanager
def open_layers(file: Path, extension: str) -> Iterator[list[KerasLayer]]:
    """Opens a file of Keras, and returns its layers in the order of their names' numbers.

    Args:
        file: file to read.
        extension: extension of its format: ``.keras``, ``.h5`` or ``.hdf5``. Keras 2 before 2.12 wrote HDF5
            under the name ``.keras``.

    Raises:
        CheckpointError: the file has no layers, or has links, variables without numbers in the file, or too
            many of something.
        ImportError: h5py is not installed.
        RefusedError: it is a damaged archive, or unpacks to too much.
    """
    import h5py

    names: dict[tuple[str, ...], str] = {}
    source: Any = file
    if extension == ".keras" and not _is_hdf5(file):
        source, names = _archive_content(file)
    size = file.stat().st_size if source is file else len(source.getbuffer())
    with h5py.File(source, "r") as h5_file:
        yield _Reader(file, size, names, TextReader(file, source)).layers(h5_file)


def _is_hdf5(file: Path) -> bool:
    with open_regular(file) as stream:
        return stream.read(len(HDF5_SIGNATURE)) == HDF5_SIGNATURE


def _archive_content(file: Path) -> tuple[io.BytesIO, dict[tuple[str, ...], str]]:
    """Returns the weights in a ``.keras`` archive, and the names in its config."""
    with open_regular(file) as stream, open_archive(stream) as archive:
        members = archive.namelist()
        if KERAS_MEMBER not in members:
            raise CheckpointError(f"{file}: not a file of weights, but an archive without {KERAS_MEMBER}")
        names = {}
        if _CONFIG_MEMBER in members:
            try:
                names = layer_names(read_member(archive, _CONFIG_MEMBER, _MAX_CONFIG_BYTES))
            except ValueError as error:
                raise CheckpointError(f"{file}: {_CONFIG_MEMBER} in the archive: {error}") from None
        return io.BytesIO(read_member(archive, KERAS_MEMBER, _MAX_WEIGHTS_BYTES)), names


class _Reader:
    """Finds layers and checks their variables.

    Args:
        file: name of the file, for messages.
        size: bytes of the HDF5 file, which all variables together can't exceed.
        names: names of layers by the path of their groups.
        texts: reader of the names in attributes.
    """

    def __init__(self, file: Path, size: int, names: dict[tuple[str, ...], str], texts: TextReader) -> None:
        self._file = file
        self._remaining_bytes = size
        self._names = names
        self._texts = texts
        self._object_count = 0

    def layers(self, h5_file: Any) -> list[KerasLayer]:
        root = h5_file
        if not self._has_names(root) and "model_weights" in root:
            root = self._member(root, "model_weights")
        layers = list(self._named_layers(root) if self._has_names(root) else self._numbered_layers(root))
        if not layers:
            raise CheckpointError(
                f"{self._file}: expected the weights of a Keras model, with a group 'layers' "
                "or an attribute 'layer_names'"
            )
        return layers

    def _has_names(self, group: Any) -> bool:
        return "layer_names" in group.attrs or "layer_names0" in group.attrs

    def _numbered_layers(
        self, group: Any, path: tuple[str, ...] = (), depth: int = 0, *, is_model: bool = True
    ) -> Iterator[KerasLayer]:
        """Returns the layers in a group of Keras 3, and in the groups in it.

        Args:
            group: group of HDF5.
            path: names of the models and layers that contain it.
            depth: number of groups that contain it.
            is_model: False if the group contains layers alone, under the names of their classes.
        """
        if depth > _MAX_DEPTH:
            raise CheckpointError(f"{self._file}: refused, groups are nested more than {_MAX_DEPTH} deep")
        self._count(len(group))
        for name in sorted(group, key=_natural_order):
            if name in _TRAINING_WORDS and is_model:
                continue
            if name == "vars":
                yield from self._numbered_layer(self._member(group, name), path)
                continue
            is_container = name in _CONTAINER_WORDS
            member = self._member(group, name)
            if depth and not _is_group(member):
                raise CheckpointError(f"{self._file}: vars is expected in a group, and {name} is none")
            if _is_group(member):
                inner_path = path if is_container else (*path, name)
                yield from self._numbered_layers(member, inner_path, depth + 1, is_model=not is_container)

    def _numbered_layer(self, variables: Any, path: tuple[str, ...]) -> Iterator[KerasLayer]:
        variables = self._group(variables, "vars")
        if not len(variables):
            return
        self._count(len(variables))
        name = self._texts.text(variables, "name") or self._names.get(path) or (path[-1] if path else "")
        arrays = [self._variable(variables, str(i)) for i in range(len(variables))]
        yield KerasLayer(path[:-1], name, arrays)

    def _named_layers(self, root: Any) -> Iterator[KerasLayer]:
        """Returns the layers of the older layout, in the order of its lists."""
        group_names = self._texts.texts(root, "layer_names")
        self._count(len(group_names))
        for group_name in group_names:
            group = self._group(self._member(root, group_name), group_name)
            weight_names = self._texts.texts(group, "weight_names")
            self._count(len(weight_names))
            owners: dict[tuple[str, ...], dict[str, Any]] = {}
            for weight_name in weight_names:
                owner, variable = _split_name(weight_name)
                variables = owners.setdefault(owner, {})
                if variable in variables:
                    raise CheckpointError(f"{self._file}: {weight_name!r} is in {group_name} twice")
                variables[variable] = self._variable(group, weight_name)
            for owner, variables in owners.items():
                ordered = [
                    variables[name] for name in sorted(variables, key=lambda name: _VARIABLES.get(name, 99))
                ]
                if len(owners) == 1:
                    yield KerasLayer((), group_name, ordered)
                else:
                    yield KerasLayer((group_name, *owner[:-1]), owner[-1] if owner else "", ordered)

    def _count(self, count: int) -> None:
        self._object_count += count
        if self._object_count > _MAX_OBJECTS:
            raise CheckpointError(f"{self._file}: refused, it has more than {_MAX_OBJECTS:,} layers")

    def _group(self, member: Any, name: str) -> Any:
        if not _is_group(member):
            raise CheckpointError(f"{self._file}: {name} is expected to be a group of HDF5")
        return member

    def _member(self, group: Any, path: str) -> Any:
        """Returns a member of a group, or of a group in it; None if there is none.

        A link could refer to any other file, so only a file's own objects are read.
        """
        import h5py

        for name in path.split("/"):
            if not _is_group(group):
                raise CheckpointError(f"{self._file}: {name} is expected in a group")
            if name in ("", ".", ".."):
                raise CheckpointError(f"{self._file}: refused, {path!r} is no name in a group")
            link = group.get(name, getlink=True)
            if link is not None and not isinstance(link, h5py.HardLink):
                place = getattr(link, "filename", "another place")
                raise CheckpointError(f"{self._file}: refused, {name} is a link to {place}")
            group = group.get(name)
        return group

    def _variable(self, group: Any, name: str) -> Any:
        """Returns a variable. Its numbers must be in the file as they are.

        A compressed variable, or one of repeated fill values, could have any size.
        """
        import h5py

        dataset = self._member(group, name)
        if not isinstance(dataset, h5py.Dataset) or dataset.external or dataset.is_virtual:
            raise CheckpointError(f"{self._file}: refused, a variable's numbers are not in the file")
        if dataset.id.get_create_plist().get_nfilters():
            raise CheckpointError(
                f"{self._file}: refused, a variable is compressed, and Keras compresses none"
            )
        is_bfloat16 = dataset.dtype.kind == "V" and dataset.dtype.itemsize == 2
        is_number = is_bfloat16 or dataset.dtype.kind in "fiu"
        # A scalar may have no size in the description of its storage.
        number_bytes = (dataset.size or 0) * dataset.dtype.itemsize
        if not is_number or number_bytes > min(self._remaining_bytes, dataset.id.get_storage_size()):
            raise CheckpointError(
                f"{self._file}: refused, a variable of {dataset.dtype} and {dataset.size or 0:,} numbers, "
                "which are not in the file"
            )
        self._remaining_bytes -= number_bytes
        return dataset


def _is_group(member: Any) -> bool:
    import h5py

    return isinstance(member, h5py.Group)


def _natural_order(name: str) -> tuple[str, int]:
    """Order of names with numbers at their ends: ``conv2d``, ``conv2d_2``, ``conv2d_10``."""
    match = re.fullmatch(r"(.*?)(?:_(\d{1,9}))?", name, re.DOTALL)
    return (match[1], int(match[2] or -1)) if match else (name, -1)


def _split_name(weight_name: str) -> tuple[tuple[str, ...], str]:
    """Returns the names of the layer and of the variable in a name such as ``block1_conv1/kernel:0``."""
    *owner, variable = re.sub(r":\d+$", "", weight_name).split("/")
    if variable in _VARIABLES:
        return tuple(owner), variable
    for name in sorted(_VARIABLES, key=len, reverse=True):  # Keras 1 has block1_conv1_W
        if variable.endswith(f"_{name}"):
            return (*owner, variable.removesuffix(f"_{name}")), name
    return tuple(owner), variable
