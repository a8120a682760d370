"""Holds samples out from training: those that choose the best epoch, and those that judge the result.

Copies of one picture stay on one side, because a picture that was trained on judges nothing. So do images of
one group, such as those of one patient.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ppxcls.data.errors import DataError
from ppxcls.data.group_split import divide_groups, fold_numbers, joined_groups
from ppxcls.system.digests import file_sha256

Sample = tuple[str, int]  # path and label
PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Shares:
    """The shares of each class that are held out if no folder holds them.

    Attributes:
        val: share of the samples that choose, from 0 to below 1.
        test: share of the samples that judge, from 0 to below 1. If it is 0, no sample is taken for them.
    """

    val: float
    test: float = 0.0

    def __post_init__(self) -> None:
        """Raises DataError if nothing would be left for the training."""
        for words, share in (("evaluation", self.val), ("test", self.test)):
            if not 0 <= share < 1:
                raise DataError(f"expected a share for {words} from 0 to below 1, received {share:g}")
        if self.val + self.test >= 1:
            raise DataError(
                f"expected shares with a sum below 1, received {self.val:g} for evaluation "
                f"and {self.test:g} for test"
            )


def with_judging_part(parts: Mapping[str, Sequence[Sample]]) -> dict[str, list[Sample]]:
    """Returns the parts of a data set with the samples that judge as ``test``.

    An evaluation part without a test part beside it becomes the test part.
    """
    judged_parts = {part: list(parts.get(part, [])) for part in PARTS}
    if judged_parts["val"] and not judged_parts["test"]:
        judged_parts["test"], judged_parts["val"] = judged_parts["val"], []
    return judged_parts


def hold_out(
    parts: Mapping[str, Sequence[Sample]],
    shares: Shares,
    *,
    seed: int,
    root: Path | None = None,
    groups: Mapping[str, str] | None = None,
) -> dict[str, list[Sample]]:
    """Returns the parts of a data set. Parts that are empty are taken from the training part.

    Training gets the first sample of a class, then the part that chooses, and then the part that judges.

    Args:
        parts: samples of ``train``, ``val`` and ``test``.
        shares: shares of each class of the training part.
        seed: seed of the split.
        root: folder of the paths, to keep copies of one picture on one side. A picture with two labels stays
            in the training part. None to split by names alone.
        groups: group by path, to keep each group on one side; None for no groups.

    Raises:
        DataError: no group can be held out, because each class is in one group only.
    """
    samples = parts["train"]
    first_copies = first_copy_by_path(root, [path for path, _ in samples]) if root else {}
    if groups is None:
        part_by_picture = _part_by_picture(parts, shares, seed, first_copies)
        new_names = [part_by_picture.get(first_copies.get(path, path), "train") for path, _ in samples]
    else:
        new_names = _parts_of_groups(parts, shares, seed=seed, first_copies=first_copies, groups=groups)
    new_parts: dict[str, list[Sample]] = {"train": [], "val": list(parts["val"]), "test": list(parts["test"])}
    for sample, name in zip(samples, new_names, strict=True):
        new_parts[name].append(sample)
    return new_parts


def _part_by_picture(
    parts: Mapping[str, Sequence[Sample]], shares: Shares, seed: int, first_copies: Mapping[str, str]
) -> dict[str, str]:
    """Returns the part of each picture of the training part that is held out."""
    labels_by_picture = _labels_by_picture(parts["train"], first_copies)
    labels = sorted({label for _, label in parts["train"]})
    pictures_by_label: dict[int, list[str]] = {label: [] for label in labels}
    for picture, picture_labels in labels_by_picture.items():
        if len(picture_labels) == 1:
            pictures_by_label[min(picture_labels)].append(picture)
    rng = np.random.default_rng(seed)
    part_by_picture: dict[str, str] = {}
    for pictures in pictures_by_label.values():
        order = [pictures[i] for i in rng.permutation(len(pictures))]
        val_count = _held_out_count(len(pictures), 0.0 if parts["val"] else shares.val, reserved=1)
        test_count = _held_out_count(
            len(pictures), 0.0 if parts["test"] else shares.test, reserved=1 + val_count
        )
        part_by_picture |= dict.fromkeys(order[:val_count], "val")
        part_by_picture |= dict.fromkeys(order[val_count : val_count + test_count], "test")
    return part_by_picture


def _labels_by_picture(samples: Sequence[Sample], first_copies: Mapping[str, str]) -> dict[str, set[int]]:
    labels_by_picture: dict[str, set[int]] = defaultdict(set)
    for path, label in samples:
        labels_by_picture[first_copies.get(path, path)].add(label)
    return labels_by_picture


def _parts_of_groups(
    parts: Mapping[str, Sequence[Sample]],
    shares: Shares,
    *,
    seed: int,
    first_copies: Mapping[str, str],
    groups: Mapping[str, str],
) -> list[str]:
    """Returns the new part of each sample of the training part, which is the same for samples of a group."""
    share_by_part = {
        part: share
        for part, share in (("val", shares.val), ("test", shares.test))
        if share and not parts[part]
    }
    paths, labels = [path for path, _ in parts["train"]], [label for _, label in parts["train"]]
    if not share_by_part or not paths:
        return ["train"] * len(paths)
    names = joined_groups(paths, first_copies, groups)
    labels_by_picture = _labels_by_picture(parts["train"], first_copies)
    ambiguous_groups = frozenset(
        name
        for path, name in zip(paths, names, strict=True)
        if len(labels_by_picture[first_copies.get(path, path)]) > 1
    )
    all_parts = ["train", *share_by_part]
    numbers = divide_groups(
        labels,
        names,
        shares=[1 - sum(share_by_part.values()), *share_by_part.values()],
        seed=seed,
        first_part_names=ambiguous_groups,
    )
    if not numbers.any():
        raise DataError(
            f"no group can be held out: {len(set(names)):,} groups, and each class is in one of them only"
        )
    return [all_parts[number] for number in numbers.tolist()]


def hold_out_folds(
    samples: Sequence[Sample], folds: int, *, seed: int, root: Path, groups: Mapping[str, str] | None
) -> list[dict[str, list[Sample]]]:
    """Returns the training part and the evaluation part of each fold of a cross-validation.

    Each sample is in the evaluation part of one fold. Copies of one picture are in the same fold, and so are
    samples of one group.

    Args:
        samples: samples to divide.
        folds: number of folds.
        seed: seed of the folds; see ``fold_numbers``.
        root: folder of the paths.
        groups: group by path; None for no groups.

    Raises:
        DataError: there are too few images, or scikit-learn is missing.
    """
    paths = [path for path, _ in samples]
    names = joined_groups(paths, first_copy_by_path(root, paths), groups)
    if groups is None:
        # Only one copy of each picture counts, so that most data sets need no groups, which take longer.
        label_by_name = {name: label for name, (_, label) in zip(names, samples, strict=True)}
        numbers = fold_numbers(list(label_by_name.values()), list(label_by_name), folds, seed)
        number_by_name = dict(zip(label_by_name, numbers.tolist(), strict=True))
        fold_of_sample = [number_by_name[name] for name in names]
    else:
        fold_of_sample = fold_numbers([label for _, label in samples], names, folds, seed).tolist()
    fold_parts: list[dict[str, list[Sample]]] = []
    for fold in range(folds):
        part_of_sample = ["val" if number == fold else "train" for number in fold_of_sample]
        pairs = list(zip(samples, part_of_sample, strict=True))
        fold_parts.append(
            {part: [sample for sample, name in pairs if name == part] for part in ("train", "val")}
        )
    return fold_parts


def _held_out_count(count: int, share: float, reserved: int) -> int:
    """Returns how many of ``count`` pictures are held out: at least one, if more than ``reserved`` exist."""
    return max(min(max(round(share * count), int(share > 0)), count - reserved), 0)


def first_copy_by_path(root: Path, paths: Sequence[str]) -> dict[str, str]:
    """Returns the first path with the same content, for each path that is a later copy or has one.

    Only files of equal size are read. Files that can't be read have no copies.
    """
    same_size = _groups(paths, lambda path: str(os.stat(root / path).st_size))
    same_content = [
        group for paths in same_size for group in _groups(paths, lambda path: file_sha256(root / path))
    ]
    return {path: group[0] for group in same_content for path in group}


def _groups(paths: Sequence[str], key: Callable[[str], str]) -> list[list[str]]:
    """Returns the groups of two or more paths with an equal key, in order."""
    paths_by_key: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        try:
            paths_by_key[key(path)].append(path)
        except OSError:
            continue
    return [group for group in paths_by_key.values() if len(group) > 1]
