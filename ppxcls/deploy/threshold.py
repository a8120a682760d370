"""PaddleClas's ``ThreshOutput``: the answer of a network with two classes, by a threshold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ppxcls.data.errors import DataError
from ppxcls.system.arrays import Array
from ppxcls.system.json_text import is_number

NAME = "ThreshOutput"


@dataclass(frozen=True)
class Threshold:
    """The smallest score of class 1 for which it is the answer. Otherwise the answer is class 0.

    Attributes:
        threshold: the score, from 0 to 1.
        label_0, label_1: names of the classes in an answer; None for their own names, or else ``0`` and
            ``1``.
    """

    threshold: float
    label_0: str | None = None
    label_1: str | None = None

    def answer(self, scores: Array, names: Sequence[str]) -> tuple[int, float, str]:
        """Returns the class of an image, its score and its name.

        Args:
            scores: scores of the two classes, [2].
            names: names of the classes; empty for none.

        Raises:
            DataError: there are not two scores.
        """
        if scores.shape != (2,):
            raise DataError(f"{NAME}: expected a network with 2 classes, received {len(scores):,} scores")
        class_id = int(scores[1] >= self.threshold)
        label = (self.label_0, self.label_1)[class_id]
        own_name = names[class_id] if names else str(class_id)
        return class_id, float(scores[class_id]), own_name if label is None else label

    def as_dict(self) -> dict[str, Any]:
        """Returns the keys of ``Infer.PostProcess``."""
        return {
            "name": NAME,
            "threshold": self.threshold,
            "label_0": self.label_0,
            "label_1": self.label_1,
        }

    @classmethod
    def from_dict(cls, values: Any) -> Threshold:
        """Returns the threshold of ``as_dict``, which a stranger may have written.

        Raises:
            ValueError: a value is missing or invalid.
        """
        if not isinstance(values, dict) or values.get("name") != NAME:
            raise ValueError(f"expected the name {NAME}")
        threshold: Any = values.get("threshold")
        labels = values.get("label_0"), values.get("label_1")
        if not is_number(threshold) or not 0 <= threshold <= 1:
            raise ValueError(f"{NAME}: expected a number from 0 to 1 as 'threshold'")
        if not all(label is None or isinstance(label, str) for label in labels):
            raise ValueError(f"{NAME}: expected texts as 'label_0' and 'label_1'")
        return cls(float(threshold), *labels)
