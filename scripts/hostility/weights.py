"""Files of Keras, torch and safetensors that lie about layers, names, counts, shapes and places."""

from __future__ import annotations

import functools
import io
import json
import pickle
import resource
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from hostility.builders.keras_files import (
    add_layer,
    legacy_root,
    numbered_root,
    trunk_of_numbers,
)
from hostility.cases import Case, Outcome, call, message_problem, refusal_problem

from ppxcls.models.foreign_weights import read_foreign_weights
from ppxcls.models.weights_keys import weights_keys

PROMISE = "A hostile file of weights is refused in one short line, in a few seconds and with bounded memory"
Check = tuple[Outcome, str | None]
Change = Callable[[Any], object]
_TRUNK_WITH = "a trunk with"  # beginning of the names of cases with large files
_MAX_SECONDS = 20.0
_MAX_GROWTH_MIB = 400
_OTHER_PLACES = {
    "an external link": lambda: h5py.ExternalLink("/etc/passwd", "/x"),
    "a soft link": lambda: h5py.SoftLink("/"),
    "a link to nothing": lambda: h5py.SoftLink("/nothing"),
    "a dataset": lambda: np.zeros(3, np.float32),
    "a type": lambda: np.dtype("f4"),
}
_NAMES_OUTSIDE = (
    *("/x", "../x", "..", ".", "", "/", "//", "a/../../x", "a//b", "./a", "/etc/passwd", "x" * 5000),
    *("\x1b[2J", "a\nb", "a/" * 500, "layer_names", "vars", "é", "\udcff"),
)


def cases() -> Iterator[Case]:
    """Returns the cases."""
    groups = (_numbered_files(), _named_files(), _archives(), _torch_files(), _safetensors_files())
    for group in (*groups, _files_of_other_names()):
        for description, write in group:
            # Large files are read once: both readers find their layers by the same function.
            is_large = description.startswith(_TRUNK_WITH)
            for reader in (read_foreign_weights, weights_keys)[: 1 if is_large else 2]:
                run = functools.partial(_refused, write, reader)
                yield Case(f"{description} ({reader.__name__})", run, is_quick=True)


def _refused(write: Callable[[Path], Path], reader: Callable[[Path], Any], folder: Path) -> Check:
    file = write(folder)
    initial_peak = _peak_mib()
    outcome = call(reader, file)
    growth = _peak_mib() - initial_peak
    if growth > _MAX_GROWTH_MIB:
        return outcome, f"takes {growth:.0f} MiB"
    if outcome.seconds > _MAX_SECONDS:
        return outcome, f"takes {outcome.seconds:.0f} s"
    if reader is weights_keys and outcome.code == 0:  # the keys alone may be right
        return outcome, None
    return outcome, refusal_problem(outcome, file.name) or message_problem(outcome.errors)


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _h5(
    root: Callable[[Any], Any], change: Change, name: str = "a.h5", **options: Any
) -> Callable[[Path], Path]:
    """Returns a function that writes an HDF5 file with a change.

    Args:
        root: function that writes the groups that a good file has, and returns the group to change.
        change: function that changes the group.
        name: name of the file.
        options: options of h5py.
    """

    def write(folder: Path) -> Path:
        with h5py.File(folder / name, "w", **options) as file:
            change(root(file))
        return folder / name

    return write


def _setter(path: str, make: Callable[[], Any]) -> Change:
    def change(group: Any) -> None:
        if path in group:
            del group[path]
        group[path] = make()

    return change


def _numbered_files() -> Iterator[tuple[str, Callable[[Path], Path]]]:
    """Returns files of Keras 3."""
    for kind, make in _OTHER_PLACES.items():
        for path in ("layers", "layers/conv2d", "layers/conv2d/vars", "layers/conv2d/vars/0"):
            yield f"{kind} as {path}", _h5(numbered_root, _setter(path, make))
    for description, change in _NUMBERED_CHANGES.items():
        yield description, _h5(numbered_root, change)
    for description, trunk_change in _TRUNK_CHANGES.items():
        yield (
            f"a trunk with {description}",
            _h5(lambda file: file, functools.partial(trunk_of_numbers, trunk_change)),
        )


def _cycle(group: Any) -> None:
    group["layers/conv2d/layers"] = group["layers"]


def _cycles(group: Any) -> None:
    for i in range(50):
        group[f"layers/conv2d/loop{i}"] = group["layers"]


