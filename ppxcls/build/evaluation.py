"""Evaluates the weights that a config selects, and writes the result to the run's folder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ppxcls.build import EVALUATION, OTHER_EVALUATION
from ppxcls.build.choices import Weights, class_names_for, class_num, data_name, describe, weights_for
from ppxcls.build.data import build_loader
from ppxcls.build.network import build_network, mixed_precision, static_network
from ppxcls.build.start import required_section, start_job
from ppxcls.checkpoints.files import CheckpointError
from ppxcls.config.checks import ConfigError
from ppxcls.config.load import RUN_CONFIG
from ppxcls.config.sections import Config, to_plain
from ppxcls.config.yaml_values import read_yaml
from ppxcls.data.dataset import Dataset
from ppxcls.system import distributed
from ppxcls.system.atomic_files import write_text
from ppxcls.system.json_text import json_text
from ppxcls.system.logs import logger
from ppxcls.system.watchdog import Watchdog
from ppxcls.train import OTHER_PREDICTIONS, PREDICTIONS
from ppxcls.train.evaluation import Evaluation
from ppxcls.train.losses import CELoss, WeightedSum, build_loss
from ppxcls.train.metrics import Metric, TopkAcc, build_metrics
from ppxcls.train.precision import evaluation_autocast, set_evaluation_precision
from ppxcls.train.predictions import NOT_FINITE, Predictions, write_predictions
from ppxcls.train.run_log import format_results

_MIN_SAMPLES = 50  # samples; with fewer, good weights can score 0 by chance
_IMAGENET_CLASSES = 1000


def evaluate(config: Config) -> dict[str, float]:
    """Evaluates the weights of ``weights_for`` on ``DataLoader.Eval``.

    It writes the results and the predictions to the run's folder.

    Returns:
        Metrics from 0 to 1, losses as means over samples, and ``num_samples``.

    Raises:
        ConfigError, DataError, CheckpointError: as ``build_trainer``. CheckpointError also if the network's
            output is not finite.
    """
    required_section(config, "DataLoader.Eval")
    start_job(config)
    weights = weights_for(config, "evaluate")
    assert weights
    names = class_names_for(config, "evaluate")
    logger.info(describe(config, weights, config.evaluation_transforms, names))
    network = set_evaluation_precision(
        mixed_precision(config.AMP), build_network(config, "evaluate", weights)
    )
    if config.Global.to_static:
        network = static_network(network, with_cinn=config.Global.to_static == "CINN")
    evaluation = build_evaluation(config)
    loader = evaluation.loader
    distributed.require_same({"evaluation list": loader.dataset.digest()})
    timeout = config.Global.hang_timeout
    rank = distributed.rank()
    world_size = distributed.world_size()
    with Watchdog(timeout, rank, world_size, loader.files_being_read) as watchdog:
        results = evaluation(network, watchdog.batches(loader.epoch(), "the evaluation"))
    loader.close()
    assert evaluation.predictions
    _check_outputs(evaluation.predictions, loader.dataset, weights)
    if rank == 0:
        if not weights.is_own and (warning := chance_warning(results, class_num(config))):
            logger.warning(warning)
        file = _write_results(config, weights, results)
        predictions_name = PREDICTIONS if file.name == EVALUATION else OTHER_PREDICTIONS
        write_predictions(file.with_name(predictions_name), evaluation.predictions, loader.dataset, names)
        logger.info(f"[Eval][Avg]{format_results(results)} (written to {file})")
    return results


def build_evaluation(config: Config) -> Evaluation:
    """Builds the evaluation on ``DataLoader.Eval``: its loader, losses, metrics and precision.

    Raises:
        ConfigError, DataError: the data set can't be used.
    """
    loss = WeightedSum([("CELoss", 1.0, CELoss())])
    metrics: list[Metric] = [TopkAcc([1, 5])]
    if config.Loss and config.Loss.Eval:
        loss = build_loss(config.Loss.Eval, config.where("Loss.Eval"), soft_labels=False)
    if config.Metric:
        metrics = build_metrics(config.Metric.Eval, config.where("Metric.Eval"), class_num(config))
    return Evaluation(
        build_loader(config, "Eval"), loss, metrics, evaluation_autocast(mixed_precision(config.AMP))
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


def _write_results(config: Config, weights: Weights, results: dict[str, float]) -> Path:
    """Writes the results of an evaluation to a JSON file in the run's folder, and returns the file.

    The file is ``eval.json`` if the evaluation is the run's own, otherwise ``eval_other.json``. It is the
    run's own if it uses the run's weights, and the data and transforms of the run's ``config.yaml``.
    """
    folder = config.run_folder
    is_own = weights.is_own and _evaluates_as_the_run(config)
    file = folder / (EVALUATION if is_own else OTHER_EVALUATION)
    folder.mkdir(parents=True, exist_ok=True)
    dataset = to_plain(config.DataLoader.Eval.dataset) if config.DataLoader and config.DataLoader.Eval else {}
    facts = {"weights": weights.path, "about": weights.note, "data": data_name(dataset) if dataset else None}
    write_text(file, json_text({**facts, **results}, indent=1, is_ascii=True) + "\n")
    return file


def _evaluates_as_the_run(config: Config) -> bool:
    """True if the run's ``config.yaml`` has the same evaluation data and transforms, or can't be read."""
    try:
        run_config = read_yaml((config.run_folder / RUN_CONFIG).read_text(encoding="utf-8"), RUN_CONFIG)
        dataset_of_run = run_config["DataLoader"]["Eval"]["dataset"]
    except (OSError, ValueError, KeyError, TypeError, ConfigError):
        return True
    assert config.DataLoader
    assert config.DataLoader.Eval
    return bool(dataset_of_run == to_plain(config.DataLoader.Eval.dataset))
