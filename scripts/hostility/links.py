"""Links, pipes and folders under the names of files that the package writes, and under temporary names."""

from __future__ import annotations

import dataclasses
import functools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hostility.cases import Case, Outcome, call, refusal_problem, run_command
from hostility.run_files import make_run

PROMISE = "A result is never written through a link out of its folder, and a pipe never holds a command"
_PRECIOUS = "export PATH=/precious\n"
_MAX_SECONDS = 20


def cases() -> Iterator[Case]:
    """Returns the cases: each writer and file name with each kind of entry under it, and processes."""
    for number, (verb, write, names) in enumerate(_WRITERS):
        for name in names:
            for description, make in _KINDS.items():
                run = functools.partial(_entry, write, name, make)
                case = Case(f"{verb}: {name} is {description}", run)
                yield dataclasses.replace(case, is_quick=verb in _QUICK_VERBS)
            for new_name in (f"{name}.new", f".{name}.new"):
                run = functools.partial(_entry, write, new_name, _link_to_file)
                yield Case(f"{verb}: {new_name} is a link", run, is_quick=number % 4 == 0)
    for name, make in (("tensorboard", _link_to_folder), ("vdl", _link_to_folder), ("find", _link_to_folder)):
        yield Case(f"the folder {name} is a link", functools.partial(_own_folder, name, make), is_quick=True)
    for name in ("Xception41", "find/Xception41"):
        run = functools.partial(_linked_run, name)
        yield Case(f"{name} is a link to a folder of the user", run, is_quick=True)
    yield Case("a folder becomes a link while a file is written", _exchanged_folder, is_quick=True)
    yield Case("a temporary file becomes a link while it is written", _exchanged_file, is_quick=True)
    for name in ("report.html", "curves.png", "README.md", "train.log", "eval.json"):
        yield Case(f"ppxcls report: {name} is a pipe", functools.partial(_command, name, os.mkfifo))
        yield Case(f"ppxcls report: {name} is a link", functools.partial(_command, name, _link_to_file))


def _link_to_file(place: Path) -> None:
    place.symlink_to(_outside(place) / "bashrc")


def _link_to_nothing(place: Path) -> None:
    place.symlink_to(_outside(place) / "new")


def _link_to_folder(place: Path) -> None:
    place.symlink_to(_outside(place) / "folder")


def _hard_link(place: Path) -> None:
    os.link(_outside(place) / "bashrc", place)


def _folder_with_file(place: Path) -> None:
    place.mkdir()
    (place / "mine").write_text(_PRECIOUS)


_KINDS: dict[str, Callable[[Path], object]] = {
    "a link to a file": _link_to_file,
    "a link to nothing": _link_to_nothing,
    "a link to a folder": _link_to_folder,
    "a link to itself": lambda place: place.symlink_to(place.name),
    "a link to a device": lambda place: place.symlink_to("/dev/full"),
    "a hard link": _hard_link,
    "a pipe": os.mkfifo,
    "a folder": _folder_with_file,
}


def _outside(place: Path) -> Path:
    """Returns the folder of the user's other files, beside the run's folder."""
    return next(folder for folder in place.parents if (folder / "outside").is_dir()) / "outside"


def _make_outside(folder: Path) -> None:
    (folder / "outside/folder").mkdir(parents=True)
    (folder / "outside/bashrc").write_text(_PRECIOUS)


def _outside_problem(folder: Path) -> str | None:
    """Returns what has changed outside of the run's folder; None if nothing has."""
    outer_folder = folder / "outside"
    if (outer_folder / "bashrc").read_text() != _PRECIOUS:
        return "a file outside of the folder has changed"
    if sorted(file.name for file in outer_folder.iterdir()) != ["bashrc", "folder"] or any(
        (outer_folder / "folder").iterdir()
    ):
        return "a file outside of the folder is new"
    return None


def _entry(
    write: Callable[[Path], Any], name: str, make: Callable[[Path], object], folder: Path
) -> tuple[Outcome, str | None]:
    """Puts an entry under the name of a file, and lets the package write it. It may refuse in one line."""
    _make_outside(folder)
    run = make_run(folder)
    (run / name).unlink(missing_ok=True)
    make(run / name)
    entries = {file.name for file in run.iterdir()}
    signal.alarm(_MAX_SECONDS)  # ends the process of the surface: a case that hangs is a finding
    outcome = call(write, run)
    signal.alarm(0)
    if (problem := _outside_problem(folder)) is not None:
        return outcome, problem
    if make is _folder_with_file and (run / name / "mine").read_text() != _PRECIOUS:
        return outcome, "a file of the user has changed"
    leftovers = {file.name for file in run.iterdir() if file.name.endswith(".new")} - entries
    if leftovers:
        return outcome, f"left behind: {sorted(leftovers)}"
    return outcome, None if outcome.code == 0 else refusal_problem(outcome)


