"""Compares fine-tuning of the same published trunk in Keras, fastai, timm and ppxcls, on photographs.

    python scripts/compare_frameworks.py run PHOTOGRAPHS TRUNK --peers-python PEERS/bin/python
    python scripts/compare_frameworks.py table comparison.jsonl --picture docs/frameworks.png

PHOTOGRAPHS has train/ and test/, each with a folder for each class. TRUNK is a file of Keras's Xception, as
Keras reads it. PEERS is an environment with keras, tensorflow-cpu, timm, fastai and torch. ``run`` trains
each peer with each seed for each number of minutes, in its own process and with all cores, and appends one
line of JSON for each. If it is interrupted, the same command goes on with what is missing. ``table`` prints
a Markdown table, and draws the accuracies against the minutes.

Each peer follows its own published advice; the docstrings of ``scripts/comparison/`` give the sources. The
accuracy is that of the test photographs, which no peer trains on. Seconds are those of training, with reading
photographs, and without evaluation and start-up. ppxcls's seconds are those of its whole command.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "scripts/comparison"
sys.path[:0] = [str(ROOT), str(SCRIPTS)]

LATE_SHARE = 1.1  # a run may take this much longer than planned, because plans are made from timed steps
Line = dict[str, Any]


@dataclass(frozen=True)
class Peer:
    """One framework with its recipe.

    Attributes:
        title: name in the table.
        script: file in ``scripts/comparison/``.
        size: pixels of both sides of the images; 0 if the recipe chooses.
        is_ours: True if it runs in this interpreter.
    """

    title: str
    script: str
    size: int
    is_ours: bool = False


PEERS = {
    "ppxcls": Peer("ppxcls fit", "ours.py", 0, is_ours=True),
    "keras-150": Peer("Keras's guide, 150 px", "keras_guide.py", 150),
    "keras-299": Peer("Keras's guide, 299 px", "keras_guide.py", 299),
    "fastai-224": Peer("fastai's fine_tune, 224 px", "fastai_learner.py", 224),
    "fastai-128": Peer("fastai's fine_tune, 128 px", "fastai_learner.py", 128),
    "timm-299": Peer("timm, 299 px", "timm_recipe.py", 299),
    "timm-150": Peer("timm, 150 px", "timm_recipe.py", 150),
}


def read_lines(file: Path) -> list[Line]:
    """Returns the results of a file. A last line that was cut off is left out."""
    if not file.exists():
        return []
    lines = file.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def append_line(file: Path, line: Line) -> None:
    """Appends a result, after removing a last line that was cut off."""
    data = file.read_bytes() if file.exists() else b""
    with open(file, "r+b" if file.exists() else "wb") as stream:
        stream.truncate(data.rfind(b"\n") + 1)
        stream.seek(0, os.SEEK_END)
        stream.write(json.dumps(line).encode() + b"\n")


def key_of(line: Line) -> tuple[str, float, int]:
    """Returns peer, minutes and seed."""
    return line["peer"], line["minutes"], line["seed"]


def missing_runs(
    names: Sequence[str], minutes: Sequence[float], seeds: int, lines: Sequence[Line]
) -> list[tuple[str, float, int]]:
    """Returns peer, minutes and seed of each run that the lines lack, seed by seed."""
    finished_runs = {key_of(line) for line in lines}
    runs = [(name, budget, seed) for seed in range(seeds) for budget in minutes for name in names]
    return [run for run in runs if run not in finished_runs]


def run_peer(arguments: argparse.Namespace, state: Path, run: tuple[str, float, int]) -> Line:
    """Runs a peer in its own process, and returns its line.

    Raises:
        CalledProcessError: the peer failed.
    """
    name, minutes, seed = run
    peer = PEERS[name]
    environment = dict(os.environ)
    threads = str(os.cpu_count())
    if peer.is_ours:
        environment["PYTHONPATH"] = os.pathsep.join((str(ROOT), str(SCRIPTS)))
    else:
        environment |= {"OMP_NUM_THREADS": threads, "PYTHONPATH": str(SCRIPTS)}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        python = sys.executable if peer.is_ours else os.path.abspath(arguments.peers_python)
        command = [python, str(SCRIPTS / peer.script), "--photographs", str(arguments.photographs.resolve())]
        command += [
            "--trunk",
            str(arguments.trunk.resolve()),
            "--state",
            str(state),
            "--size",
            str(peer.size),
        ]
        command += ["--minutes", str(minutes), "--seed", str(seed), "--out", str(out)]
        command += ["--started", str(time.time())]
        subprocess.run(command, check=True, env=environment, cwd=folder)  # noqa: S603
        result = json.loads(out.read_text(encoding="utf-8"))
    return {"peer": name, "minutes": minutes, "seed": seed, **result}


def run_all(arguments: argparse.Namespace) -> None:
    """Runs what is missing in the file of results. A peer that fails is reported, and the rest goes on."""
    from trunk import write_state  # scripts/comparison/trunk.py

    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "trunk.npz"
        write_state(arguments.trunk, state)
        runs = missing_runs(
            arguments.only or list(PEERS), arguments.minutes, arguments.seeds, read_lines(arguments.results)
        )
        for i, run in enumerate(runs, 1):
            print(f"{i} of {len(runs)}: {run[0]}, {run[1]:g} minutes, seed {run[2]}", flush=True)
            try:
                append_line(arguments.results, run_peer(arguments, state, run))
            except subprocess.CalledProcessError as error:
                print(f"{run[0]} failed with exit status {error.returncode}", file=sys.stderr, flush=True)


def accuracy_at(lines: Sequence[Line], name: str, minutes: float) -> list[float]:
    """Returns a peer's accuracy for each seed: the last point in time of its run for these minutes."""
    accuracies = []
    for line in lines:
        if (line["peer"], line["minutes"]) == (name, minutes):
            points = [p for p in line["points"] if p["seconds"] <= 60 * minutes * LATE_SHARE]
            if points:
                accuracies.append(points[-1]["accuracy"])
    return accuracies


