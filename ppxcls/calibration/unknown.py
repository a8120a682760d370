"""Tells images that are unlike the known ones, by their energy (Liu et al. 2020, arXiv:2010.03759)."""

from __future__ import annotations

from ppxcls.calibration.ranks import ROUNDING, check_share, upper_limit
from ppxcls.calibration.record import Calibration
from ppxcls.calibration.temperature import log_sums
from ppxcls.system.arrays import Array


def energies(logits: Array, temperature: float) -> Array:
    """Returns -temperature * logsumexp(logits / temperature), float64 [N].

    It is low for an image like the known ones.

    Args:
        logits: output of the network, [N, class_num], not divided by the temperature.
        temperature: temperature of the calibration.
    """
    return -temperature * log_sums(logits, temperature)


def energy_limit(calibration: Calibration, share: float) -> float:
    """Returns the largest energy of a known image. An image with a larger one is turned away.

    Of images like those of the calibration, at most the share is turned away. Of the calibration images
    themselves too, for any energies with ties.

    Args:
        calibration: record of the calibration.
        share: largest share of known images that are turned away, between 0 and 1.

    Raises:
        CalibrationError: there are too few calibration images for such a small share.
    """
    check_share("unknown share", share)
    limit = upper_limit(
        calibration.energies,
        calibration.images,
        share,
        wish=f"to turn away at most {share:g} of known images",
    )
    return limit + ROUNDING * max(abs(limit), 1.0)
