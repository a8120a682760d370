"""The record of a calibration: the temperature of a network's scores, and the scores that images have."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

from ppxcls.system.json_text import is_count, is_number
from ppxcls.system.paths import printable

MAX_VALUES = 2_000  # energies, and scores of the true class
LARGEST_TEMPERATURE = 100.0
_LOWEST_TEMPERATURE = 1e-3  # with a much lower one, logits overflow
_MAX_SOURCE = 1_000  # characters
_MAX_CLASSES = 10_000_000
_LARGEST_ENERGY = 1e9


@dataclass(frozen=True)
class Calibration:
    """What the images of a list say about the scores of a network.

    The last two attributes hold the values of all images, in ascending order. If there are more than
    ``MAX_VALUES`` images, they hold this number of order statistics at equal distances, with the smallest and
    the largest.

    Attributes:
        temperature: divisor of the logits, above 0; the scores are softmax(logits / temperature).
        source: name of the list, and whether its images have chosen the weights.
        images: number of images.
        images_per_class: number of images of each class.
        energies: energy of each image: -temperature * logsumexp(logits / temperature).
        true_scores: score of each image's true class, from 0 to 1.
    """

    temperature: float
    source: str
    images: int
    images_per_class: tuple[int, ...]
    energies: tuple[float, ...]
    true_scores: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns the entries of a JSON object. ``from_json`` returns the same record for them."""
        return {
            "temperature": self.temperature,
            "source": self.source,
            "images": self.images,
            "images_per_class": list(self.images_per_class),
            "energies": list(self.energies),
            "true_scores": list(self.true_scores),
        }

    def check_classes(self, class_num: int) -> None:
        """Raises ValueError if the record is not one of a network with this number of classes."""
        if len(self.images_per_class) != class_num:
            raise ValueError(
                f"expected {class_num:,} numbers as 'images_per_class', "
                f"received {len(self.images_per_class):,}"
            )

    @classmethod
    def from_json(cls, values: Any) -> Calibration:
        """Returns the record in a JSON object, which a stranger may have written. Other keys are ignored.

        Control characters in ``source`` are replaced by escapes, because logs show it.

        Args:
            values: value that ``read_json`` has returned.

        Raises:
            ValueError: a value is missing or invalid. The message names its key.
        """
        if not isinstance(values, dict):
            raise ValueError("expected an object")
        temperature: Any = values.get("temperature")
        source = values.get("source")
        if not is_number(temperature) or not _LOWEST_TEMPERATURE <= temperature <= LARGEST_TEMPERATURE:
            limits = f"{_LOWEST_TEMPERATURE:g} to {LARGEST_TEMPERATURE:g}"
            raise ValueError(f"expected a number from {limits} as 'temperature'")
        if not isinstance(source, str) or len(source) > _MAX_SOURCE:
            raise ValueError(f"expected a text of up to {_MAX_SOURCE:,} characters as 'source'")
        counts = values.get("images_per_class")
        if not isinstance(counts, list) or len(counts) > _MAX_CLASSES or not all(map(is_count, counts)):
            raise ValueError("expected whole numbers from 0 as 'images_per_class'")
        images: Any = values.get("images")
        if not is_count(images) or images == 0 or images != sum(counts):
            raise ValueError("expected the sum of 'images_per_class', above 0, as 'images'")
        length = min(images, MAX_VALUES)
        return cls(
            temperature=float(temperature),
            source=printable(source),
            images=images,
            images_per_class=tuple(counts),
            energies=_sorted_numbers(values, "energies", length=length, largest=_LARGEST_ENERGY),
            true_scores=_sorted_numbers(values, "true_scores", length=length, smallest=0.0, largest=1.0),
        )


def _sorted_numbers(
    values: dict[str, Any], key: str, *, length: int, largest: float, smallest: float | None = None
) -> tuple[float, ...]:
    """Returns the numbers of a key, which must be of a number and in a range, and ascending."""
    numbers = values.get(key)
    smallest = -largest if smallest is None else smallest
    if (
        not isinstance(numbers, list)
        or len(numbers) != length
        or not all(is_number(number) and math.isfinite(number) for number in numbers)
        or not all(smallest <= number <= largest for number in numbers)
        or any(later < earlier for earlier, later in itertools.pairwise(numbers))
    ):
        raise ValueError(
            f"expected {length:,} numbers from {smallest:g} to {largest:g}, ascending, as {key!r}"
        )
    return tuple(map(float, numbers))
