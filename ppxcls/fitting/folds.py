"""Folds of a cross-validation, with about the same share of each class."""

from __future__ import annotations

import numpy as np

from ppxcls.system.arrays import Array


def stratified_folds(labels: Array, fold_count: int, seed: int) -> Array:
    """Returns the fold of each photograph, int [N]; each fold has about the same share of each class.

    A photograph that is the only one of its class is in no fold: -1.
    """
    rng = np.random.default_rng([seed, fold_count])
    folds = np.full(len(labels), -1)
    offset = 0
    for label in np.unique(labels):
        indices = rng.permutation(np.flatnonzero(labels == label))
        if len(indices) > 1:
            folds[indices] = (offset + np.arange(len(indices))) % fold_count
            offset += len(indices)  # so that small classes are spread over the folds
    return folds


def grouped_folds(labels: Array, groups: Array, fold_count: int, seed: int) -> Array:
    """Returns the fold of each photograph, int [N]; all photographs of a group are in one fold.

    Large groups come first. Each goes to the fold that has the smallest share of its classes. A group with
    all photographs of a class is in no fold: -1.

    Args:
        labels: class of each photograph, int [N].
        groups: number of each photograph's group, from 0, int [N].
        fold_count: number of folds.
        seed: seed of the order of groups of the same size.
    """
    rng = np.random.default_rng([seed, fold_count])
    counts = np.zeros((int(groups.max()) + 1, int(labels.max()) + 1))
    np.add.at(counts, (groups, labels), 1)
    totals = np.maximum(counts.sum(0), 1)
    has_whole_class = ((counts == totals) & (counts > 0)).any(1)
    shares = counts / totals
    fold_shares = np.zeros((fold_count, counts.shape[1]))
    group_folds = np.full(len(counts), -1)
    order = rng.permutation(len(counts))
    for group in order[np.argsort(-counts[order].sum(1), kind="stable")]:
        if has_whole_class[group]:
            continue
        overlaps = fold_shares @ shares[group]
        # Of folds without its classes, the emptiest one.
        group_folds[group] = np.lexsort((fold_shares.sum(1), overlaps))[0]
        fold_shares[group_folds[group]] += shares[group]
    return group_folds[groups]
