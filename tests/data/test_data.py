"""List files, samplers and loaders."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

from ppxcls.data import device, list_index
from ppxcls.data.dataset import ImageNetDataset
from ppxcls.data.device import DeviceTransform, ModelInput
from ppxcls.data.errors import DataError
from ppxcls.data.list_index import ListIndex
from ppxcls.data.loader import Loader
from ppxcls.data.sampler import BlockShuffleSampler, DistributedBatchSampler
from ppxcls.data.transforms import build_transforms, split_for_device
from tests.conftest import write_images


def write_list(folder: Path, content: bytes) -> Path:
    file = folder / "list.txt"
    file.write_bytes(content)
    return file


def rows(index: ListIndex) -> list[tuple[str, int]]:
    return [(index.path(i), int(index.labels[i])) for i in range(len(index))]


@pytest.mark.parametrize(
    ("content", "delimiter", "expected"),
    [
        (b"a.jpg 0\nb.jpg 12\n", " ", [("a.jpg", 0), ("b.jpg", 12)]),
        (b"a.jpg 0\nb.jpg 12", " ", [("a.jpg", 0), ("b.jpg", 12)]),
        (b"a b/c d.jpg 3\n", " ", [("a b/c d.jpg", 3)]),
        (b"a.jpg 0\r\nb.jpg 1\r\n", " ", [("a.jpg", 0), ("b.jpg", 1)]),
        (b"\xef\xbb\xbfa.jpg 0\n", " ", [("a.jpg", 0)]),
        (b"\n\na.jpg 0\n \n\r\nb.jpg 1 \t\n\n", " ", [("a.jpg", 0), ("b.jpg", 1)]),
        (b"a.jpg\t0\n", "\t", [("a.jpg", 0)]),
        (b"a 1.jpg,7\n", ",", [("a 1.jpg", 7)]),
        (b"a.jpg||7\n", "||", [("a.jpg", 7)]),
        ("größe/猫.jpg 21840\n".encode(), " ", [("größe/猫.jpg", 21840)]),
        (b"a1 2 3.jpg 999999999\n", " ", [("a1 2 3.jpg", 999999999)]),
    ],
)
def test_list_lines(content: bytes, delimiter: str, expected: list[Any], tmp_path: Path) -> None:
    assert rows(ListIndex(write_list(tmp_path, content), delimiter)) == expected


@pytest.mark.parametrize("block", [64, 100, 1 << 20])
def test_against_a_plain_parser(block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(list_index, "_BLOCK_BYTES", block)
    rng = np.random.default_rng(0)
    names = ["".join(rng.choice(list("ab /.é1"), rng.integers(1, 20))).strip() + "x" for _ in range(300)]
    lines = [f"{name} {rng.integers(0, 10 ** rng.integers(1, 6))}" for name in names]
    text = "".join(
        line + ("\r\n" if rng.random() < 0.3 else "\n") + ("\n" if rng.random() < 0.1 else "")
        for line in lines
    )
    index = ListIndex(write_list(tmp_path, text.encode()))
    assert rows(index) == [(line.strip().rsplit(" ", 1)[0], int(line.rsplit(" ", 1)[1])) for line in lines]
    physical = [i + 1 for i, line in enumerate(text.splitlines()) if line.strip()]
    assert [index.line(i) for i in (0, 150, 299)] == [
        f"{tmp_path}/list.txt:{physical[i]}" for i in (0, 150, 299)
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "list.txt: the list has no samples"),
        (b"\n \r\n", "list.txt: the list has no samples"),
        (b"a.jpg 0\n\nb.jpg\n", r"list.txt:3: expected 'path label.*received 1 word, no number"),
        (b"a.jpg 0\nb.jpg -1\n", r"list.txt:2: expected"),
        (b"a.jpg 0.5\n", r"list.txt:1: expected"),
        (b"a.jpg one\n", r"list.txt:1: expected"),
        (b" 5\n", r"list.txt:1: expected"),
        (b"a.jpg\t5\n", r"list.txt:1: expected"),
        (b"a.jpg 1234567890\n", r"list.txt:1: expected"),
        (b"x" * 70000 + b" 1\n", r"list.txt:1: the path is longer"),
    ],
)
def test_refused_list(content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        ListIndex(write_list(tmp_path, content))


def test_lists_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "zero.txt").symlink_to("/dev/zero")
    for name in ("pipe.txt", "zero.txt"):
        with pytest.raises(DataError, match=f"{name}: can't be read: it is not a regular file"):
            ListIndex(tmp_path / name)


@pytest.mark.parametrize("filler", [b" ", b"\t", b"x", b"0"])
def test_a_line_of_a_megabyte_is_read_at_once(filler: bytes, tmp_path: Path) -> None:
    """Earlier, white space was stripped one character per pass, with a million passes over the block."""
    file = tmp_path / "list.txt"
    file.write_bytes(b"a.jpg 1\n" + filler * 1_000_000 + b"\nb.jpg 2\n")
    passes = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal passes
        passes += event == "call"

    sys.setprofile(count)
    try:
        if filler.strip():
            with pytest.raises(DataError, match=r"list.txt:2: expected 'path label"):
                ListIndex(file)
        else:
            assert [ListIndex(file).path(i) for i in range(2)] == ["a.jpg", "b.jpg"]
    finally:
        sys.setprofile(None)
    assert passes < 10_000


def test_missing_list_and_label_out_of_range(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none.txt: no such list file"):
        ListIndex(tmp_path / "none.txt")
    file = write_list(tmp_path, b"a.jpg 0\nb.jpg 3\n")
    with pytest.raises(DataError, match=r"list.txt:2: the label 3 is outside class_num = 3, labels 0 to 2"):
        ImageNetDataset(str(tmp_path), str(file), class_num=3)


def make_dataset(folder: Path, count: int = 13, **kwargs: Any) -> ImageNetDataset:
    write_images(folder, count, size=40)
    ops = [{"DecodeImage": {}}, {"RandCropImage": {"size": 16}}, {"RandFlipImage": {}}]
    return ImageNetDataset(
        str(folder), str(folder / "train_list.txt"), transform_ops=kwargs.pop("transform_ops", ops), **kwargs
    )


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ImageNetDataset:
    return make_dataset(tmp_path_factory.mktemp("data"))


def sampler(dataset: ImageNetDataset, **kwargs: Any) -> DistributedBatchSampler:
    return DistributedBatchSampler(
        **{"batch_size": 4, "shuffle": True, "num_samples": len(dataset), "seed": 3, **kwargs}
    )


def batches(
    dataset: ImageNetDataset, workers: int, epoch: int = 1, start: int = 0, **kwargs: Any
) -> list[Any]:
    return list(Loader(dataset, sampler(dataset, **kwargs), num_workers=workers).epoch(epoch, start))


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_same_batches_for_any_number_of_threads(dataset: ImageNetDataset, workers: int) -> None:
    expected = batches(dataset, 0)
    received = batches(dataset, workers)
    assert [len(b.labels) for b in received] == [4, 4, 4, 1]
    for a, b in zip(expected, received, strict=True):
        assert np.array_equal(a.images, b.images)
        assert np.array_equal(a.labels, b.labels)
        assert a.images.dtype == np.uint8
        assert b.labels.dtype == np.int64


def test_epochs_and_seeds_differ_and_positions_resume(dataset: ImageNetDataset) -> None:
    whole = batches(dataset, 2)
    rest = batches(dataset, 2, start=2)
    assert np.array_equal(whole[2].images, rest[0].images)
    assert len(rest) == 2
    assert not np.array_equal(whole[0].images, batches(dataset, 2, epoch=2)[0].images)
    assert not np.array_equal(whole[0].images, batches(dataset, 2, seed=4)[0].images)


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("drop_last", [False, True])
def test_same_global_batches_for_any_number_of_processes(
    dataset: ImageNetDataset, world_size: int, drop_last: bool
) -> None:
    whole = batches(dataset, 0, drop_last=drop_last)
    parts = [
        batches(dataset, 1, batch_size=4 // world_size, rank=r, world_size=world_size, drop_last=drop_last)
        for r in range(world_size)
    ]
    assert {len(p) for p in parts} == {len(whole)} == {3 if drop_last else 4}
    for number, batch in enumerate(whole):
        images = np.concatenate([p[number].images[: p[number].plan.count] for p in parts])
        assert np.array_equal(images, batch.images)
        assert all(len(p[number].images) >= 1 for p in parts)


def test_every_sample_once_whatever_the_numbers() -> None:
    for total in (1, 2, 7, 64, 65):
        for world_size in (1, 2, 3, 8):
            for size in (1, 3, 16):
                seen: list[int] = []
                for rank in range(world_size):
                    plans = DistributedBatchSampler(
                        batch_size=size, num_samples=total, rank=rank, world_size=world_size
                    )
                    for plan in plans.batches(0):
                        assert plan.count <= size
                        seen += plan.indices[: plan.count].tolist()
                assert sorted(seen) == list(range(total))


def test_drop_last_that_leaves_nothing() -> None:
    with pytest.raises(ValueError, match="drop_last drops all 3 samples"):
        DistributedBatchSampler(batch_size=2, drop_last=True, num_samples=3, world_size=2)


@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.parametrize("damage", ["missing", "truncated", "empty", "text"])
def test_bad_image_is_an_error_that_names_it(damage: str, workers: int, tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path)
    victim = Path(dataset.path(9))
    if damage == "missing":
        victim.unlink()
    else:
        victim.write_bytes({"truncated": victim.read_bytes()[:200], "empty": b"", "text": b"hello"}[damage])
    before = threading.active_count()
    with pytest.raises(DataError, match=r"0009.png \(.*train_list.txt:10\): "):
        batches(dataset, workers)
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_a_sample_by_itself_is_what_the_transforms_say(tmp_path: Path) -> None:
    ops = [
        {"DecodeImage": {}},
        {"CropImage": {"size": 16}},
        {"NormalizeImage": {"order": ""}},
        {"ToCHWImage": {}},
    ]
    dataset = make_dataset(tmp_path, transform_ops=ops)
    image, label = dataset[4]
    assert (image.shape, image.dtype, label) == ((3, 16, 16), np.float32, 1)
    assert dataset.load(4).dtype == np.uint8


def test_check_files_names_what_is_missing(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path)
    dataset.check_files()
    for i in range(2, 9):
        Path(dataset.path(i)).unlink()
    with pytest.raises(DataError, match=r"7 of 13 listed files are missing: .*0002.png \(.*:3\); .*; ..."):
        dataset.check_files()


def test_images_of_different_size_in_a_batch(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, transform_ops=[{"DecodeImage": {}}])
    with pytest.raises(
        DataError, match=r"the images of a batch differ in size, \[40, \d+, 3\] and \[40, \d+, 3\]"
    ):
        batches(dataset, 2)


def test_leaving_the_loop_early_ends_the_threads(dataset: ImageNetDataset) -> None:
    before = threading.active_count()
    for _ in Loader(dataset, sampler(dataset), num_workers=4).epoch(0):
        break
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_two_batches_are_ready_ahead(dataset: ImageNetDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[int] = []
    original = ImageNetDataset.load
    monkeypatch.setattr(
        ImageNetDataset, "load", lambda self, i, *a: (loaded.append(i), original(self, i, *a))[1]
    )
    iterator = Loader(dataset, sampler(dataset), num_workers=2).epoch(0)
    next(iterator)
    deadline = time.monotonic() + 5
    while len(loaded) < 12 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(loaded) == 12  # the batch in use and two more, of 4 samples each
    iterator.close()


def test_copies_to_a_gpu_are_queued_and_their_sources_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stubs replace functions of CUDA builds. The results are the same, and no more than 8 sources are kept."""
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 6, 3), np.uint8)
    stage = split_for_device(build_transforms([{"NormalizeImage": {"order": ""}}]))[1]
    expected = DeviceTransform(stage)(paddle.to_tensor(images)).numpy()
    blocking_flags: list[bool] = []
    done = iter([False] * 30 + [True] * 1000)

    class Event:
        def record(self) -> None:
            pass

        def query(self) -> bool:
            return next(done)

    def cuda(self: paddle.Tensor, blocking: bool = True) -> paddle.Tensor:
        blocking_flags.append(blocking)
        return self

    monkeypatch.setattr(paddle, "get_device", lambda: "gpu:0")
    monkeypatch.setattr(paddle, "CUDAPinnedPlace", paddle.CPUPlace)
    monkeypatch.setattr(paddle.Tensor, "cuda", cuda)
    monkeypatch.setattr(paddle.device, "Event", Event)
    monkeypatch.setattr(device, "_has_events", lambda kind: True)
    copies = device._QueuedCopies()
    monkeypatch.setattr(device, "_QUEUED_COPIES", copies)
    to_input = ModelInput(stage)
    for count in range(1, 9):
        assert np.array_equal(to_input(images).numpy(), expected)
        assert len(copies._pending) == count
    for _ in range(40):
        to_input(images)
        assert len(copies._pending) <= 8
    assert blocking_flags == [False] * 48
    to_input(images)
    assert not copies._pending


def test_blocks_of_a_mixed_list_are_as_mixed_as_a_full_shuffle() -> None:
    """Compares the number of classes in a batch.

    An order of blocks is a permutation, and a window of it has no more blocks than requested.
    """
    count, classes = 100_003, 1000
    labels = np.random.default_rng(0).permutation(np.arange(count) * classes // count)
    blocks = BlockShuffleSampler(batch_size=256, num_samples=count, block=1024, blocks_at_once=4)
    full = DistributedBatchSampler(batch_size=256, num_samples=count, shuffle=True)

    def classes_of_a_batch(order: Any) -> float:
        return float(np.mean([len(set(labels[order[i : i + 256]])) for i in range(0, count - 256, 256)]))

    orders = [blocks.order(epoch) for epoch in (0, 1)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(count))
        assert len(set((order[: 4 * 1024 - 3] // 1024).tolist())) <= 5
    assert not np.array_equal(*orders)
    assert classes_of_a_batch(orders[0]) == pytest.approx(classes_of_a_batch(full.order(0)), rel=0.01)
