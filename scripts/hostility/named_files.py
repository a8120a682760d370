"""Files and addresses that a config from somebody else names: private texts, archives that grow, URLs."""

from __future__ import annotations

import functools
import io
import json
import resource
import struct
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
from hostility.cases import Case, Outcome, call, message_problem, refusal_problem

import ppxcls
from ppxcls.checkpoints.files import read_manifest, read_state
from ppxcls.config.load import RUN_CONFIG_HEADER
from ppxcls.data.class_names import read_class_names
from ppxcls.data.dataset import ImageNetDataset
from ppxcls.data.list_index import ListIndex
from ppxcls.data.make_lists import make_lists
from ppxcls.deploy.build import _files_to_predict
from ppxcls.deploy.metadata import read_metadata
from ppxcls.models.foreign_weights import read_foreign_weights
from ppxcls.packed.format import read_pack_manifest

PROMISE = (
    "No message contains the text of a file that somebody else's config names. Archives and HDF5 files are "
    "refused if they unpack to more than they have. A run's config names no address, and no place "
    "outside the run's folder to search for images"
)
Check = tuple[Outcome, str | None]
_MARK = "MARK"
_TEXTS = {
    "a shadow file": "root:$y$j9TMARK$MARKabc:19000:0:99999:7:::\ndaemon:*MARK:1:0:99999:7:::\n",
    "a private key": "-----BEGIN MARK PRIVATE KEY-----\nb3BlbnMARKzaC1rZXk\n-----END MARK PRIVATE KEY-----\n",
    "a token in JSON": '{"auths": {"MARK.example": {"auth": "MARKdXNlcg=="}}, "format": "MARK"}',
    "a token in YAML": "token: MARKabcdef\nGlobal:\n  secret: MARK\n  device: MARK\n",
    "logins": "machine MARK.example login MARKme password MARKsecret\n",
    "a history": "ssh MARK@host 22\nexport TOKEN=MARKabc\nmysql -u MARK -p MARKpw\n",
    "settings": "PASSWORD=MARK\nAPI_KEY='MARK, MARK'\n[MARK]\n&MARK *MARKalias !MARKtag\n",
    "numbers": "7 MARKname\n7 MARKother\n12345678 MARK\n",
    "a pickle's first opcode": "cMARKmodule$\nMARK name\n.",
    "a pickle's first opcode and names": "cMARKmodule\nMARKname\n.",
    "a database": "SQLite format 3\0MARK\0MARK",
    "a line of 1 MB": "MARK" * 250_000,
    "control characters": "MARK\x1b]0;MARK\x07\x1b[2J\n",
}
_MAX_GROWTH_MIB = 100  # of this process's largest memory
_URLS = (
    *("s3://bucket/pack", "https://evil.example/pack", "http://127.0.0.1:1/x", "ftp://evil.example/pack"),
    *("memory://x", "file:///etc", "reference::file://x.json", "simplecache::s3://bucket/pack", "gs://b/p"),
)


def cases() -> Iterator[Case]:
    """Returns the cases."""
    for reader_name, reader in _READERS.items():
        for description in _TEXTS:
            run = functools.partial(_private_text, reader, description)
            yield Case(f"{reader_name} that is {description}", run, is_quick=True)
    for description, write in _BOMBS.items():
        run = functools.partial(_bomb, write)
        yield Case(f"weights: {description}", run, is_quick=description not in _SLOW_BOMBS)
    for description, write in _GOOD_FILES.items():
        yield Case(f"weights: {description}", functools.partial(_good_file, write), is_quick=True)
    for keys in _ADDRESS_KEYS:
        for url in _URLS:
            run = functools.partial(_address, keys, url)
            yield Case(f"{url} as {keys} of a run", run, is_quick=url.startswith(("ftp", "s3")))
    for url in _URLS:
        run = functools.partial(_repeated_address, url)
        yield Case(f"{url} that the user repeats", run, is_quick=True)
    for keys in ("Infer.infer_imgs", "Global.pretrained_model", "Arch.pretrained", "Global.checkpoints"):
        for pattern in _PATTERNS:
            run = functools.partial(_pattern, keys, pattern)
            yield Case(f"{pattern} as {keys} of a run", run, is_quick=True)
    for pattern in (*_PATTERNS, "/", "run/*.png"):
        yield Case(f"infer: {pattern} of a run", functools.partial(_images, pattern), is_quick=True)
    for keys, value in _HUGE_VALUES.items():
        run = functools.partial(_huge_value, keys, value)
        yield Case(f"{keys} of a run is {value:.0e}", run, is_quick=True)
    for description in _TEXTS:
        run = functools.partial(_base_of_run, description)
        yield Case(f"a base of a run that is {description}", run, is_quick=True)


