"""Divides groups of images into parts or folds, so that each has about its share of every class."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ppxcls.data.errors import DataError
from ppxcls.system.arrays import Array
from ppxcls.system.packages import import_problem

# If a class is missing in a part, this many random divisions are tried, unless there are many groups.
_TRIALS, _MAX_GROUPS_OF_TRIALS = 50, 200
_PACKAGE_HINT = "pip install 'ppxcls[metrics]'"


def joined_groups(
    paths: Sequence[str], first_copies: Mapping[str, str], groups: Mapping[str, str] | None
) -> list[str]:
    """Returns a name for each path, which is equal for paths that must stay together.

    These are the paths of one group, and copies of one picture. If a picture is in two groups, all images of
    both stay together. The name is the first of the names of the groups in alphabetical order.

    Args:
        paths: paths of the images.
        first_copies: first path with the same content, by path; see ``first_copy_by_path``.
        groups: group by path; None if each picture is a group, with the name of its first path.
    """
    pictures = [first_copies.get(path, path) for path in paths]
    if groups is None:
        return pictures
    names = [groups[path] for path in paths]
    leaders: dict[str, str] = {}

    def leader_of(name: str) -> str:
        while (leader := leaders.get(name, name)) != name:
            leaders[name] = name = leaders.get(leader, leader)
        return name

    group_by_picture: dict[str, str] = {}
    for picture, name in zip(pictures, names, strict=True):
        first, second = sorted((leader_of(group_by_picture.setdefault(picture, name)), leader_of(name)))
        if first != second:
            leaders[second] = first
    return [leader_of(name) for name in names]


def check_folds(folds: int) -> None:
    """Checks a number of folds before any image is read.

    Raises:
        DataError: it is below 2, or scikit-learn is missing.
    """
    if folds < 2:
        raise DataError(f"expected 2 folds or more, received {folds}")
    if problem := import_problem("sklearn.model_selection", _PACKAGE_HINT):
        raise DataError(f"folds need scikit-learn: {problem}")


def fold_numbers(labels: Sequence[int], names: Sequence[str], folds: int, seed: int) -> Array:
    """Returns the fold of each image, from 0, int [N], so that images with one name are in one fold.

    It is the assignment of scikit-learn's ``StratifiedGroupKFold``. If no two images have one name, it is
    that of ``StratifiedKFold``. Both are shuffled by the seed.

    Args:
        labels: class of each image.
        names: name of each image's group; see ``joined_groups``.
        folds: number of folds, from 2.
        seed: seed of the order.

    Raises:
        DataError: there are too few images of each class, or too few groups, or scikit-learn is missing.
    """
    check_folds(folds)
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    numbers = _numbers(names)
    group_count = int(numbers.max(initial=-1)) + 1
    max_folds = min(group_count, int(np.bincount(labels).max(initial=0)))
    if not 2 <= folds <= max_folds:
        unit = "groups" if group_count < len(names) else "images"
        raise DataError(
            f"expected from 2 to {max_folds:,} folds, because of {group_count:,} {unit} and of the number "
            f"of images in the largest class, received {folds:,}"
        )
    kind = StratifiedGroupKFold if group_count < len(names) else StratifiedKFold
    splitter = kind(n_splits=folds, shuffle=True, random_state=seed)
    fold_of_image = np.zeros(len(names), np.int64)
    with warnings.catch_warnings():  # classes with few images are reported by the notes of the lists
        warnings.simplefilter("ignore")
        for fold, (_, held_out) in enumerate(splitter.split(np.zeros(len(names)), labels, numbers)):
            fold_of_image[held_out] = fold
    counts = np.bincount(fold_of_image, minlength=folds)
    if not counts.all():
        raise DataError(
            f"{folds:,} folds of {group_count:,} groups: the fold {int(np.argmin(counts)) + 1} would be "
            "empty, because some groups are large; give fewer folds"
        )
    return fold_of_image


def _numbers(names: Sequence[str]) -> Array:
    """Returns the number of each name among the different names in alphabetical order, int [N]."""
    number_by_name = {name: number for number, name in enumerate(sorted(set(names)))}
    return np.fromiter((number_by_name[name] for name in names), np.int64, len(names))


def divide_groups(
    labels: Sequence[int],
    names: Sequence[str],
    *,
    shares: Sequence[float],
    seed: int,
    first_part_names: frozenset[str] = frozenset(),
) -> Array:
    """Returns the part of each image, int [N], so that images with one name are in one part.

    Groups are taken from the largest to the smallest. Each goes to the part where it raises the sum over
    parts and classes of (count - expected count)² / expected count least, which is Pearson's chi-squared
    statistic if each class has the weight 1. Then groups move until each class is in as many parts as it has
    groups: first in part 0, then in part 1, and so on. If that fails, and there are few groups,
    random divisions are tried.

    Args:
        labels: class of each image.
        names: name of each image's group; see ``joined_groups``.
        shares: share of each class for each part, above 0, with the sum 1.
        seed: seed of the order of equal groups.
        first_part_names: names of groups that must be in part 0.
    """
    numbers = _numbers(names)
    pinned_groups = {
        int(numbers[i]) for i, name in enumerate(names) if first_part_names and name in first_part_names
    }
    rng = np.random.default_rng(seed)
    division = _Division(np.asarray(labels, np.int64), numbers, shares)
    division.divide(rng, pinned_groups, is_greedy=True)
    if not division.is_complete and numbers.max(initial=0) < _MAX_GROUPS_OF_TRIALS:
        trials = [_Division(np.asarray(labels, np.int64), numbers, shares) for _ in range(_TRIALS)]
        for trial in trials:
            trial.divide(rng, pinned_groups, is_greedy=False)
        division = max([division, *trials], key=_Division.quality)
    return division.part_by_group[division.groups]


class _Division:
    """The groups of images, and the part of each.

    Args:
        labels: class of each image, int [N].
        groups: number of each image's group, int [N].
        shares: share of each part.

    Attributes:
        groups: number of each image's group, int [N].
        part_by_group: part of each group, int [G].
    """

    def __init__(self, labels: Array, groups: Array, shares: Sequence[float]) -> None:
        self.groups = groups
        group_count = int(groups.max(initial=-1)) + 1
        class_num = int(labels.max(initial=-1)) + 1
        self.part_by_group = np.zeros(group_count, np.int64)
        self._shares = np.asarray(shares)[:, None]
        # Rows (group, class) of the table of counts that are not 0. The whole table may not fit the memory.
        rows, counts = np.unique(groups * max(class_num, 1) + labels, return_counts=True)
        self._classes = rows % max(class_num, 1)
        row_groups = rows // max(class_num, 1)
        self._starts = np.searchsorted(row_groups, np.arange(group_count + 1))
        self._fractions = counts / np.bincount(labels, minlength=class_num)[self._classes]
        self._row_groups = row_groups
        self._filled = np.zeros((len(shares), class_num))  # share of each class in each part
        self._group_counts = np.zeros((len(shares), class_num), np.int64)  # groups with a class in each part

    def _rows(self, group: int) -> tuple[Array, Array]:
        """Returns the classes of a group, and the share of each class that the group has."""
        rows = slice(self._starts[group], self._starts[group + 1])
        return self._classes[rows], self._fractions[rows]

    def _costs(self, group: int) -> Array:
        """Returns how much the statistic grows with a group in each part, up to a common number."""
        classes, fractions = self._rows(group)
        costs: Array = ((2 * self._filled[:, classes] + fractions) * fractions / self._shares).sum(axis=1)
        return costs

    def _place(self, group: int, part: int, sign: int = 1) -> None:
        """Adds a group to a part, or takes it away if ``sign`` is -1."""
        classes, fractions = self._rows(group)
        self._filled[part, classes] += sign * fractions
        self._group_counts[part, classes] += sign
        self.part_by_group[group] = part

    def divide(self, rng: np.random.Generator, first_part_groups: set[int], *, is_greedy: bool) -> None:
        """Gives each group a part.

        Args:
            rng: source of the order of equal groups, and of random choices.
            first_part_groups: groups that must be in part 0.
            is_greedy: True to give each group the best part; False for a random one.
        """
        sizes = np.add.reduceat(self._fractions**2, self._starts[:-1])
        order = rng.permutation(sizes.size)
        shares = self._shares[:, 0] / self._shares.sum()
        for group in order[np.argsort(-sizes[order], kind="stable")].tolist():
            if group in first_part_groups:
                part = 0
            elif is_greedy:
                part = int(np.argmin(self._costs(group)))
            else:
                part = int(rng.choice(shares.size, p=shares))
            self._place(group, part)
        self._complete(first_part_groups)

    @property
    def _lacking(self) -> Array:
        """True for each class that a part lacks, though the class has a group for it, bool [P, C]."""
        groups_of_class = self._group_counts.sum(axis=0)
        parts = np.arange(len(self._shares))[:, None]
        return np.asarray((self._group_counts == 0) & (groups_of_class > parts))

    @property
    def is_complete(self) -> bool:
        """True if each class is in as many parts as it has groups."""
        return not self._lacking.any()

    def quality(self) -> tuple[Any, ...]:
        """Returns a key that is larger for a better division: fewer lacking classes, and better shares."""
        statistic = ((self._filled - self._shares) ** 2 / self._shares).sum()
        return (*(-self._lacking.sum(axis=1)).tolist(), -float(statistic))

    def _complete(self, first_part_groups: set[int]) -> None:
        """Moves groups to parts that lack a class.

        A part takes no class away that an earlier part, or itself, needs. So each move is final.
        """
        for part in range(len(self._shares)):
            for label in np.flatnonzero(self._lacking[part]).tolist():
                if self._group_counts[part, label]:  # an earlier move has brought it
                    continue
                candidates = [
                    group
                    for group in self._row_groups[self._classes == label].tolist()
                    if self._can_move(group, part) and group not in first_part_groups
                ]
                if candidates:
                    group = min(candidates, key=lambda group: float(self._costs(group)[part]))
                    self._place(group, int(self.part_by_group[group]), -1)
                    self._place(group, part)

    def _can_move(self, group: int, part: int) -> bool:
        """True if the part of a group may lose it: a later part, or one that keeps all of its classes."""
        earlier_part = int(self.part_by_group[group])
        classes, _ = self._rows(group)
        return earlier_part > part or bool((self._group_counts[earlier_part, classes] > 1).all())
