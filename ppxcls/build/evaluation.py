"""Evaluates the weights that a config selects, and writes the result to the run's folder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ppxcls.build.calibration import calibration_for, may_calibrate
from ppxcls.build.choices import (
    Weights,
    class_names_for,
    class_num,
    describe,
    network_classes,
    weights_for,
)
from ppxcls.build.data import build_loader
from ppxcls.build.evaluation_results import ALL_NAMES, evaluation_files, report_results
from ppxcls.build.groups import evaluation_groups
from ppxcls.build.judging import judging_config
from ppxcls.build.losses import classes_for_losses, evaluation_loss
from ppxcls.build.network import build_network, mixed_precision, static_network
from ppxcls.build.start import required_section, start_job, start_terminal_log
from ppxcls.checkpoints.files import CheckpointError
from ppxcls.config.figures import DEFAULT_METRICS, GROUP_PREFIX
from ppxcls.config.sections import Config
from ppxcls.data.dataset import Dataset
from ppxcls.data.label_mapping import ClassNames
from ppxcls.data.views import Views, parse_views
from ppxcls.system import distributed
from ppxcls.system.atomic_files import check_own_names
from ppxcls.system.logs import logger
from ppxcls.system.watchdog import Watchdog
from ppxcls.train.evaluation import Evaluation
from ppxcls.train.group_figures import GroupFigures
from ppxcls.train.losses import WeightedSum
from ppxcls.train.metrics import Metric, build_metrics
from ppxcls.train.precision import evaluation_autocast, set_evaluation_precision
from ppxcls.train.predictions import NOT_FINITE, Predictions


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
        check_own_names(config.run_folder, ALL_NAMES)
    start_terminal_log()
    weights = weights_for(config, "evaluate")  # before anything is written
    assert weights
    fitted = calibration_for(config, weights)
    temperature = fitted.calibration.temperature if fitted else 1.0
    evaluation, results = evaluated_weights(config, weights, views=views, temperature=temperature)
    if distributed.rank() == 0:
        files = evaluation_files(is_test=test, has_views=views is not None)
        report_results(config, weights, evaluation=evaluation, results=results, files=files, fitted=fitted)
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
        calibration_source: source of a calibration, as in ``build_evaluation``. With it, groups have no
            figures.

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
        config,
        classes,
        names=names,
        loss=loss,
        views=views,
        calibration_source=calibration_source,
        has_groups=calibration_source is None,
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


def build_evaluation(
    config: Config,
    classes: ClassNames | None,
    *,
    names: Sequence[str],
    loss: WeightedSum,
    views: Views | None = None,
    calibration_source: str | None = None,
    has_groups: bool = True,
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
        has_groups: False to ignore the groups of the images.

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

    groups = evaluation_groups(config, loader.dataset) if has_groups else None
    group_figures = GroupFigures(*groups, metrics()) if groups else None
    return Evaluation(
        loader,
        loss,
        metrics=metrics(),
        autocast=evaluation_autocast(mixed_precision(config.AMP)),
        best_metric=config.Global.best_metric,
        calibration_source=calibration_source,
        group_figures=group_figures,
    )


def check_choice(config: Config, evaluation: Evaluation) -> None:
    """Checks that an evaluation has the figure that chooses between weights.

    Args:
        config: config with ``Global.best_metric``.
        evaluation: evaluation that is to choose.

    Raises:
        ConfigError: it is a figure of groups, and the images have none.
    """
    figure = evaluation.deciding_figure
    if figure.startswith(GROUP_PREFIX) and figure not in evaluation.figures:
        raise config.where("Global.best_metric").error(
            f"expected a figure of images, received {figure!r}: no groups.csv beside the evaluation "
            "list has a group with several of its images"
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