def _report(run: Path) -> None:
    from ppxcls.reports.page import write_report

    write_report(run)


def _begin(run: Path) -> None:
    from ppxcls.checkpoints.run_folder import RunFolder
    from ppxcls.data.class_names import CLASS_NAMES_FILE, class_name_lines
    from ppxcls.system.atomic_files import write_text

    folder = RunFolder(run)
    folder.lock()
    try:
        folder.recover()
        folder.set_aside(["metrics.jsonl", "predictions.csv"])
        write_text(run / "config.yaml", "# another")
        write_text(run / CLASS_NAMES_FILE, class_name_lines(["x", "y"]))
    finally:
        folder.release()


def _log(run: Path) -> None:
    from ppxcls.system.logs import logger, set_up_logging

    set_up_logging(0, run / "train.log", stream=sys.stderr)
    try:
        logger.info("a line with $(a command)")
    finally:
        logger.handlers.clear()


def _metrics(run: Path) -> None:
    from ppxcls.checkpoints.progress import Progress
    from ppxcls.train.trackers import JsonLines

    lines = JsonLines(run / "metrics.jsonl")
    lines.log("train", {"epoch": 1, "iter": 0, "step": 1}, {"loss": 1.0})
    lines.flush()
    lines.start(Progress(epoch=9))


def _bad_samples(run: Path) -> None:
    from ppxcls.data.bad_samples import BadSamples
    from ppxcls.data.dataset import ImageNetDataset
    from ppxcls.data.errors import DataError

    dataset = ImageNetDataset(str(run), str(run / "list.txt"))
    BadSamples(run / "bad_samples.txt", dataset, 0.5).add(0, DataError("unreadable"))


def _fit_lock(run: Path) -> None:
    from ppxcls.fitting.lock import only_fit_in

    with only_fit_in(run):
        pass


def _first_batch(run: Path) -> None:
    import paddle

    from ppxcls.train.first_batch import write_first_batch

    write_first_batch(run / "first_batch.png", paddle.zeros([2, 3, 8, 8]))


def _predictions(run: Path) -> None:
    import numpy as np

    from ppxcls.data.dataset import ImageNetDataset
    from ppxcls.train.predictions import Predictions, write_predictions

    dataset = ImageNetDataset(str(run), str(run / "list.txt"))
    one = np.array([0.1])
    predictions = Predictions(
        samples=np.array([0]),
        classes=np.array([[1, 0]]),
        scores=np.array([[0.9, 0.1]]),
        label_scores=one,
        plain_scores=one,
        losses=one,
        plain_losses=one,
    )
    write_predictions(run / "predictions.csv", predictions, dataset, ["x", "y"])


def _evaluation(run: Path) -> None:
    from ppxcls.build.evaluation_results import EVAL_FILES, OTHER_FILES, write_results
    from ppxcls.config.load import load_config

    config = load_config(run)
    weights: Any = SimpleNamespace(path="a", note="b")
    dataset: Any = SimpleNamespace(labelled_digest=lambda: "c", views=None)
    for files in (EVAL_FILES, OTHER_FILES):
        results = {"top1": 0.5, "num_samples": 4}
        write_results(config, weights, dataset=dataset, results=results, files=files)


def _checkpoint(run: Path) -> None:
    import numpy as np

    from ppxcls.checkpoints.files import write_checkpoint

    states = {part: {"a": np.zeros(3, np.float32)} for part in (".pdparams", ".pdopt")}
    write_checkpoint([run / "latest", run / "epoch_1"], states, manifest={"progress": {}})


def _weights(run: Path) -> None:
    import numpy as np

    from ppxcls.checkpoints.files import remove_copied_manifest, write_copied_manifest, write_state

    for name in ("out.pdparams", "out.safetensors"):
        remove_copied_manifest(run / name)
        write_state(run / name, {"a": np.zeros(3, np.float32)})
        write_copied_manifest(run / name, {"progress": {}})


def _lists(run: Path) -> None:
    import cv2
    import numpy as np

    from ppxcls.data.make_lists import make_lists

    for name in ("ant", "bee"):
        (run / "photos" / name).mkdir(parents=True)
        for number in range(4):
            cv2.imwrite(str(run / f"photos/{name}/{number}.png"), np.zeros((8, 8, 3), np.uint8))
    make_lists(run / "photos", run)


def _pack(run: Path) -> None:
    import cv2
    import numpy as np

    from ppxcls.packed.write import pack

    source = run.parent / "source"
    source.mkdir()
    cv2.imwrite(str(source / "a.png"), np.zeros((8, 8, 3), np.uint8))
    (source / "list.txt").write_text("a.png 0\n")
    file = run / "list.txt"
    if not file.is_symlink() and file.is_file() and file.read_text() == "data/a.png 0\n":
        file.unlink()  # of another list, which packing would refuse
    pack(source / "list.txt", source, output=run)


