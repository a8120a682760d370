"""Several writers of one name, and writers that are killed."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from hostility.cases import ROOT, Case, Outcome, run_command
from hostility.run_files import make_run

PROMISE = "A file is whole or not there, whoever else writes it, and nothing is left behind"
_TEXT_LENGTH = 300_000


def cases() -> Iterator[Case]:
    """Returns the cases: threads, processes and commands at once, and killed ones."""
    yield Case("100 writes of four threads", _threads, is_quick=True)
    yield Case("120 writes of two processes", _two_processes)
    yield Case("two reports at once", functools.partial(_two_commands, _report_words))
    yield Case("two conversions at once", functools.partial(_two_commands, _convert_words))
    for seconds in (0.5, 1.0, 2.0, 4.0):
        yield Case(f"a report is killed after {seconds} s", functools.partial(_killed_report, seconds))
    for number in range(10):
        yield Case(f"a writer is killed, {number + 1} of 10", functools.partial(_killed_writer, number))


def _threads(folder: Path) -> tuple[Outcome, str | None]:
    from ppxcls.system.atomic_files import write_text

    file = folder / "a.txt"
    errors: list[str] = []

    def write(letter: str) -> None:
        try:
            for _ in range(25):
                write_text(file, letter * _TEXT_LENGTH)
        except OSError as error:
            errors.append(str(error))

    start = time.monotonic()
    threads = [threading.Thread(target=write, args=(letter,)) for letter in "wxyz"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    outcome = Outcome(0, "", "".join(errors), time.monotonic() - start)
    return outcome, errors[0] if errors else _mixture(folder)


def _mixture(folder: Path) -> str | None:
    """Returns what is wrong with the only file of a folder; None if it is whole."""
    names = [entry.name for entry in folder.iterdir()]
    if names != ["a.txt"]:
        return f"left behind: {names}"
    text = (folder / "a.txt").read_text()
    is_whole = len(text) == _TEXT_LENGTH and len(set(text)) == 1
    return None if is_whole else f"a mixture of {len(text)} characters"


def _killed_writer(number: int, folder: Path) -> tuple[Outcome, str | None]:
    program = (
        "import sys; from pathlib import Path; from ppxcls.system.atomic_files import write_text\n"
        "print('ready', flush=True)\n"
        f"while True: write_text(Path(sys.argv[1]), 'x' * {_TEXT_LENGTH})"
    )
    # S603: runs this Python with the program above, without a shell.
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", program, str(folder / "a.txt")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
    )
    start = time.monotonic()
    if process.stdout:
        process.stdout.readline()
    time.sleep(0.05 + number * 0.0137)
    process.kill()
    process.communicate()
    from ppxcls.system.atomic_files import write_text

    write_text(folder / "a.txt", "y" * _TEXT_LENGTH)
    return Outcome(0, "", "", time.monotonic() - start), _mixture(folder)


def _two_processes(folder: Path) -> tuple[Outcome, str | None]:
    program = (
        "import sys; from pathlib import Path; from ppxcls.system.atomic_files import write_text\n"
        "for _ in range(60): write_text(Path(sys.argv[1]), sys.argv[2] * 300_000)"
    )
    file = folder / "a.txt"
    start = time.monotonic()
    # S603: runs this Python with the program above, without a shell.
    processes = [
        subprocess.Popen(  # noqa: S603
            [sys.executable, "-c", program, str(file), letter],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
        )
        for letter in "xy"
    ]
    mixtures = 0
    while any(process.poll() is None for process in processes):
        if file.exists():
            text = file.read_text()
            mixtures += len(text) != 300_000 or len(set(text)) != 1
    errors = b"".join(process.communicate()[1] for process in processes).decode()
    outcome = Outcome(max(process.returncode for process in processes), "", errors, time.monotonic() - start)
    if errors or mixtures or [entry.name for entry in folder.iterdir()] != ["a.txt"]:
        return outcome, f"{mixtures} mixtures, {errors[-200:]}, {list(folder.iterdir())}"
    return outcome, None


def _report_words(run: Path) -> list[str | Path]:
    return ["report", run]


def _convert_words(run: Path) -> list[str | Path]:
    import ppxcls
    from ppxcls.models.weights import save_weights

    source = run / "source.pdparams"
    if not source.exists():
        save_weights(ppxcls.build_model("Xception41", class_num=3), source)
    words: list[str | Path] = ["convert", source, "--output", run / "out.pdparams"]
    return [*words, "--model", "Xception41", "--class-num", "3"]


def _two_commands(words_of: Callable[[Path], list[str | Path]], folder: Path) -> tuple[Outcome, str | None]:
    run = make_run(folder)
    words = [str(word) for word in words_of(run)]
    start = time.monotonic()
    # S603: runs this package with the words above, without a shell.
    processes = [
        subprocess.Popen(  # noqa: S603
            [sys.executable, str(ROOT / "ppxcls/__main__.py"), *words],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    errors = "".join(process.communicate()[1] for process in processes)
    codes = [process.returncode for process in processes]
    outcome = Outcome(max(codes), "", errors, time.monotonic() - start)
    leftovers = [entry.name for entry in run.iterdir() if entry.name.endswith(".new")]
    return outcome, f"codes {codes}, left {leftovers}: {errors[-200:]}" if any(codes) or leftovers else None


def _killed_report(seconds: float, folder: Path) -> tuple[Outcome, str | None]:
    run = make_run(folder)
    run_command(_report_words(run), folder, timeout_s=seconds)
    outcome = run_command(_report_words(run), folder)
    leftovers = [entry.name for entry in run.iterdir() if entry.name.endswith(".new")]
    if leftovers or outcome.code != 0:
        return outcome, f"left behind: {leftovers}; {outcome.errors[-200:]}"
    return outcome, None
