"""A calibration with its figures, and its file in a run's folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ppxcls.calibration import CALIBRATION_FILE
from ppxcls.calibration.record import Calibration
from ppxcls.calibration.reliability import reliability
from ppxcls.calibration.temperature import calibrated, calibration_of, mean_loss
from ppxcls.system.arrays import Array
from ppxcls.system.atomic_files import read_regular, reason_of, write_text
from ppxcls.system.json_text import is_number, json_text, read_json

# With 50 images, five of them predicted wrongly, a temperature is known to about 20 %.
MIN_IMAGES = 50
# One of fewer images is more than 5 %, so that they can't tell a limit for 5 % of their class.
FEW_IMAGES = 20
_LARGEST_LOGIT = 1e6
_MAX_BYTES = 1 << 25
_MAX_SHOWN_CLASSES = 5


@dataclass(frozen=True)
class CalibrationFigures:
    """How well scores agree with the share of correct predictions, without and with a temperature.

    Attributes:
        error_before, error_after: calibration error, as in ``Reliability``.
        loss_before, loss_after: mean cross-entropy.
    """

    error_before: float
    error_after: float
    loss_before: float
    loss_after: float

    def __str__(self) -> str:
        return (
            f"calibration error {self.error_before:.4f} -> {self.error_after:.4f}, "
            f"cross-entropy {self.loss_before:.4f} -> {self.loss_after:.4f}"
        )


@dataclass(frozen=True)
class FittedCalibration:
    """A calibration, and figures of the images that it was fitted to."""

    calibration: Calibration
    figures: CalibrationFigures

    def __str__(self) -> str:
        images = f"{self.calibration.images:,} images of {self.calibration.source}"
        return f"temperature {self.calibration.temperature:.4g}, {self.figures} ({images})"


def fitted_calibration(logits: Array, labels: Array, source: str) -> FittedCalibration | None:
    """Fits a temperature.

    Args:
        logits: output of the network for images that were not trained on, [N, class_num].
        labels: class of each image, int [N].
        source: name of the list, and whether its images have chosen the weights.

    Returns:
        The calibration; None if there are fewer than ``MIN_IMAGES`` images, or if a logit is not finite.
    """
    if len(labels) < MIN_IMAGES or not np.abs(logits).max() < _LARGEST_LOGIT:
        return None
    calibration = calibration_of(logits, labels, source)
    is_correct = logits.argmax(1) == labels
    errors = [
        reliability(calibrated(logits, temperature).max(1), is_correct).error
        for temperature in (1.0, calibration.temperature)
    ]
    figures = CalibrationFigures(
        error_before=errors[0],
        error_after=errors[1],
        loss_before=mean_loss(logits, labels),
        loss_after=mean_loss(logits, labels, calibration.temperature),
    )
    return FittedCalibration(calibration, figures)


def few_images_note(counts: Sequence[int], names: Sequence[str]) -> str | None:
    """Returns a line about classes with too few images to say much about them; None if there are none.

    Args:
        counts: number of images of each class.
        names: names of the classes; empty for none.
    """
    ids = [i for i, count in enumerate(counts) if count < FEW_IMAGES]
    if not ids:
        return None
    texts = [f"{names[i] if names else i}: {counts[i]}" for i in ids[:_MAX_SHOWN_CLASSES]]
    rest = ", ..." if len(ids) > _MAX_SHOWN_CLASSES else ""
    return (
        f"calibration: {len(ids):,} of {len(counts):,} classes have fewer than {FEW_IMAGES} images "
        f"({', '.join(texts)}{rest}); one image of such a class is more than 5 % of it, so limits may be "
        "wrong for it"
    )


def write_calibration(folder: Path, fitted: FittedCalibration | None, weights_digest: str) -> None:
    """Writes ``calibration.json`` to a run's folder.

    Args:
        folder: folder of the run.
        fitted: calibration; None to remove the file, which would belong to other weights.
        weights_digest: SHA-256 of the file of weights that the calibration belongs to.

    Raises:
        OSError: the file can't be written or removed.
    """
    file = folder / CALIBRATION_FILE
    if fitted is None:
        file.unlink(missing_ok=True)
        return
    values = {"weights": weights_digest, **fitted.calibration.to_json(), "figures": asdict(fitted.figures)}
    write_text(file, json_text(values, is_ascii=True) + "\n")


def read_calibration(
    folder: Path, weights_digest: str | None, class_num: int | None = None
) -> FittedCalibration | None:
    """Reads ``calibration.json`` of a folder.

    Args:
        folder: folder of the run.
        weights_digest: SHA-256 of the file of weights; None for any weights.
        class_num: number of the network's classes; None for any number.

    Returns:
        The calibration; None if there is none, or if it belongs to other weights.

    Raises:
        ValueError: the file can't be read, or is no such file. The message is one line with the file.
    """
    file = folder / CALIBRATION_FILE
    try:
        values = read_json(read_regular(file, _MAX_BYTES))
        calibration = Calibration.from_json(values)
        if weights_digest is not None and values.get("weights") != weights_digest:
            return None
        if class_num is not None:
            calibration.check_classes(class_num)
        return FittedCalibration(calibration, _figures(values.get("figures")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: not the calibration of a run: {reason_of(error)}") from None


def has_calibration(folder: Path) -> bool:
    """True if a folder has a file with the keys of ``write_calibration``. Other programs use its name, too.

    Args:
        folder: any folder.
    """
    try:
        values = read_json(read_regular(folder / CALIBRATION_FILE, _MAX_BYTES))
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and {"weights", "temperature", "figures"} <= values.keys()


def _figures(values: Any) -> CalibrationFigures:
    names = tuple(CalibrationFigures.__dataclass_fields__)
    if not isinstance(values, dict) or not all(is_number(values.get(name)) for name in names):
        raise ValueError("expected numbers as 'figures'")
    return CalibrationFigures(**{name: float(values[name]) for name in names})
