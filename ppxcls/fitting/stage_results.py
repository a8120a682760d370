"""The results of the stages of ``fit``: which of them are taken, and what they leave in the run's folder."""

from __future__ import annotations

import math
from pathlib import Path

from ppxcls.checkpoints.files import State
from ppxcls.config.sections import Config
from ppxcls.data.errors import DataError
from ppxcls.fitting.configs import config_of
from ppxcls.fitting.progress import FitProgress
from ppxcls.fitting.request import Request
from ppxcls.fitting.result import (
    Score,
    is_better_score,
    is_clearly_better_score,
    stage_line,
    write_result,
    write_stages,
    write_start,
)
from ppxcls.fitting.yaml_files import HELD_OUT_WEIGHTS, TRAIN_YAML, WITHOUT_WEIGHTS
from ppxcls.reports import STAGES
from ppxcls.reports.result_files import FitStage, read_stages
from ppxcls.system.arrays import Array
from ppxcls.system.logs import logger
from ppxcls.system.paths import short_path

LINEAR, ALL_LAYERS = "linear classifier", "all layers"
_ORDER = (LINEAR, ALL_LAYERS)
# Decisions about a stage that is taken.
SECOND_TRAINING, AS_IT_IS = "is trained again", "stays as it is"
TOO_LITTLE_TIME = "not trained on the photographs that choose, because there was too little time"
_NOTE_OF_SECOND_TRAINING = (
    "by weights that were not trained on these photographs; those of best_model were, after the choice"
)


def taken_decision(name: str, progress: FitProgress) -> str | None:
    """Returns the decision about a stage that was taken: ``SECOND_TRAINING`` or ``AS_IT_IS``; None otherwise.

    Args:
        name: name of the stage.
        progress: progress of ``fit``.
    """
    decisions = (SECOND_TRAINING, AS_IT_IS)
    return next((text for text in decisions if f"{name} {text}" in progress.finished_steps), None)


class StageResults:
    """Decides which stages are taken, and writes their results.

    Args:
        request: arguments of ``fit``.
        progress: progress of ``fit``.
    """

    def __init__(self, request: Request, progress: FitProgress) -> None:
        self._request = request
        self._progress = progress
        self.run_folder = Path(short_path(self._config().run_folder))

    def _config(self) -> Config:
        """Returns the present config of ``train.yaml``, without weights to start from."""
        # The stages have evaluated their results, whatever the last training does.
        overrides = [*WITHOUT_WEIGHTS, "Global.eval_during_train=true"]
        return config_of(self._request, self._request.output / TRAIN_YAML, overrides)

    def decision(self, name: str, score: Score, count: int, *, has_time: bool) -> str | None:
        """Decides about a stage: ``SECOND_TRAINING``, ``AS_IT_IS``, or None if the earlier result stays.

        Of two results of equal photographs, the better one is taken. If there is no time to train it again on
        all photographs, it knows fewer of them than the earlier result does. Then it must be clearly better.

        A stage that is repeated after a kill gets the same decision, because its files may be written. A fold
        of a cross-validation has a second stage only if that is the result of all photographs, so it is taken
        here too. It is not trained again, because only the predictions of held-out photographs are used.

        Args:
            name: name of the stage.
            score: accuracy and loss for the photographs that choose.
            count: number of these photographs.
            has_time: True if there is time to train it again.

        Raises:
            DataError: the records of the earlier stages are missing or damaged.
        """
        if earlier_decision := taken_decision(name, self._progress):
            return earlier_decision
        if self._request.whole:
            return self._taken(name, AS_IT_IS) if all(map(math.isfinite, score)) else None
        figure = self._config().Global.best_metric
        if figure not in (None, "top1"):
            logger.info(f"{figure} has chosen the epoch; accuracy and loss compare the stages")
        is_better = is_better_score if has_time else is_clearly_better_score
        if not is_better(score, self.score_before(name), count):
            return None
        return self._taken(name, SECOND_TRAINING if has_time else AS_IT_IS)

    def _taken(self, name: str, decision: str) -> str:
        """Records the decision about a stage that is taken, and returns it."""
        self._progress.finish(f"{name} {decision}")
        return decision

    def score_before(self, name: str) -> Score:
        """Returns accuracy and loss of the result before a stage."""
        stage = self._stage_before(name)
        assert stage.accuracy is not None
        assert stage.loss is not None
        return stage.accuracy, stage.loss

    def recall_before(self, name: str) -> float:
        """Returns the mean recall of the result before a stage; of an earlier version, its accuracy."""
        stage = self._stage_before(name)
        assert stage.accuracy is not None
        return stage.accuracy if stage.mean_recall is None else stage.mean_recall

    def _stage_before(self, name: str) -> FitStage:
        """Returns the record of the result before a stage, with accuracy and loss."""
        chosen_stages = [stage for stage in self._before(name) if stage.is_chosen]
        stage = chosen_stages[-1] if chosen_stages else None
        if stage is None or stage.accuracy is None or stage.loss is None:
            raise DataError(
                f"{self.run_folder / STAGES}: expected the results of the finished stages: "
                f"give another --output, or remove {self._request.output}"
            )
        return stage

    def _before(self, name: str) -> list[FitStage]:
        """Returns the records of the stages before a stage."""
        earlier_names = _ORDER[: _ORDER.index(name)]
        if not earlier_names:
            return []  # the folder may have the stages of another run
        content = read_stages(self.run_folder / STAGES)
        return [stage for stage in content.stages if stage.name in earlier_names] if content else []

    def take(
        self,
        stage: FitStage,
        state: State,
        *,
        val_logits: Array,
        held_out_state: State | None = None,
        is_trained_again: bool = True,
    ) -> None:
        """Writes a better result.

        Args:
            stage: record of the stage.
            state: weights of the result.
            val_logits: logits of the photographs that choose, by weights that were not trained on them.
            held_out_state: these weights, for the next stage to start from; None for the last stage.
            is_trained_again: True if the weights of the result were trained on these photographs.

        Raises:
            OSError: a file can't be written.
        """
        begun_step = f"{LINEAR} begun"  # the folder may have another run's files before it
        is_first = begun_step not in self._progress.finished_steps
        if is_first:
            self._progress.finish(begun_step)
        write_result(
            self._config(),
            state,
            epoch=len(self._before(stage.name)) + 1,
            val_logits=val_logits,
            is_first=is_first,
            note=_NOTE_OF_SECOND_TRAINING if is_trained_again else "",
        )
        if held_out_state is not None:
            write_start(self._request.output / HELD_OUT_WEIGHTS, held_out_state, self._config())
        self.add(stage)

    def add(self, stage: FitStage) -> None:
        """Adds the record of a stage.

        Raises:
            OSError: the file can't be written.
        """
        logger.info(stage_line(stage))
        write_stages(self.run_folder, [*self._before(stage.name), stage], self._progress.settings.plan)