def _nested(depth: int) -> Change:
    return lambda group: group.create_group(
        "layers/" + "/".join(["functional/layers"] * depth) + "/conv2d/vars"
    )


def _many_groups(group: Any) -> None:
    for i in range(25_000):
        group.create_group(f"layers/dense_{i}")


def _many_variables(group: Any) -> None:
    for i in range(25_000):
        group[f"layers/conv2d/vars/{i + 1}"] = np.float32(0)


def _dataset(shape: tuple[int, ...], **options: Any) -> Change:
    def change(group: Any) -> None:
        del group["layers/conv2d/vars/0"]
        group.create_dataset("layers/conv2d/vars/0", shape, np.float32, **options)

    return change


def _attribute(value: Any) -> Change:
    return lambda group: group["layers/conv2d/vars"].attrs.__setitem__("name", value)


def _two_names(group: Any) -> None:
    for name in ("a", "b"):
        add_layer(group, f"layers/{name}", [(3, 3, 3, 32)], name="block1_conv1")


def _two_networks(group: Any) -> None:
    for model in ("functional", "functional_1"):
        add_layer(group, f"layers/{model}/layers/conv2d", [(3, 3, 3, 32)], name="block1_conv1")


_NUMBERED_CHANGES: dict[str, Change] = {
    "a group in itself": _cycle,
    "fifty groups in themselves": _cycles,
    "groups 20 deep": _nested(20),
    "groups 500 deep": _nested(500),
    "25,000 groups": _many_groups,
    "25,000 variables": _many_variables,
    "a shape of 2^40": _dataset((1 << 40,), chunks=(1 << 20,)),
    "a shape of 2^62": _dataset((1 << 31, 1 << 31), chunks=(1024, 1024)),
    "a shape of 30 dimensions": _dataset((1,) * 30),
    "a shape with a zero": _dataset((0, 3)),
    "a shape of no dimension": _dataset(()),
    "numbers that were never written": _dataset((3, 3, 3, 32)),
    "a name of 60 KB": _attribute("x" * 60_000),
    "a name with control characters": _attribute("\x1b]0;x\x07\x1b[2J\n"),
    "a list of names as name": _attribute(["a"] * 1000),
    "a number as name": _attribute(7),
    "bytes as name": _attribute(np.bytes_(b"\xff\xfe")),
    "a false name": _attribute("block14_sepconv2_bn"),
    "two layers with one name": _two_names,
    "two networks": _two_networks,
    "a variable with a gap in the numbers": lambda group: group.__setitem__(
        "layers/conv2d/vars/7", np.zeros(3)
    ),
    "a variable with a name": lambda group: group.__setitem__("layers/conv2d/vars/kernel", np.zeros(3)),
    "no layers": lambda group: group.__delitem__("layers"),
    "empty layers": lambda group: group.__delitem__("layers/conv2d"),
    "an optimizer alone": lambda group: (group.__delitem__("layers"), group.create_group("optimizer/vars")),
    "complex numbers": _setter("layers/conv2d/vars/0", lambda: np.zeros((3, 3), np.complex64)),
    "records": _setter("layers/conv2d/vars/0", lambda: np.zeros(4, [("a", "f4")])),
    "opaque bytes": _setter("layers/conv2d/vars/0", lambda: np.zeros(4, "V7")),
    "texts": _setter("layers/conv2d/vars/0", lambda: ["a", "b"]),
}
# Changes of the list of a trunk's layers, each with the name of its group and its shapes.
_TRUNK_CHANGES: dict[str, Callable[[list[Any]], list[Any]]] = {
    "a separable convolution less": lambda layers: _without(layers, "separable_conv2d_20"),
    "a separable convolution more": lambda layers: [
        *layers,
        ("separable_conv2d_34", [(3, 3, 8, 1), (1, 1, 8, 8)]),
    ],
    "a batch norm less": lambda layers: _without(layers, "batch_normalization_9"),
    "a convolution less": lambda layers: _without(layers, "conv2d_3"),
    "a batch norm more in front": lambda layers: _with_norm(layers, 0, 3),
    "a batch norm more in the middle": lambda layers: _with_norm(layers, 12, 728),
    "another first convolution": lambda layers: [("conv2d", [(7, 7, 3, 32)]), *layers[1:]],
    "a bias in a convolution": lambda layers: [("conv2d", [(3, 3, 3, 32), (32,)]), *layers[1:]],
    "two batch norms exchanged": lambda layers: _exchanged(
        layers, "batch_normalization_1", "batch_normalization_2"
    ),
    "two separable convolutions exchanged": lambda layers: _exchanged(
        layers, "separable_conv2d", "separable_conv2d_33"
    ),
    "numbers that begin at one": lambda layers: _without(layers, "separable_conv2d"),
    "a dense layer alone": lambda layers: layers[:0],
}


