"""Measures what loading costs the process that trains, and how fast the loader is by itself.

    python scripts/benchmarks/loading_beside_training.py [FOLDER]    a folder with train_list.txt

Needs no accelerator. The training thread runs on one core, and the loader on the other cores if there are
any. The loader is this package's own, built from a config. Without a folder it reads JPEGs that the script
writes.

1. The time in which a thread dispatches many small operators: alone, beside loader threads of the same
   process, beside loader processes, and beside a loader in a process that discards its batches. Each operator
   call gives Python's lock up and takes it again, so threads in the same process delay it.
2. The loader's images/s by itself, with the bytes that it hands over, the bytes that reach this process
   through pipes, and the CPU time of the thread that takes the batches.
3. A stand-in for an accelerator: a step that sleeps, as if it waited for the device, and then dispatches the
   operators. The time to wait for a batch is printed separately.

The variants take turns in rounds. Medians are printed. The times of 1 and 3 leave out the time in which other
programs have the training thread's core, if the system is Linux. Loader processes are left out if this
release lacks ``DataLoader.Train.loader.num_processes``.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import inspect
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from ratios import compare  # scripts/benchmarks/ratios.py
from sample_images import write_images  # scripts/benchmarks/sample_images.py

SAMPLES = 100_000  # lines of the list, so that an epoch does not end while it is measured
PROCESSES_KEY = "num_processes"
DISCARDING_PROCESS = "a process that discards its batches"


@dataclasses.dataclass(frozen=True)
class Variant:
    """Threads and processes of a loader.

    Attributes:
        threads: number of threads in all.
        processes: number of processes; 0 for threads of this process.
    """

    threads: int
    processes: int = 0

    def __str__(self) -> str:
        count = self.processes or self.threads
        kind = "process" if self.processes else "thread"
        ending = "es" if self.processes else "s"
        return f"{count} loader {kind}{ending if count > 1 else ''}"


class Cores:
    """The core of the training thread and the cores of the loader. One core is shared."""

    def __init__(self) -> None:
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
        self.training = set(cores[:1])
        self.loading = set(cores[1:]) or self.training
        self.is_known = hasattr(os, "sched_getaffinity")

    def set(self, cores: set[int]) -> None:
        """Moves the calling thread. Threads and processes that it starts later stay on the same cores."""
        if self.is_known:
            os.sched_setaffinity(threading.get_native_id(), cores)


class Feed:
    """An endless loader whose threads or processes run on the loader's cores.

    Args:
        arguments: arguments of this script.
        data: folder with the images and ``list.txt``.
        variant: threads and processes.
        cores: cores of the loader.
    """

    def __init__(self, arguments: argparse.Namespace, data: Path, variant: Variant, cores: Cores) -> None:
        self.variant = variant
        self._cores = cores
        cores.set(cores.loading)
        self._loader = build_loader(arguments, data, variant)
        cores.set(cores.training)
        self._epochs = itertools.count(1)

    @contextlib.contextmanager
    def batches(self) -> Iterator[Iterator[Any]]:
        """Returns an iterator over batches without end. The loader has started when the context begins."""
        iterator = self._endless()
        self._cores.set(self._cores.loading)
        next(iterator)  # starts the threads or the processes
        self._cores.set(self._cores.training)
        try:
            yield iterator
        finally:
            iterator.close()

    def _endless(self) -> Iterator[Any]:
        for epoch in self._epochs:
            batches = self._loader.epoch(epoch)
            try:
                yield from batches
            finally:
                batches.close()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Takes and discards batches in another thread inside this context."""
        is_started, is_over = threading.Event(), threading.Event()

        def take() -> None:
            try:
                with self.batches() as batches:
                    self._cores.set(self._cores.loading)
                    is_started.set()
                    for _ in batches:
                        if is_over.is_set():
                            return
            finally:
                is_started.set()  # also after an error

        thread = threading.Thread(target=take)
        thread.start()
        is_started.wait()
        assert thread.is_alive(), f"{self.variant} ended with an error"
        try:
            yield
        finally:
            is_over.set()
            thread.join()

    def close(self) -> None:
        if hasattr(self._loader, "close"):
            self._loader.close()


def has_processes() -> bool:
    """True if this release's loader can run in processes."""
    from ppxcls.config.sections import LoaderSection

    return PROCESSES_KEY in {field.name for field in dataclasses.fields(LoaderSection)}


def build_loader(arguments: argparse.Namespace, data: Path, variant: Variant) -> Any:
    """Returns this package's loader, as a config describes it."""
    import ppxcls
    from ppxcls.build.data import build_loader

    section = "DataLoader.Train"
    overrides = [
        *("Global.device=cpu", f"Global.output_dir={data}/output"),
        *(f"{section}.dataset.image_root={data}", f"{section}.dataset.cls_label_path={data}/list.txt"),
        f"{section}.dataset.transform_ops.RandCropImage.size={arguments.size}",
        f"{section}.sampler.batch_size={arguments.batch}",
        f"{section}.loader.num_workers={variant.threads}",
    ]
    if has_processes():
        overrides.append(f"{section}.loader.{PROCESSES_KEY}={variant.processes}")
    config = ppxcls.load_config(ROOT / "configs/Xception41.yaml", overrides)
    has_classes = "classes" in inspect.signature(build_loader).parameters  # older releases have none
    return build_loader(config, "Train", *([None] if has_classes else []))


