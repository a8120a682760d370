"""The loader in processes: the same batches, and what happens when a process or its parent ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import ImageFile

import ppxcls
from ppxcls.config.plugins import plugins_without_paddle
from ppxcls.data.bad_samples import BadSamples
from ppxcls.data.dataset import Dataset, ImageNetDataset
from ppxcls.data.errors import DataError
from ppxcls.data.loader import Batch, Loader
from ppxcls.data.loader_processes import LoaderProcesses
from ppxcls.data.sampler import DistributedBatchSampler, ProgressiveSampler
from ppxcls.system.shared_memory import HAS_SHARED_MEMORY, share_object, shared_object
from tests.conftest import ROOT, SHARED, SMALL_NETWORK, needs_shared, run_tool, write_images

pytestmark = pytest.mark.skipif(not HAS_SHARED_MEMORY, reason="loader processes need memfd, which Linux has")

OPS: list[Any] = [{"DecodeImage": {}}, {"RandCropImage": {"size": 16}}, {"RandFlipImage": {}}]
MODULE = '''
"""Data sets of a user: in arrays, and with faults."""

import os
import sys
import time

import numpy as np

import ppxcls


@ppxcls.DATASETS.register
class InArrays(ppxcls.Dataset):
    """Images in one array; the first pixel tells whether Paddle is imported."""

    def __init__(self, count: int = 24, fault: str = "", transform_ops: ppxcls.TransformOps | None = None, class_num: int | None = None):
        self.images = np.random.default_rng(0).integers(0, 256, (count, 20, 20, 3)).astype(np.uint8)
        self.fault = fault
        self.announced = 0
        super().__init__(np.arange(count) % 3, transform_ops, class_num)

    def announce(self, indices):
        self.announced += len(indices)

    def read(self, index):
        if self.fault and index == 17:
            if self.fault == "exit":
                os._exit(3)
            if self.fault == "kill":
                os.kill(os.getpid(), 9)
            if self.fault == "hang":
                time.sleep(600)
            if self.fault == "key":
                raise KeyError("no such thing")
            if self.fault == "memory":
                raise MemoryError
            if self.fault == "text":
                raise ValueError("expected a picture")
        image = self.images[index].copy()
        image[0, 0, 0] = "paddle" in sys.modules
        image[0, 0, 1] = self.announced > 0
        return image


@ppxcls.TRANSFORMS.register
class Darken(ppxcls.Transform):
    """Halves some images."""

    def __call__(self, image, rng):
        return image // 2 if rng.random() < 0.5 else image
'''


class MixedTypes(Dataset):
    """Images of two types."""

    def read(self, index: int) -> Any:
        return np.zeros((4, 4, 3), np.float32 if index == 5 else np.uint8)


class PillowFlag(Dataset):
    """The value of a flag of Pillow."""

    def read(self, index: int) -> Any:
        return np.full((1, 1, 1), ImageFile.LOAD_TRUNCATED_IMAGES, np.uint8)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ImageNetDataset:
    folder = write_images(tmp_path_factory.mktemp("data"), 21, size=40)
    return ImageNetDataset(str(folder), str(folder / "train_list.txt"), transform_ops=OPS)


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Dataset]:
    """Returns a function that builds the plugin's data set, from a config as a user does."""
    file = tmp_path_factory.mktemp("plugin") / "loader_process_plugin.py"
    file.write_text(MODULE)
    ppxcls.load_config({"Arch": {"name": "Xception41"}, "Global": {"plugins": [str(file)]}})
    return sys.modules["loader_process_plugin"].InArrays  # type: ignore[no-any-return]


@pytest.fixture
def make_loader() -> Iterator[Callable[..., Loader]]:
    """Returns a function that makes a loader, and closes all of them at the end."""
    loaders: list[Loader] = []

    def make(dataset: Dataset, *, sampler: Any = DistributedBatchSampler, **keys: Any) -> Loader:
        names = ("num_workers", "num_processes", "bad_samples", "timeout")
        options = {name: keys.pop(name) for name in names if name in keys}
        settings = {"batch_size": 8, "shuffle": True, "seed": 3, "num_samples": len(dataset), **keys}
        loaders.append(Loader(dataset, sampler(labels=dataset.labels, **settings), **options))
        return loaders[-1]

    yield make
    for loader in loaders:
        loader.close()