def _without(layers: list[Any], name: str) -> list[Any]:
    return [item for item in layers if item[0] != name]


def _with_norm(layers: list[Any], place: int, channels: int) -> list[Any]:
    """Inserts a batch norm, whose number those that follow do not have any more."""
    norms = [shapes for name, shapes in layers if name.startswith("batch")]
    norms.insert(place, [(channels,)] * 4)
    rest = [item for item in layers if not item[0].startswith("batch")]
    return [*rest, *((f"batch_normalization_{i}", shapes) for i, shapes in enumerate(norms))]


def _exchanged(layers: list[Any], first: str, second: str) -> list[Any]:
    names = {first: second, second: first}
    return [(names.get(name, name), shapes) for name, shapes in layers]


def _named_files() -> Iterator[tuple[str, Callable[[Path], Path]]]:
    """Returns files of the older layout."""
    for name in _NAMES_OUTSIDE:
        text = name.encode("utf-8", "surrogateescape")
        for attribute in ("layer_names", "weight_names"):
            yield f"{name[:20]!r} in {attribute}", _h5(legacy_root, _names(attribute, np.array([text])))
    for description, value in _LISTS.items():
        for attribute in ("layer_names", "weight_names"):
            yield f"{description} as {attribute}", _h5(legacy_root, _names(attribute, value))
    for kind, make in _OTHER_PLACES.items():
        for path in ("block1_conv1", "block1_conv1/block1_conv1", "block1_conv1/block1_conv1/kernel:0"):
            yield f"{kind} as {path} of the older layout", _h5(legacy_root, _setter(path, make))
        yield f"{kind} as model_weights", _h5(lambda file: file, _setter("model_weights", make))
    big = {"libver": "latest"}
    yield "layer_names of 16 MB", _h5(legacy_root, _names("layer_names", np.zeros(1 << 20, "S16")), **big)
    yield "2,000 lists of names", _h5(legacy_root, _many_lists, **big)
    yield "2,000 names that are one text of 8 MB", _h5(legacy_root, _shared_text)
    yield "one variable for 1,000 names", _h5(legacy_root, _shared_variable)


def _names(attribute: str, value: Any) -> Change:
    def change(group: Any) -> None:
        owner = group if attribute == "layer_names" else group["block1_conv1"]
        del owner.attrs[attribute]
        owner.attrs[attribute] = value

    return change


def _many_lists(group: Any) -> None:
    del group.attrs["layer_names"]
    for i in range(2000):
        group.attrs[f"layer_names{i}"] = np.array([b"block1_conv1"] * 20)


def _shared_text(group: Any) -> None:
    """Writes a list in which all names are in one heap of 8 MB, as HDF5 stores the longest of them."""
    names = ["x" * (8 << 20), *["block1_conv1"] * 2000]
    group.attrs.create("layer_names", np.array(names, object), dtype=h5py.string_dtype())


def _shared_variable(group: Any) -> None:
    group["block1_conv1/big"] = np.zeros(1 << 18, np.float32)
    for i in range(1000):
        group[f"block1_conv1/n{i}/kernel:0"] = group["block1_conv1/big"]
    names = [f"n{i}/kernel:0".encode() for i in range(1000)]
    group["block1_conv1"].attrs["weight_names"] = np.array(names)


_LISTS: dict[str, Any] = {
    "numbers": np.arange(9),
    "a number": 3,
    "a text": "block1_conv1",
    "texts of any length": ["block1_conv1", "a"],
    "a table": np.array([[b"block1_conv1"] * 3] * 3),
    "4,000 equal names": np.array([b"block1_conv1"] * 4000),
    "6,000 other names": np.array([f"l{i}".encode() for i in range(6000)]),
    "no name": np.array([], "S1"),
    "nothing": h5py.Empty("S1"),
    "a name of 60 KB": np.array([b"x" * 60_000]),
    "bytes that are no text": np.array([b"\xff\xfe\x80"]),
    "records": np.zeros(3, [("a", "f4")]),
}


