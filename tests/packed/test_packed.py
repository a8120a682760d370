"""Packed data sets give the same batches as the files, and every kind of damage is found."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from numpy.lib.recfunctions import repack_fields
from PIL import Image as PillowImage

import ppxcls
from ppxcls.data.dataset import ImageNetDataset
from ppxcls.data.decode import ImageParts
from ppxcls.data.errors import DataError
from ppxcls.data.loader import Loader
from ppxcls.data.sampler import DistributedBatchSampler
from ppxcls.packed import write
from ppxcls.packed.dataset import PackedDataset
from ppxcls.packed.format import RECORD, read_pack_manifest
from ppxcls.system.temporary_files import temporary_name
from tests.conftest import ROOT, SMALL_NETWORK, run_tool, small_config
from tests.packed.conftest import jpeg, photo

NORMALIZE = {"NormalizeImage": {"scale": "1.0/255.0", "order": ""}}
TRAIN = [{"DecodeImage": {}}, {"RandCropImage": {"size": 61}}, {"RandFlipImage": {}}, NORMALIZE]
OTHERS = {
    "evaluation": [
        {"DecodeImage": {}},
        {"ResizeImage": {"resize_short": 80}},
        {"CropImage": {"size": 64}},
        NORMALIZE,
    ],
    "larger": [{"DecodeImage": {}}, {"ResizeImage": {"resize_short": 700}}, {"CropImage": {"size": 200}}],
    "crop first": [{"DecodeImage": {}}, {"CropImage": {"size": 1}}],
    "whole": [{"DecodeImage": {}}, {"ResizeImage": {"size": 48}}],
    "bgr": [{"DecodeImage": {"to_rgb": False}}, {"RandCropImage": {"size": 31}}],
    "policy": [{"DecodeImage": {}}, {"RandCropImage": {"size": 64}}, {"RandAugment": {}}, NORMALIZE],
}
RESIZERS = [("cv2", name) for name in ("nearest", "bilinear", "bicubic", "area", "lanczos")]
RESIZERS += [("pil", name) for name in ("nearest", "bilinear", "bicubic", "box", "lanczos", "hamming")]


@pytest.fixture(scope="module")
def packed(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    facts = ppxcls.pack(photos / "list.txt", None, output=folder, samples_per_shard=7)
    assert (facts.samples, facts.segmented_images) == (41, 31)
    return folder


def batches(dataset: Any, threads: int = 2) -> list[Any]:
    sampler = DistributedBatchSampler(batch_size=1, num_samples=len(dataset), shuffle=True, seed=3)
    found = []
    for plan in sampler.batches(1):
        index = int(plan.indices[0])
        try:
            found.append(dataset.load(index, np.random.default_rng([3, index])))
        except ppxcls.DataError as error:
            found.append(str(error).rpartition(": ")[2])
    return found


def assert_same(one: list[Any], two: list[Any]) -> None:
    assert len(one) == len(two) == 41
    for a, b in zip(one, two, strict=True):
        if isinstance(a, str):
            assert a == b
        else:
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("ops", [TRAIN, *OTHERS.values()], ids=["train", *OTHERS])
def test_the_same_images_and_errors(ops: list[Any], photos: Path, packed: Path) -> None:
    files = batches(ImageNetDataset(str(photos), str(photos / "list.txt"), transform_ops=ops))
    assert sum(isinstance(found, str) for found in files) in range(1, 20)
    assert_same(files, batches(PackedDataset(str(packed), ops)))


@pytest.mark.parametrize(("backend", "interpolation"), RESIZERS)
def test_the_same_evaluation_with_each_interpolation(
    backend: str, interpolation: str, photos: Path, packed: Path
) -> None:
    for short in (70, 260, 611):
        resize = {"ResizeImage": {"resize_short": short, "backend": backend, "interpolation": interpolation}}
        ops = [{"DecodeImage": {}}, resize, {"CropImage": {"size": 60}}]
        assert_same(
            batches(ImageNetDataset(str(photos), str(photos / "list.txt"), transform_ops=ops)),
            batches(PackedDataset(str(packed), ops)),
        )


def test_parts_are_decoded_only_where_they_are_needed(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = PackedDataset(str(packed), TRAIN)
    whole: list[Any] = []
    monkeypatch.setattr("ppxcls.packed.jpeg.SegmentedImage.whole", whole.append)
    image = dataset.read(0)
    assert isinstance(image, ImageParts)
    dataset.load(0)
    PackedDataset(str(packed), OTHERS["evaluation"]).load(1)
    assert not whole


def test_labels_lines_and_digest_are_the_lists(photos: Path, packed: Path) -> None:
    files, dataset = ImageNetDataset(str(photos), str(photos / "list.txt")), PackedDataset(str(packed))
    np.testing.assert_array_equal(files.labels, dataset.labels)
    assert dataset.digest() == files.digest()
    assert [dataset.listed(i) for i in range(41)] == [files.listed(i) for i in range(41)]
    assert dataset.line(40) == f"{packed}/list.txt:41"
    with pytest.raises(ppxcls.DataError, match=r"list.txt:3: the label 2 is outside class_num = 2"):
        PackedDataset(str(packed), class_num=2)
    dataset.check_files()


def test_threads_give_the_same_batches(packed: Path) -> None:
    dataset = PackedDataset(str(packed), OTHERS["whole"])
    good = [i for i in range(41) if "cut" not in dataset.listed(i)]
    for threads in (0, 3):
        sampler = DistributedBatchSampler(batch_size=8, num_samples=41)
        loader = Loader(dataset, sampler, num_workers=threads)
        first = next(iter(loader.epoch(0)))
        np.testing.assert_array_equal(first.images, [dataset.load(i) for i in good[:8]])


def test_verify_and_unpack(photos: Path, packed: Path, tmp_path: Path) -> None:
    ppxcls.verify_pack(packed)
    ppxcls.verify_pack(packed, photos / "list.txt")
    assert ppxcls.unpack(packed, tmp_path / "files") == 41
    ops = [{"DecodeImage": {}}]
    unpacked = ImageNetDataset(str(tmp_path / "files"), str(tmp_path / "files/list.txt"), transform_ops=ops)
    assert_same(
        batches(ImageNetDataset(str(photos), str(photos / "list.txt"), transform_ops=ops)), batches(unpacked)
    )
    assert (tmp_path / "files/cut.jpg").read_bytes() == (photos / "cut.jpg").read_bytes()
    with pytest.raises(ppxcls.DataError, match="expected an empty folder"):
        ppxcls.unpack(packed, tmp_path / "files")


def test_interrupted_work_goes_on(
    photos: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packing is killed in its third shard. The finished data set is bit-identical to an uninterrupted one.

    The completed shards are not written again.
    """
    code = (
        "import os, ppxcls; from ppxcls.packed import write; save = write._write_shard\n"
        "write._write_shard = lambda out, number, **rest: "
        "os._exit(9) if number == 2 else save(out, number, **rest)\n"
        f"ppxcls.pack({str(photos / 'list.txt')!r}, None, output={str(tmp_path / 'out')!r}, samples_per_shard=7)"
    )
    result = subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT, capture_output=True)
    assert result.returncode == 9, result.stderr
    (tmp_path / "out" / temporary_name("shard-00002.data")).write_bytes(b"half")  # of a killed process
    with pytest.raises(ppxcls.DataError, match=r"pack.json: no such file; ppxcls pack writes it at the end"):
        PackedDataset(str(tmp_path / "out"))
    with pytest.raises(ppxcls.DataError, match="another list, or with other options"):
        ppxcls.pack(photos / "list.txt", None, output=tmp_path / "out", samples_per_shard=8)
    written = []
    shard = write._write_shard
    monkeypatch.setattr(
        write,
        "_write_shard",
        lambda *args, **rest: written.append(args[1]) or shard(*args, **rest),
    )
    ppxcls.pack(photos / "list.txt", None, output=tmp_path / "out", samples_per_shard=7)
    assert written == [2, 3, 4, 5]
    names = sorted(file.name for file in packed.iterdir())
    assert names == sorted(file.name for file in (tmp_path / "out").iterdir())
    assert all((tmp_path / "out" / name).read_bytes() == (packed / name).read_bytes() for name in names)
    assert ppxcls.pack(photos / "list.txt", None, output=tmp_path / "out", samples_per_shard=7).samples == 41
    assert written == [2, 3, 4, 5]


