"""Evaluates the weights that a config selects, and writes the result to the run's folder."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ppxcls.build import (
    EVALUATION,
    OTHER_EVALUATION,
    TEST_EVALUATION,
    TEST_TTA_EVALUATION,
    TTA_EVALUATION,
)
from ppxcls.build.calibration import calibration_facts, calibration_for, may_calibrate
from ppxcls.build.choices import (
    Weights,
    class_names_for,
    class_num,
    data_name,
    describe,
    network_classes,
    weights_for,
)
from ppxcls.build.class_order import manifest_beside
from ppxcls.build.data import build_loader
from ppxcls.build.groups import evaluation_groups
from ppxcls.build.judging import checkpoint_digest, judging_config, use_of_test
from ppxcls.build.losses import classes_for_losses, evaluation_loss
from ppxcls.build.network import build_network, mixed_precision, static_network
from ppxcls.build.start import required_section, start_job, start_terminal_log
from ppxcls.calibration.fit import FittedCalibration
from ppxcls.checkpoints.files import CheckpointError, read_manifest
from ppxcls.checkpoints.progress import checkpoint_prefix
from ppxcls.config.checks import ConfigError
from ppxcls.config.figures import DEFAULT_METRICS, GROUP_PREFIX
from ppxcls.config.load import RUN_CONFIG
from ppxcls.config.sections import Config, to_plain
from ppxcls.config.yaml_values import read_yaml
from ppxcls.data.dataset import Dataset
from ppxcls.data.label_mapping import ClassNames
from ppxcls.data.views import Views, parse_views
from ppxcls.models.weights import weights_file
from ppxcls.system import distributed
from ppxcls.system.atomic_files import check_own_names, read_regular, write_text
from ppxcls.system.json_text import json_text, read_json
from ppxcls.system.logs import logger
from ppxcls.system.watchdog import Watchdog
from ppxcls.train import (
    OTHER_PREDICTIONS,
    PREDICTIONS,
    TEST_PREDICTIONS,
    TEST_TTA_PREDICTIONS,
    TTA_PREDICTIONS,
)
from ppxcls.train.evaluation import Evaluation
from ppxcls.train.group_figures import GroupFigures
from ppxcls.train.losses import WeightedSum
from ppxcls.train.metrics import Metric, build_metrics
from ppxcls.train.precision import evaluation_autocast, set_evaluation_precision
from ppxcls.train.predictions import NOT_FINITE, Predictions, write_predictions
from ppxcls.train.proportions import proportion
from ppxcls.train.run_log import format_results

_MAX_BYTES = 1 << 20  # largest config.yaml and eval.json that are compared
_MIN_SAMPLES = 50  # samples; with fewer, good weights can score 0 by chance
_IMAGENET_CLASSES = 1000
_KNOWN_LIST = "weights trained on this list"


@dataclass(frozen=True)
class _Files:
    """Names of the files that an evaluation writes.

    Attributes:
        results: file of the results, if the evaluation is the run's own.
        predictions: file of its predictions.
    """

    results: str
    predictions: str


_EVAL_FILES, _TEST_FILES = _Files(EVALUATION, PREDICTIONS), _Files(TEST_EVALUATION, TEST_PREDICTIONS)
_TTA_FILES = _Files(TTA_EVALUATION, TTA_PREDICTIONS)
_TEST_TTA_FILES = _Files(TEST_TTA_EVALUATION, TEST_TTA_PREDICTIONS)
_OTHER_FILES = _Files(OTHER_EVALUATION, OTHER_PREDICTIONS)
_JUDGING_FILES = (_TEST_FILES, _TEST_TTA_FILES)
_ALL_FILES = (_EVAL_FILES, _TEST_FILES, _TTA_FILES, _TEST_TTA_FILES, _OTHER_FILES)


def evaluate(
    config: Config, *, test: bool = False, tta: str | Sequence[str] | None = None
) -> dict[str, float]:
    """Evaluates the weights of ``weights_for`` on ``DataLoader.Eval``.

    It writes the results and the predictions to the run's folder.

    Args:
        config: config of the run.
        test: True to evaluate on the images of ``DataLoader.Test`` instead, which judge the finished model.
            The results are in ``test.json`` and ``test_predictions.csv``. They count how often these images
            have judged a model of this folder.
        tta: views of each image whose probabilities are averaged: ``flip`` for its mirror image, ``crops``
            for the four corners beside the centre, or both; None for the image alone. With it, the results
            are in ``eval_tta.json`` and ``predictions_tta.csv``, or ``test_tta.json`` and
            ``test_predictions_tta.csv``.

    Returns:
        Metrics from 0 to 1, losses as means over samples, and ``num_samples``.

    Raises:
        ConfigError, DataError, CheckpointError: as ``build_trainer``. CheckpointError also if the network's
            output is not finite.
        OSError: a result can't be written, such as if a pipe has its name.
    """
    views = None if tta is None else parse_views(tta)
    if test:
        config = judging_config(config)
    required_section(config, "DataLoader.Eval")
    if config.run_folder.is_dir():
        own_names = [name for files in _ALL_FILES for name in (files.results, files.predictions)]
        check_own_names(config.run_folder, own_names)
    start_terminal_log()
    weights = weights_for(config, "evaluate")  # before anything is written
    assert weights
    fitted = calibration_for(config, weights)
    temperature = fitted.calibration.temperature if fitted else 1.0
    evaluation, results = evaluated_weights(config, weights, views=views, temperature=temperature)
    if distributed.rank() == 0:
        files = _files(is_test=test, has_views=views is not None)
        _report_results(config, weights, evaluation=evaluation, results=results, files=files, fitted=fitted)
    return results


def evaluated_weights(
    config: Config,
    weights: Weights,
    *,
    views: Views | None = None,
    temperature: float = 1.0,
    calibration_source: str | None = None,
) -> tuple[Evaluation, dict[str, float]]:
    """Starts the job, and evaluates weights on ``DataLoader.Eval``. It writes nothing.

    Args:
        config: config of the run.
        weights: weights to evaluate.
        views: views of each image whose probabilities are averaged; None for the image alone.
        temperature: divisor of the logits for the predictions.
        calibration_source: source of a calibration, as in ``build_evaluation``.

    Returns:
        The evaluation with its predictions, and its results.

    Raises:
        ConfigError, DataError, CheckpointError: as ``evaluate``.
    """
    start_job(config)
    names = class_names_for(config, "evaluate", weights)
    description = describe(config, weights, config.evaluation_transforms, names)
    logger.info(f"{description}, test-time augmentation: {views}" if views else description)
    network = set_evaluation_precision(
        mixed_precision(config.AMP), build_network(config, "evaluate", weights)
    )
    if config.Global.to_static:
        network = static_network(network, with_cinn=config.Global.to_static == "CINN")
    classes = network_classes(config, "evaluate", weights)
    loss = evaluation_loss(config, classes_for_losses(config, classes, names))
    evaluation = build_evaluation(
        config, classes, names=names, loss=loss, views=views, calibration_source=calibration_source
    )
    evaluation.set_temperature(temperature)
    loader = evaluation.loader
    distributed.require_same({"evaluation list": loader.dataset.labelled_digest()})
    timeout = config.Global.hang_timeout
    rank, world_size = distributed.rank(), distributed.world_size()
    with Watchdog(timeout, rank, world_size, loader.files_being_read) as watchdog:
        results = evaluation(network, watchdog.batches(loader.epoch(), "the evaluation"))
    loader.close()
    assert evaluation.predictions
    _check_outputs(evaluation.predictions, loader.dataset, weights)
    return evaluation, results


def _files(*, is_test: bool, has_views: bool) -> _Files:
    if has_views:
        return _TEST_TTA_FILES if is_test else _TTA_FILES
    return _TEST_FILES if is_test else _EVAL_FILES


def _report_results(
    config: Config,
    weights: Weights,
    *,
    evaluation: Evaluation,
    results: dict[str, float],
    files: _Files,
    fitted: FittedCalibration | None,
) -> None:
    """Writes the results and the predictions, and logs the results and their file."""
    dataset = evaluation.loader.dataset
    differences = _differences_from_run(config, weights, dataset, files)
    if differences:
        files = _OTHER_FILES
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


def build_evaluation(
    config: Config,
    classes: ClassNames | None,
    *,
    names: Sequence[str],
    loss: WeightedSum,
    views: Views | None = None,
    calibration_source: str | None = None,
) -> Evaluation:
    """Builds the evaluation on ``DataLoader.Eval``: its loader, metrics, groups and precision.

    Args:
        config: config with ``DataLoader.Eval``.
        classes: classes of the network, to which labels are mapped by name; None if they are not known.
        names: names of the classes if ``classes`` is None, for metrics of one class; empty if there are none.
        loss: loss of evaluations.
        views: views of each image whose probabilities are averaged; None for the image alone.
        calibration_source: source of calibrations, see ``calibration_source``; None for no calibration. If
            the list can't be calibrated on, a line tells why, and there is none.

    Raises:
        ConfigError, DataError: the data set can't be used, or a metric names an unknown class.
    """
    loader = build_loader(config, "Eval", classes)
    if views:
        loader.dataset.set_views(views)
    class_names = list(classes.names) if classes else names
    if calibration_source and not may_calibrate(loader.dataset, class_num(config), class_names):
        calibration_source = None

    metric_blocks = config.Metric.Eval if config.Metric else DEFAULT_METRICS

    def metrics() -> list[Metric]:
        return build_metrics(
            metric_blocks,
            config.where("Metric.Eval"),
            class_num=class_num(config),
            class_names=class_names,
        )

    groups = evaluation_groups(config, loader.dataset)
    best_metric = config.Global.best_metric
    if groups is None and best_metric in [
        f"{GROUP_PREFIX}{name}" for metric in metrics() for name in (*metric.names, *metric.figures)
    ]:
        raise config.where("Global.best_metric").error(
            f"expected a figure of images, received {best_metric!r}: no groups.csv beside the evaluation "
            "list has a group with several of its images"
        )
    group_figures = GroupFigures(*groups, metrics()) if groups else None
    return Evaluation(
        loader,
        loss,
        metrics=metrics(),
        autocast=evaluation_autocast(mixed_precision(config.AMP)),
        best_metric=best_metric,
        calibration_source=calibration_source,
        group_figures=group_figures,
    )


def _check_outputs(predictions: Predictions, dataset: Dataset, weights: Weights) -> None:
    """Raises CheckpointError if the network's output for a sample is not finite.

    Finite weights can give such outputs too: numbers overflow.
    """
    is_finite = np.isfinite(predictions.label_scores) & np.isfinite(predictions.scores).all(axis=1)
    bad_samples = predictions.samples[~is_finite]
    if len(bad_samples):
        raise CheckpointError(
            f"{weights}: {NOT_FINITE} for {len(bad_samples):,} of {len(is_finite):,} samples, "
            f"such as {dataset.path(int(bad_samples[0]))}"
        )


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
    files: _Files = _EVAL_FILES,
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


def _differences_from_run(config: Config, weights: Weights, dataset: Dataset, files: _Files) -> list[str]:
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


def _own_list_digest(config: Config, files: _Files) -> str | None:
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