def _archives() -> Iterator[tuple[str, Callable[[Path], Path]]]:
    """Returns ``.keras`` archives, whose weights are good but no Xception, with a hostile config."""
    for description, make_text in _CONFIGS.items():
        yield f"a config.json with {description}", functools.partial(_archive, make_text, zipfile.ZIP_STORED)
    bomb: Callable[[], bytes] = lambda: bytes(100 << 20)  # noqa: E731
    yield "a config.json that unpacks to 100 MB", functools.partial(_archive, bomb, zipfile.ZIP_DEFLATED)
    yield "a config.json of bzip2", functools.partial(_archive, lambda: b"{}", zipfile.ZIP_BZIP2)


def _archive(make_text: Callable[[], bytes], method: int, folder: Path) -> Path:
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        numbered_root(file)
    with zipfile.ZipFile(folder / "a.keras", "w") as archive:
        archive.writestr("model.weights.h5", stream.getvalue())
        archive.writestr("config.json", make_text(), method)
    return folder / "a.keras"


def _model(layers: Any) -> bytes:
    return json.dumps({"class_name": "Functional", "config": {"name": "m", "layers": layers}}).encode()


def _layer(name: Any, class_name: Any = "Conv2D") -> dict[str, Any]:
    return {"class_name": class_name, "config": {"name": name}}


def _models_in_models(depth: int) -> bytes:
    text = "[]"
    for _ in range(depth):
        text = f'[{{"class_name": "Functional", "config": {{"name": "m", "layers": {text}}}}}]'
    return f'{{"config": {{"layers": {text}}}}}'.encode()


_CONFIGS: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "a text": lambda: b"hello",
    "100,000 levels of lists": lambda: b"[" * 100_000 + b"]" * 100_000,
    "100,000 levels of objects": lambda: b'{"config":' * 100_000 + b"1" + b"}" * 100_000,
    "20 models in each other": lambda: _models_in_models(20),
    "2,000 models in each other": lambda: _models_in_models(2000),
    "1,000,000 layers": lambda: b'{"config": {"layers": [' + b'{"class_name":1},' * 900_000 + b"1]}}",
    "30,000 layers": lambda: _model([_layer(f"l{i}") for i in range(30_000)]),
    "17 MB": lambda: b'"' + b"x" * (17 << 20) + b'"',
    "NaN": lambda: b'{"config": NaN}',
    "a huge number": lambda: b'{"config": ' + b"9" * 100_000 + b"}",
    "repeated keys": lambda: b'{"config": 1, "config": 2}',
    "bytes that are no text": lambda: b"\xff\xfe{}",
    "a list": lambda: b"[1, 2]",
    "a number": lambda: b"7",
    "an object of layers": lambda: _model({"a": _layer("a")}),
    "layers of numbers": lambda: _model([1, None, [], "x", {}]),
    "classes of numbers": lambda: _model([_layer("block1_conv1", 7)]),
    "names of numbers": lambda: _model([_layer(7), _layer(None), _layer([])]),
    "one name for all": lambda: _model([_layer("block1_conv1") for _ in range(9)]),
    "names of 1 MB": lambda: _model([_layer("x" * (1 << 20), "y" * (1 << 20))]),
    "names with control characters": lambda: _model([_layer("\x1b[2J\n")]),
    "names of lone surrogates": lambda: b'{"config": {"layers": [{"class_name": "\\ud800", "config": {}}]}}',
    "classes with paths": lambda: _model([_layer("a", "../../etc/passwd"), _layer("a", "/")]),
}


def _file(name: str, content: Callable[[], bytes]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content())
        return folder / name

    return write


def _torch_files() -> Iterator[tuple[str, Callable[[Path], Path]]]:
    for description, make in _PICKLES.items():
        yield f"a pickle of {description}", _file("a.pth", make)
        yield f"torch's archive with {description}", functools.partial(_torch_archive, make)


def _torch_archive(make: Callable[[], bytes], folder: Path, name: str = "a.bin") -> Path:
    with zipfile.ZipFile(folder / name, "w") as archive:
        archive.writestr("x/data.pkl", make())
        archive.writestr("x/data/0", bytes(64))
    return folder / name


def _tensor(storage: bytes, offset: bytes, shape: bytes, strides: bytes) -> bytes:
    """Returns the pickle of a dictionary of one tensor."""
    return b"".join(
        [
            b"\x80\x02}X\x01\0\0\0actorch._utils\n_rebuild_tensor_v2\n(",
            storage,
            b"Q",
            offset,
            shape,
            strides,
            b"\x89NtRs.",
        ]
    )


