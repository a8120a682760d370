"""What a prediction says beside its best classes: whether the image is known, and a set of classes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ppxcls.calibration.coverage import class_sets, score_limit
from ppxcls.calibration.ranks import CalibrationError
from ppxcls.calibration.record import Calibration
from ppxcls.calibration.unknown import energies, energy_limit
from ppxcls.data.errors import DataError
from ppxcls.system.arrays import Array
from ppxcls.system.json_text import is_number


@dataclass(frozen=True)
class AnswerShares:
    """What is asked beside the best classes.

    Attributes:
        unknown_share: largest share of known images that are turned away, between 0 and 1; None for no such
            answer.
        coverage: share of images whose set of classes contains the true class, between 0 and 1; None for no
            sets.
    """

    unknown_share: float | None = None
    coverage: float | None = None

    def __bool__(self) -> bool:
        """True if anything is asked."""
        return self != AnswerShares()

    def or_else(self, defaults: AnswerShares) -> AnswerShares:
        """Returns these shares. One that is None is the default."""
        return AnswerShares(**(defaults.as_dict() | self.as_dict()))

    def as_dict(self) -> dict[str, float]:
        """Returns the shares that are asked, by name."""
        return {name: share for name, share in asdict(self).items() if share is not None}

    @classmethod
    def from_dict(cls, values: Any) -> AnswerShares:
        """Returns the shares of ``as_dict``, which a stranger may have written. Other keys are ignored.

        Raises:
            ValueError: a value is invalid.
        """
        if not isinstance(values, dict):
            raise ValueError("expected an object")
        shares = {name: values[name] for name in cls.__dataclass_fields__ if name in values}
        for name, share in shares.items():
            if not is_number(share) or not 0 < share < 1:
                raise ValueError(f"expected a number between 0 and 1 as {name!r}")
        return cls(**shares)


NO_SHARES = AnswerShares()


@dataclass(frozen=True)
class AnswerLimits:
    """Limits of energy and score, from the record of a calibration.

    Attributes:
        temperature: temperature of the calibration.
        energy: largest energy of a known image; None if nobody asks.
        score: smallest score of a class in a set; None if nobody asks.
        shares: what was asked.
        description: what was asked and what follows; empty if nothing was.
    """

    temperature: float = 1.0
    energy: float | None = None
    score: float | None = None
    shares: AnswerShares = NO_SHARES
    description: str = ""

    @property
    def promises(self) -> dict[str, str]:
        """What the attributes of a prediction promise, by name; only those that are answered."""
        promises = {}
        if self.shares.unknown_share is not None:
            promises["known"] = (
                "False if the image is turned away as unknown. "
                f"At most {self.shares.unknown_share:g} of known images are turned away."
            )
        if self.shares.coverage is not None:
            promises["class_set"] = (
                "Ids of the classes that the image may have, the best first. "
                f"They contain the true class of at least {self.shares.coverage:g} of known images."
            )
        return promises

    def is_known(self, logits: Array) -> bool | None:
        """Returns whether an image is like the known ones; None if nobody asks.

        Args:
            logits: logits of an image that no temperature has divided, [class_num].
        """
        if self.energy is None:
            return None
        return bool(energies(logits[np.newaxis], self.temperature)[0] <= self.energy)

    def class_set(self, scores: Array) -> list[int] | None:
        """Returns the classes of an image's set, the best first; None if nobody asks.

        Args:
            scores: scores of an image, [class_num].
        """
        if self.score is None:
            return None
        best_ids = np.argsort(-scores, kind="stable")
        is_in_set = class_sets(scores[np.newaxis, best_ids], self.score)[0]
        classes: list[int] = best_ids[is_in_set].tolist()
        return classes


NO_LIMITS = AnswerLimits()


def limits_of(calibration: Calibration, shares: AnswerShares) -> AnswerLimits:
    """Returns the limits for what is asked.

    Args:
        calibration: record of the calibration.
        shares: what is asked.

    Raises:
        DataError: a share is out of its range, or there are too few calibration images.
    """
    parts = []
    energy = score = None
    try:
        if shares.unknown_share is not None:
            energy = energy_limit(calibration, shares.unknown_share)
            parts.append(
                f"at most {shares.unknown_share:g} of known images are turned away: an image with an energy "
                f"above {energy:.4g}"
            )
        if shares.coverage is not None:
            score = score_limit(calibration, shares.coverage)
            parts.append(
                f"sets contain the true class of at least {shares.coverage:g} of known images: the classes "
                f"with a score of at least {score:.4g}"
            )
    except CalibrationError as error:
        raise DataError(f"{error}, of {calibration.source}") from None
    parts.append(f"by {calibration.images:,} images of {calibration.source}")
    return AnswerLimits(
        calibration.temperature,
        energy=energy,
        score=score,
        shares=shares,
        description="; ".join(parts),
    )