def cell(accuracies: Sequence[float]) -> str:
    """Returns mean and range; a dash if no run was in time."""
    if not accuracies:
        return "-"
    return f"{mean(accuracies):.3f} ({min(accuracies):.3f} to {max(accuracies):.3f})"


def lead(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Returns whether ppxcls is ahead of a peer at equal time."""
    if not ours:
        return "not measured"
    if not theirs:
        return "ahead: no result in time"
    difference = mean(ours) - mean(theirs)
    if difference > 0:
        return f"ahead by {difference:.3f}"
    return f"behind by {-difference:.3f}" if difference else "equal"


def table(lines: Sequence[Line]) -> str:
    """Returns the Markdown table: accuracies at each number of minutes, and whether ppxcls is ahead."""
    budgets = sorted({line["minutes"] for line in lines})
    names = [name for name in PEERS if any(line["peer"] == name for line in lines)]
    columns = [f"{budget:g} min" for budget in budgets]
    rows = [["", *columns, "ppxcls is"], ["---"] * (len(columns) + 2)]
    for name in names:
        cells = [cell(accuracy_at(lines, name, budget)) for budget in budgets]
        leads = [
            lead(accuracy_at(lines, "ppxcls", budget), accuracy_at(lines, name, budget)) for budget in budgets
        ]
        rows.append([PEERS[name].title, *cells, "" if PEERS[name].is_ours else "; ".join(leads)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def conditions(lines: Sequence[Line]) -> str:
    """Returns the sentences below the table: processor, load, versions, and start-up of each peer."""
    processors = sorted({f"{line['cpu']}, {line['threads']} threads" for line in lines})
    loads = [line["load_average"]["start"][0] for line in lines if line["load_average"]["start"]]
    package_versions: dict[str, set[str]] = {}
    start_ups: dict[str, list[float]] = {}
    for line in lines:
        start_ups.setdefault(line["peer"], []).append(line["start_up_seconds"])
        for package, version in line["versions"].items():
            package_versions.setdefault(package, set()).add(version)
    versions = ", ".join(
        f"{package} {'/'.join(sorted(package_versions[package]))}" for package in sorted(package_versions)
    )
    starts = ", ".join(
        f"{PEERS[name].title} {mean(seconds):.0f}" for name, seconds in start_ups.items() if any(seconds)
    )
    load = f"{min(loads):.1f} to {max(loads):.1f}" if loads else "unknown"
    return (
        f"Processor: {'; '.join(processors)}. Load before a run: {load}. Versions: {versions}. "
        f"Seconds of start-up, which count: {starts or 'none'}."
    )


def draw(lines: Sequence[Line], file: Path) -> None:
    """Draws accuracy against minutes: every point of the longest runs, and the means at each planned time."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    budgets = sorted({line["minutes"] for line in lines})
    for i, name in enumerate(name for name in PEERS if any(line["peer"] == name for line in lines)):
        colour = f"C{i}"
        values = {budget: accuracy_at(lines, name, budget) for budget in budgets}
        planned = [budget for budget in budgets if values[budget]]
        axes.plot(
            planned,
            [mean(values[budget]) for budget in planned],
            color=colour,
            marker="o",
            linewidth=3 if PEERS[name].is_ours else 1.2,
            label=PEERS[name].title,
        )
        for line in lines:
            if line["peer"] == name and line["minutes"] == budgets[-1]:
                minutes = [point["seconds"] / 60 for point in line["points"]]
                axes.scatter(minutes, [p["accuracy"] for p in line["points"]], s=6, color=colour, alpha=0.4)
    axes.set_xlabel("minutes of training")
    axes.set_ylabel("accuracy on the test photographs")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run", help="train what is missing")
    run.add_argument("photographs", type=Path)
    run.add_argument("trunk", type=Path)
    run.add_argument("--peers-python", type=Path, default=Path(sys.executable), help="the peers' interpreter")
    run.add_argument("--minutes", type=float, nargs="+", default=[2, 4, 8], help="(default: 2 4 8)")
    run.add_argument("--seeds", type=int, default=3, help="number of seeds (default: 3)")
    run.add_argument("--only", action="append", choices=PEERS, help="peer, repeatable (default: all)")
    run.add_argument("--results", type=Path, default=Path("comparison.jsonl"), help="file to extend")
    show = verbs.add_parser("table", help="print the table, and draw the picture")
    show.add_argument("results", type=Path)
    show.add_argument("--picture", type=Path, help="PNG file to write")
    arguments = parser.parse_args()
    if arguments.verb == "run":
        run_all(arguments)
        return
    lines = read_lines(arguments.results)
    print(f"{table(lines)}\n\n{conditions(lines)}")
    if arguments.picture:
        draw(lines, arguments.picture)


if __name__ == "__main__":
    main()
