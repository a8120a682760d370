"""The stages of ``fit`` with weights: a linear classifier, and all layers.

The photographs that choose compare the second result with the first one. It is kept only if it is better.
"""

from __future__ import annotations

import time
from pathlib import Path

from ppxcls.build.start import start_processes
from ppxcls.data.list_index import ListIndex
from ppxcls.fitting.all_layers import AllLayers
from ppxcls.fitting.classifiers import LinearClassifiers
from ppxcls.fitting.clock import Clock
from ppxcls.fitting.configs import config_of
from ppxcls.fitting.features import FeatureComputer, remove_features
from ppxcls.fitting.photographs import TEST_LIST, TRAIN_LIST, VAL_LIST
from ppxcls.fitting.plan import Counts
from ppxcls.fitting.progress import FitProgress
from ppxcls.fitting.request import Request
from ppxcls.fitting.stage_results import ALL_LAYERS, LINEAR, StageResults
from ppxcls.fitting.yaml_files import LISTS, STAGES_FOLDER, TRAIN_YAML
from ppxcls.reports.result_files import FitStage


class Stages:
    """Takes the stages that are not done yet.

    Args:
        request: arguments of ``fit``.
        progress: progress, with settings for these stages.
        clock: time of the command.
        computer: compiled network with the weights to start from; None if there is none yet.
    """

    def __init__(
        self,
        request: Request,
        progress: FitProgress,
        clock: Clock,
        computer: FeatureComputer | None = None,
    ) -> None:
        self._request = request
        self._progress = progress
        self._clock = clock
        self._folder = request.output / STAGES_FOLDER
        self._yaml = request.output / TRAIN_YAML
        self._results = StageResults(request, progress)
        self._counts = counts_of(request.output / LISTS)
        self._classifiers = LinearClassifiers(request, progress, self._counts, computer)

    def run(self) -> None:
        """Takes the stages.

        Raises:
            ConfigError: the device does not exist or can't compute.
            DataError, CheckpointError, TrainingError, OSError: a stage has failed.
        """
        # A continued command has built nothing yet that selects the device.
        start_processes(config_of(self._request, self._yaml))
        self._folder.mkdir(parents=True, exist_ok=True)
        if not self._is_done(LINEAR):
            self._linear_classifier()
            self._progress.finish(LINEAR)
        all_layers = AllLayers(
            self._request,
            self._progress,
            clock=self._clock,
            results=self._results,
            counts=self._counts,
            classifiers=self._classifiers,
        )
        if not self._is_done(ALL_LAYERS):
            all_layers.run()
            self._progress.finish(ALL_LAYERS)
        all_layers.remove_checkpoints()
        if not (self._request.folds or self._request.whole):
            remove_features(self._folder)

    def _is_done(self, step: str) -> bool:
        return step in self._progress.finished_steps

    def _linear_classifier(self) -> None:
        """Trains a linear classifier on the features."""
        start = time.monotonic()
        pair = self._classifiers.pair()
        stage = FitStage(
            name=LINEAR,
            seconds=round(time.monotonic() - start, 1),
            size=self._progress.settings.feature_size,
            epochs=None,
            accuracy=pair.score[0],
            loss=pair.score[1],
            is_chosen=True,
            choice=str(pair.choice),
            mean_recall=pair.mean_recall,
        )
        held_out_state = self._classifiers.state_with(pair.held_out)
        state = self._classifiers.state_with(pair.whole)
        self._results.take(
            stage,
            state,
            val_logits=pair.val_logits,
            held_out_state=held_out_state,
            is_trained_again=self._request.whole is None,
        )


def counts_of(lists: Path) -> Counts:
    """Returns the numbers of photographs of the lists in a folder."""
    numbers = [
        len(ListIndex(lists / name)) if (lists / name).is_file() else 0
        for name in (TRAIN_LIST, VAL_LIST, TEST_LIST)
    ]
    classes = int(ListIndex(lists / TRAIN_LIST).labels.max()) + 1
    return Counts(train=numbers[0], choose=numbers[1], judge=numbers[2], classes=classes)
