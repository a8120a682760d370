"""Linear classifiers of the network's features: a result of their own, and a start for all layers."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from ppxcls.checkpoints.files import State
from ppxcls.config.sections import Config
from ppxcls.data.errors import DataError
from ppxcls.data.groups import GROUPS_FILE, read_groups
from ppxcls.data.list_index import ListIndex
from ppxcls.fitting.configs import config_of
from ppxcls.fitting.feature_loader import feature_loader
from ppxcls.fitting.features import (
    FeatureComputer,
    Features,
    compute_features,
    network_parts,
    network_with_weights,
    read_features,
)
from ppxcls.fitting.imbalance import correction_of, stage_loss
from ppxcls.fitting.linear import (
    LinearClassifier,
    StrengthChoice,
    accuracy_and_loss,
    chosen_problem,
    mean_recall,
)
from ppxcls.fitting.photographs import TRAIN_LIST, VAL_LIST
from ppxcls.fitting.plan import Counts
from ppxcls.fitting.progress import FitProgress
from ppxcls.fitting.request import Request
from ppxcls.fitting.result import Score, state_of
from ppxcls.fitting.yaml_files import LISTS, STAGES_FOLDER, TRAIN_YAML, train_yaml
from ppxcls.system.arrays import Array
from ppxcls.system.logs import logger
from ppxcls.train.losses import CELoss


def listed_paths(lists: Path) -> list[str]:
    """Returns the paths of the photographs that train and of those that choose, in the order of the features.

    Args:
        lists: folder of the lists.
    """
    indices = [ListIndex(lists / name) for name in (TRAIN_LIST, VAL_LIST)]
    return [index.path(i) for index in indices for i in range(len(index))]


def group_numbers(lists: Path) -> Array | None:
    """Returns the number of each photograph's group, int [N]; None if there are no groups.

    The photographs are those that train and those that choose, in the order of the features.

    Args:
        lists: folder of the lists.

    Raises:
        DataError: the file of the groups is damaged, or has no group of a photograph.
    """
    groups = read_groups(lists / GROUPS_FILE)
    if groups is None:
        return None
    names = [groups.get(path) for path in listed_paths(lists)]
    if missing_count := names.count(None):
        raise DataError(
            f"{lists / GROUPS_FILE}: expected a group of each photograph, {missing_count:,} have none"
        )
    return np.unique(np.array(names), return_inverse=True)[1]


@dataclass(frozen=True, kw_only=True)
class ClassifierPair:
    """Two linear classifiers of the same features, and what the first one tells of the held-out part.

    Attributes:
        held_out: classifier that was not trained on the photographs that choose.
        whole: classifier that was trained on these photographs too.
        val_logits: logits of the photographs that choose, by the first classifier.
        score: its accuracy and loss for these photographs.
        mean_recall: mean over the classes of its accuracy for these photographs.
        choice: how the strength was chosen.
    """

    held_out: LinearClassifier
    whole: LinearClassifier
    val_logits: Array
    score: Score
    mean_recall: float
    choice: StrengthChoice


class LinearClassifiers:
    """Trains linear classifiers of the features at the size of the evaluations in ``train.yaml``.

    Args:
        request: arguments of ``fit``.
        progress: progress of ``fit``.
        counts: numbers of photographs.
        computer: compiled network with the weights to start from; None if there is none yet.
    """

    def __init__(
        self,
        request: Request,
        progress: FitProgress,
        counts: Counts,
        computer: FeatureComputer | None = None,
    ) -> None:
        self._request = request
        self._progress = progress
        self._counts = counts
        self._computer = computer
        # A fold of a cross-validation takes the features of all photographs, which are computed once.
        whole = request.whole or request.output
        self._folder = whole / STAGES_FOLDER
        self._feature_lists = whole / LISTS

    def pair(self) -> ClassifierPair:
        """Trains the two classifiers, with one strength.

        If mirror images make them worse, ``train.yaml`` leaves them out too. In a fold of a cross-validation,
        the photographs that choose have no part in the strength, and there is no second classifier.

        Raises:
            DataError, CheckpointError, OSError: the features can't be computed or written.
        """
        features = self._features()
        counts, settings = self._counts, self._progress.settings
        is_fold = self._request.whole is not None
        known_photographs = slice(counts.train if is_fold else len(features.labels))
        groups = group_numbers(self._request.output / LISTS)
        problem, choice = chosen_problem(
            features.pooled[:, known_photographs],
            features.labels[known_photographs],
            class_num=settings.class_num,
            seed=int(self._config().Global.seed or 0),
            correction=correction_of(self._loss, settings.class_num),
            groups=None if groups is None else groups[known_photographs],
        )
        self._progress.settings = replace(settings, flips=not choice.has_worse_copies)
        yaml = train_yaml(self._progress.settings, self._request.photos, self._request.output)
        self._progress.write_yaml(self._request.output / TRAIN_YAML, yaml)
        solution = problem.train(choice.strength, np.arange(counts.train))
        val_labels = features.labels[counts.train :]
        held_out = problem.classifier(solution)
        if is_fold:
            val_logits = held_out.logits(features.pooled[0, counts.train :])
        else:
            val_logits = problem.logits(solution, np.arange(counts.train, counts.train + counts.choose))
        if note := features.precision_note(held_out.logits):
            logger.info(note)
        return ClassifierPair(
            held_out=held_out,
            whole=held_out if is_fold else problem.classifier(problem.train(choice.strength)),
            val_logits=val_logits,
            score=accuracy_and_loss(val_logits, val_labels),
            mean_recall=mean_recall(val_logits, val_labels),
            choice=choice,
        )

    def state_with(self, classifier: LinearClassifier) -> State:
        """Returns the weights to start from, with a linear classifier as the last layer."""
        network = self._feature_computer().network
        last_layer = network_parts(network).classifier
        last_layer.weight.set_value(classifier.weight)
        last_layer.bias.set_value(classifier.bias)
        return state_of(network)

    @cached_property
    def _loss(self) -> CELoss:
        return stage_loss(self._config(), self._request.output / LISTS)

    def _config(self, *overrides: str) -> Config:
        return config_of(self._request, self._request.output / TRAIN_YAML, overrides)

    def _feature_computer(self) -> FeatureComputer:
        if self._computer is None:
            network = network_with_weights(self._config(), self._progress.settings.weights)
            self._computer = FeatureComputer(network, self._counts.train + self._counts.choose)
        return self._computer

    def _features(self) -> Features:
        """Returns the features of the photographs that train and of those that choose, in this order."""
        features = self._computed_features()
        if self._request.whole is None:
            return features
        index_by_path = {path: i for i, path in enumerate(listed_paths(self._feature_lists))}
        paths = listed_paths(self._request.output / LISTS)
        return features.rows(np.array([index_by_path[path] for path in paths]))

    def _computed_features(self) -> Features:
        """Returns the features in the order of their lists. They are computed if there are none yet."""
        settings = self._progress.settings
        features = read_features(self._folder, settings.feature_size)
        if features is not None:
            return features
        computer = self._feature_computer()
        batch_size = computer.images_at_once(settings.feature_size)
        loader = feature_loader(self._config, self._feature_lists, batch_size)
        start = time.monotonic()
        features = compute_features(
            computer, loader, folder=self._folder, copies=settings.copies, size=settings.feature_size
        )
        seconds = time.monotonic() - start
        mirrored = " and their mirror images" if settings.copies > 1 else ""
        logger.info(
            f"features of {len(features.labels):,} photographs{mirrored} at {settings.feature_size} px: "
            f"{seconds:.0f} s"
        )
        return features
