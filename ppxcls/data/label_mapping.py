"""Maps the labels of a list to the classes of a network by the names of the classes.

A label is a number. Its meaning is the name that ``class_names.txt`` beside the list gives it. The same
number may have another name in the list that a network was trained on.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ppxcls.system.arrays import Array
from ppxcls.system.spelling import nearest_spelling

UNKNOWN_CLASS = -1
_MAX_SHOWN_CLASSES = 5


@dataclass(frozen=True)
class ClassNames:
    """The names of classes, in the order of their ids.

    Attributes:
        names: names of the classes.
        source: file or checkpoint that the names come from, for messages.
        alternatives: other names of the same classes in the same order, such as those of the training list if
            the run shows other names.
    """

    names: tuple[str, ...]
    source: str
    alternatives: tuple[tuple[str, ...], ...] = ()

    def excerpt(self) -> str:
        """Returns the first names, for messages."""
        more = ", ..." if len(self.names) > _MAX_SHOWN_CLASSES else ""
        return ", ".join(self.names[:_MAX_SHOWN_CLASSES]) + more


@dataclass(frozen=True)
class LabelMapping:
    """The class of the network for each label of a list.

    Attributes:
        class_ids: id of the network's class, or -1 if the network has no such class, int64 [labels].
        list_classes: classes of the list.
        network_classes: classes of the network.
    """

    class_ids: Array
    list_classes: ClassNames
    network_classes: ClassNames

    def __str__(self) -> str:
        """A part of a line that tells which labels change."""
        names = self.list_classes.names
        pairs = list(enumerate(self.class_ids.tolist()))
        changes = [f"{names[i]} {i} -> {k}" for i, k in pairs if k not in (i, UNKNOWN_CLASS)]
        more = ", ..." if len(changes) > _MAX_SHOWN_CLASSES else ""
        change_text = ", ".join(changes[:_MAX_SHOWN_CLASSES]) + more or "all numbers stay the same"
        counts = f"{len(names):,} and {len(self.network_classes.names):,} classes"
        return (
            f"mapped by name, because {self.list_classes.source} differs from "
            f"{self.network_classes.source} ({counts}): {change_text}"
        )

    def unknown_class_message(self, label: int) -> str:
        """Returns the error message for a label with a class that the network does not have."""
        name, network = self.list_classes.names[label], self.network_classes
        nearest_name = nearest_spelling(name, network.names)
        suggestion = f" (did you mean {nearest_name!r}?)" if nearest_name is not None else ""
        return (
            f"the class {name!r} of {self.list_classes.source} is none of the network's classes"
            f"{suggestion}: {network.excerpt()} ({network.source}). "
            f"If it is the same class under another name, write the same name into both files"
        )


def label_mapping(list_classes: ClassNames, network_classes: ClassNames) -> LabelMapping | None:
    """Compares the classes of a list with those of a network.

    Names are compared in Unicode's form NFC, because some file systems store names in another form.

    Args:
        list_classes: classes of the list.
        network_classes: classes of the network.

    Returns:
        The mapping; None if the names are the same in the same order.
    """
    list_keys = _keys(list_classes.names)
    candidates = [network_classes.names, *network_classes.alternatives]
    mappings = [_class_ids(list_keys, _keys(names)) for names in candidates]
    best_ids = min(mappings, key=lambda ids: int((ids == UNKNOWN_CLASS).sum()))
    if len(best_ids) == len(network_classes.names) and np.array_equal(best_ids, np.arange(len(best_ids))):
        return None
    return LabelMapping(best_ids, list_classes, network_classes)


def _class_ids(list_keys: Sequence[tuple[str, int]], network_keys: Sequence[tuple[str, int]]) -> Array:
    id_by_key = {key: index for index, key in enumerate(network_keys)}
    # Two classes with one name can be told apart by their order only, so the list must have both.
    list_counts = Counter(name for name, _ in list_keys)
    network_counts = Counter(name for name, _ in network_keys)
    ids = [
        id_by_key.get(key, UNKNOWN_CLASS) if list_counts[key[0]] == network_counts[key[0]] else UNKNOWN_CLASS
        for key in list_keys
    ]
    return np.array(ids, np.int64)


def _keys(names: Sequence[str]) -> list[tuple[str, int]]:
    """Returns each name in the form NFC, and how many classes before it have the same name."""
    counts: Counter[str] = Counter()
    keys = []
    for name in names:
        text = unicodedata.normalize("NFC", name)
        keys.append((text, counts[text]))
        counts[text] += 1
    return keys