def _write_text(folder: Path, description: str) -> Path:
    file = folder / "private"
    file.write_text(_TEXTS[description], encoding="utf-8")
    return file


def _linked(name: str, read: Callable[[Path], object]) -> Callable[[Path], object]:
    """Returns a function that reads a private file under another name, by a link in a run's folder."""

    def read_link(private_file: Path) -> object:
        run = private_file.parent / "run"
        run.mkdir()
        (run / name).symlink_to(private_file)
        return read(run / name)

    return read_link


def _read_image(file: Path) -> object:
    dataset = file.parent / "list.txt"
    dataset.write_text(f"{file.name} 0\n", encoding="utf-8")
    return ImageNetDataset(str(file.parent), str(dataset), transform_ops=[{"DecodeImage": {}}]).load(0)


def _labels_of_photographs(file: Path) -> object:
    photos = file.parent / "photos"
    photos.mkdir()
    cv2.imwrite(str(photos / "a.png"), np.zeros((9, 9, 3), np.uint8))
    return make_lists(photos, file.parent / "lists", labels=file)


_READERS: dict[str, Callable[[Path], object]] = {
    "class_id_map_file": lambda file: read_class_names(file, 3),
    "a link class_names.txt": _linked("class_names.txt", lambda file: read_class_names(file, None)),
    "a link labels.txt": _linked("labels.txt", lambda file: read_class_names(file, None)),
    "a list": ListIndex,
    "a list with commas": lambda file: ListIndex(file, ","),
    "labels of photographs": _labels_of_photographs,
    "an image of a list": _linked("a.jpg", _read_image),
    "a link pack.json": _linked("pack.json", read_pack_manifest),
    "a link inference_config.json": _linked("inference_config.json", lambda file: read_metadata(file.parent)),
    "a link latest.json": _linked("latest.json", lambda file: read_manifest(file.with_suffix(""))),
    "weights .pdparams": _linked("a.pdparams", read_state),
    "weights .safetensors": _linked("a.safetensors", read_state),
    "weights .h5": _linked("a.h5", read_foreign_weights),
    "weights .keras": _linked("a.keras", read_foreign_weights),
    "weights .pth": _linked("a.pth", read_foreign_weights),
}


def _private_text(reader: Callable[[Path], object], description: str, folder: Path) -> Check:
    outcome = call(reader, _write_text(folder, description))
    if _MARK in outcome.errors:
        return outcome, f"its text is in the message: {outcome.errors[:200]}"
    if outcome.code == 0:  # a text of the right form is used, such as a list of one column of names
        is_of_right_form = description in ("numbers", "a history")
        return outcome, None if is_of_right_form else f"accepted: {outcome.output[:100]}"
    return outcome, refusal_problem(outcome)


def _base_of_run(description: str, folder: Path) -> Check:
    private_file = _write_text(folder, description)
    run = folder / "run"
    run.mkdir()
    text = f"{RUN_CONFIG_HEADER}base: {private_file}\nArch: {{name: Xception41}}\n"
    (run / "config.yaml").write_text(text, encoding="utf-8")
    outcome = call(ppxcls.load_config, run)
    has_text = _MARK in outcome.errors
    return outcome, "its text is in the message" if has_text else refusal_problem(outcome, "base")


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _bomb(write: Callable[[Path], Path], folder: Path) -> Check:
    file = write(folder)
    initial_peak = _peak_mib()
    outcome = call(read_foreign_weights, file)
    growth = _peak_mib() - initial_peak
    problem = refusal_problem(outcome, file.name)
    return outcome, f"takes {growth:.0f} MiB" if growth > _MAX_GROWTH_MIB else problem


def _good_file(write: Callable[[Path], Path], folder: Path) -> Check:
    file = write(folder)
    start = time.monotonic()
    try:
        outcome = call(read_foreign_weights, file)
    except Exception as error:
        outcome = Outcome(1, "", str(error), time.monotonic() - start)
    return outcome, None if outcome.code == 0 else f"refused: {outcome.errors[:200]}"


def _weights_h5(target: Any, **options: Any) -> None:
    """Writes Keras's weights with one layer."""
    with h5py.File(target, "w") as file:
        group = file.create_group("layers/dense/vars")
        group.attrs["name"] = "predictions"
        group.create_dataset("0", data=np.ones((2048, 3), np.float32), **options)
        group.create_dataset("1", data=np.ones(3, np.float32))


