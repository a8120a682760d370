"""What metrics of classes share: the choice of a class, and means over those classes that have samples."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from ppxcls.config.checks import CountOrZero
from ppxcls.system.arrays import Array
from ppxcls.system.logs import warn_once
from ppxcls.system.paths import MAX_NAME_LENGTH, one_line
from ppxcls.system.spelling import nearest_spelling

ClassChoice = CountOrZero | str | None  # id or name of a class
_FIGURE = re.compile(r"[A-Za-z][A-Za-z0-9_.@-]{0,59}")
_MAX_NAMED_CLASSES = 5  # classes with their names in a line of the log


def figure_name(name: str) -> str:
    """Returns the name of a figure. Raises ValueError if trackers and reports can't show it."""
    if not _FIGURE.fullmatch(name):
        raise ValueError(f"figure: expected a letter and up to 59 letters, digits or _.@-, received {name!r}")
    return name


def chosen_class(
    choice: int | str | None, class_num: int, class_names: Sequence[str] | None, *, is_required: bool
) -> int | None:
    """Returns the id of the class that a metric looks for.

    Args:
        choice: id or name of a class; None for class 1 of two classes.
        class_num: number of classes.
        class_names: names of the classes; empty if they have none; None if they are not known yet. Then a
            name is not checked, and the result is None.
        is_required: True if the metric needs one class; False if it has a mean over more than two classes.

    Returns:
        The id; None for all classes.

    Raises:
        ValueError: there are fewer than two classes, the class is unknown, or a choice is required.
    """
    if class_num < 2:
        raise ValueError(f"expected at least two classes, received class_num {class_num}")
    if isinstance(choice, str):
        return _id_of_name(choice, class_names)
    if choice is None and class_num == 2:
        return 1
    if choice is None and is_required:
        raise ValueError(
            "expected two classes, or positive: the class against all others; "
            f"received class_num {class_num:,}"
        )
    if choice is not None and choice >= class_num:
        raise ValueError(f"positive: expected a class from 0 to {class_num - 1}, received {choice}")
    return choice


def _id_of_name(name: str, class_names: Sequence[str] | None) -> int | None:
    if class_names is None:
        return None
    if not class_names:
        raise ValueError(
            f"positive: expected the id of a class, because they have no names; received {name!r}"
        )
    return ClassIds(class_names, "positive", advice="write the id of one of them")(name)


class ClassIds:
    """Finds classes by their names, in any form of Unicode.

    Args:
        names: names of the classes in the order of their ids.
        key: key of the config that names a class, for messages.
        advice: what to write instead if several classes have the name.
    """

    def __init__(self, names: Sequence[str], key: str, *, advice: str) -> None:
        self._names = [unicodedata.normalize("NFC", name) for name in names]
        self._key = key
        self._advice = advice

    def __call__(self, name: str) -> int:
        """Returns the id of a class. Raises ValueError if not exactly one class has the name."""
        own_name = unicodedata.normalize("NFC", name)
        count = self._names.count(own_name)
        if count == 1:
            return self._names.index(own_name)
        name_text = repr(one_line(name, MAX_NAME_LENGTH))
        if count:
            raise ValueError(f"{self._key}: {count} classes have the name {name_text}; {self._advice}")
        nearest_name = nearest_spelling(own_name, self._names)
        suggestion = f" (did you mean {nearest_name!r}?)" if nearest_name is not None else ""
        raise ValueError(f"{self._key}: no class has the name {name_text}{suggestion}")


class ClassMean:
    """The mean of a figure over the classes for which it is defined, and one line about the others.

    Args:
        figure: name of the figure.
        class_names: names of the classes; empty if they have none.
    """

    def __init__(self, figure: str, class_names: Sequence[str]) -> None:
        self.figure = figure
        self._names = class_names
        self._has_warned = False

    def __call__(self, values: Array, weights: Array) -> dict[str, float]:
        """Returns the mean and, if classes are left out, the number of the others as ``<figure>_classes``.

        Args:
            values: figure of each class, NaN if it is not defined, [class_num].
            weights: weights of the classes in the mean, [class_num].
        """
        is_defined = ~np.isnan(values)
        if is_defined.all():
            return {self.figure: float(np.average(values, weights=weights))}
        count = int(is_defined.sum())
        absent_classes = np.flatnonzero(~is_defined)
        names = ", ".join(class_text(i, self._names) for i in absent_classes[:_MAX_NAMED_CLASSES].tolist())
        more = " …" if len(absent_classes) > _MAX_NAMED_CLASSES else ""
        self.warn(
            f"{self.figure} is the mean over {count:,} of {len(values):,} classes; the evaluation has no "
            f"samples to compare for {names}{more}"
        )
        mean = float(np.average(values[is_defined], weights=weights[is_defined])) if count else math.nan
        return {self.figure: mean, f"{self.figure}_classes": count}

    def warn(self, message: str) -> None:
        """Logs a warning the first time. Each evaluation of a run has the same samples."""
        if not self._has_warned:
            warn_once(message)
        self._has_warned = True


def class_text(class_id: int, class_names: Sequence[str]) -> str:
    """Returns the name of a class for a line of the log, or ``class`` and its id."""
    if not class_names:
        return f"class {class_id}"
    return repr(one_line(class_names[class_id], MAX_NAME_LENGTH))