def _comparison(run: Path) -> None:
    """Compares two runs. The page gets its usual name in the current folder, which is a stranger's."""
    from ppxcls.reports.comparison import write_comparison

    other_run = make_run(run.parent / "other")
    earlier_folder = Path.cwd()
    os.chdir(run)
    try:
        write_comparison([run, other_run])
    finally:
        os.chdir(earlier_folder)


def _fit_files(run: Path) -> None:
    from ppxcls.fitting.progress import FitProgress
    from ppxcls.fitting.settings import Settings

    size = {"class_num": 2, "size": 71, "batch_size": 2, "epochs": 1, "head_epochs": 0}
    settings = Settings(
        network="Xception41",
        weights=None,
        device="cpu",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        learning_rate=0.1,
        reasons=[],
        **size,
    )
    progress = FitProgress(run / "fit.json", {}, "digest", settings)
    progress.save()
    progress.write_yaml(run / "train.yaml", "Global: {}")


_WRITERS: tuple[tuple[str, Callable[[Path], None], tuple[str, ...]], ...] = (
    ("train", _begin, ("class_names.txt", "run.lock", "earlier_1")),
    ("train", _log, ("train.log",)),
    ("train", _metrics, ("metrics.jsonl",)),
    ("train", _bad_samples, ("bad_samples.txt",)),
    ("train", _first_batch, ("first_batch.png",)),
    ("eval", _predictions, ("predictions.csv",)),
    ("eval", _evaluation, ("eval.json", "eval_other.json")),
    ("save", _checkpoint, ("latest.pdparams", "latest.pdopt", "latest.json", "epoch_1.pdparams")),
    ("convert", _weights, ("out.pdparams", "out.safetensors", "out.json")),
    ("fit", _fit_lock, ("fit.lock",)),
    ("lists", _lists, ("train_list.txt", "val_list.txt", "class_names.txt")),
    ("pack", _pack, ("list.txt", "shard-00000.data", "shard-00000.index", "pack.json")),
    ("fit", _fit_files, ("fit.json", "train.yaml")),
    ("compare", _comparison, ("comparison.html",)),
    ("report", _report, ("report.html", "README.md", "curves.png", "per_class.csv", "calibration.png")),
)
_QUICK_VERBS = ("train", "eval", "save", "fit", "convert")


def _own_folder(name: str, make: Callable[[Path], object], folder: Path) -> tuple[Outcome, str | None]:
    from ppxcls.system.appended_files import make_own_folder

    _make_outside(folder)
    run = make_run(folder)
    make(run / name)
    outcome = call(make_own_folder, run / name)
    return outcome, _outside_problem(folder) or refusal_problem(outcome, name, "a link out of its folder")


def _linked_run(name: str, folder: Path) -> tuple[Outcome, str | None]:
    from ppxcls.checkpoints.run_folder import RunFolder

    _make_outside(folder)
    run = folder / "output" / name
    run.parent.mkdir(parents=True)
    run.symlink_to(folder / "outside")
    outcome = call(RunFolder(run).lock)
    return outcome, _outside_problem(folder) or refusal_problem(outcome, name, "is a link to")


def _exchanged_folder(folder: Path) -> tuple[Outcome, str | None]:
    from ppxcls.system.atomic_files import whole_file

    _make_outside(folder)
    run = make_run(folder)

    def write() -> None:
        with whole_file(run / "report.html") as stream:
            stream.write(b"result")
            run.rename(folder / "moved")
            run.symlink_to(folder / "outside/folder")

    outcome = call(write)
    return outcome, _outside_problem(folder)


def _exchanged_file(folder: Path) -> tuple[Outcome, str | None]:
    from ppxcls.system.atomic_files import whole_file

    _make_outside(folder)
    run = make_run(folder)

    def write() -> None:
        with whole_file(run / "report.html") as stream:
            stream.write(b"result")
            for temporary in run.glob(".report.html.*"):
                temporary.unlink()
                temporary.symlink_to(folder / "outside/bashrc")

    outcome = call(write)
    is_link = (run / "report.html").is_symlink()
    return outcome, _outside_problem(folder) or ("a link is the result" if is_link else None)


def _command(name: str, make: Callable[[Path], object], folder: Path) -> tuple[Outcome, str | None]:
    _make_outside(folder)
    run = make_run(folder)
    (run / name).unlink(missing_ok=True)
    make(run / name)
    outcome = run_command(["report", run], folder)
    problem = _outside_problem(folder)
    return outcome, problem or (None if outcome.code == 0 else refusal_problem(outcome, name))