def test_grey_rgba_and_16_bits_of_packed_files(tmp_path: Path) -> None:
    """Packed files give the same values, and JPEGs of a reduction are refused for more than they have."""
    image = np.random.default_rng(0).integers(0, 65536, (60, 80, 4), np.uint16)
    photo = cv2.GaussianBlur((image[..., :3] >> 8).astype(np.uint8), (9, 9), 0)
    for name, pixels in (("a.png", image), ("b.jpg", photo)):
        cv2.imwrite(str(tmp_path / name), pixels)
    (tmp_path / "list.txt").write_text("a.png 0\nb.jpg 1\n")
    ppxcls.pack(tmp_path / "list.txt", None, output=tmp_path / "pack")
    ppxcls.pack(tmp_path / "list.txt", None, output=tmp_path / "small", short_side=50)
    for keys in ({"channels": 1}, {"channels": 4, "bits": 16}, {"channels": 1, "bits": 16}):
        ops = [{"DecodeImage": keys}, {"CropImage": {"size": 32}}]
        files = ImageNetDataset(str(tmp_path), str(tmp_path / "list.txt"), transform_ops=ops)
        packed = PackedDataset(str(tmp_path / "pack"), ops)
        assert all(np.array_equal(packed.load(i), files.load(i)) for i in range(2))
        if keys == {"channels": 1}:
            assert PackedDataset(str(tmp_path / "small"), ops).load(1).shape == (32, 32, 1)
            continue
        with pytest.raises(
            DataError, match="was packed as JPEGs .*, which keep 3 channels of 8 bits; Decode"
        ):
            PackedDataset(str(tmp_path / "small"), ops)