def assert_same(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second) > 0
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.labels, other.labels)
        assert (one.images.dtype, one.left_out, one.plan.count) == (
            other.images.dtype,
            other.left_out,
            other.plan.count,
        )


def worker_pids(loader: Loader) -> list[int]:
    assert isinstance(loader._loading, LoaderProcesses)
    return [worker.process.pid for worker in loader._loading._workers]


def is_alive(pid: int) -> bool:
    """True if a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for_end(pids: list[int]) -> list[int]:
    """Waits until processes have ended, and returns those that have not."""
    deadline = time.monotonic() + 10
    while (alive := [pid for pid in pids if is_alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    return alive


@pytest.mark.parametrize(("threads", "processes"), [(1, 1), (3, 1), (2, 2), (5, 3), (16, 4)])
def test_same_batches_for_any_number_of_processes(
    files: ImageNetDataset, make_loader: Callable[..., Loader], threads: int, processes: int
) -> None:
    expected, received = (
        make_loader(files, num_workers=threads, num_processes=number) for number in (0, processes)
    )
    assert_same(list(expected.epoch(1)), list(received.epoch(1)))
    pids = worker_pids(received)
    assert len(pids) == processes
    assert_same(list(expected.epoch(2, start=1)), list(received.epoch(2, start=1)))
    assert worker_pids(received) == pids, "the processes of the first epoch serve the second one too"


def test_size_of_an_epoch_and_left_epochs(files: ImageNetDataset, make_loader: Callable[..., Loader]) -> None:
    keys = {"sampler": ProgressiveSampler, "epochs": [2, 4], "sizes": [8, 24], "num_workers": 2}
    threads, processes = (make_loader(files, num_processes=number, **keys) for number in (0, 2))
    for epoch in (1, 2, 4, 1):
        next(processes.epoch(epoch))  # an epoch that is left after its first batch
        assert_same(list(threads.epoch(epoch)), list(processes.epoch(epoch)))


def test_memory_is_used_again_and_never_while_an_array_needs_it(
    files: ImageNetDataset, make_loader: Callable[..., Loader]
) -> None:
    loader = make_loader(files, num_workers=2, num_processes=2, batch_size=2)
    for epoch in range(3):
        for _batch in loader.epoch(epoch):
            pass
    assert isinstance(loader._loading, LoaderProcesses)
    assert len(loader._loading._memories) <= 5, "33 batches share the memory of those that exist at once"
    views = [batch.images[1:, 2:] for batch in loader.epoch(1)]
    copies = [batch.images[1:, 2:].copy() for batch in loader.epoch(1)]
    list(loader.epoch(2))
    for view, copy in zip(views, copies, strict=True):
        np.testing.assert_array_equal(view, copy)


def test_data_sets_of_plugins_in_arrays(
    plugin: Callable[..., Dataset], make_loader: Callable[..., Loader]
) -> None:
    dataset = plugin(transform_ops=[{"Darken": {}}])
    threads, processes = (make_loader(dataset, num_workers=2, num_processes=number) for number in (0, 2))
    expected, received = list(threads.epoch(1)), list(processes.epoch(1))
    flags = np.concatenate([batch.images[:, 0, 0, :2] for batch in received])
    for batch in expected + received:
        batch.images[:, 0, 0, :2] = 0
    assert_same(expected, received)
    assert not flags[:, 0].any(), "a loader process has imported Paddle"
    assert flags[:, 1].any(), "the data set of a loader process has received no announcement"


def test_start_takes_no_paddle_and_memory_outside_dev_shm(
    files: ImageNetDataset, make_loader: Callable[..., Loader]
) -> None:
    before = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    loader = make_loader(files, num_workers=2, num_processes=2)
    batch = next(loader.epoch(1))
    assert (set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()) <= before
    for pid in worker_pids(loader):
        maps = Path(f"/proc/{pid}/maps").read_text()
        assert "memfd:ppxcls" in maps
        assert "libpaddle" not in maps
        assert "libcuda" not in maps
    assert batch.images.base is not None


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("exit", r"a loader process ended with exit code 3; files being read: .*17 \(InArrays:18\)"),
        ("kill", r"a loader process was ended by SIGKILL, perhaps because the memory is full; files .*17 "),
        ("hang", r"no batch for 3 s; files being read: .*17 \(InArrays:18\)"),
        ("key", r"17 \(InArrays:18\): KeyError: 'no such thing'"),
        ("memory", r"17 \(InArrays:18\): too large for the memory"),
        ("text", r"17 \(InArrays:18\): expected a picture"),
    ],
)
def test_a_process_that_fails_is_one_line_with_the_sample(
    fault: str, message: str, plugin: Callable[..., Dataset], make_loader: Callable[..., Loader]
) -> None:
    timeout = 3.0 if fault == "hang" else 60.0
    loader = make_loader(plugin(fault=fault), num_workers=3, num_processes=2, timeout=timeout)
    start = time.monotonic()
    with pytest.raises(DataError, match=message) as error:
        list(loader.epoch(1))
    assert "\n" not in str(error.value)
    assert time.monotonic() - start < 30
    loader.dataset.fault = ""  # type: ignore[attr-defined]  the next loader processes are sound
    loader.close()
    assert len(list(loader.epoch(2))) == 3


def test_a_killed_process_is_noticed_and_replaced(
    files: ImageNetDataset, make_loader: Callable[..., Loader]
) -> None:
    loader = make_loader(files, num_workers=2, num_processes=2)
    expected = list(loader.epoch(1))
    os.kill(worker_pids(loader)[1], signal.SIGKILL)
    with pytest.raises(DataError, match="a loader process was ended by SIGKILL"):
        list(loader.epoch(1))
    assert_same(list(loader.epoch(1)), expected)


def test_signals_of_the_job_do_not_end_the_processes(
    files: ImageNetDataset, make_loader: Callable[..., Loader]
) -> None:
    loader = make_loader(files, num_workers=2, num_processes=2)
    expected = list(loader.epoch(1))
    for pid in worker_pids(loader):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            os.kill(pid, number)
    assert_same(list(loader.epoch(1)), expected)


def test_processes_end_with_the_loader(files: ImageNetDataset, make_loader: Callable[..., Loader]) -> None:
    loader = Loader(
        files, DistributedBatchSampler(batch_size=8, num_samples=21), num_workers=2, num_processes=2
    )
    list(loader.epoch(1))
    pids = worker_pids(loader)
    loader.close()
    assert not wait_for_end(pids)
    list(loader.epoch(1))
    pids = worker_pids(loader)
    del loader
    assert not wait_for_end(pids)


PARENT = """
import sys, time, ppxcls
from ppxcls.data.loader import Loader
from ppxcls.data.sampler import DistributedBatchSampler
from tests.data.test_loader_processes import worker_pids
from ppxcls.data.dataset import ImageNetDataset
folder, held = sys.argv[1:]
ops = [{"DecodeImage": {}}, {"RandCropImage": {"size": 16}}]
dataset = ImageNetDataset(folder, folder + "/train_list.txt", transform_ops=ops)
loader = Loader(dataset, DistributedBatchSampler(batch_size=4, num_samples=21), num_workers=2, num_processes=2)
batches = loader.epoch(1)
next(batches)
print(*worker_pids(loader), flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("state", ["idle", "stopped"])
def test_a_killed_parent_leaves_no_process(files: ImageNetDataset, state: str) -> None:
    command = [sys.executable, "-c", PARENT, str(files.image_root), state]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 2
        if state == "stopped":  # it can't react in Python
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
        parent.kill()
    assert not wait_for_end(pids)


def test_a_data_set_that_cannot_be_sent_is_loaded_in_threads(
    make_loader: Callable[..., Loader], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Local(Dataset):
        def read(self, index: int) -> Any:
            return np.full((4, 4, 3), index, np.uint8)

    monkeypatch.setattr(ppxcls.system.logs.logger, "propagate", True)
    loader = make_loader(Local(np.arange(10)), num_workers=2, num_processes=2)
    assert sum(len(batch.labels) for batch in loader.epoch(1)) == 10
    assert "loaded in threads of this process, because Local can't be sent to another process" in caplog.text


def test_bad_samples_are_listed_by_the_training_process(
    tmp_path: Path, make_loader: Callable[..., Loader]
) -> None:
    folder = write_images(tmp_path, 16, size=40)
    for index in (3, 4, 11):
        (folder / f"train/{index:04d}.png").write_bytes(b"damaged")
    dataset = ImageNetDataset(str(folder), str(folder / "train_list.txt"), transform_ops=OPS)
    results = []
    for number in (0, 2):
        lists = BadSamples(tmp_path / f"bad{number}.txt", dataset, 0.5)
        loader = make_loader(dataset, num_workers=2, num_processes=number, bad_samples=lists)
        results.append(list(loader.epoch(1)))
    assert_same(*results)
    assert sum(batch.left_out for batch in results[0]) == 3
    assert (tmp_path / "bad0.txt").read_text() == (tmp_path / "bad2.txt").read_text()
    with pytest.raises(DataError, match=r"00(03|04|11).png \(.*train_list.txt:\d+\)"):
        list(make_loader(dataset, num_workers=2, num_processes=2).epoch(1))


def test_images_of_different_size(tmp_path: Path, make_loader: Callable[..., Loader]) -> None:
    folder = write_images(tmp_path, 16, size=40)
    dataset = ImageNetDataset(
        str(folder), str(folder / "train_list.txt"), transform_ops=[{"DecodeImage": {}}]
    )
    with pytest.raises(DataError, match=r"the images of a batch differ in size, \[40, \d+, 3\] and \[40, "):
        list(make_loader(dataset, num_workers=2, num_processes=2).epoch(1))


def test_images_of_different_type(make_loader: Callable[..., Loader]) -> None:
    for number in (0, 2):
        with pytest.raises(DataError, match="the images of a batch differ in type"):
            list(make_loader(MixedTypes(np.arange(16)), num_workers=2, num_processes=number).epoch(1))


def test_arrays_on_files_stay_there(tmp_path: Path, make_loader: Callable[..., Loader]) -> None:
    """A memory map, and a part of it, are opened by the loader processes, not sent."""
    whole = np.memmap(tmp_path / "images.bin", np.uint8, "w+", shape=(400, 8, 8, 3))
    whole[:] = np.arange(400, dtype=np.uint16)[:, None, None, None]
    for images in (whole, np.memmap(tmp_path / "images.bin", np.uint8, "r", 192, (399, 8, 8, 3))[100:]):
        memory, sizes = share_object(images)
        assert sum(sizes) < 2000
        np.testing.assert_array_equal(shared_object(memory.descriptor, sizes), images)
    assert isinstance(shared_object(memory.descriptor, sizes), np.memmap)


def test_small_batches_use_all_processes(files: ImageNetDataset, make_loader: Callable[..., Loader]) -> None:
    loader = make_loader(files, num_workers=3, num_processes=3, batch_size=1)
    assert len(list(loader.epoch(1))) == 21
    assert isinstance(loader._loading, LoaderProcesses)
    assert [len(worker.memories) > 0 for worker in loader._loading._workers] == [True] * 3


def test_descriptors_and_processes_do_not_grow(
    files: ImageNetDataset, make_loader: Callable[..., Loader]
) -> None:
    loader = make_loader(files, num_workers=2, num_processes=2, batch_size=1)
    list(loader.epoch(1))
    before = len(os.listdir("/proc/self/fd"))
    batches = [batch for epoch in range(3) for batch in loader.epoch(epoch)]  # all of them exist at once
    for epoch in range(20):
        next(loader.epoch(epoch))
    assert len(batches) == 63
    assert len(os.listdir("/proc/self/fd")) <= before + 10
    assert_same(batches[21:42], list(loader.epoch(1)))


def test_two_threads_share_a_loader(files: ImageNetDataset, make_loader: Callable[..., Loader]) -> None:
    loader = make_loader(files, num_workers=2, num_processes=2, batch_size=2)
    expected = list(make_loader(files, num_workers=0, batch_size=2).epoch(1))
    with ThreadPoolExecutor(2) as pool:
        for received in pool.map(lambda epoch: list(loader.epoch(epoch)), [1, 1, 1, 1]):
            assert_same(expected, received)


FORKING = """
import os, sys, time
from tests.data.test_loader_processes import *
folder = sys.argv[1]
dataset = ImageNetDataset(folder, folder + "/train_list.txt", transform_ops=OPS)
sampler = DistributedBatchSampler(batch_size=4, num_samples=21)
loader = Loader(dataset, sampler, num_workers=2, num_processes=2)
expected = list(loader.epoch(1))
batches = loader.epoch(1)
next(batches)
child = os.fork()
if child == 0:
    print("child", len(list(loader.epoch(1))), *worker_pids(loader), flush=True)
    loader.close()
    time.sleep(60)
    os._exit(0)
assert len(list(batches)) == 5
print("parent", child, *worker_pids(loader), flush=True)
time.sleep(60)
"""


def test_a_forked_process_has_loader_processes_of_its_own(files: ImageNetDataset) -> None:
    """It disturbs no epoch of its parent, and does not keep the parent's processes alive."""
    command = [sys.executable, "-W", "ignore", "-c", FORKING, str(files.image_root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        assert parent.stdout is not None
        lines = dict(parent.stdout.readline().split(maxsplit=1) for _ in range(2))
        child, *pids = map(int, lines["parent"].split())
        count, *own_pids = map(int, lines["child"].split())
        parent.kill()
    try:
        assert count == 6
        assert not set(pids) & set(own_pids)
        assert is_alive(child)
        assert not wait_for_end(pids)
    finally:
        os.kill(child, signal.SIGKILL)


def test_modules_of_the_current_folder_and_of_variables_do_not_matter(
    files: ImageNetDataset, tmp_path: Path
) -> None:
    for name in ("queue", "dataclasses", "numpy"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('wrong module')\n")
    code = PARENT.replace("time.sleep(600)", "loader.close()")
    script = tmp_path / "elsewhere/script.py"
    script.parent.mkdir()
    script.write_text(f"import sys\nsys.path.append({str(ROOT)!r})\n{code}")
    command = [sys.executable, "-I", str(script), str(files.image_root), ""]
    result = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.split()) == 2


def test_plugins_are_imported_for_their_effects(
    tmp_path: Path, make_loader: Callable[..., Loader], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One lets Pillow read truncated files. One that imports Paddle is left out."""
    (tmp_path / "lenient_plugin.py").write_text(
        "from PIL import ImageFile\nImageFile.LOAD_TRUNCATED_IMAGES = True\n"
    )
    (tmp_path / "heavy_plugin.py").write_text("import paddle\n")
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)
    plugins = [str(tmp_path / f"{name}_plugin.py") for name in ("lenient", "heavy")]
    ppxcls.load_config({"Arch": {"name": "Xception41"}, "Global": {"plugins": plugins}})
    assert "lenient_plugin" in plugins_without_paddle()
    assert "heavy_plugin" not in plugins_without_paddle()
    loader = make_loader(PillowFlag(np.arange(4)), num_workers=1, num_processes=1)
    assert next(loader.epoch(1)).images.tolist() == [[[[1]]]] * 4


def test_a_plugin_that_needs_paddle_by_a_name_of_ppxcls_is_left_out(
    tmp_path: Path, plugin: Callable[..., Dataset], make_loader: Callable[..., Loader]
) -> None:
    (tmp_path / "loss_plugin.py").write_text("import ppxcls\n\nppxcls.LOSSES.registered()\n")
    plugins = [str(tmp_path / "loss_plugin.py")]
    ppxcls.load_config({"Arch": {"name": "Xception41"}, "Global": {"plugins": plugins}})
    assert "loss_plugin" in plugins_without_paddle(), "nothing in the module is of Paddle"
    loader = make_loader(plugin(transform_ops=[{"Darken": {}}]), num_workers=1, num_processes=1)
    assert not next(loader.epoch(1)).images[:, 0, 0, 0].any(), "a loader process has imported Paddle"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_to_the_job_while_processes_start(
    name: str, write_config: Callable[..., Path], tmp_path: Path
) -> None:
    file = write_config(
        **{"Arch": {"name": "SmallNetwork"}, "Global.plugins": [SMALL_NETWORK], "Global.epochs": 3000}
    )
    loaders = [f"DataLoader.{mode}.loader.num_processes=1" for mode in ("Train", "Eval")]
    words = [word for override in loaders for word in ("-o", override)]
    with subprocess.Popen(
        [sys.executable, "tools/train.py", "-c", str(file), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "[Epoch 1/3000][Avg]" in line:  # the processes of the evaluation start now
                break
        os.killpg(process.pid, getattr(signal, name))
        output = process.stdout.read()
    assert process.returncode == {"SIGTERM": 75, "SIGINT": 130}[name], output
    assert "Traceback" not in output
    assert "a loader process" not in output


@needs_shared
def test_packed_data(tmp_path: Path, make_loader: Callable[..., Loader]) -> None:
    lists = next(SHARED.glob("imagenet-sample/val_list.txt"))
    ppxcls.pack(lists, lists.parent, output=tmp_path / "pack")
    from ppxcls.packed.dataset import PackedDataset

    dataset = PackedDataset(str(tmp_path / "pack"), OPS)
    threads, processes = (make_loader(dataset, num_workers=2, num_processes=number) for number in (0, 2))
    assert_same(list(threads.epoch(1)), list(processes.epoch(1)))


def test_shared_objects_are_writable_copies() -> None:
    value = {"arrays": [np.arange(5), np.zeros(0), np.asfortranarray(np.eye(3))], "text": "x"}
    memory, sizes = share_object(value)
    first, second = (shared_object(memory.descriptor, sizes) for _ in range(2))
    first["arrays"][0][2] = 70
    assert second["text"] == "x"
    for array, expected in zip(second["arrays"], value["arrays"], strict=True):
        np.testing.assert_array_equal(array, expected)


def test_training_and_evaluation_in_processes(write_config: Callable[..., Path], tmp_path: Path) -> None:
    """A run with loader processes that is interrupted inside an epoch continues to the weights of one without."""
    file = write_config(**{"Global.epochs": 2})
    loaders = [f"DataLoader.{mode}.loader.num_processes" for mode in ("Train", "Eval")]
    weights = []
    for number in (0, 1):
        overrides = [f"{key}={number}" for key in loaders]
        overrides += [f"Global.output_dir={tmp_path}/{number}", "Global.save_interval_steps=1"]
        config = ppxcls.load_config(file, overrides)
        trainer = ppxcls.build_trainer(config)
        if number:
            train_on, remaining = trainer.train_on, iter(range(4))

            def interrupted(batch: Batch, train_on: Any = train_on, remaining: Any = remaining) -> Any:
                next(remaining)
                return train_on(batch)

            trainer.train_on = interrupted  # type: ignore[method-assign]
            with pytest.raises(StopIteration):
                trainer.fit()
            trainer = ppxcls.build_trainer(ppxcls.load_config(file, [*overrides, "Global.checkpoints=auto"]))
            assert trainer.progress.batches_done == 1
        trainer.fit()
        weights.append({key: value.numpy() for key, value in trainer.learner.network.state_dict().items()})
    for key, value in weights[0].items():
        np.testing.assert_array_equal(value, weights[1][key])


def test_more_processes_than_threads(write_config: Callable[..., Path]) -> None:
    config = ppxcls.load_config(write_config(**{"DataLoader.Train.loader.num_processes": 2}))
    with pytest.raises(ppxcls.ConfigError, match=r"num_processes: expected at most num_workers, 1, because"):
        ppxcls.build_trainer(config)


def test_a_fault_in_a_loader_process_ends_the_tool_in_one_line(
    write_config: Callable[..., Path], tmp_path: Path
) -> None:
    file = tmp_path / "tool_plugin.py"
    file.write_text(MODULE)
    dataset = {"name": "InArrays", "fault": "kill", "count": 24}
    keys = {"Global.plugins": [str(file)], "DataLoader.Train.dataset": dataset}
    keys |= {f"DataLoader.Train.loader.num_{kind}": 2 for kind in ("workers", "processes")}
    path = write_config(**keys)
    assert yaml.safe_load(path.read_text())["DataLoader"]["Train"]["dataset"] == dataset
    result = run_tool("tools/train.py", "--trust", "-c", path, is_own_process=True)
    assert result.returncode == 1
    lines = result.stderr.strip().splitlines()
    assert len([line for line in lines if "a loader process was ended by SIGKILL" in line]) == 1
    assert "Traceback" not in result.stderr
