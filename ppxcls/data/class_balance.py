"""Counts the training samples of each class, and tells what is unusual about the counts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ppxcls.data.dataset import Dataset
from ppxcls.system.arrays import Array
from ppxcls.system.paths import MAX_NAME_LENGTH, one_line

_LARGE_RATIO = 10  # of the largest class to the smallest one


def class_counts(dataset: Dataset, class_num: int) -> Array:
    """Returns the number of samples of each class, int64 [class_num].

    Raises:
        ValueError: a label is not a class. A data set of a plugin need not check this.
    """
    for index in (int(np.argmin(dataset.labels)), int(np.argmax(dataset.labels))):
        if not 0 <= dataset.labels[index] < class_num:
            raise ValueError(
                f"{dataset.line(index)}: the label {dataset.labels[index]} is outside class_num = {class_num}"
            )
    return np.bincount(dataset.labels, minlength=class_num)


def imbalance_note(counts: Array, names: Sequence[str], key: str | None) -> str | None:
    """Returns a note if the largest class has at least 10 times as many samples as the smallest one.

    Classes without samples are left out.

    Args:
        counts: number of training samples of each class, [class_num].
        names: names of the classes; empty if they are not known.
        key: key of the config for class weights, such as ``Loss.Train.0.CELoss.class_weight``; None if the
            training needs none, or can't have them.

    Returns:
        The note, with an override to copy if there is a key; None if the classes are not so different.
    """
    class_ids = np.flatnonzero(counts)
    largest = int(class_ids[counts[class_ids].argmax()])
    smallest = int(class_ids[counts[class_ids].argmin()])
    ratio = counts[largest] / counts[smallest]
    if ratio < _LARGE_RATIO:
        return None
    large_name, small_name = (
        one_line(names[i], MAX_NAME_LENGTH) if i < len(names) else f"class {i}" for i in (largest, smallest)
    )
    note = (
        f"{large_name} has {counts[largest]:,} training images, {ratio:,.0f} times as many as {small_name} "
        f"({counts[smallest]:,})"
    )
    if key is None:
        return note
    return f"{note}; if small classes matter as much as large ones, add -o {key}=balanced"


def unused_classes_warning(dataset: Dataset, count: int) -> str | None:
    """Returns a warning if the network has more classes than the training data; None otherwise.

    Args:
        dataset: training data.
        count: number of classes of the network.
    """
    largest_label = int(dataset.labels.max())
    if largest_label + 1 >= count:
        return None
    return (
        f"Arch.class_num is {count:,}, but the labels of {dataset.source} "
        f"end at {largest_label:,}: expected {largest_label + 1:,}?"
    )