def test_reduced_by_request(photos: Path, packed: Path, tmp_path: Path) -> None:
    ppxcls.pack(photos / "list.txt", None, output=tmp_path / "small", short_side=100, quality=85)
    dataset = PackedDataset(str(tmp_path / "small"), [{"DecodeImage": {}}])
    assert dataset.load(0).shape == (100, 133, 3)
    assert dataset.load(2).shape == (97, 129, 3)
    assert dataset.digest() != PackedDataset(str(packed)).digest()
    lying = next(i for i in range(41) if dataset.listed(i) == "lying.jpg")
    assert dataset.load(lying).shape == (133, 100, 3)  # turned upright as its EXIF orientation requires
    whole, small = (
        np.asarray(data.load(6)) for data in (PackedDataset(str(packed), [{"DecodeImage": {}}]), dataset)
    )
    lanczos, box = (
        np.asarray(PillowImage.fromarray(whole).resize(small.shape[1::-1], method), np.float32)
        for method in (PillowImage.Resampling.LANCZOS, PillowImage.Resampling.BOX)
    )
    assert np.abs(small - lanczos).mean() < np.abs(small - box).mean()
    with pytest.raises(ppxcls.DataError, match="the images were reduced, so they can't be compared"):
        ppxcls.verify_pack(tmp_path / "small", photos / "list.txt")
    ppxcls.verify_pack(tmp_path / "small")


def test_a_file_that_is_missing_stops_the_packing(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("grey.jpg 0\nnowhere.jpg 1\n")
    with pytest.raises(ppxcls.DataError, match=r"nowhere.jpg \(.*list.txt:2\): No such file"):
        ppxcls.pack(tmp_path / "list.txt", photos, output=tmp_path / "out")
    assert not (tmp_path / "out/pack.json").exists()


def changed(manifest: dict[str, Any], **keys: Any) -> str:
    return json.dumps({**manifest, **keys})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[" * 100_000,
        "[]",
        "{}",
        '{"format": "ppxcls pack 2", "shards": []}',
        '{"format": "ppxcls pack 2", "shards": 3}',
        '{"format": "other"}',
        "\x00",
    ],
)
def test_no_manifest(text: str, tmp_path: Path) -> None:
    (tmp_path / "pack.json").write_text(text)
    with pytest.raises(ppxcls.DataError, match=r"pack.json: not the manifest of a packed data set"):
        PackedDataset(str(tmp_path))


