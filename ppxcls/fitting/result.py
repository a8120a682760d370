"""Writes the result of a stage as a whole run: config, weights, metrics, evaluation and predictions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from ppxcls.build.calibration import HAS_CHOSEN, calibration_facts, calibration_source
from ppxcls.build.choices import Weights, class_names_for
from ppxcls.build.evaluation_results import eval_block, write_results
from ppxcls.build.trainer import build_trainer
from ppxcls.calibration.fit import FittedCalibration, fitted_calibration, write_calibration
from ppxcls.checkpoints.files import WEIGHTS, CheckpointError, State, read_manifest, write_checkpoint
from ppxcls.config.sections import Config
from ppxcls.fitting.linear import accuracy_and_loss
from ppxcls.models.weights import model_state
from ppxcls.reports import STAGES
from ppxcls.reports.result_files import FitStage
from ppxcls.system.arrays import Array
from ppxcls.system.atomic_files import write_text
from ppxcls.system.json_text import json_text
from ppxcls.train import PREDICTIONS
from ppxcls.train.evaluation import Evaluation
from ppxcls.train.predictions import PredictionTable, write_predictions
from ppxcls.train.trainer import Trainer

Score = tuple[float, float]  # accuracy and loss
_BEST = "best_model"
_FILE_NAMES = {"is_chosen": "chosen"}  # keys of the file by attribute, if they differ


def stage_line(stage: FitStage) -> str:
    """Returns one line for the log about a stage."""
    score = "" if stage.accuracy is None else f"{stage.accuracy:.4f} of the photographs that choose, "
    epochs = "" if stage.epochs is None else f"{stage.epochs} epoch{'s' * (stage.epochs != 1)}, "
    outcome = "taken" if stage.is_chosen else "not better, so the earlier result stays"
    return f"{stage.name}: {stage.size} px, {epochs}{stage.seconds:.0f} s, {score}{stage.choice}: {outcome}"


def write_stages(folder: Path, stages: Sequence[FitStage], plan: Sequence[Mapping[str, Any]]) -> None:
    """Writes the stages and the plan of ``fit`` to a run's folder.

    Raises:
        OSError: the file can't be written.
    """
    rows = [{_FILE_NAMES.get(key, key): value for key, value in asdict(stage).items()} for stage in stages]
    content = {"format": 1, "stages": rows, "plan": list(plan)}
    write_text(folder / STAGES, json_text(content, indent=1, is_ascii=True) + "\n")


def write_result(
    config: Config, state: State, *, epoch: int, is_first: bool, val_logits: Array, note: str = ""
) -> None:
    """Writes a stage's result to the run's folder, as a training with this config would have written it.

    Args:
        config: config of the run.
        state: weights of the network, by state key.
        epoch: number of the evaluation in ``metrics.jsonl``, from 1.
        is_first: True to move the results of an earlier run aside; False if the folder has the result of an
            earlier stage.
        val_logits: logits of the photographs of ``DataLoader.Eval``, [N, class_num], by weights that were not
            trained on them.
        note: how the logits were computed, if the weights of the result have been trained on these
            photographs since then.

    Raises:
        OSError: a file can't be written.
    """
    trainer = build_trainer(config)
    try:
        trainer.run.folder.lock()
        if not is_first:
            _continue_run(trainer)
        trainer.run.begin(is_continued=not is_first)
        fitted = _calibration(config, trainer, val_logits, note=note)
        results, score_facts = _evaluated(trainer, val_logits, fitted)
        progress = trainer.progress
        progress.epoch = epoch
        figure = _deciding_figure(trainer, results)
        loss = results[_evaluation(trainer).loss_name]
        progress.best = {"metric": figure, "value": results[figure], "epoch": epoch, "loss": loss}
        trainer.log.start(progress)  # removes the line of this stage before a kill
        trainer.log.eval_line(results, progress)
        trainer.log.flush()
        facts = {**trainer.run.facts.as_dict(), "trained_on_eval_list": bool(note)}
        manifest = {**facts, "progress": asdict(progress)}
        write_checkpoint(
            [trainer.output_dir / _BEST],
            {WEIGHTS: state},
            manifest=manifest,
            safe=trainer.run.folder.safe,
            before_commit=lambda prefix, digests: write_calibration(prefix.parent, fitted, digests[WEIGHTS]),
        )
        weights = Weights(str(trainer.output_dir / _BEST), average=False, is_own=True, note=note)
        dataset = _evaluation(trainer).loader.dataset
        write_results(config, weights, dataset=dataset, results={**score_facts, **results})
    finally:
        trainer.log.close()
        trainer.close_loaders()
        trainer.run.folder.release()


def write_start(file: Path, state: State, config: Config) -> None:
    """Writes weights that a training starts from, with the names of their classes.

    Without the names, a classifier of 1,000 classes would be taken for one of ImageNet's, and its rows would
    be put in another order.

    Args:
        file: file of weights.
        state: weights, whose classifier is one of the training's classes.
        config: config of the training.

    Raises:
        OSError: the files can't be written.
    """
    manifest = {"class_names": class_names_for(config, "train"), "progress": {}}
    write_checkpoint([file.with_suffix("")], {WEIGHTS: state}, manifest=manifest)


def _continue_run(trainer: Trainer) -> None:
    """Gives the run the id of the earlier stage's result, whose files then stay in place."""
    try:
        run_id = read_manifest(trainer.output_dir / _BEST).get("run")
    except CheckpointError:
        return
    if run_id:
        trainer.run.facts = replace(trainer.run.facts, run=run_id)