def _h5(change: Callable[[Any], object]) -> Callable[[Path], Path]:
    """Returns a function that writes Keras's weights with a change of the group of variables."""

    def write(folder: Path) -> Path:
        file = folder / "a.h5"
        with h5py.File(file, "w") as h5_file:
            group = h5_file.create_group("layers/dense/vars")
            group.attrs["name"] = "predictions"
            change(group)
        return file

    return write


def _replace_many(group: Any) -> None:
    group.create_dataset("0", data=np.ones(1 << 20, np.float32))
    for i in range(1, 600):
        group[str(i)] = group["0"]


def _link(kind: Any) -> Callable[[Any], object]:
    return lambda group: group.__setitem__("0", kind)


def _deflate_chunk(group: Any) -> None:
    """Writes a chunk that states 400 bytes and unpacks to 256 MB."""
    dataset = group.create_dataset("0", (100,), np.float32, chunks=(100,), compression="gzip")
    dataset.id.write_direct_chunk((0,), zlib.compress(bytes(1 << 28), 9))


def _virtual(group: Any) -> None:
    layout = h5py.VirtualLayout((4,), np.float32)
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (4,))
    group.create_virtual_dataset("0", layout)


def _keras(write: Callable[[zipfile.ZipFile], object]) -> Callable[[Path], Path]:
    """Returns a function that writes a ``.keras`` archive."""

    def write_archive(folder: Path) -> Path:
        with zipfile.ZipFile(folder / "a.keras", "w") as archive:
            write(archive)
        return folder / "a.keras"

    return write_archive


def _member(method: int, size: int = 1 << 28) -> Callable[[zipfile.ZipFile], object]:
    def write(archive: zipfile.ZipFile) -> None:
        with (
            archive.open(zipfile.ZipInfo("model.weights.h5"), "w")
            if method == 0
            else _open(archive, method) as stream
        ):
            for _ in range(size >> 20):
                stream.write(bytes(1 << 20))

    return write


def _open(archive: zipfile.ZipFile, method: int) -> Any:
    info = zipfile.ZipInfo("model.weights.h5")
    info.compress_type = method
    return archive.open(info, "w")


def _lying(stated_bytes: int) -> Callable[[Path], Path]:
    """Returns a function that writes an archive whose member states another size than it has."""

    def write(folder: Path) -> Path:
        file = _keras(_member(zipfile.ZIP_DEFLATED))(folder)
        content = bytearray(file.read_bytes())
        for signature, position in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
            place = content.find(signature) + position
            content[place : place + 4] = struct.pack("<I", stated_bytes)
        file.write_bytes(content)
        return file

    return write


def _many_members(folder: Path) -> Path:
    """Writes an archive with a directory of 200,000 empty members."""
    count, name = 200_000, b"x" * 10
    entry = struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 20, 20, *[0] * 4, 0, 0, 0, len(name), *[0] * 4, 0, 0)
    directory = (entry + name) * count
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count & 0xFFFF, count & 0xFFFF, len(directory), 0, 0)
    (folder / "a.keras").write_bytes(directory + end)
    return folder / "a.keras"


def _torch_bomb(folder: Path) -> Path:
    """Writes an archive in which 300 members share the same 8 MB."""
    file = folder / "a.pth"
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("x/data.pkl", _torch_pickle(300))
        archive.writestr("x/data/0", bytes(8 << 20))
        for i in range(1, 300):
            archive.writestr(f"x/data/{i}", b"")
        first = archive.getinfo("x/data/0")
        for info in archive.infolist():
            if info.filename.startswith("x/data/"):
                info.header_offset, info.CRC = first.header_offset, first.CRC
                info.file_size, info.compress_size = first.file_size, first.compress_size
                info.orig_filename = first.filename
    file.write_bytes(stream.getvalue())
    return file