@pytest.mark.parametrize(
    "keys",
    [
        {"samples": "41"},
        {"samples": -1},
        {"samples": 10**30},
        {"samples": True},
        {"samples_per_shard": 0},
        {"samples_per_shard": 5},
        {"delimiter": ""},
        {"delimiter": None},
        {"quality": [1]},
        {"resampling": "nearest"},
        {"resampling": ["lanczos"]},
        {"shards": [None]},
        {"list_sha256": 3},
    ],
    ids=str,
)
def test_wrong_values_in_a_manifest(keys: dict[str, Any], packed: Path, tmp_path: Path) -> None:
    manifest = json.loads((packed / "pack.json").read_text())
    (tmp_path / "pack.json").write_text(changed(manifest, **keys))
    with pytest.raises(ppxcls.DataError, match=r"its SHA-256|an integer is too large"):
        read_pack_manifest(tmp_path / "pack.json")
    del manifest["sha256"]
    (tmp_path / "pack.json").write_text(changed(manifest, **keys))
    with pytest.raises(ppxcls.DataError, match=r"pack.json: not the manifest of a packed data set"):
        read_pack_manifest(tmp_path / "pack.json")


def save(file: Path, array: Any) -> None:
    with open(file, "wb") as stream:  # with a file name, numpy would add an extension
        np.save(stream, array, allow_pickle=True)


def write_digests(folder: Path) -> None:
    """Writes the digests of the indices into the manifest, and removes the digest of the manifest."""
    manifest = json.loads((folder / "pack.json").read_text())
    manifest.pop("sha256", None)
    for number, shard in enumerate(manifest["shards"]):
        index_file = folder / f"shard-{number:05d}.index"
        shard["index_sha256"] = hashlib.sha256(index_file.read_bytes()).hexdigest()
    (folder / "pack.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "damage", ["data", "short", "index", "huge", "segments", "object", "list", "frame", "no shard"]
)
def test_damage_is_found(damage: str, packed: Path, tmp_path: Path) -> None:
    """``verify_pack`` and training find all damage, and training also what has a matching digest."""
    folder = tmp_path / "packed"
    shutil.copytree(packed, folder)
    data, index_file = folder / "shard-00000.data", folder / "shard-00000.index"
    index = np.load(index_file)
    if damage == "data":
        content = bytearray(data.read_bytes())
        content[int(index[0]["scan"]) + 200] ^= 255
        data.write_bytes(content)
    elif damage == "short":
        os.truncate(data, 100)
    elif damage == "frame":  # a size that differs from the index
        content = bytearray(data.read_bytes())
        content[25:29] = b"\xff\xff\xff\xff"
        data.write_bytes(content)
    elif damage == "no shard":
        data.unlink()
    elif damage == "list":
        (folder / "list.txt").write_text("x 0\n" * 41)
    elif damage == "object":
        save(index_file, np.array([{"a": 1}] * 7))
    else:
        field = {"index": "offset", "huge": "size", "segments": "per_segment"}[damage]
        index[0][field] = {"offset": 1 << 40, "size": (1 << 32) - 1, "per_segment": 40}[field]
        save(index_file, index)
    with pytest.raises(ppxcls.DataError):
        ppxcls.verify_pack(folder)
    with pytest.raises(ppxcls.DataError):
        PackedDataset(str(folder), OTHERS["whole"]).load(0)
    write_digests(folder)
    with pytest.raises(ppxcls.DataError):
        PackedDataset(str(folder), OTHERS["whole"]).load(0)