def dispatch(count: int) -> None:
    """Dispatches small operators."""
    import paddle

    term = paddle.ones([8])
    value = term
    for _ in range(count):
        value = value + term


class Stopwatch:
    """Times the calling thread without the time in which other programs have its core.

    Waiting for Python's lock counts. Only Linux tells how long a thread waits for its core. On other systems
    this time counts as well.
    """

    def __init__(self) -> None:
        self._start = self._clock()

    @property
    def seconds(self) -> float:
        """Seconds from the beginning."""
        return self._clock() - self._start

    @staticmethod
    def _clock() -> float:
        file = Path("/proc/thread-self/schedstat")
        waited_nanoseconds = int(file.read_text().split()[1]) if file.exists() else 0
        return time.perf_counter() - waited_nanoseconds / 1e9


def dispatch_seconds(operators: int, repetitions: int) -> float:
    """Returns the median seconds to dispatch a number of operators."""
    seconds = []
    for _ in range(repetitions):
        watch = Stopwatch()
        dispatch(operators)
        seconds.append(watch.seconds)
    return statistics.median(seconds)


@contextlib.contextmanager
def discarding_process(arguments: argparse.Namespace, data: Path, cores: Cores) -> Iterator[None]:
    """Runs a loader in a process that discards its batches, inside this context."""
    options = ["--discard", str(data), "--batch", str(arguments.batch), "--size", str(arguments.size)]
    cores.set(cores.loading)
    process = subprocess.Popen(  # noqa: S603  this script
        [sys.executable, __file__, *options], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    )
    cores.set(cores.training)
    assert process.stdout
    try:
        assert any(line.startswith("ready") for line in process.stdout)
        yield
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def discard(arguments: argparse.Namespace, data: Path) -> None:
    """Takes and discards batches until the process is ended."""
    loader = build_loader(arguments, data, Variant(threads=1))
    for epoch in itertools.count(1):
        for _ in loader.epoch(epoch):
            print("ready", flush=True)


def measure_dispatch(arguments: argparse.Namespace, data: Path, feeds: list[Feed], cores: Cores) -> None:
    """Prints the time to dispatch operators alone and beside each loader."""
    seconds = defaultdict[str, list[float]](list)
    for _ in range(arguments.rounds):
        time.sleep(arguments.settle)  # the loader of the last round ends
        seconds["alone"].append(dispatch_seconds(arguments.operators, arguments.repetitions))
        for feed in feeds:
            with feed.running():
                time.sleep(arguments.settle)
                value = dispatch_seconds(arguments.operators, arguments.repetitions)
            seconds[str(feed.variant)].append(value)
        with discarding_process(arguments, data, cores):
            time.sleep(arguments.settle)
            value = dispatch_seconds(arguments.operators, arguments.repetitions)
        seconds[DISCARDING_PROCESS].append(value)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, value in medians.items():
        print(f"{arguments.operators:,} operators, {name}: {1000 * value:.2f} ms")
    for name, value in medians.items():
        if name != "alone":
            compare(f"dispatch beside {name}", "alone", value, medians["alone"], "s")


def pipe_bytes() -> int:
    """Returns the bytes that this process has read so far, from pipes and files; 0 without Linux's figure."""
    file = Path("/proc/self/io")
    if not file.exists():
        return 0
    return int(file.read_text().split("rchar:")[1].split()[0])


def measure_rates(arguments: argparse.Namespace, feeds: list[Feed]) -> None:
    """Prints each loader's images/s, with the bytes handed over and copied."""
    figures = defaultdict[Feed, list[tuple[float, ...]]](list)
    for _ in range(arguments.rounds):
        for feed in feeds:
            with feed.batches() as batches:
                for _ in range(arguments.untimed_batches):
                    next(batches)
                start, thread_start, bytes_start = time.perf_counter(), time.thread_time(), pipe_bytes()
                images, handed_bytes = 0, 0
                for batch in itertools.islice(batches, arguments.batches):
                    images += len(batch.labels)
                    handed_bytes += batch.images.nbytes
                seconds = time.perf_counter() - start
                thread_seconds = time.thread_time() - thread_start
                read_bytes = pipe_bytes() - bytes_start
            row = (
                images / seconds,
                handed_bytes / images,
                read_bytes / images,
                thread_seconds / arguments.batches,
            )
            figures[feed].append(row)
    titles = ["loader", "images/s", "handed over, kB an image", "through pipes, kB an image"]
    print(f"\n| {' | '.join([*titles, 'CPU ms a batch in the training thread'])} |\n|{'---|' * 5}")
    for feed, rows in figures.items():
        rate, handed, read, cpu_seconds = (statistics.median(column) for column in zip(*rows, strict=True))
        copied = f"{read / 1000:.2f}" if feed.variant.processes else "-"  # threads read the files here
        cells = [
            str(feed.variant),
            f"{rate:.4g}",
            f"{handed / 1000:.1f}",
            copied,
            f"{1000 * cpu_seconds:.3f}",
        ]
        print(f"| {' | '.join(cells)} |", flush=True)