def _module(kind: bytes, rest: bytes = b")\x81}b") -> bytes:
    """Returns a pickle of an object whose class torch before 1.6 describes with its source code."""
    text = b"X\x04\0\0\0code"
    return b"\x80\x02(X\x06\0\0\0module" + kind + text + text + b"tQ" + rest + b"."


_STORAGE = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x10t"
_ONE, _NINE = b"K\x01\x85", b"(" + b"K\x01" * 9 + b"t"
_BIG = b"\x8a\x09" + (1 << 64).to_bytes(9, "little")
_PICKLES: dict[str, Callable[[], bytes]] = {
    "os.system": lambda: b"\x80\x02cos\nsystem\n(X\x04\0\0\0truetR.",
    "100,000 nested lists": lambda: b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "2,000,000 opcodes": lambda: b"\x80\x02" + b"N0" * 1_000_000 + b"N.",
    "a dictionary in itself": lambda: b"\x80\x02}q\0X\x01\0\0\0ah\0s.",
    "a list in itself": lambda: b"\x80\x02]q\0h\0a.",
    "a shape of 2^64": lambda: _tensor(_STORAGE, b"K\0", _BIG + b"\x85", b"K\x01\x85"),
    "a shape of 2^24 and strides of 0": lambda: _tensor(_STORAGE, b"K\0", b"J\0\0\0\x01\x85", b"K\0\x85"),
    "a negative shape": lambda: _tensor(_STORAGE, b"K\0", b"J\xff\xff\xff\xff\x85", b"K\x01\x85"),
    "a negative offset": lambda: _tensor(_STORAGE, b"J\xff\xff\xff\xff", _ONE, _ONE),
    "an offset outside": lambda: _tensor(_STORAGE, b"K\x7f", _ONE, _ONE),
    "strides outside": lambda: _tensor(_STORAGE, b"K\0", b"K\x04\x85", b"K\x7f\x85"),
    "nine dimensions": lambda: _tensor(_STORAGE, b"K\0", _NINE, _NINE),
    "another number of strides": lambda: _tensor(_STORAGE, b"K\0", b"K\x01\x85", b"K\x01K\x01\x86"),
    "a text as storage": lambda: _tensor(b"X\x01\0\0\x000", b"K\0", _ONE, _ONE),
    "a missing storage": lambda: _tensor(_STORAGE.replace(b"\x000", b"\x009"), b"K\0", _ONE, _ONE),
    "a storage of a path": lambda: _tensor(
        _STORAGE.replace(b"X\x01\0\0\x000", b"X\x0b\0\0\0/etc/passwd"), b"K\0", _ONE, _ONE
    ),
    "an unknown type": lambda: _tensor(_STORAGE.replace(b"Float", b"Qint8"), b"K\0", _ONE, _ONE),
    "a module's class and source": lambda: _module(b"cos\nsystem\n"),
    "a module's class that is a text": lambda: _module(b"X\x01\0\0\0a"),
    "a module's class that is called": lambda: _module(b"cos\nsystem\n", b"X\x02\0\0\0id\x85R"),
    "a module's class that is a dictionary in itself": lambda: _module(b"}q\0X\x01\0\0\0ah\0s"),
    "a module's class as a key": lambda: b"\x80\x02}" + _module(b"cos\nsystem\n")[2:-1] + b"K\x01s.",
    "no values": lambda: b"\x80\x02.",
    "numbers alone": lambda: pickle.dumps({"a": 1, "b": [2.5]}, 2),
    "a half": lambda: pickle.dumps({"a": 1}, 2)[:-3],
}


def _files_of_other_names() -> Iterator[tuple[str, Callable[[Path], Path]]]:
    """Returns files without a known extension, whose content tells the format."""
    for description, make in _PICKLES.items():
        yield f"a file 'download' with a pickle of {description}", _file("download", make)
        archive = functools.partial(_torch_archive, make, name="download")
        yield f"a file 'download' that is torch's archive with {description}", archive
    for description, change in _NUMBERED_CHANGES.items():
        yield f"a file 'download' of HDF5 with {description}", _h5(numbered_root, change, name="download")
    for description, make in _STARTS.items():
        for name in ("download", "0a1b2c", "weights.p"):
            yield f"{description} as {name}", _file(name, make)
    for description, members in _MEMBERS.items():
        yield f"an archive 'download' with {description}", functools.partial(_nameless_archive, members)