def write_format_1(packed: Path, folder: Path) -> None:
    """Writes the packed data set in the format of ppxcls 0.9.

    Restart markers and their positions are omitted, because they are no longer read.
    """
    shutil.copytree(packed, folder)
    manifest = json.loads((folder / "pack.json").read_text())
    dataset = PackedDataset(str(packed))
    for number, shard in enumerate(manifest["shards"]):
        index, data = np.load(folder / f"shard-{number:05d}.index"), b""
        index = repack_fields(index[[name for name in index.dtype.names if name != "crc32"]])
        for place, row in enumerate(index):
            found = dataset.read(7 * number + place)
            record = found.encoded if isinstance(found, ImageParts) else found
            row["offset"], row["size"] = len(data), len(record)
            data += record + bytes(2 * int(row["segments"]))
        (folder / f"shard-{number:05d}.data").write_bytes(data)
        save(folder / f"shard-{number:05d}.index", index)
        shard["bytes"] = len(data)
        for key, extension in (("sha256", "data"), ("index_sha256", "index")):
            shard[key] = hashlib.sha256((folder / f"shard-{number:05d}.{extension}").read_bytes()).hexdigest()
    del manifest["sha256"]
    (folder / "pack.json").write_text(changed(manifest, format="ppxcls pack 1"))


