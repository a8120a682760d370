"""The stages of ``fit`` with weights: linear classifier, exit flow, all layers.

The photographs that choose compare each stage with the earlier ones. Its result is kept only if it is better.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
from paddle import nn

from ppxcls.build.start import start_processes
from ppxcls.checkpoints.files import State
from ppxcls.config.sections import Config
from ppxcls.data.list_index import ListIndex
from ppxcls.fitting.all_layers import USED_TIME_SHARE, AllLayers
from ppxcls.fitting.clock import Clock
from ppxcls.fitting.configs import config_of
from ppxcls.fitting.exit_flow import ExitFlowTraining
from ppxcls.fitting.feature_loader import feature_loader
from ppxcls.fitting.features import (
    FeatureComputer,
    Features,
    compute_features,
    network_parts,
    read_features,
    read_named_arrays,
    remove_features,
    write_named_arrays,
)
from ppxcls.fitting.imbalance import correction_of, stage_loss
from ppxcls.fitting.linear import LinearClassifier, accuracy_and_loss, chosen_problem
from ppxcls.fitting.photographs import TEST_LIST, TRAIN_LIST, VAL_LIST
from ppxcls.fitting.plan import Counts, Speeds, end_seconds, exit_flow_epochs, exit_flow_seconds
from ppxcls.fitting.progress import FitProgress
from ppxcls.fitting.request import Request
from ppxcls.fitting.result import state_of
from ppxcls.fitting.settings import Settings
from ppxcls.fitting.stage_results import (
    ALL_LAYERS,
    AS_IT_IS,
    EXIT_FLOW,
    LINEAR,
    SECOND_TRAINING,
    TOO_LITTLE_TIME,
    StageResults,
)
from ppxcls.fitting.yaml_files import LISTS, STAGES_FOLDER, TRAIN_YAML
from ppxcls.models.common_keys import MODELS
from ppxcls.models.weights import load_weights
from ppxcls.reports.result_files import FitStage
from ppxcls.system.logs import logger
from ppxcls.train.losses import CELoss

_CLASSIFIERS = "linear.npz"


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
        self._seed = int(self._config().Global.seed or 0)
        self._results = StageResults(request, progress)
        self._computer = computer

    def run(self) -> None:
        """Takes the stages.

        Raises:
            ConfigError: the device does not exist or can't compute.
            DataError, CheckpointError, TrainingError, OSError: a stage has failed.
        """
        start_processes(self._config())  # a continued command has built nothing yet that selects the device
        self._folder.mkdir(parents=True, exist_ok=True)
        if not self._is_done(LINEAR):
            self._linear_classifier()
            self._progress.finish(LINEAR)
        if not self._is_done(EXIT_FLOW):
            self._exit_flow()
            self._progress.finish(EXIT_FLOW)
        remove_features(self._folder)
        all_layers = AllLayers(
            self._request,
            self._progress,
            clock=self._clock,
            results=self._results,
            counts=self._counts,
            speeds=self._speeds,
        )
        if not self._is_done(ALL_LAYERS):
            all_layers.run()
            self._progress.finish(ALL_LAYERS)
        all_layers.remove_checkpoints()

    def _is_done(self, step: str) -> bool:
        return step in self._progress.finished_steps

    def _config(self, *overrides: str) -> Config:
        return config_of(self._request, self._request.output / TRAIN_YAML, overrides)

    # Shared by the stages

    def _feature_computer(self) -> FeatureComputer:
        """Returns the network with the weights to start from."""
        if self._computer is None:
            settings = self._progress.settings
            network = network_with_weights(self._config(), settings.weights)
            counts = self._counts
            self._computer = FeatureComputer(network, counts.train + counts.choose)
        return self._computer

    @cached_property
    def _counts(self) -> Counts:
        return counts_of(self._request.output / LISTS)

    @cached_property
    def _loss(self) -> CELoss:
        return stage_loss(self._config(), self._request.output / LISTS)

    def _features(self) -> Features:
        """Returns the features of the photographs that train and of those that choose, in this order."""
        features = read_features(self._folder)
        if features is not None:
            return features
        settings = self._progress.settings
        batch_size = self._feature_computer().images_at_once(settings.feature_size)
        loader = feature_loader(self._config, self._request.output / LISTS, batch_size)
        start = time.monotonic()
        features = compute_features(
            self._feature_computer(),
            loader,
            folder=self._folder,
            copies=settings.copies,
            keeps_activations=settings.keeps_activations,
        )
        seconds = time.monotonic() - start
        mirrored = " and their mirror images" if settings.copies > 1 else ""
        logger.info(
            f"features of {len(features.labels):,} photographs{mirrored} at {settings.feature_size} px: "
            f"{seconds:.0f} s"
        )
        return features

    # The stages

    def _linear_classifier(self) -> None:
        """Trains a linear classifier on the features."""
        start = time.monotonic()
        features = self._features()
        counts = self._counts
        class_num = self._progress.settings.class_num
        problem, choice = chosen_problem(
            features.pooled,
            features.labels,
            class_num=class_num,
            seed=self._seed,
            correction=correction_of(self._loss, class_num),
        )
        train_solution = problem.train(choice.strength, np.arange(counts.train))
        val_logits = problem.logits(train_solution, np.arange(counts.train, counts.train + counts.choose))
        train_classifier = problem.classifier(train_solution)
        classifier = problem.classifier(problem.train(choice.strength))
        self._write_classifiers(train_classifier, classifier)
        if note := features.precision_note(train_classifier.logits):
            logger.info(note)
        accuracy, loss = accuracy_and_loss(val_logits, features.labels[counts.train :])
        stage = FitStage(
            name=LINEAR,
            seconds=round(time.monotonic() - start, 1),
            size=self._progress.settings.feature_size,
            epochs=None,
            accuracy=accuracy,
            loss=loss,
            is_chosen=True,
            choice=str(choice),
        )
        held_out_state = self._state_with(train_classifier)
        state = self._state_with(classifier)
        self._results.take(stage, state, val_logits=val_logits, held_out_state=held_out_state)

    def _state_with(self, classifier: LinearClassifier) -> State:
        """Returns the weights of the network with a linear classifier."""
        network = self._feature_computer().network
        last_layer = network_parts(network).classifier
        last_layer.weight.set_value(classifier.weight)
        last_layer.bias.set_value(classifier.bias)
        return state_of(network)

    def _write_classifiers(self, train_classifier: LinearClassifier, classifier: LinearClassifier) -> None:
        """Writes the classifiers without the photographs that choose, and with them."""
        write_named_arrays(
            self._folder / _CLASSIFIERS,
            train_weight=train_classifier.weight,
            train_bias=train_classifier.bias,
            weight=classifier.weight,
            bias=classifier.bias,
        )

    def _read_classifiers(self) -> tuple[LinearClassifier, LinearClassifier]:
        arrays = read_named_arrays(self._folder / _CLASSIFIERS)
        train_classifier = LinearClassifier(arrays["train_weight"], arrays["train_bias"])
        return train_classifier, LinearClassifier(arrays["weight"], arrays["bias"])

    def _exit_flow(self) -> None:
        """Trains the exit flow without the photographs that choose; if that is better, with all of them."""
        settings = self._progress.settings
        if not settings.keeps_activations:
            return
        start = time.monotonic()
        features = self._features()
        if features.activations is None:
            return
        counts = self._counts
        train_classifier, classifier = self._read_classifiers()
        network = self._feature_computer().network
        self._computer = None  # its weights change
        training = ExitFlowTraining(network_parts(network), features, self._seed, self._loss)
        epochs = self._exit_epochs(training, train_classifier)
        if not epochs:
            logger.info(f"{EXIT_FLOW}: not trained, because there is too little time")
            return
        training_start = time.monotonic()
        training.train(np.arange(counts.train), train_classifier, epochs)
        training_seconds = time.monotonic() - training_start
        val_indices = np.arange(counts.train, counts.train + counts.choose)
        val_logits = training.logits(val_indices)
        score = accuracy_and_loss(val_logits, features.labels[val_indices])
        has_time = self._clock.has_time(training_seconds * counts.again_share, self._end_seconds())
        decision = self._results.decision(EXIT_FLOW, score, counts.choose, has_time=has_time)
        held_out_state = state_of(network) if decision else {}
        if decision == SECOND_TRAINING:
            training.train(np.arange(len(features.labels)), classifier, epochs)
        notes = ["batch norms keep their statistics", *([TOO_LITTLE_TIME] if decision == AS_IT_IS else [])]
        stage = FitStage(
            name=EXIT_FLOW,
            seconds=round(time.monotonic() - start, 1),
            size=settings.feature_size,
            epochs=epochs,
            accuracy=score[0],
            loss=score[1] if math.isfinite(score[1]) else None,
            is_chosen=decision is not None,
            choice="; ".join(notes),
        )
        if decision is None:
            self._results.add(stage)
            return
        self._results.take(
            stage,
            state_of(network),
            val_logits=val_logits,
            held_out_state=held_out_state,
            is_trained_again=decision == SECOND_TRAINING,
        )

    def _exit_epochs(self, training: ExitFlowTraining, classifier: LinearClassifier) -> int:
        """Returns the number of epochs that the time allows. A repeated stage trains as many as before."""
        settings = self._progress.settings
        if settings.exit_epochs:
            return settings.exit_epochs
        counts = self._counts
        seconds_per_image = training.seconds_per_photograph(classifier)
        seconds = USED_TIME_SHARE * (self._clock.left - self._end_seconds())
        epochs = exit_flow_epochs(seconds_per_image, counts, seconds)
        logger.info(
            f"{EXIT_FLOW}: {epochs} epochs in about "
            f"{exit_flow_seconds(seconds_per_image, counts, epochs) / 60:.2g} min, "
            f"with {max(seconds, 0) / 60:.2g} min left"
        )
        self._progress.settings = replace(settings, exit_epochs=epochs)
        self._progress.save()
        return epochs

    def _end_seconds(self) -> float:
        """Returns the time of the final evaluation and the report."""
        return end_seconds(self._counts, self._speeds, self._progress.settings.feature_size)

    @cached_property
    def _speeds(self) -> Speeds:
        return speeds_of(self._progress.settings)


def speeds_of(settings: Settings) -> Speeds:
    """Returns the times that were measured when the settings were chosen."""
    values = settings.speeds
    return Speeds(
        size=int(values["size"]),
        feature=values["feature"],
        exit_step=values["exit_step"],
        step=values["step"],
    )


def counts_of(lists: Path) -> Counts:
    """Returns the numbers of photographs of the lists in a folder."""
    numbers = [
        len(ListIndex(lists / name)) if (lists / name).is_file() else 0
        for name in (TRAIN_LIST, VAL_LIST, TEST_LIST)
    ]
    classes = int(ListIndex(lists / TRAIN_LIST).labels.max()) + 1
    return Counts(train=numbers[0], choose=numbers[1], judge=numbers[2], classes=classes)


def network_with_weights(config: Config, weights: str | None) -> nn.Layer:
    """Returns the network of a config in evaluation mode, with weights and a fresh classifier.

    The average of the weights (EMA) is used if the file is a checkpoint that has one.

    Raises:
        CheckpointError: the weights can't be used.
    """
    network: nn.Layer = MODELS.build(config.Arch)
    if weights:
        load_weights(network, weights, keep_trunk=True, average=True)
    network.eval()
    return network
