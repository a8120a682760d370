"""Carries the rows of a classifier over by class name, if a training starts from weights of other classes.

The row of a class is its part of the last linear layer: its weights and its bias.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from paddle import nn

from ppxcls.build.class_order import imagenet_classes, is_imagenet, training_classes, weights_classes
from ppxcls.checkpoints.files import CheckpointError
from ppxcls.config.sections import Config
from ppxcls.data.label_mapping import UNKNOWN_CLASS, ClassNames, label_mapping
from ppxcls.models.classifier import classifier_arrays, reset_classifier, set_class_rows
from ppxcls.models.classifier_part import Difference
from ppxcls.models.common_keys import MODELS
from ppxcls.system import distributed
from ppxcls.system.arrays import Array
from ppxcls.system.logs import logger

_MAX_SHOWN_CLASSES = 5


@dataclass(frozen=True)
class CarriedRows:
    """The rows that a new classifier takes from another one.

    Attributes:
        class_ids: id of each class in the other classifier, or -1 for a fresh row, int64 [classes].
        classes: classes of the new classifier.
        source_classes: classes of the other classifier.
    """

    class_ids: Array
    classes: ClassNames
    source_classes: ClassNames

    def __str__(self) -> str:
        """The counts and the first names of the rows that are carried over, new and left out."""
        pairs = list(zip(self.classes.names, self.class_ids.tolist(), strict=True))
        carried = [name for name, index in pairs if index != UNKNOWN_CLASS]
        new = [name for name, index in pairs if index == UNKNOWN_CLASS]
        ids = set(self.class_ids.tolist())
        left_out = [name for i, name in enumerate(self.source_classes.names) if i not in ids]
        parts = [("carried over", carried), ("with fresh weights", new), ("left out", left_out)]
        return ", ".join(f"{len(names):,} {words}{_excerpt(names)}" for words, names in parts if names)


def _excerpt(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > _MAX_SHOWN_CLASSES else ""
    return f" ({', '.join(names[:_MAX_SHOWN_CLASSES])}{more})"


def carried_rows(classes: ClassNames, source_classes: ClassNames) -> CarriedRows | None:
    """Returns the rows to carry over between two lists of classes; None if the rows stay as they are.

    Names of runs must be equal. A name of ImageNet has synonyms, separated by commas: a class matches one of
    them, whatever its capitals, if no other class of ImageNet has the same synonym. If there are as many
    classes as ImageNet's, and fewer than half of them match, or each match has the same number, then no other
    order is known, and the rows stay.

    Args:
        classes: classes of the training.
        source_classes: classes of the weights to start from.
    """
    if is_imagenet(source_classes):
        ids = synonym_ids(classes.names, source_classes.names)
        if len(ids) == len(source_classes.names):
            matches = ids != UNKNOWN_CLASS
            is_same_order = np.array_equal(ids[matches], np.flatnonzero(matches))
            if is_same_order or 2 * int(matches.sum()) < len(ids):
                return None
        return CarriedRows(ids, classes, source_classes)
    mapping = label_mapping(classes, source_classes)
    return None if mapping is None else CarriedRows(mapping.class_ids, classes, source_classes)


def synonym_ids(names: Sequence[str], synonym_lines: Sequence[str]) -> Array:
    """Returns the id of the line of synonyms that each name is in, int64 [names]; -1 if it is in none.

    Args:
        names: names of classes. A name may have synonyms too, but not of two lines.
        synonym_lines: lines of synonyms, separated by commas. A synonym of two lines stands for neither,
            unless the whole line is given.
    """
    lines = [_synonyms(line) for line in synonym_lines]
    counts = Counter(word for words in lines for word in words)
    id_by_word = {word: i for i, words in enumerate(lines) for word in words if counts[word] == 1}
    line_counts = Counter(lines)
    id_by_line = {words: i for i, words in enumerate(lines) if line_counts[words] == 1}
    ids = []
    for name in names:
        words = _synonyms(name)
        matches = {id_by_word[word] for word in words if word in id_by_word}
        only_match = matches.pop() if len(matches) == 1 else UNKNOWN_CLASS
        ids.append(id_by_line.get(words, only_match))
    id_counts = Counter(ids)  # two classes that match one line can't both have its row
    return np.array([i if id_counts[i] == 1 else UNKNOWN_CLASS for i in ids], np.int64)


def _synonyms(line: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word.strip().casefold() for word in line.split(",") if word.strip()))


def start_classifier(
    config: Config,
    network: nn.Layer,
    *,
    path: str,
    fresh_arrays: Mapping[str, Array],
    differences: Sequence[Difference],
) -> list[Difference]:
    """Gives each class of a training the row of the class of the same name, and logs which rows are new.

    Args:
        config: config of the training.
        network: network with the weights to start from, except for what differs; it is changed.
        path: weights to start from.
        fresh_arrays: weight and bias of the classifier before any weights were loaded.
        differences: what was not set.

    Returns:
        The differences that still hold.

    Raises:
        CheckpointError: a row that is carried over is not finite.
        DataError: a file of names can't be used.
    """
    if MODELS.common_keys(config.Arch).new_classifier:
        reset_classifier(network, fresh_arrays)
        if distributed.rank() == 0:
            logger.info("Arch.new_classifier: the classifier starts with fresh weights")
        return [difference for difference in differences if difference.kind not in ("head", "size")]
    source_arrays = _source_arrays(network, fresh_arrays, differences)
    rows = _rows_to_carry(config, path, source_arrays) if source_arrays else None
    if rows is None or not source_arrays:
        return list(differences)
    has_other_size = any(difference.kind == "size" for difference in differences)
    if has_other_size and (rows.class_ids == UNKNOWN_CLASS).all():
        return list(differences)
    _check_finite(source_arrays, rows, path)
    set_class_rows(network, rows.class_ids.tolist(), source_arrays=source_arrays, fresh_arrays=fresh_arrays)
    if distributed.rank() == 0:
        logger.warning(
            f"the classifier of {path} is mapped by name, because {rows.classes.source} differs from "
            f"{rows.source_classes.source}: {rows}"
        )
    return [difference for difference in differences if difference.kind != "size"]


def _source_arrays(
    network: nn.Layer, fresh_arrays: Mapping[str, Array], differences: Sequence[Difference]
) -> dict[str, Array] | None:
    """Returns weight and bias of the file's classifier; None if it has none that fits the network's features.

    What has the network's size is in the network already.
    """
    if not fresh_arrays or any(difference.kind == "head" for difference in differences):
        return None
    arrays = classifier_arrays(network)
    sized = {d.key: d.array for d in differences if d.kind == "size" and d.array is not None}
    if sized and sized.keys() != fresh_arrays.keys():
        return None
    arrays |= sized
    widths = {key: array.shape[:-1] for key, array in arrays.items()}
    if widths != {key: array.shape[:-1] for key, array in fresh_arrays.items()}:
        return None
    counts = {array.shape[-1:] for array in arrays.values()}
    return arrays if len(counts) == 1 else None


def _rows_to_carry(config: Config, path: str, source_arrays: Mapping[str, Array]) -> CarriedRows | None:
    """Returns the rows to carry over; None if one side has no names, or the rows stay as they are."""
    classes = training_classes(config)
    class_num = int(next(iter(source_arrays.values())).shape[-1])
    source_classes = weights_classes(path)
    if source_classes is None:
        source_classes = imagenet_classes(path)
    if classes is None or len(source_classes.names) != class_num:
        return None
    return carried_rows(classes, source_classes)


def _check_finite(source_arrays: Mapping[str, Array], rows: CarriedRows, path: str) -> None:
    ids = rows.class_ids[rows.class_ids != UNKNOWN_CLASS]
    for key, array in source_arrays.items():
        if not np.isfinite(array[..., ids]).all():
            raise CheckpointError(f"{path}: {key} has values that are not finite (NaN or infinity)")
