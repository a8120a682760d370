"""Writes the result of a stage as a whole run: config, weights, metrics, evaluation and predictions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from ppxcls.build import EVALUATION
from ppxcls.build.trainer import build_trainer
from ppxcls.checkpoints.files import WEIGHTS, CheckpointError, State, read_manifest, write_checkpoint
from ppxcls.config.sections import Config, to_plain
from ppxcls.fitting.linear import accuracy_and_loss
from ppxcls.models.weights import model_state
from ppxcls.reports import STAGES
from ppxcls.system.arrays import Array
from ppxcls.system.atomic_files import read_regular, write_text
from ppxcls.system.json_text import json_text, read_json
from ppxcls.train import PREDICTIONS
from ppxcls.train.predictions import PredictionTable, write_predictions
from ppxcls.train.trainer import Trainer

_MAX_BYTES = 1 << 20
_BEST = "best_model"
_FILE_NAMES = {"is_chosen": "chosen"}  # keys of the file by attribute, if they differ


@dataclass(frozen=True, kw_only=True)
class StageRecord:
    """What one stage of ``fit`` did.

    Attributes:
        name: name of the stage.
        seconds: time that it took.
        size: side of its images, pixels.
        epochs: number of epochs; None if it has none.
        accuracy: share of correct predictions for the photographs that choose; None if there are none.
        loss: mean cross-entropy for these photographs; None if there are none.
        is_chosen: True if the stage's result became the result of ``fit``.
        choice: what the stage chose, and how.
    """

    name: str
    seconds: float
    size: int
    epochs: int | None
    accuracy: float | None
    loss: float | None
    is_chosen: bool
    choice: str

    def __str__(self) -> str:
        score = "" if self.accuracy is None else f"{self.accuracy:.4f} of the photographs that choose, "
        epochs = "" if self.epochs is None else f"{self.epochs} epochs, "
        outcome = "taken" if self.is_chosen else "not better, so the earlier result stays"
        return f"{self.name}: {self.size} px, {epochs}{self.seconds:.0f} s, {score}{self.choice}: {outcome}"


def write_stages(folder: Path, stages: list[StageRecord], plan: Sequence[Mapping[str, Any]]) -> None:
    """Writes the stages and the plan of ``fit`` to a run's folder.

    Raises:
        OSError: the file can't be written.
    """
    rows = [{_FILE_NAMES.get(key, key): value for key, value in asdict(stage).items()} for stage in stages]
    content = {"format": 1, "stages": rows, "plan": list(plan)}
    write_text(folder / STAGES, json_text(content, indent=1, is_ascii=True) + "\n")


def read_stage_records(folder: Path) -> list[StageRecord]:
    """Returns the stages that ``write_stages`` wrote; empty if there are none."""
    try:
        content = read_json(read_regular(folder / STAGES, _MAX_BYTES))
        names = {name: key for key, name in _FILE_NAMES.items()}
        return [
            StageRecord(**{names.get(name, name): value for name, value in row.items()})
            for row in content["stages"]
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def write_result(
    config: Config,
    state: State,
    *,
    epoch: int,
    is_first: bool,
    val_logits: Array | None = None,
    score: tuple[float, float] | None = None,
    note: str = "",
) -> None:
    """Writes a stage's result to the run's folder, as a training with this config would have written it.

    Args:
        config: config of the run.
        state: weights of the network, by state key.
        epoch: number of the evaluation in ``metrics.jsonl``, from 1.
        is_first: True to move the results of an earlier run aside; False if the folder has the result of an
            earlier stage.
        val_logits: logits of the photographs of ``DataLoader.Eval``, [N, class_num], by weights that were not
            trained on them; None to write no evaluation and no predictions.
        score: accuracy and loss for these photographs if there are no logits.
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
        results = None
        if val_logits is not None:
            results = _evaluated(trainer, val_logits)
        elif score is not None:
            assert trainer.evaluation
            count = len(trainer.evaluation.loader.dataset)
            results = {_loss_name(trainer): score[1], "top1": score[0], "num_samples": count}
        progress = trainer.progress
        progress.epoch = epoch
        if results:
            progress.best = {
                "metric": "top1",
                "value": results["top1"],
                "epoch": epoch,
                "loss": results[_loss_name(trainer)],
            }
            trainer.log.eval_line(results, progress)
            trainer.log.flush()
        facts = {**trainer.run.facts.as_dict(), "trained_on_eval_list": bool(note)}
        manifest = {**facts, "progress": asdict(progress)}
        write_checkpoint(
            [trainer.output_dir / _BEST], {WEIGHTS: state}, manifest=manifest, safe=trainer.run.folder.safe
        )
        if results and val_logits is not None:
            _write_evaluation(config, trainer, results, note)
    finally:
        trainer.log.close()
        trainer.close_loaders()
        trainer.run.folder.release()


def _continue_run(trainer: Trainer) -> None:
    """Gives the run the id of the earlier stage's result, whose files then stay in place."""
    try:
        run_id = read_manifest(trainer.output_dir / _BEST).get("run")
    except CheckpointError:
        return
    if run_id:
        trainer.run.facts = replace(trainer.run.facts, run=run_id)


def _loss_name(trainer: Trainer) -> str:
    assert trainer.evaluation
    return trainer.evaluation.loss_name


def _evaluated(trainer: Trainer, logits: Array) -> dict[str, Any]:
    """Writes the predictions, and returns the results of an evaluation with these logits."""
    assert trainer.evaluation
    dataset = trainer.evaluation.loader.dataset
    labels = np.asarray(dataset.labels[: len(logits)], np.int64)
    table = PredictionTable(len(logits))
    table.add(np.arange(len(logits)), paddle.to_tensor(logits), paddle.to_tensor(labels))
    write_predictions(trainer.output_dir / PREDICTIONS, table.gathered(), dataset, trainer.run.class_names)
    top1, loss = accuracy_and_loss(logits, labels)
    order = np.argsort(-logits, axis=1, kind="stable")[:, :5]
    top5 = float((order == labels[:, None]).any(1).mean())
    return {_loss_name(trainer): loss, "top1": top1, "top5": top5, "num_samples": len(logits)}


def _write_evaluation(config: Config, trainer: Trainer, results: dict[str, Any], note: str) -> None:
    """Writes ``eval.json``."""
    assert trainer.evaluation
    assert config.DataLoader
    assert config.DataLoader.Eval
    dataset = trainer.evaluation.loader.dataset
    facts = {
        "weights": str(trainer.output_dir / _BEST),
        "about": note,
        "data": str(to_plain(config.DataLoader.Eval.dataset).get("cls_label_path", dataset.source)),
        "list": dataset.labelled_digest(),
    }
    write_text(
        trainer.output_dir / EVALUATION, json_text({**facts, **results}, indent=1, is_ascii=True) + "\n"
    )


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


def has_better_logits(logits: Array, earlier_logits: Array, labels: Array) -> bool:
    """True if logits are better than earlier ones; see ``is_better_score``."""
    score, earlier_score = (accuracy_and_loss(values, labels) for values in (logits, earlier_logits))
    return is_better_score(score, earlier_score, len(labels))


def is_better_score(score: tuple[float, float], earlier_score: tuple[float, float], count: int) -> bool:
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
    standard_error = math.sqrt(max(earlier_accuracy * (1 - earlier_accuracy), 1 / count) / count)
    is_clear = accuracy - earlier_accuracy > 2 * standard_error
    return is_clear or (accuracy >= earlier_accuracy and loss < earlier_loss)
