"""The script that compares frameworks: its order, its file of results, its clock, its table."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, load_script

frameworks = load_script("compare_frameworks")
sys.path.append(str(ROOT / "scripts/comparison"))  # the script's own modules import each other
import recording  # noqa: E402


def line(peer: str, minutes: float, seed: int, points: list[tuple[float, float]]) -> dict[str, Any]:
    return {
        "peer": peer,
        "minutes": minutes,
        "seed": seed,
        "points": [
            {"stage": "a", "epochs": i, "seconds": seconds, "accuracy": accuracy}
            for i, (seconds, accuracy) in enumerate(points, 1)
        ],
        "start_up_seconds": 3.0,
        "cpu": "a processor",
        "threads": 2,
        "load_average": {"start": [0.5, 0.4, 0.3], "end": []},
        "versions": {"timm": "1.0"},
    }


def test_an_interrupted_comparison_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "comparison.jsonl"
    assert frameworks.read_lines(file) == []
    frameworks.append_line(file, line("ppxcls", 2, 0, [(100, 0.9)]))
    file.write_bytes(file.read_bytes() + b'{"peer": "timm-150", "minutes": 2, "se')
    lines = frameworks.read_lines(file)
    assert [frameworks.key_of(entry) for entry in lines] == [("ppxcls", 2, 0)]
    names = ["ppxcls", "timm-150"]
    runs = frameworks.missing_runs(names, [2, 4], 2, lines)
    assert runs[0] == ("timm-150", 2, 0), "the run that was cut off"
    assert len(runs) == 7
    frameworks.append_line(file, line("timm-150", 2, 0, [(100, 0.8)]))
    assert [json.loads(text)["peer"] for text in file.read_text().splitlines()] == names


def test_the_table_takes_what_is_in_time() -> None:
    lines = [
        line("ppxcls", 2, 0, [(119, 0.90)]),
        line("ppxcls", 2, 1, [(125, 0.92)]),
        line("keras-150", 2, 0, [(60, 0.70), (131, 0.80), (133, 0.99)]),
        line("timm-299", 2, 0, [(200, 0.99)]),
    ]
    assert frameworks.accuracy_at(lines, "keras-150", 2) == [0.80], "a tenth late is in time"
    assert frameworks.accuracy_at(lines, "timm-299", 2) == []
    rows = frameworks.table(lines).splitlines()
    assert rows[0] == "|  | 2 min | ppxcls is |"
    assert rows[2] == "| ppxcls fit | 0.910 (0.900 to 0.920) |  |"
    assert rows[3].endswith("| 0.800 (0.800 to 0.800) | ahead by 0.110 |")
    assert rows[4].endswith("| - | ahead: no result in time |")
    assert frameworks.lead([0.9], [0.95]) == "behind by 0.050"
    assert (
        "a processor, 2 threads. Load before a run: 0.5 to 0.5. Versions: timm 1.0."
        in frameworks.conditions(lines)
    )


def test_the_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "a.png"
    frameworks.draw([line("ppxcls", 2, 0, [(119, 0.9)]), line("timm-299", 2, 0, [(200, 0.9)])], file)
    assert file.read_bytes()[:4] == b"\x89PNG"


def test_start_up_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording.time, "time", lambda: 107.0)
    clock = recording.Recording(argparse.Namespace(minutes=0.5, out=tmp_path / "a.json", started=100.0))
    clock.end_start_up()
    assert (clock.seconds, clock.remaining_seconds) == (7.0, 23.0)


def test_the_clock_runs_in_training_only(tmp_path: Path) -> None:
    times = iter([10.0, 14.0, 20.0, 21.0])
    out = tmp_path / "a.json"
    arguments = argparse.Namespace(minutes=0.1, out=out, started=0.0)
    clock = recording.Recording(arguments, lambda: next(times))
    with clock.training():
        pass
    clock.add("frozen", 1, 0.5)
    with clock.training():
        pass
    assert clock.remaining_seconds == pytest.approx(1.0)
    clock.add("fine-tuned", 1, 0.6)
    clock.write(size=71)
    content = json.loads(out.read_text())
    assert [point["seconds"] for point in content["points"]] == [4.0, 5.0]
    assert content["size"] == 71
    assert content["threads"] >= 1
    assert content["versions"]["python"]


def test_every_peer_has_a_script_that_cites_its_recipe() -> None:
    for peer in frameworks.PEERS.values():
        text = (ROOT / "scripts/comparison" / peer.script).read_text(encoding="utf-8")
        assert peer.is_ours or "https://" in text.partition("from __future__")[0], peer.script
