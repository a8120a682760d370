"""The groups of the images of an evaluation, from ``groups.csv`` beside their list."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ppxcls.config.sections import Config
from ppxcls.data.dataset import Dataset
from ppxcls.data.groups import GROUPS_FILE, read_groups
from ppxcls.data.tables import excerpt_of
from ppxcls.system import distributed
from ppxcls.system.arrays import Array
from ppxcls.system.logs import logger
from ppxcls.system.paths import printable
from ppxcls.train.group_figures import groups_digest


def evaluation_groups(config: Config, dataset: Dataset) -> tuple[Array, Array] | None:
    """Returns the group of each image of ``DataLoader.Eval``, and the label of each group.

    A group whose images have several labels is left out, and the log names it. All processes must call it.

    Args:
        config: config with ``DataLoader.Eval``.
        dataset: its images, with the labels of the network's classes.

    Returns:
        Number of each image's group, from 0, int64 [N], with -1 for images that are left out; and labels,
        int64 [G]. None if no group has several images: without the file, for images of other lists, or in a
        packed data set.

    Raises:
        DataError: the file can't be read, or a row is invalid.
        JobError: the groups of a process differ from those of the first one, as if a node lacks the file.
    """
    result = _groups_and_labels(config, dataset)
    # The figures of groups are computed by all processes together, or by none.
    distributed.require_same({"groups of the evaluation list": groups_digest(*result) if result else ""})
    return result


def _groups_and_labels(config: Config, dataset: Dataset) -> tuple[Array, Array] | None:
    """Returns the result of ``evaluation_groups`` for this process."""
    assert config.DataLoader
    assert config.DataLoader.Eval
    list_file = config.DataLoader.Eval.dataset.get("cls_label_path")
    if not list_file or not (group_by_path := read_groups(Path(list_file).parent / GROUPS_FILE)):
        return None
    names = [group_by_path.get(dataset.listed(i), "") for i in range(len(dataset))]
    group_names, groups = np.unique(np.array(names), return_inverse=True)
    groups = groups.reshape(-1).astype(np.int64)
    dataset_labels = np.asarray(dataset.labels[: len(names)], np.int64)
    pairs = np.unique(np.stack([groups, dataset_labels]), axis=1)
    label_counts = np.bincount(pairs[0], minlength=len(group_names))
    is_mixed = (label_counts > 1) & (group_names != "")
    is_figure_group = (label_counts == 1) & (group_names != "")
    if np.bincount(groups)[is_figure_group | is_mixed].max(initial=0) < 2:
        return None
    _log_left_out(group_names[is_mixed].tolist(), names.count(""))
    numbers = np.where(is_figure_group, np.cumsum(is_figure_group) - 1, -1)
    labels = np.zeros(len(group_names), np.int64)
    labels[pairs[0]] = pairs[1]
    return numbers[groups], labels[is_figure_group]


def _log_left_out(mixed_names: list[str], ungrouped_count: int) -> None:
    """Names the groups that have no figures, in one line each, on the first process."""
    if distributed.rank():
        return
    if mixed_names:
        logger.warning(
            f"{len(mixed_names):,} groups have images with different labels, so they are left out of the "
            f"figures of groups: {printable(excerpt_of(mixed_names))}"
        )
    if ungrouped_count:
        logger.warning(
            f"{ungrouped_count:,} images have no group in {GROUPS_FILE}, so they are left out of the figures "
            "of groups"
        )
