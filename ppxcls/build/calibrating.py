"""Calibrates the scores of weights on the images of a list: ``ppxcls eval --calibrate LIST``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ppxcls.build.calibration import (
    HAS_NOT_CHOSEN,
    calibration_problem,
    calibration_source,
    weights_digest,
)
from ppxcls.build.choices import Weights, class_num, weights_for
from ppxcls.build.evaluation import evaluated_weights
from ppxcls.build.evaluation_results import eval_block
from ppxcls.build.image_relations import relation_to_weights
from ppxcls.build.judging import takes_root, with_evaluation_list
from ppxcls.build.start import required_section, start_terminal_log
from ppxcls.calibration import CALIBRATION_FILE
from ppxcls.calibration.fit import FittedCalibration, read_calibration, write_calibration
from ppxcls.config.sections import Config
from ppxcls.data.errors import DataError
from ppxcls.system import distributed
from ppxcls.system.atomic_files import check_own_names
from ppxcls.system.logs import logger
from ppxcls.train.run_log import format_results


def calibrate(config: Config, path: str | Path) -> dict[str, Any]:
    """Fits the temperature of the scores on the images of a list, and writes ``calibration.json``.

    The images must not have been trained on. If they did not choose the weights either, the calibration is
    unbiased. They are prepared as those of ``DataLoader.Eval``.

    Args:
        config: config of the run.
        path: list of images and labels. Its paths are relative to the ``image_root`` of the evaluation data
            if it has one, or else to the list's own folder.

    Returns:
        ``temperature``, ``source``, ``images``, and the calibration error and the cross-entropy without and
        with the temperature.

    Raises:
        ConfigError, CheckpointError: as ``evaluate``. ConfigError also if the evaluation data have no list.
        DataError: the images can't be used, have been trained on, or are too few.
        OSError: the file can't be written.
    """
    evaluation_section = required_section(config, "DataLoader.Eval")
    has_root = bool(evaluation_section.dataset.arguments.get("image_root"))
    needs_root = not has_root and takes_root(evaluation_section.dataset)
    root = str(Path(path).parent) if needs_root else None
    config_of_run = config
    config = with_evaluation_list(config, str(path), root, where=config.where("DataLoader.Eval.dataset"))
    if config.run_folder.is_dir():
        check_own_names(config.run_folder, [CALIBRATION_FILE])
    start_terminal_log()
    weights = weights_for(config, "evaluate")
    assert weights
    _refuse_file_of_others(config.run_folder, weights)
    source = calibration_source(eval_block(config), HAS_NOT_CHOSEN)
    evaluation, results = evaluated_weights(config, weights, calibration_source=source)
    fitted = evaluation.calibrate()
    evaluation.forget_logits()
    dataset = evaluation.loader.dataset
    if fitted is None:
        problem = calibration_problem(len(dataset), class_num(config)) or "too few images can be read"
        raise DataError(f"{path}: no calibration is written: {problem}")
    words = relation_to_weights(config_of_run, weights, dataset, str(path))
    calibration = replace(fitted.calibration, source=calibration_source(eval_block(config), words))
    fitted = FittedCalibration(calibration, fitted.figures)
    if distributed.rank() == 0:
        logger.info(f"[Eval][Avg]{format_results(results)}")
        _write(config, weights, fitted)
    figures = fitted.figures
    return {
        "temperature": calibration.temperature,
        "source": calibration.source,
        "images": calibration.images,
        "error_before": figures.error_before,
        "error_after": figures.error_after,
        "loss_before": figures.loss_before,
        "loss_after": figures.loss_after,
    }


def _refuse_file_of_others(folder: Path, weights: Weights) -> None:
    """Raises DataError if the calibration of the run's own weights would be lost."""
    if weights.is_own:
        return
    try:
        is_of_others = read_calibration(folder, None) is not None
        is_of_others = is_of_others and read_calibration(folder, weights_digest(weights) or "") is None
    except ValueError:  # a damaged file is replaced
        return
    if is_of_others:
        raise DataError(
            f"{folder / CALIBRATION_FILE} belongs to other weights than {weights.path}; "
            "calibrate them with another Global.output_dir"
        )


def _write(config: Config, weights: Weights, fitted: FittedCalibration) -> None:
    config.run_folder.mkdir(parents=True, exist_ok=True)
    write_calibration(config.run_folder, fitted, weights_digest(weights) or "")
    logger.info(f"calibration: {fitted} (written to {config.run_folder / CALIBRATION_FILE})")
    logger.info(f"for predictions.csv and the report with these scores: ppxcls eval -c {config.run_folder}")
