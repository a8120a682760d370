"""Checks every sample of the data sets. ``ppxcls check`` prints the report."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ppxcls.data.class_balance import imbalance_note
from ppxcls.data.dataset import Dataset
from ppxcls.data.decode import ImageParts, decode_image, image_count, largest_16bit_value
from ppxcls.data.groups import shared_groups
from ppxcls.data.similar_names import similar_name_notes
from ppxcls.data.transforms import NormalizeImage
from ppxcls.system.atomic_files import reason_of
from ppxcls.system.paths import one_line, printable

_DIGEST_BYTES = 16
# The order is that of the report. Data with errors should not be used.
ERRORS = (
    "missing",
    "unreadable",
    "empty",
    "truncated",
    "not an image",
    "two labels",
    "in training and evaluation",
    "group in training and evaluation",
)
NOTES = (
    "almost black",
    "several images",
    "duplicate",
    "class without samples",
    "unbalanced classes",
    "similar names",
    "images without a group",
)


@dataclass(frozen=True)
class BadSample:
    """A sample that can't be used.

    Attributes:
        dataset: number of its data set in the check, counted from 0.
        index: number of the sample in its data set.
        reason: reason, such as ``truncated JPEG``.
    """

    dataset: int
    index: int
    reason: str


@dataclass
class DataReport:
    """The result of a check.

    Attributes:
        findings: lines such as ``list:line path: reason``, by kind; the kinds are ``ERRORS`` and ``NOTES``.
        lists: statistics by data set: number of samples, samples per class, sizes of the images.
        bad_samples: samples that can't be read or decoded.
        copies: groups of samples with the same content, as numbers of the data set and of the sample in it.
    """

    findings: dict[str, list[str]] = field(default_factory=lambda: {kind: [] for kind in (*ERRORS, *NOTES)})
    lists: dict[str, dict[str, Any]] = field(default_factory=dict)
    bad_samples: list[BadSample] = field(default_factory=list)
    copies: list[list[tuple[int, int]]] = field(default_factory=list)

    @property
    def errors(self) -> int:
        """Number of errors."""
        return sum(len(self.findings[kind]) for kind in ERRORS)

    def as_dict(self) -> dict[str, Any]:
        """Returns the report as a dict for JSON."""
        return {"errors": self.errors, "lists": self.lists, "found": self.findings}

    def __str__(self) -> str:
        lines = []
        for name, facts in self.lists.items():
            lines.append(f"{name}: " + ", ".join(f"{key} {value}" for key, value in facts.items()))
        for kind, findings in self.findings.items():
            if findings:
                excerpt = [
                    *findings[:20],
                    *([f"... and {len(findings) - 20:,} more"] if len(findings) > 20 else []),
                ]
                lines += [f"{kind}: {len(findings):,}", *(f"  {line}" for line in excerpt)]
        lines.append(f"{self.errors:,} errors" if self.errors else "no errors")
        return "\n".join(map(one_line, lines))


class _Files:
    """Digests, uint8 [N, 16], and sizes, int32 [N, 2], of the images of one data set.

    A size is height and width in pixels. A digest stays zero if the sample can't be read or is empty. A size
    stays zero if the image can't be decoded.
    """

    def __init__(self, number: int, dataset: Dataset, report: DataReport, *, compares_pixels: bool) -> None:
        self.number = number
        self.dataset = dataset
        self._compares_pixels = compares_pixels
        self.digests = np.zeros((len(dataset), _DIGEST_BYTES), np.uint8)
        self.sizes = np.zeros((len(dataset), 2), np.int32)
        self._report = report
        self._lock = threading.Lock()

    def name(self, index: int) -> str:
        """Returns the name of a sample in the report."""
        return printable(f"{self.dataset.line(index)} {self.dataset.listed(index)}")

    def inspect(self, index: int) -> None:
        """Reads and decodes one sample, and adds its errors to the report."""
        try:
            data = self.dataset.read(index)
        except FileNotFoundError:
            return self._note("missing", index, "no such file")
        except (OSError, ValueError) as error:
            return self._note("unreadable", index, reason_of(error))
        if isinstance(data, ImageParts):
            data = data.encoded
        if not isinstance(data, bytes):  # the data set returns arrays
            self.sizes[index] = data.shape[:2]
            return self._set_digest(index, data.tobytes())
        if not data:
            return self._note("empty", index, "0 bytes")
        self._set_digest(index, data)
        try:
            image = decode_image(data, self.dataset.transform.pixel_format)
            self.sizes[index] = image.shape[:2]
            if self._compares_pixels:
                self._set_digest(index, bytes(str(image.shape), "ascii") + image.tobytes())
            largest_value = largest_16bit_value(data, image)
            if largest_value is not None and not self._is_made_bright(largest_value):
                self._note(
                    "almost black", index, f"16 bits per channel, values up to {largest_value:,} of 65,535"
                )
            if (count := image_count(data)) > 1:
                self._note("several images", index, f"{count:,} images; the first one is used")
        except (ValueError, MemoryError) as error:
            reason = str(error) or "too large for the memory"
            kinds = [kind for kind in ("truncated", "not an image") if reason.startswith(kind)]
            self._note(kinds[0] if kinds else "unreadable", index, reason)
        return None

    def _is_made_bright(self, largest_value: int) -> bool:
        """True if the scale of NormalizeImage fits a largest value of fewer than 16 bits."""
        transform = self.dataset.transform
        scales = [float(op.scale) for op in transform.transforms if isinstance(op, NormalizeImage)]
        return transform.pixel_format.bits == 16 and bool(scales) and scales[0] * largest_value >= 0.25

    def _set_digest(self, index: int, data: bytes) -> None:
        self.digests[index] = np.frombuffer(hashlib.sha256(data).digest()[:_DIGEST_BYTES], np.uint8)

    def _note(self, kind: str, index: int, reason: str) -> None:
        with self._lock:
            self._report.findings[kind].append(f"{self.name(index)}: {printable(reason)}")
            if kind in ERRORS:
                self._report.bad_samples.append(BadSample(self.number, index, reason))


def check_lists(
    datasets: Sequence[Dataset],
    class_num: int,
    *,
    threads: int | None = None,
    progress: Callable[[int], object] | None = None,
    names: Sequence[str] = (),
    groups: Sequence[Mapping[str, str]] = (),
    class_weight_key: str | None = None,
) -> DataReport:
    """Decodes every sample, compares all samples by content, and counts the classes.

    Args:
        datasets: training data, and evaluation data if there is any.
        class_num: number of classes.
        threads: number of threads; None for one per core.
        progress: function that is called with the number of samples since its last call; None for no calls.
        names: names of the classes; empty if they are not known.
        groups: group of each image of a data set, by the path in its list, for each data set; empty if no
            images belong together.
        class_weight_key: key of the config that a note about unbalanced classes advises; None for none.
    """
    report = DataReport()
    report.findings["similar names"] = similar_name_notes(names)
    compares_pixels = not all(dataset.keeps_bytes for dataset in datasets)
    all_files = [
        _Files(number, dataset, report, compares_pixels=compares_pixels)
        for number, dataset in enumerate(datasets)
    ]
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        for files in all_files:
            samples_per_task = 64

            def inspect(start: int, files: _Files = files, step: int = samples_per_task) -> int:
                stop = min(start + step, len(files.dataset))
                for i in range(start, stop):
                    files.inspect(i)
                return stop - start

            for count in pool.map(inspect, range(0, len(files.dataset), samples_per_task)):
                if progress:
                    progress(count)
            name, number = printable(files.dataset.source), len(report.lists) + 1
            unique_name = name if name not in report.lists else f"{name} ({number})"
            report.lists[unique_name] = _facts(files, class_num, report)
    if datasets:
        counts = np.bincount(datasets[0].labels, minlength=class_num)
        if note := imbalance_note(counts, names, class_weight_key):
            report.findings["unbalanced classes"] = [f"{printable(datasets[0].source)}: {note}"]
    _compare(all_files, report)
    if any(groups):
        _compare_groups(datasets, groups, report)
    for findings in report.findings.values():
        findings.sort()
    report.bad_samples.sort(key=lambda sample: (sample.dataset, sample.index))
    return report


def _facts(files: _Files, class_num: int, report: DataReport) -> dict[str, Any]:
    dataset = files.dataset
    counts = np.bincount(dataset.labels, minlength=class_num)
    if missing_classes := np.flatnonzero(counts == 0).tolist():
        excerpt = ", ".join(map(str, missing_classes[:20])) + (", ..." if len(missing_classes) > 20 else "")
        report.findings["class without samples"].append(
            f"{printable(dataset.source)}: {len(missing_classes):,} of {class_num:,}: {excerpt}"
        )
    sizes = files.sizes[files.sizes[:, 0] > 0]
    facts: dict[str, Any] = {
        "samples": len(dataset),
        "classes": int((counts > 0).sum()),
        "samples of the smallest class": int(counts.min()),
        "of the median": float(np.median(counts)),
        "of the largest": int(counts.max()),
    }
    if len(sizes):
        short_sides = sizes.min(axis=1)
        facts |= {
            "shorter side, pixels: smallest": int(short_sides.min()),
            "median": float(np.median(short_sides)),
            "largest side": int(sizes.max()),
        }
    return facts


def _compare(all_files: list[_Files], report: DataReport) -> None:
    """Finds samples with equal digests: copies in one data set, with two labels, or in both data sets."""
    digests = np.concatenate([files.digests for files in all_files])
    keys = digests.view(f"V{_DIGEST_BYTES}").reshape(-1)
    set_numbers = np.concatenate([np.full(len(files.dataset), k) for k, files in enumerate(all_files)])
    indices = np.concatenate([np.arange(len(files.dataset)) for files in all_files])
    readable_samples = np.flatnonzero(digests.any(axis=1))
    if not readable_samples.size:
        return
    order = readable_samples[np.argsort(keys[readable_samples], kind="stable")]
    starts = np.flatnonzero(np.concatenate(([True], keys[order][1:] != keys[order][:-1])))
    for start, stop in zip(starts, [*starts[1:], order.size], strict=True):
        if stop - start < 2:
            continue
        group = [(all_files[set_numbers[j]], int(indices[j])) for j in order[start:stop]]
        report.copies.append([(files.number, i) for files, i in group])
        names = " = ".join(files.name(i) for files, i in group[:5])
        if len(group) > 5:
            names += f" and {len(group) - 5} more"
        labels = Counter(int(files.dataset.labels[i]) for files, i in group)
        if len(labels) > 1:
            report.findings["two labels"].append(f"{names}: labels {', '.join(map(str, sorted(labels)))}")
        if len({id(files) for files, _ in group}) > 1:
            report.findings["in training and evaluation"].append(names)
        elif len(labels) == 1:
            report.findings["duplicate"].append(names)


def _compare_groups(
    datasets: Sequence[Dataset], groups: Sequence[Mapping[str, str]], report: DataReport
) -> None:
    """Finds groups with images in several data sets, and data sets with images that are in no group."""
    pairs_by_source: dict[str, list[tuple[str, str]]] = {}
    for source, dataset, group_by_path in zip(report.lists, datasets, groups, strict=True):
        paths = [dataset.listed(index) for index in range(len(dataset))]
        pairs_by_source[source] = [(path, group_by_path[path]) for path in paths if path in group_by_path]
        count = len(paths) - len(pairs_by_source[source])
        if count:
            report.findings["images without a group"].append(f"{source}: {count:,} of {len(paths):,}")
    report.findings["group in training and evaluation"] = list(map(printable, shared_groups(pairs_by_source)))
