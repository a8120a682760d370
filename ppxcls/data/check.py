"""Checks every sample of some data sets; ``ppxcls check`` prints the report."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ppxcls.data.dataset import Dataset
from ppxcls.data.decode import ImageParts, decode_image, largest_of_few_bits
from ppxcls.system.paths import printable
from ppxcls.system.whole_files import reason_of

_DIGEST = 16
# In the order of the report. Data with errors should not be used.
ERRORS = (
    "missing",
    "unreadable",
    "empty",
    "truncated",
    "not an image",
    "two labels",
    "in training and evaluation",
)
NOTES = ("almost black", "duplicate", "class without samples")


@dataclass
class DataReport:
    """What a check found.

    Attributes:
        found: lines ``list:line path: what``, by kind, which is one of ``ERRORS`` or ``NOTES``.
        lists: figures by data set: number of samples, samples per class, sizes of the images.
    """

    found: dict[str, list[str]] = field(default_factory=lambda: {kind: [] for kind in (*ERRORS, *NOTES)})
    lists: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def errors(self) -> int:
        """Number of errors."""
        return sum(len(self.found[kind]) for kind in ERRORS)

    def as_dict(self) -> dict[str, Any]:
        """The report for JSON."""
        return {"errors": self.errors, "lists": self.lists, "found": self.found}

    def __str__(self) -> str:
        lines = []
        for name, facts in self.lists.items():
            lines.append(f"{name}: " + ", ".join(f"{key} {value}" for key, value in facts.items()))
        for kind, found in self.found.items():
            if found:
                shown = [*found[:20], *([f"... and {len(found) - 20:,} more"] if len(found) > 20 else [])]
                lines += [f"{kind}: {len(found):,}", *(f"  {line}" for line in shown)]
        return "\n".join([*lines, f"{self.errors:,} errors" if self.errors else "no errors"])


class _Files:
    """Digests [n, 16] and sizes [n, 2] of the images of one data set.

    They stay zero if an image can't be decoded.
    """

    def __init__(self, dataset: Dataset, report: DataReport, by_pixels: bool) -> None:
        self.dataset = dataset
        self._by_pixels = by_pixels
        self.digests = np.zeros((len(dataset), _DIGEST), np.uint8)
        self.sizes = np.zeros((len(dataset), 2), np.int32)
        self._report = report
        self._lock = threading.Lock()

    def name(self, i: int) -> str:
        """The name of a sample in the report."""
        return printable(f"{self.dataset.line(i)} {self.dataset.listed(i)}")

    def inspect(self, i: int) -> None:
        """Read and decode one file."""
        try:
            data = self.dataset.read(i)
        except FileNotFoundError:
            return self._note("missing", i, "no such file")
        except (OSError, ValueError) as error:
            return self._note("unreadable", i, reason_of(error))
        if isinstance(data, ImageParts):
            data = data.encoded
        if not isinstance(data, bytes):  # a data set of arrays
            self.sizes[i] = data.shape[:2]
            return self._set_digest(i, data.tobytes())
        if not data:
            return self._note("empty", i, "0 bytes")
        self._set_digest(i, data)
        try:
            image = decode_image(data)
            self.sizes[i] = image.shape[:2]
            if self._by_pixels:
                self._set_digest(i, bytes(str(image.shape), "ascii") + image.tobytes())
            if (largest := largest_of_few_bits(data, image)) is not None:
                self._note("almost black", i, f"16 bits per channel, values up to {largest:,} of 65,535")
        except (ValueError, MemoryError) as error:
            kind = "truncated" if "truncated" in str(error) else "not an image"
            self._note(kind, i, str(error) or "too large for the memory")
        return None

    def _set_digest(self, i: int, data: bytes) -> None:
        self.digests[i] = np.frombuffer(hashlib.sha256(data).digest()[:_DIGEST], np.uint8)

    def _note(self, kind: str, i: int, reason: str) -> None:
        with self._lock:
            self._report.found[kind].append(f"{self.name(i)}: {printable(reason)}")


def check_lists(
    datasets: Sequence[Dataset],
    class_num: int,
    threads: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> DataReport:
    """Decode every sample, compare all by content, and count the classes.

    Args:
        datasets: training data, and evaluation data if there is any.
        class_num: number of classes.
        threads: number of threads; None for one per core.
        progress: called with the number of samples since the last call; None for no calls.
    """
    report = DataReport()
    by_pixels = not all(dataset.keeps_bytes for dataset in datasets)
    all_files = [_Files(dataset, report, by_pixels) for dataset in datasets]
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        for files in all_files:
            step = 64

            def inspect(start: int, files: _Files = files, step: int = step) -> int:
                stop = min(start + step, len(files.dataset))
                for i in range(start, stop):
                    files.inspect(i)
                return stop - start

            for count in pool.map(inspect, range(0, len(files.dataset), step)):
                if progress:
                    progress(count)
            name, number = printable(files.dataset.source), len(report.lists) + 1
            report.lists[name if name not in report.lists else f"{name} ({number})"] = _facts(
                files, class_num, report
            )
    _compare(all_files, report)
    for found in report.found.values():
        found.sort()
    return report


def _facts(files: _Files, class_num: int, report: DataReport) -> dict[str, Any]:
    dataset = files.dataset
    counts = np.bincount(dataset.labels, minlength=class_num)
    if absent := np.flatnonzero(counts == 0).tolist():
        shown = ", ".join(map(str, absent[:20])) + (", ..." if len(absent) > 20 else "")
        report.found["class without samples"].append(
            f"{printable(dataset.source)}: {len(absent):,} of {class_num:,}: {shown}"
        )
    sides = files.sizes[files.sizes[:, 0] > 0]
    facts: dict[str, Any] = {
        "samples": len(dataset),
        "classes": int((counts > 0).sum()),
        "samples of the smallest class": int(counts.min()),
        "of the median": float(np.median(counts)),
        "of the largest": int(counts.max()),
    }
    if len(sides):
        shorter = sides.min(axis=1)
        facts |= {
            "shorter side, pixels: smallest": int(shorter.min()),
            "median": float(np.median(shorter)),
            "largest side": int(sides.max()),
        }
    return facts


def _compare(all_files: list[_Files], report: DataReport) -> None:
    """Find samples with equal bytes: copies in one data set, with two labels, or in both data sets."""
    together = np.concatenate([files.digests for files in all_files])
    keys = together.view(f"V{_DIGEST}").reshape(-1)
    owners = np.concatenate([np.full(len(files.dataset), k) for k, files in enumerate(all_files)])
    indices = np.concatenate([np.arange(len(files.dataset)) for files in all_files])
    readable = np.flatnonzero(together.any(axis=1))
    if not readable.size:
        return
    order = readable[np.argsort(keys[readable], kind="stable")]
    starts = np.flatnonzero(np.concatenate(([True], keys[order][1:] != keys[order][:-1])))
    for start, stop in zip(starts, [*starts[1:], order.size], strict=True):
        if stop - start < 2:
            continue
        group = [(all_files[owners[j]], int(indices[j])) for j in order[start:stop]]
        names = " = ".join(files.name(i) for files, i in group[:5]) + (
            f" and {len(group) - 5} more" if len(group) > 5 else ""
        )
        labels = Counter(int(files.dataset.labels[i]) for files, i in group)
        if len(labels) > 1:
            report.found["two labels"].append(f"{names}: labels {', '.join(map(str, sorted(labels)))}")
        if len({id(files) for files, _ in group}) > 1:
            report.found["in training and evaluation"].append(names)
        elif len(labels) == 1:
            report.found["duplicate"].append(names)