def _torch_pickle(count: int) -> bytes:
    """Returns the pickle of a dictionary of tensors with one number each, of as many storages."""
    parts = [b"\x80\x02}("]
    for i in range(count):
        key = str(i).encode()
        parts += [b"X", struct.pack("<I", len(key)), key]
        parts += [b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\n"]
        parts += [
            b"X",
            struct.pack("<I", len(key)),
            key,
            b"X\x03\0\0\0cpuK\x01tQK\0K\x01\x85K\x01\x85\x89N\x74R",
        ]
    return b"".join([*parts, b"u."])


def _compressed_torch(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "a.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", bytes(1 << 28))
    return folder / "a.pth"


def _file(name: str, content: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


def _sparse_safetensors(folder: Path) -> Path:
    """Writes a file with a header of 100 MB."""
    with open(folder / "a.safetensors", "wb") as stream:
        stream.write(struct.pack("<Q", 100_000_000) + b'{"a":')
        stream.truncate(100_000_020)
    return folder / "a.safetensors"


def _safetensors(header: Mapping[str, Any]) -> Callable[[Path], Path]:
    text = json.dumps(header).encode()
    return _file("a.safetensors", struct.pack("<Q", len(text)) + text)


def _npz(folder: Path) -> Path:
    np.savez_compressed(folder / "a.npz", x=np.zeros(1 << 20))
    return (folder / "a.npz").rename(folder / "a.pth")


_BOMBS: dict[str, Callable[[Path], Path]] = {
    "a member that states 256 MB": _keras(_member(zipfile.ZIP_DEFLATED)),
    "a member of bzip2": _keras(_member(zipfile.ZIP_BZIP2)),
    "a member of lzma": _keras(_member(zipfile.ZIP_LZMA)),
    "a member that states 10 bytes": _lying(10),
    "a member that states 2 GB": _lying(0x7FFFFFFF),
    "a member that states 4 GB": _lying(0xFFFFFFFE),
    "a member of zeros": _keras(_member(zipfile.ZIP_STORED, 1 << 24)),
    "200,000 members": _many_members,
    "no member": _keras(lambda archive: archive.writestr("x", b"x")),
    "a member that is no HDF5 file": _keras(lambda archive: archive.writestr("model.weights.h5", b"x" * 999)),
    "torch's members that share their bytes": _torch_bomb,
    "a compressed archive of torch": _compressed_torch,
    "an archive of numpy": _npz,
    "a variable of gzip": _h5(lambda g: g.create_dataset("0", data=np.zeros(1 << 24), compression="gzip")),
    "a variable of lzf": _h5(lambda g: g.create_dataset("0", data=np.zeros(1 << 22), compression="lzf")),
    "a variable of shuffled gzip": _h5(
        lambda g: g.create_dataset("0", data=np.zeros(1 << 22), compression="gzip", shuffle=True)
    ),
    "a variable with checksums": _h5(lambda g: g.create_dataset("0", data=np.zeros(99), fletcher32=True)),
    "a chunk that states 400 bytes and has 256 MB": _h5(_deflate_chunk),
    "fill values of 400 MB": _h5(lambda g: g.create_dataset("0", (100_000_000,), np.float32, fillvalue=1)),
    "fill values in chunks": _h5(
        lambda g: g.create_dataset("0", (30_000, 30_000), np.float32, chunks=(100, 100), fillvalue=1)
    ),
    "a shape of 2^60 numbers": _h5(
        lambda g: g.create_dataset("0", (1 << 30, 1 << 30), np.float32, chunks=(1024, 1024))
    ),
    "a shape that may grow": _h5(
        lambda g: g.create_dataset("0", (10_000_000,), np.float32, maxshape=(None,), chunks=(1024,))
    ),
    "600 links to 4 MB": _h5(_replace_many),
    "a virtual variable": _h5(_virtual),
    "an external variable": _h5(
        lambda g: g.create_dataset("0", (4,), np.float32, external=[("/etc/passwd", 0, 16)])
    ),
    "an external link": _h5(_link(h5py.ExternalLink("/etc/passwd", "/x"))),
    "a soft link": _h5(_link(h5py.SoftLink("/layers/dense/vars"))),
    "a variable of texts": _h5(lambda g: g.create_dataset("0", data=["a", "b"])),
    "a variable of records": _h5(lambda g: g.create_dataset("0", data=np.zeros(4, [("a", "f4")]))),
    "a variable of complex numbers": _h5(lambda g: g.create_dataset("0", data=np.zeros(4, np.complex64))),
    "a variable of arrays": _h5(lambda g: g.create_dataset("0", (2,), np.dtype(("f4", (1 << 20,))))),
    "a group as variable": _h5(lambda g: g.create_group("0")),
    "a header of 100 MB": _sparse_safetensors,
    "a tensor of 2^60 numbers": _safetensors(
        {"a": {"dtype": "F32", "shape": [1 << 30, 1 << 30], "data_offsets": [0, 4]}}
    ),
    "a tensor outside the file": _safetensors({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}),
    "a tensor with a negative shape": _safetensors(
        {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}
    ),
}
_SLOW_BOMBS = tuple(name for name in _BOMBS if "member" in name or "compressed" in name or "256" in name)


def _good_h5(folder: Path, **options: Any) -> Path:
    _weights_h5(folder / "a.h5", **options)
    return folder / "a.h5"


def _good_keras(folder: Path, method: int) -> Path:
    stream = io.BytesIO()
    _weights_h5(stream)
    with zipfile.ZipFile(folder / "a.keras", "w", method) as archive:
        archive.writestr("model.weights.h5", stream.getvalue())
    return folder / "a.keras"


_GOOD_FILES: dict[str, Callable[[Path], Path]] = {
    "Keras's own .h5": _good_h5,
    "Keras's own .keras": lambda folder: _good_keras(folder, zipfile.ZIP_STORED),
    "a .keras archive that was packed again": lambda folder: _good_keras(folder, zipfile.ZIP_DEFLATED),
    "variables in chunks": lambda folder: _good_h5(folder, chunks=(16, 3)),
}


# Places of a config for an address, as paths of keys.
_ADDRESS_KEYS = (
    "DataLoader.Eval.dataset.pack",
    "DataLoader.Train.dataset.pack",
    "DataLoader.Eval.dataset.cls_label_path",
    "DataLoader.Eval.dataset.image_root",
    "Global.pretrained_model",
    "Arch.pretrained",
    "Infer.infer_imgs",
    "Infer.PostProcess.class_id_map_file",
    "Global.save_inference_dir",
)


_PATTERNS = ("/*/*/*/*/*/*/*/*/nosuch*", "/proc/*/*/*/*/*/nosuch*", "/**/*", "**/../../../../**/nosuch*")
_MAX_LOADING_SECONDS = 5
_HUGE_VALUES = {
    **{f"DataLoader.{mode}.loader.num_workers": 10**9 for mode in ("Train", "Eval")},
    **{f"DataLoader.{mode}.loader.num_processes": 10**9 for mode in ("Train", "Eval")},
    **{f"DataLoader.{mode}.loader.read_patience": 10**30 for mode in ("Train", "Eval")},
    "Global.hang_timeout": 10**30,
    "Global.save_interval_minutes": 10**30,
}


def _run_with(keys: str, value: object, folder: Path) -> Path:
    run = folder / "run"
    run.mkdir()
    ops = [{"DecodeImage": {}}]
    is_pack = keys.endswith("pack")
    dataset = (
        {"name": "PackedDataset", "pack": "x", "transform_ops": ops}
        if is_pack
        else {"name": "ImageNetDataset", "image_root": ".", "cls_label_path": "x", "transform_ops": ops}
    )
    sampler = {"name": "DistributedBatchSampler", "batch_size": 2}
    section = {"dataset": dataset, "sampler": sampler, "loader": {}}
    values: dict[str, Any] = {
        "Global": {},
        "Arch": {"name": "Xception41", "class_num": 3},
        "DataLoader": {"Train": section, "Eval": json.loads(json.dumps(section))},
        "Infer": {"transforms": ops, "PostProcess": {"name": "Topk"}},
    }
    target = values
    *parents, last = keys.split(".")
    for key in parents:
        target = target[key]
    target[last] = value
    (run / "config.yaml").write_text(RUN_CONFIG_HEADER + json.dumps(values), encoding="utf-8")
    return run


def _address(keys: str, url: str, folder: Path) -> Check:
    outcome = call(ppxcls.load_config, _run_with(keys, url, folder))
    return outcome, refusal_problem(outcome, keys, "names an address", f"-o {keys}=")


def _pattern(keys: str, pattern: str, folder: Path) -> Check:
    """Loads a config with a pattern, which walks through no folders."""
    outcome = call(ppxcls.load_config, _run_with(keys, pattern, folder))
    is_slow = outcome.seconds > _MAX_LOADING_SECONDS
    return outcome, f"takes {outcome.seconds:.0f} s" if is_slow else None


def _images(pattern: str, folder: Path) -> Check:
    """Searches for the images that a run names, out of its folder or by a link in it."""
    run = _run_with("Infer.infer_imgs", pattern.replace("run", str(folder / "run")), folder)
    cv2.imwrite(str(folder / "private.png"), np.zeros((9, 9, 3), np.uint8))
    (run / "link.png").symlink_to(folder / "private.png")
    outcome = call(_files_to_predict, ppxcls.load_config(run), ())
    return outcome, refusal_problem(outcome, "out of" if "run" in pattern else "Infer.infer_imgs")


def _huge_value(keys: str, value: int, folder: Path) -> Check:
    outcome = call(ppxcls.load_config, _run_with(keys, value, folder))
    return outcome, refusal_problem(outcome, keys, "at most")


def _repeated_address(url: str, folder: Path) -> Check:
    key = "DataLoader.Eval.dataset.pack"
    outcome = call(ppxcls.load_config, _run_with(key, url, folder), [f"{key}={url}"])
    problem = message_problem(outcome.errors) if outcome.errors else None
    return outcome, problem or (None if outcome.code == 0 else f"refused: {outcome.errors[:200]}")