def test_format_1_is_read(
    photos: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "old"
    write_format_1(packed, folder)
    ops = [{"DecodeImage": {}}, {"RandCropImage": {"size": 31}}]
    warnings: list[str] = []
    monkeypatch.setattr("ppxcls.packed.dataset.logger.warning", warnings.append)
    old, new = PackedDataset(str(folder), ops), PackedDataset(str(packed), ops)
    reason = "because the data set has the format 'ppxcls pack 1'; pack the files again"
    assert warnings == [f"{folder}: images are decoded whole, {reason}"]
    assert isinstance(old.read(0), bytes)
    assert old.digest() == new.digest()
    assert_same(batches(old), batches(new))
    assert ppxcls.verify_pack(folder, photos / "list.txt").segmented_images == 0
    with pytest.raises(ppxcls.DataError, match="a data set of the format 'ppxcls pack 1'"):
        ppxcls.pack(photos / "list.txt", None, output=folder, samples_per_shard=7)


def test_format_2_is_read_and_stays_as_it_is(photos: Path, packed: Path, tmp_path: Path) -> None:
    """Earlier versions, which read this format, refuse the entries that were added later."""
    folder = tmp_path / "earlier"
    shutil.copytree(packed, folder)
    manifest = json.loads((folder / "pack.json").read_text())
    assert manifest["format"] == "ppxcls pack 3"
    del manifest["sha256"], manifest["class_names_sha256"]
    text = json.dumps(manifest | {"format": "ppxcls pack 2"})
    (folder / "pack.json").write_text(text)
    assert_same(batches(PackedDataset(str(folder), TRAIN)), batches(PackedDataset(str(packed), TRAIN)))
    assert PackedDataset(str(folder), TRAIN).digest() == PackedDataset(str(packed), TRAIN).digest()
    assert ppxcls.pack(photos / "list.txt", None, output=folder, samples_per_shard=7).samples == 41
    assert (folder / "pack.json").read_text() == text
    (folder / "shard-00002.data").write_bytes(b"")
    with pytest.raises(ppxcls.DataError, match="shard-00002: is damaged, and an earlier version wrote it"):
        ppxcls.pack(photos / "list.txt", None, output=folder, samples_per_shard=7)
    (folder / "pack.json").rename(folder / "pack.unfinished.json")
    with pytest.raises(ppxcls.DataError, match="a data set of the format 'ppxcls pack 2'; choose another"):
        ppxcls.pack(photos / "list.txt", None, output=folder, samples_per_shard=7)


def test_fields_of_the_index_have_the_documented_size() -> None:
    assert RECORD.itemsize == 32


def test_object_store_reads_records_or_copies_shards(packed: Path, tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    store = fsspec.filesystem("memory")
    store.pipe({f"/bucket/{file.name}": file.read_bytes() for file in packed.iterdir()})
    ops = [{"DecodeImage": {}}]
    expected = batches(PackedDataset(str(packed), ops))
    assert_same(batches(PackedDataset("memory://bucket", ops, cache_dir=str(tmp_path / "a"))), expected)
    assert not list((tmp_path / "a").rglob("*.data"))
    largest = 2 * max(file.stat().st_size for file in packed.glob("*.data")) / 1e9
    cached = PackedDataset("memory://bucket", ops, cache_dir=str(tmp_path / "b"), cache_gb=largest)
    assert_same(batches(cached), expected)
    copies = list((tmp_path / "b").rglob("*.data"))
    assert 1 <= len(copies) < 6
    assert sum(file.stat().st_size for file in copies) <= largest * 1e9
    cached.check_files()
    cached.announce(range(41))
    store.rm("/bucket/shard-00003.data")
    with pytest.raises(ppxcls.DataError, match="shard-00003.data"):
        cached.check_files()
    with pytest.raises(ppxcls.DataError, match=r"memory://bucket/nowhere/pack.json: no such file"):
        PackedDataset("memory://bucket/nowhere", ops, cache_dir=str(tmp_path / "c"))
    with pytest.raises(ppxcls.DataError, match="nothing://bucket"):
        PackedDataset("nothing://bucket", ops, cache_dir=str(tmp_path / "c"))


def test_a_run_goes_on_from_files_to_packed_data(tmp_path: Path) -> None:
    """One epoch from files and one from packed data, against two epochs from files.

    The losses and the evaluations are bit-identical.
    """
    packs = []
    for section, name, count in (("Train", "train", 12), ("Eval", "val", 7)):
        images = [
            (f"{name}-{i}.jpg", jpeg(photo(130, 100, i), subsampling=2 * (i % 2))) for i in range(count)
        ]
        for file, data in images:
            (tmp_path / file).write_bytes(data)
        (tmp_path / f"{name}_list.txt").write_text(
            "".join(f"{file} {i % 3}\n" for i, (file, _) in enumerate(images))
        )
        words = [tmp_path / f"{name}_list.txt", "-o", tmp_path / name, "--samples-per-shard", "5"]
        result = run_tool("pack", *words)
        assert f"{count} samples" in result.stdout, result.stderr
        assert f"{count} JPEGs in segments, 0 unchanged files" in result.stdout
        packs.append((section, str(tmp_path / name)))
    lr = {"name": "ConstLR", "learning_rate": 0.01}
    arch = {
        "Arch": {"name": "SmallNetwork", "class_num": 3},
        "Global.plugins": [SMALL_NETWORK],
        "Optimizer.lr": lr,
    }
    files = small_config(tmp_path, tmp_path, **arch)
    packed = small_config(tmp_path, tmp_path, **arch)
    for section, pack in packs:
        dataset = packed["DataLoader"][section]["dataset"]
        packed["DataLoader"][section]["dataset"] = {
            "name": "PackedDataset",
            "pack": pack,
            "transform_ops": dataset["transform_ops"],
        }

    def train(folder: str, epochs: int, config: dict[str, Any]) -> list[Any]:
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        overrides = [
            f"Global.output_dir={tmp_path / folder}",
            f"Global.epochs={epochs}",
            "Global.checkpoints=auto",
        ]
        words = [word for override in overrides for word in ("-o", override)]
        result = run_tool(
            "tools/train.py", "-c", tmp_path / "config.yaml", *words, is_own_process=folder == "parted"
        )
        assert result.returncode == 0, result.stderr
        rows = map(json.loads, (tmp_path / folder / "SmallNetwork/metrics.jsonl").read_text().splitlines())
        return [{key: row[key] for key in row if key in ("step", "loss", "top1")} for row in rows]

    train("parted", 1, files)
    expected = train("whole", 2, files)
    assert len([row for row in expected if "loss" in row]) > 6
    assert train("parted", 2, packed) == expected
    report = (tmp_path / "parted/SmallNetwork/report.html").read_text()
    assert report.count("data:image/jpeg;base64,") > 7
    assert "The images are not where they were" not in report
    result = run_tool("tools/eval.py", "-c", tmp_path / "parted/SmallNetwork")
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "parted/SmallNetwork/eval.json").read_text())["data"] == packs[1][1]


def test_the_tool_says_what_it_needs(photos: Path, tmp_path: Path) -> None:
    result = run_tool("pack", photos / "list.txt")
    assert result.returncode == 2
    assert "expected LIST and --output, or --verify PACK, or --unpack PACK and --output" in result.stderr
    result = run_tool("pack", photos / "list.txt", "-o", tmp_path, "--quality", "101")
    assert result.returncode == 1
    assert result.stderr.strip() == "error: expected quality from 1 to 100, received 101"
