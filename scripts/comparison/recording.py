"""What all peers of the comparison share: their arguments, their clock, and the line that they write."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PACKAGES = ("keras", "tensorflow-cpu", "tensorflow", "torch", "timm", "fastai", "paddlepaddle", "ppxcls")


def peer_arguments(description: str | None) -> argparse.Namespace:
    """Reads the arguments that ``scripts/compare_frameworks.py`` passes to a peer."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photographs", type=Path, required=True, help="folder with train/ and test/")
    parser.add_argument("--trunk", type=Path, required=True, help="published weights, as they are")
    parser.add_argument("--state", type=Path, required=True, help="the trunk by state keys, an .npz file")
    parser.add_argument("--minutes", type=float, required=True, help="training time that is planned")
    parser.add_argument("--size", type=int, required=True, help="pixels of both sides of the images")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--started", type=float, required=True, help="time at which the peer was started")
    return parser.parse_args()


def cpu_model() -> str:
    """Returns the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def load_average() -> list[float]:
    """Returns the load of this machine over 1, 5 and 15 minutes; empty on systems without it."""
    return list(os.getloadavg()) if hasattr(os, "getloadavg") else []


def versions() -> dict[str, str]:
    """Returns the versions of the packages that are installed."""
    result = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            result[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return result


class Recording:
    """Accuracy against training seconds.

    Args:
        arguments: what ``peer_arguments`` returned.
        clock: function that returns seconds.

    Attributes:
        seconds: seconds since the process was started, without evaluation.
    """

    def __init__(self, arguments: argparse.Namespace, clock: Any = time.perf_counter) -> None:
        self.seconds = 0.0
        self._arguments = arguments
        self._clock = clock
        self._points: list[dict[str, Any]] = []
        self._start_up_seconds = 0.0
        self._load = load_average()

    @property
    def budget_seconds(self) -> float:
        """Seconds that are planned, from the start of the process."""
        return 60.0 * self._arguments.minutes

    @property
    def remaining_seconds(self) -> float:
        """Seconds that are left; negative after the end."""
        return self.budget_seconds - self.seconds

    def end_start_up(self) -> None:
        """Adds the time since the process was started: imports, reading weights, timing of steps."""
        self._start_up_seconds = time.time() - self._arguments.started
        self.seconds += self._start_up_seconds

    @contextmanager
    def training(self) -> Iterator[None]:
        """Adds the time of the block to ``seconds``."""
        start = self._clock()
        try:
            yield
        finally:
            self.seconds += self._clock() - start

    def add(self, stage: str, epochs: float, accuracy: float) -> None:
        """Adds a point.

        Args:
            stage: part of the recipe.
            epochs: epochs of this stage so far.
            accuracy: share of the test photographs whose class is predicted.
        """
        point = {"stage": stage, "epochs": epochs, "seconds": self.seconds, "accuracy": accuracy}
        self._points.append(point)
        print(json.dumps(point), flush=True)

    def write(self, **facts: Any) -> None:
        """Writes the file.

        Args:
            facts: what else the peer reports, such as its number of steps.
        """
        content = {
            "points": self._points,
            "start_up_seconds": self._start_up_seconds,
            "cpu": cpu_model(),
            "threads": os.cpu_count(),
            "load_average": {"start": self._load, "end": load_average()},
            "versions": versions(),
        }
        self._arguments.out.write_text(json.dumps(content | facts), encoding="utf-8")