def step_seconds(
    arguments: argparse.Namespace, device_seconds: float, batches: Iterator[Any]
) -> tuple[float, float]:
    """Returns the median seconds of a stand-in's step, and of waiting for its batch."""
    steps, waits = [], []
    for _ in range(arguments.steps):
        start = time.perf_counter()
        next(batches)
        waits.append(time.perf_counter() - start)
        watch = Stopwatch()
        time.sleep(device_seconds)
        dispatch(arguments.operators)
        steps.append(watch.seconds)
    return statistics.median(steps), statistics.median(waits)


def measure_steps(arguments: argparse.Namespace, feeds: list[Feed]) -> None:
    """Prints the time of steps of a stand-in for an accelerator, with and without each loader."""
    print()
    for milliseconds in map(float, arguments.device_ms.split(",")):
        figures = defaultdict[str, list[tuple[float, float]]](list)
        for _ in range(arguments.rounds):
            no_batches = itertools.repeat(None)
            time.sleep(arguments.settle)
            figures["without a loader"].append(step_seconds(arguments, milliseconds / 1000, no_batches))
            for feed in feeds:
                with feed.batches() as batches:
                    for _ in range(arguments.untimed_batches):
                        next(batches)
                    figures[str(feed.variant)].append(step_seconds(arguments, milliseconds / 1000, batches))
        medians = {
            name: tuple(statistics.median(column) for column in zip(*rows, strict=True))
            for name, rows in figures.items()
        }
        for name, (seconds, wait_seconds) in medians.items():
            times = f"{1000 * seconds:.1f} ms, and {1000 * wait_seconds:.1f} ms to wait for the batch"
            print(f"a step of {milliseconds:g} ms and {arguments.operators:,} operators, {name}: {times}")
        for name, (seconds, _) in medians.items():
            if name != "without a loader":
                title = f"a step of {milliseconds:g} ms beside {name}"
                compare(title, "without a loader", seconds, medians["without a loader"][0], "s")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--threads", default="1,2,4", help="numbers of loader threads in this process")
    parser.add_argument(
        "--processes", default="1,2,4", help="numbers of loader processes, of one thread each"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--operators", type=int, default=1500, help="operators of a step")
    parser.add_argument("--repetitions", type=int, default=15, help="dispatches in a turn")
    parser.add_argument(
        "--settle", type=float, default=0.5, help="seconds between a loader's start and a turn"
    )
    parser.add_argument("--batches", type=int, default=20, help="batches in a turn, for the loader's rate")
    parser.add_argument("--untimed-batches", type=int, default=3)
    parser.add_argument("--device-ms", default="50,100", help="milliseconds that the stand-in's steps sleep")
    parser.add_argument("--steps", type=int, default=10, help="steps in a turn")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=299)
    parser.add_argument("--images", type=int, default=256, help="JPEGs to write if no folder is given")
    parser.add_argument("--discard", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def make_data(arguments: argparse.Namespace, temporary: Path) -> Path:
    """Returns a folder with images and ``list.txt``, which repeats them."""
    if arguments.folder is None:
        return write_images(temporary, arguments.images, SAMPLES)
    lines = (arguments.folder / "train_list.txt").read_text().splitlines(keepends=True)
    paths = [f"{arguments.folder.resolve()}/{line}" for line in lines if line.strip()]
    (temporary / "list.txt").write_text("".join(itertools.islice(itertools.cycle(paths), SAMPLES)))
    return temporary


def main() -> None:
    arguments = parse_arguments()
    if arguments.discard:
        discard(arguments, arguments.discard)
        return
    variants = [Variant(int(count)) for count in arguments.threads.split(",")]
    if has_processes():
        variants += [Variant(int(count), int(count)) for count in arguments.processes.split(",")]
    else:
        print(f"without loader processes: the config has no DataLoader.Train.loader.{PROCESSES_KEY}")
    with tempfile.TemporaryDirectory() as temporary:
        data = make_data(arguments, Path(temporary))
        cores = Cores()
        feeds = [Feed(arguments, data, variant, cores) for variant in variants]
        print(f"training thread on core {sorted(cores.training)}, loader on {sorted(cores.loading)}")
        dispatch(arguments.operators)  # the first operators set Paddle up
        measure_dispatch(arguments, data, feeds, cores)
        measure_rates(arguments, feeds)
        measure_steps(arguments, feeds)
        for feed in feeds:
            feed.close()


if __name__ == "__main__":
    main()