def _evaluation(trainer: Trainer) -> Evaluation:
    assert trainer.evaluation
    return trainer.evaluation


def _deciding_figure(trainer: Trainer, results: Mapping[str, float]) -> str:
    """Returns the figure that decides about epochs; top1 if it is not defined for these photographs."""
    figure = _evaluation(trainer).deciding_figure
    return figure if math.isfinite(results[figure]) else "top1"


def _calibration(config: Config, trainer: Trainer, logits: Array, *, note: str) -> FittedCalibration | None:
    """Returns the calibration of logits of weights that were not trained on the photographs that choose."""
    evaluation = _evaluation(trainer)
    if not config.Global.calibrate:
        return None
    words = f"{HAS_CHOSEN} ({note})" if note else HAS_CHOSEN
    labels = np.asarray(evaluation.loader.dataset.labels[: len(logits)], np.int64)
    return fitted_calibration(logits, labels, calibration_source(eval_block(config), words))


def _evaluated(
    trainer: Trainer, logits: Array, fitted: FittedCalibration | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Writes the predictions of an evaluation with these logits.

    Returns:
        The results, and what ``eval.json`` says about the scores.
    """
    evaluation = _evaluation(trainer)
    dataset = evaluation.loader.dataset
    labels = np.asarray(dataset.labels[: len(logits)], np.int64)
    table = PredictionTable(len(logits))
    if fitted is not None:
        table.temperature = fitted.calibration.temperature
    logits_and_labels = paddle.to_tensor(logits), paddle.to_tensor(labels)
    table.add(np.arange(len(logits)), *logits_and_labels)
    predictions = table.gathered()
    write_predictions(trainer.output_dir / PREDICTIONS, predictions, dataset, trainer.run.class_names)
    facts = {}
    if fitted is not None:
        facts["calibration"] = calibration_facts(fitted.calibration, predictions, dataset)
    top1, loss = accuracy_and_loss(logits, labels)
    order = np.argsort(-logits, axis=1, kind="stable")[:, :5]
    top5 = float((order == labels[:, None]).any(1).mean())
    # These are the figures that stages are compared by, whatever ``Metric.Eval`` and ``Loss.Eval`` are.
    compared = {evaluation.loss_name: loss, "top1": top1, "top5": top5, "num_samples": len(logits)}
    return evaluation.results_of(*logits_and_labels) | compared, facts


def state_of(network: paddle.nn.Layer) -> State:
    """Returns copies of a network's weights.

    Raises:
        CheckpointError: a weight is not finite.
    """
    state = model_state(network)
    for key, value in state.items():
        if isinstance(value, np.ndarray) and not np.isfinite(value).all():
            raise CheckpointError(f"{key} has values that are not finite")
    return state


def is_better_score(score: Score, earlier_score: Score, count: int) -> bool:
    """True if no fewer photographs are correct and the loss is smaller, or if clearly more are correct.

    Of a hundred photographs, one or two more are correct by chance. The loss tells more.

    Args:
        score: accuracy and loss.
        earlier_score: accuracy and loss of the earlier result.
        count: number of photographs.
    """
    accuracy, loss = score
    earlier_accuracy, earlier_loss = earlier_score
    if not math.isfinite(loss):
        return False
    is_no_worse = accuracy >= earlier_accuracy and loss < earlier_loss
    return is_no_worse or is_clearly_better_score(score, earlier_score, count)


def is_clearly_better_score(score: Score, earlier_score: Score, count: int) -> bool:
    """True if more photographs are correct by at least two standard errors; see ``is_better_score``."""
    accuracy, loss = score
    earlier_accuracy, _ = earlier_score
    standard_error = math.sqrt(max(earlier_accuracy * (1 - earlier_accuracy), 1 / count) / count)
    return math.isfinite(loss) and accuracy - earlier_accuracy > 2 * standard_error