_STARTS: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "one byte": lambda: b"\x80",
    "a signature of HDF5 alone": lambda: b"\x89HDF\r\n\x1a\n",
    "a signature of HDF5 and zeros": lambda: b"\x89HDF\r\n\x1a\n" + bytes(5000),
    "a signature of an archive alone": lambda: b"PK\x03\x04",
    "a signature of an archive and zeros": lambda: b"PK\x03\x04" + bytes(5000),
    "an end of an archive before a pickle": lambda: b"PK\x05\x06" + bytes(18) + _PICKLES["os.system"](),
    "torch's number alone": lambda: b"\x80\x02\x8a\x0a" + _TORCH_NUMBER + b".",
    "torch's number and os.system": lambda: (
        b"\x80\x02\x8a\x0a" + _TORCH_NUMBER + b"." + _PICKLES["os.system"]()
    ),
    "a header of safetensors alone": lambda: struct.pack("<Q", 2) + b"{}",
    "a header of safetensors of 99 MB": lambda: struct.pack("<Q", 99_000_000) + b'{"' + bytes(100),
    "control characters": lambda: b"\x1b]0;x\x07\x1b[2J\n",
}
_TORCH_NUMBER = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
_MEMBERS: dict[str, tuple[str, ...]] = {
    "no member": (),
    "weights of Keras that are none": ("model.weights.h5",),
    "members of Keras and torch": ("model.weights.h5", "x/data.pkl", "config.json"),
    "two pickles of torch": ("x/data.pkl", "y/data.pkl"),
    "weights of Keras in a folder": ("x/model.weights.h5",),
    "a path outside": ("../data.pkl",),
    "20,000 members": tuple(f"x/data/{i}" for i in range(20_000)),
}


def _nameless_archive(members: tuple[str, ...], folder: Path) -> Path:
    with zipfile.ZipFile(folder / "download", "w") as archive:
        for name in members:
            archive.writestr(name, b"\x80\x02N.")
    return folder / "download"


def _header(text: bytes, data: bytes = b"", length: int | None = None) -> Callable[[], bytes]:
    return lambda: struct.pack("<Q", len(text) if length is None else length) + text + data


def _entry(**changes: Any) -> bytes:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}
    return json.dumps({"block1.weight": entry}).encode()


def _safetensors_files() -> Iterator[tuple[str, Callable[[Path], Path]]]:
    headers: dict[str, Callable[[], bytes]] = {
        "100,000 levels": _header(b"[" * 100_000 + b"]" * 100_000),
        "1,000 levels": _header(b'{"a":' * 1000 + b"1" + b"}" * 1000),
        "repeated keys": _header(_entry()[:-1] + b"," + _entry()[1:], bytes(8)),
        "a list": _header(b"[]"),
        "metadata of numbers": _header(b'{"__metadata__": 7}'),
        "metadata of lists": _header(b'{"__metadata__": {"a": []}}'),
        "NaN": _header(b'{"a": NaN}'),
        "a length of 2^63": _header(b"{}", length=1 << 63),
        "a length beyond the file": _header(b"{}", length=1000),
        "a length of 0": _header(b"", length=0),
        "bytes that are no text": _header(b'{"\xff": 1}'),
        "300,000 keys": _header(json.dumps(dict.fromkeys(map(str, range(300_000)), 1)).encode()),
        "shape 2^40": _header(_entry(shape=[1 << 40]), bytes(8)),
        "shape 2^80": _header(_entry(shape=[1 << 40, 1 << 40]), bytes(8)),
        "a text as shape": _header(_entry(shape="2"), bytes(8)),
        "a shape of floats": _header(_entry(shape=[2.0]), bytes(8)),
        "offsets outside": _header(_entry(data_offsets=[0, 1 << 40]), bytes(8)),
        "one offset": _header(_entry(data_offsets=[0]), bytes(8)),
        "an unknown type": _header(_entry(dtype="F7"), bytes(8)),
        "bytes after the arrays": _header(_entry(), bytes(80)),
        "no arrays": _header(b"{}"),
    }
    for description, make in headers.items():
        yield f"a header with {description}", _file("model.safetensors", make)
    yield "a part of a model", _file("model-00001-of-00002.safetensors", _header(_entry(), bytes(8)))
