"""What the page of a run shows of its scores: the temperature, risk over coverage, and limits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ppxcls.calibration.coverage import score_limit
from ppxcls.calibration.fit import few_images_note
from ppxcls.calibration.ranks import CalibrationError
from ppxcls.calibration.record import Calibration
from ppxcls.calibration.risk import RiskCurve, risk_curve
from ppxcls.calibration.unknown import energy_limit
from ppxcls.reports.curves import BLUE, GREY, png, pyplot, restyle
from ppxcls.reports.record import Record
from ppxcls.reports.run_files import Samples
from ppxcls.system.paths import printable

_COVERAGES = (1.0, 0.95, 0.9, 0.8, 0.5)  # shares of answered images in the table
_SHARES = (0.01, 0.05)  # shares of known images that are turned away
_SET_COVERAGES = (0.9, 0.95)
_MAX_POINTS = 1_000  # of the drawn curve


def risk_of(samples: Samples) -> RiskCurve:
    """Returns the risk over the coverage of the predictions."""
    return risk_curve(samples.scores, samples.labels == samples.predicted_ids)


def risk_content(curve: RiskCurve) -> dict[str, Any]:
    """Returns the table beside the curve for the page."""
    return {"area": curve.area, "rows": [(coverage, *curve.at(coverage)) for coverage in _COVERAGES]}


def other_temperature(record: Record, samples: Samples) -> str:
    """Returns a sentence if the predictions have another temperature than the weights' calibration.

    Args:
        record: run.
        samples: predictions that the page shows.

    Returns:
        The sentence; empty if the temperature is the same, or is not known.
    """
    if samples.temperatures is None:
        return ""
    temperature = record.calibration.calibration.temperature if record.calibration else 1.0
    if np.allclose(samples.temperatures, temperature, rtol=1e-5, atol=0):
        return ""
    smallest, largest = f"{samples.temperatures.min():.4g}", f"{samples.temperatures.max():.4g}"
    if samples is record.fold_samples:
        return f"The scores on this page have the temperatures of the folds, from {smallest} to {largest}."
    range_text = smallest if smallest == largest else f"{smallest} to {largest}"
    note = f"The scores on this page have another temperature than predictions have now: {range_text}."
    if record.has_known_samples and not record.judged:  # an evaluation would be of weights that know them
        return note
    option = " --test" if record.judged else ""
    return f"{note} They are computed anew by: ppxcls eval -c {printable(record.folder.name)}{option}"


def calibration_content(record: Record) -> dict[str, Any] | None:
    """Returns the calibration and its limits for the page; None if the weights have none."""
    if record.calibration is None:
        return None
    calibration, figures = record.calibration.calibration, record.calibration.figures
    return {
        "temperature": calibration.temperature,
        "source": printable(calibration.source),
        "images": calibration.images,
        "figures": figures,
        "few_images": few_images_note(calibration.images_per_class, [printable(n) for n in record.names]),
        "energies": [(share, _limit(energy_limit, calibration, share)) for share in _SHARES],
        "set_scores": [(coverage, _limit(score_limit, calibration, coverage)) for coverage in _SET_COVERAGES],
    }


def _limit(limit: Callable[[Calibration, float], float], calibration: Calibration, share: float) -> str:
    """Returns a limit as text, or the reason why there is none."""
    try:
        return f"{limit(calibration, share):.4g}"
    except CalibrationError as error:
        return f"none: {error}"


def draw_risk(curve: RiskCurve) -> bytes:
    """Draws the share of wrong predictions over the share of answered images; returns a PNG."""
    count = len(curve.risks)
    indices = np.unique(np.linspace(0, count - 1, min(count, _MAX_POINTS)).astype(int))
    figure, axis = pyplot().subplots(figsize=(5, 4.6), layout="constrained")
    axis.axhline(curve.risks[-1], color=GREY, linestyle=":", linewidth=1)
    axis.plot((indices + 1) / count, curve.risks[indices], color=BLUE, linewidth=1.5)
    axis.set(
        xlabel="share of answered images, the largest scores first",
        ylabel="share of wrong predictions among them",
        xlim=(0, 1.02),
        ylim=(0, max(float(curve.risks.max()) * 1.05, 0.01)),
    )
    restyle(axis)
    return png(figure)
