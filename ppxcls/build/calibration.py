"""Decides which calibration belongs to weights, and which images a calibration may use."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ppxcls.build.choices import Weights, class_num, data_name
from ppxcls.build.class_order import manifest_beside
from ppxcls.calibration import CALIBRATION_FILE
from ppxcls.calibration.fit import (
    MIN_IMAGES,
    CalibrationFigures,
    FittedCalibration,
    few_images_note,
    has_calibration,
    read_calibration,
)
from ppxcls.calibration.record import Calibration
from ppxcls.calibration.reliability import reliability
from ppxcls.checkpoints.files import AVERAGE, WEIGHTS, part_digest
from ppxcls.config.load import RUN_CONFIG, is_config_of_run
from ppxcls.config.sections import Config
from ppxcls.data.dataset import Dataset
from ppxcls.data.errors import DataError
from ppxcls.models.weights import weights_file
from ppxcls.system import distributed
from ppxcls.system.digests import file_sha256
from ppxcls.system.logs import logger
from ppxcls.system.paths import one_line
from ppxcls.train.predictions import Predictions

HAS_CHOSEN, HAS_NOT_CHOSEN = "whose images chose the weights", "whose images did not choose the weights"
_MAX_VALUES = 1 << 26  # logits on a device, 256 MB; ImageNet's 50,000 images have 50 million
_MAX_NAME = 200  # characters


def weights_digest(weights: Weights) -> str | None:
    """Returns the SHA-256 of the file that some weights are read from; None if it can't be read."""
    file = weights_file(weights.path)
    manifest = manifest_beside(file)
    if digest := part_digest(manifest, AVERAGE if weights.average else WEIGHTS):
        return digest
    with contextlib.suppress(OSError, ValueError):
        return file_sha256(file)
    return None


def calibration_for(config: Config, weights: Weights) -> FittedCalibration | None:
    """Returns the calibration of some weights, from the run's folder or else from that of the weights.

    Returns:
        The calibration; None if there is none, if it belongs to other weights, or if ``Global.calibrate`` is
        false.

    Raises:
        DataError: a file ``calibration.json`` is damaged.
    """
    if not config.Global.calibrate:
        return None
    folders = [config.run_folder] if (config.run_folder / CALIBRATION_FILE).exists() else []
    folder_of_weights = weights_file(weights.path).parent
    if folder_of_weights != config.run_folder and _may_have_calibration(folder_of_weights):
        folders.append(folder_of_weights)
    if not folders:
        return None
    digest = weights_digest(weights) or ""
    try:
        for folder in folders:
            if fitted := read_calibration(folder, digest, class_num(config)):
                return fitted
    except ValueError as error:
        raise DataError(f"{error}; remove the file, or predict with -o Global.calibrate=False") from None
    if distributed.rank() == 0:
        logger.info(f"{folders[0] / CALIBRATION_FILE} belongs to other weights, so scores are not calibrated")
    return None


def _may_have_calibration(folder: Path) -> bool:
    """True if a folder has a calibration, or is a run's folder with a file that may be a damaged one."""
    is_run = (folder / CALIBRATION_FILE).exists() and is_config_of_run(folder / RUN_CONFIG)
    return is_run or has_calibration(folder)


def calibration_source(block: Mapping[str, Any], words: str) -> str:
    """Returns the source of a calibration: the name of the list, and whether its images chose the weights.

    Args:
        block: data set of the images.
        words: ``HAS_CHOSEN`` or ``HAS_NOT_CHOSEN``.
    """
    return f"{one_line(Path(data_name(block)).name, _MAX_NAME)}, {words}"


def calibration_facts(calibration: Calibration, predictions: Predictions, dataset: Dataset) -> dict[str, Any]:
    """Returns what ``eval.json`` says about the scores of an evaluation, and logs it.

    Args:
        calibration: calibration that the predictions are computed with.
        predictions: predictions of the evaluation.
        dataset: evaluated images.
    """
    is_correct = predictions.classes[:, 0] == dataset.labels[predictions.samples]
    figures = CalibrationFigures(
        error_before=reliability(predictions.plain_scores, is_correct).error,
        error_after=reliability(predictions.scores[:, 0], is_correct).error,
        loss_before=float(predictions.plain_losses.mean()),
        loss_after=float(predictions.losses.mean()),
    )
    temperature, source = calibration.temperature, calibration.source
    logger.info(f"scores with temperature {temperature:.4g} of {source}: {figures}")
    return {"temperature": temperature, "source": source, **asdict(figures)}


def may_calibrate(dataset: Dataset, class_num: int, names: Sequence[str]) -> bool:
    """Logs why images can't be calibrated on, or which classes have too few of them.

    Args:
        dataset: images.
        class_num: number of classes.
        names: names of the classes; empty for none.

    Returns:
        True if the images can be calibrated on.
    """
    problem = calibration_problem(len(dataset), class_num)
    if problem is None:
        counts = np.bincount(np.asarray(dataset.labels[: len(dataset)], np.int64), minlength=class_num)
        note = few_images_note(counts.tolist(), names)
    else:
        note = f"scores are not calibrated: {problem}"
    if note and distributed.rank() == 0:
        logger.info(note)
    return problem is None


def calibration_problem(images: int, class_num: int) -> str | None:
    """Returns the reason why a list can't be calibrated on; None if it can.

    Args:
        images: number of images of the list.
        class_num: number of classes.
    """
    if images < MIN_IMAGES:
        return f"the list has {images:,} images, and fewer than {MIN_IMAGES} tell too little"
    values = images * class_num // distributed.world_size()
    if values > _MAX_VALUES:
        return f"{images:,} images of {class_num:,} classes need too much memory; fewer images are enough"
    return None
