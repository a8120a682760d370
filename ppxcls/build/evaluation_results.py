"""Writes the results of an evaluation, to files of their own if it is not that of the run."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppxcls.build import (
    EVALUATION,
    OTHER_EVALUATION,
    TEST_EVALUATION,
    TEST_TTA_EVALUATION,
    TTA_EVALUATION,
)
from ppxcls.build.calibration import calibration_facts
from ppxcls.build.choices import Weights, class_names_for, class_num, data_name
from ppxcls.build.class_order import manifest_beside
from ppxcls.build.judging import checkpoint_digest, use_of_test
from ppxcls.calibration.fit import FittedCalibration
from ppxcls.checkpoints.files import CheckpointError, read_manifest
from ppxcls.checkpoints.progress import checkpoint_prefix
from ppxcls.config.checks import ConfigError
from ppxcls.config.load import RUN_CONFIG
from ppxcls.config.sections import Config, to_plain
from ppxcls.config.yaml_values import read_yaml
from ppxcls.data.dataset import Dataset
from ppxcls.models.weights import weights_file
from ppxcls.system.atomic_files import read_regular, write_text
from ppxcls.system.json_text import json_text, read_json
from ppxcls.system.logs import logger
from ppxcls.train import (
    OTHER_PREDICTIONS,
    PREDICTIONS,
    TEST_PREDICTIONS,
    TEST_TTA_PREDICTIONS,
    TTA_PREDICTIONS,
)
from ppxcls.train.evaluation import Evaluation
from ppxcls.train.predictions import write_predictions
from ppxcls.train.proportions import proportion
from ppxcls.train.run_log import format_results

_MAX_BYTES = 1 << 20  # largest config.yaml and eval.json that are compared
_MIN_SAMPLES = 50  # samples; with fewer, good weights can score 0 by chance
_IMAGENET_CLASSES = 1000
_KNOWN_LIST = "weights trained on this list"


@dataclass(frozen=True)
class ResultFiles:
    """Names of the files that an evaluation writes.

    Attributes:
        results: file of the results, if the evaluation is the run's own.
        predictions: file of its predictions.
    """

    results: str
    predictions: str


EVAL_FILES = ResultFiles(EVALUATION, PREDICTIONS)
_TEST_FILES = ResultFiles(TEST_EVALUATION, TEST_PREDICTIONS)
_TTA_FILES = ResultFiles(TTA_EVALUATION, TTA_PREDICTIONS)
_TEST_TTA_FILES = ResultFiles(TEST_TTA_EVALUATION, TEST_TTA_PREDICTIONS)
OTHER_FILES = ResultFiles(OTHER_EVALUATION, OTHER_PREDICTIONS)
_JUDGING_FILES = (_TEST_FILES, _TEST_TTA_FILES)
_ALL_FILES = (EVAL_FILES, _TEST_FILES, _TTA_FILES, _TEST_TTA_FILES, OTHER_FILES)
ALL_NAMES = tuple(name for files in _ALL_FILES for name in (files.results, files.predictions))


def evaluation_files(*, is_test: bool, has_views: bool) -> ResultFiles:
    """Returns the files of the run's own evaluation.

    Args:
        is_test: True for the images of ``DataLoader.Test``.
        has_views: True for several views of each image.
    """
    if has_views:
        return _TEST_TTA_FILES if is_test else _TTA_FILES
    return _TEST_FILES if is_test else EVAL_FILES


def report_results(
    config: Config,
    weights: Weights,
    *,
    evaluation: Evaluation,
    results: dict[str, float],
    files: ResultFiles,
    fitted: FittedCalibration | None,
) -> None:
    """Writes the results and the predictions, and logs the results and their file.

    Args:
        config: config of the run.
        weights: evaluated weights.
        evaluation: evaluation with its predictions.
        results: its results.
        files: files to write if the evaluation is the run's own.
        fitted: calibration of the predictions; None if they have none.

    Raises:
        OSError: a file can't be written.
    """
    dataset = evaluation.loader.dataset
    differences = _differences_from_run(config, weights, dataset, files)
    if differences:
        files = OTHER_FILES
    if _KNOWN_LIST in differences:
        logger.warning(
            f"{weights.path} was trained on these images, too, after they had chosen it: these figures are "
            "too high. For unbiased figures, evaluate images that were never used, such as with --test"
        )
    if differences and (warning := chance_warning(results, class_num(config))):
        logger.warning(warning)
    assert evaluation.predictions
    config.run_folder.mkdir(parents=True, exist_ok=True)
    # First, because the results say that the images have judged.
    names = class_names_for(config, "evaluate", weights)
    write_predictions(config.run_folder / files.predictions, evaluation.predictions, dataset, names)
    facts: dict[str, Any] = {}
    if fitted and not dataset.views:
        facts["calibration"] = calibration_facts(fitted.calibration, evaluation.predictions, dataset)
    file = write_results(config, weights, dataset=dataset, results={**facts, **results}, files=files)
    reason = f", because it is not the run's own evaluation: {', '.join(differences)}" if differences else ""
    logger.info(f"[Eval][Avg]{format_results(results)} (written to {file}{reason})")


def chance_warning(results: Mapping[str, float], count: int) -> str | None:
    """Returns a warning if weights from another source score no better than chance.

    The limit is three standard deviations above the expected share of correct guesses.

    Args:
        results: results of an evaluation.
        count: number of classes.

    Returns:
        The warning; None if the weights score better, or if there are too few samples to decide.
    """
    samples, top1 = results.get("num_samples", 0), results.get("top1")
    if top1 is None or count < 2 or samples < _MIN_SAMPLES:
        return None
    chance = 1 / count
    if top1 > chance + 3 * math.sqrt(chance * (1 - chance) / samples):
        return None
    order = "ImageNet's, which sorts the WordNet ids" if count == _IMAGENET_CLASSES else "that of the weights"
    return f"top1 {top1:.4f} is chance for {count:,} classes: the list's class order is probably not {order}"


def write_results(
    config: Config,
    weights: Weights,
    *,
    dataset: Dataset,
    results: Mapping[str, Any],
    files: ResultFiles = EVAL_FILES,
) -> Path:
    """Writes the results of an evaluation to a JSON file in the run's folder, and returns the file.

    Args:
        config: config of the run.
        weights: evaluated weights.
        dataset: evaluated images.
        results: metrics, losses, ``num_samples``, and other facts to write.
        files: names of the files.

    Raises:
        OSError: the file can't be written.
    """
    file = config.run_folder / files.results
    facts: dict[str, Any] = {
        "weights": weights.path,
        "about": weights.note,
        "data": data_name(eval_block(config)),
        "list": dataset.labelled_digest(),
    }
    if views := dataset.views:
        facts |= {"tta": views.kinds, "views": views.count}
        facts["checkpoint"] = checkpoint_digest(checkpoint_prefix(weights.path))
    if files in _JUDGING_FILES:
        facts |= use_of_test(config.run_folder, weights.path, list_digest=dataset.labelled_digest())
    if (top1 := results.get("top1")) is not None and results["num_samples"]:
        share = proportion(round(top1 * results["num_samples"]), int(results["num_samples"]))
        facts["top1_interval"] = [share.low, share.high]
    write_text(file, json_text({**facts, **results}, indent=1, is_ascii=True) + "\n")
    return file


def eval_block(config: Config) -> dict[str, Any]:
    """Returns the data set of ``DataLoader.Eval`` as plain values."""
    assert config.DataLoader
    assert config.DataLoader.Eval
    block: dict[str, Any] = to_plain(config.DataLoader.Eval.dataset)
    return block


def _differences_from_run(
    config: Config, weights: Weights, dataset: Dataset, files: ResultFiles
) -> list[str]:
    """Returns what differs from the run's own evaluation; empty if this is the run's own evaluation.

    It is the run's own if it uses the run's weights, the list of the run's evaluations, and the transforms
    and ``Global.calibrate`` of the run's ``config.yaml``. A missing or damaged file differs in nothing. If
    the weights have been trained on the list, the run's own evaluation is the one before that.
    """
    differences = [] if weights.is_own else ["other weights"]
    if config.is_override("Infer.PostProcess.class_id_map_file"):
        differences.append("other class names")
    digest = dataset.labelled_digest()
    own_digest = _own_list_digest(config, files)
    if own_digest not in (None, digest):
        differences.append("another list")
    manifest = manifest_beside(weights_file(weights.path))
    if manifest.get("trained_on_eval_list") and manifest.get("eval_list") == digest:
        differences.append(_KNOWN_LIST)
    try:
        run_config = read_yaml(read_regular(config.run_folder / RUN_CONFIG, _MAX_BYTES).decode(), RUN_CONFIG)
        block_of_run = dict(run_config["DataLoader"]["Eval"]["dataset"])
        if files in _JUDGING_FILES:
            test_of_run = {key: path for key, path in run_config["DataLoader"]["Test"].items() if path}
            block_of_run |= test_of_run
        was_calibrated = dict(run_config.get("Global") or {}).get("calibrate", True)
    except (OSError, ValueError, KeyError, TypeError, ConfigError):
        return differences
    if config.Global.calibrate != was_calibrated:
        differences.append("another Global.calibrate")
    block = eval_block(config)
    # The digest stands for the list or the pack. A run's data may have been moved, but not by an override.
    place_keys = {"cls_label_path", "pack", "cache_dir", "cache_gb", "name", "delimiter"}
    root_key = "Test.image_root" if files in _JUDGING_FILES else "Eval.dataset.image_root"
    if config.own_folder is not None and not config.is_override(f"DataLoader.{root_key}"):
        place_keys.add("image_root")
    # A run's first use of its images that judge: nothing has recorded their digest yet.
    is_of_run = config.own_folder is not None and not config.is_override("DataLoader.Test")
    is_own_test = files in _JUDGING_FILES and is_of_run
    for key in sorted({*block, *block_of_run} - (place_keys if own_digest or is_own_test else set())):
        if not _is_same_value(key, block.get(key), block_of_run.get(key)):
            differences.append(f"another {key}")
    return differences


def _own_list_digest(config: Config, files: ResultFiles) -> str | None:
    """Returns the digest of the list of the run's evaluations; None if it is not known.

    A run that did not evaluate while it trained has the list of its first ``eval.json``.
    """
    for name in () if files in _JUDGING_FILES else ("best_model", "latest"):
        with contextlib.suppress(CheckpointError):
            if digest := read_manifest(config.run_folder / name).get("eval_list"):
                return str(digest)
    with contextlib.suppress(OSError, ValueError, AttributeError):
        data = read_regular(config.run_folder / files.results, _MAX_BYTES)
        digest = read_json(data, is_nan_null=True).get("list")
        return str(digest) if digest else None
    return None


def _is_same_value(key: str, value: Any, value_of_run: Any) -> bool:
    """True if a key of a data set has the same value, or is another name of the same folder or file."""
    if key in ("image_root", "cls_label_path") and value and value_of_run:
        return os.path.realpath(value) == os.path.realpath(value_of_run)
    return bool(value == value_of_run)
