"""The stages of ``fit`` with weights: linear classifier, exit flow, all layers.

Each stage is judged by the photographs that choose. Its result is kept only if it is better.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from paddle import nn

from ppxcls.build.evaluation import evaluate
from ppxcls.checkpoints.files import State, read_manifest, read_state, write_state
from ppxcls.config.load import load_config
from ppxcls.config.sections import Config
from ppxcls.data.list_index import ListIndex
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
from ppxcls.fitting.linear import LinearClassifier, accuracy_and_loss, chosen_problem
from ppxcls.fitting.photographs import TEST_LIST, TRAIN_LIST, VAL_LIST
from ppxcls.fitting.plan import (
    MAX_TUNING_EPOCHS,
    Counts,
    Speeds,
    all_layers_choice,
    exit_flow_epochs,
    exit_flow_seconds,
    remaining_seconds,
)
from ppxcls.fitting.progress import FitProgress
from ppxcls.fitting.request import Request
from ppxcls.fitting.result import (
    StageRecord,
    has_better_logits,
    is_better_score,
    read_stage_records,
    state_of,
    write_result,
    write_stages,
)
from ppxcls.fitting.settings import Settings
from ppxcls.fitting.training import EpochLimits, Training
from ppxcls.fitting.yaml_files import HELD_OUT_WEIGHTS, LISTS, NO_WEIGHTS, TRAIN_YAML, train_yaml
from ppxcls.models.common_keys import MODELS
from ppxcls.models.weights import load_weights, weights_file
from ppxcls.system.arrays import Array
from ppxcls.system.json_text import json_text
from ppxcls.system.logs import logger
from ppxcls.system.paths import short_path

LINEAR, EXIT_FLOW, ALL_LAYERS = "linear classifier", "exit flow", "all layers"
_STAGES = "stages"  # folder of intermediate results, in the output folder
_RESULT, _CLASSIFIERS = "held_out.npz", "linear.npz"
_ALL = "all"
_USED_TIME_SHARE = 0.9  # of the time that is left; measured times are of a few steps


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
        self._folder = request.output / _STAGES
        self._yaml = request.output / TRAIN_YAML
        self._seed = int(self._config().Global.seed or 0)
        self._run_folder = Path(short_path(self._config().run_folder))
        self._computer = computer
        self._speeds: Speeds | None = None

    def run(self) -> None:
        """Takes the stages.

        Raises:
            DataError, CheckpointError, TrainingError, OSError: a stage has failed.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        if not self._is_done(LINEAR):
            self._linear_classifier()
            self._finish(LINEAR)
        if not self._is_done(EXIT_FLOW):
            self._exit_flow()
            self._finish(EXIT_FLOW)
        remove_features(self._folder)
        if not self._is_done(ALL_LAYERS):
            self._all_layers()
            self._finish(ALL_LAYERS)

    def _is_done(self, step: str) -> bool:
        return step in self._progress.finished_steps

    def _finish(self, step: str) -> None:
        self._progress.used_seconds = self._clock.used
        self._progress.finish(step)

    def _config(self, *overrides: str) -> Config:
        return config_of(self._request, self._yaml, overrides)

    # Shared by the stages

    def _feature_computer(self) -> FeatureComputer:
        """Returns the network with the weights to start from."""
        if self._computer is None:
            settings = self._progress.settings
            network = network_with_weights(self._config(), settings.weights)
            counts = self._counts()
            self._computer = FeatureComputer(network, counts.train + counts.choose)
        return self._computer

    def _counts(self) -> Counts:
        return counts_of(self._request.output / LISTS)

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

    def _take(self, stage: StageRecord, state: State, *, held_out_state: State, val_logits: Array) -> None:
        """Writes a better result."""
        self._folder.mkdir(parents=True, exist_ok=True)
        write_state(self._request.output / HELD_OUT_WEIGHTS, held_out_state)
        write_named_arrays(self._folder / _RESULT, logits=val_logits)
        earlier_stages = [earlier for earlier in self._stages() if earlier.name != stage.name]
        begun_step = f"{LINEAR} begun"  # the folder may have another run's files before it
        is_first = not self._is_done(begun_step)
        if is_first:
            earlier_stages = []
            self._progress.finish(begun_step)
        write_result(
            self._config(*NO_WEIGHTS),
            state,
            epoch=len(earlier_stages) + 1,
            val_logits=val_logits,
            is_first=is_first,
            note=_NOTE,
        )
        self._add_stage(stage, earlier_stages)

    def _stages(self) -> list[StageRecord]:
        return read_stage_records(self._run_folder)

    def _add_stage(self, stage: StageRecord, earlier_stages: list[StageRecord]) -> None:
        logger.info(str(stage))
        write_stages(self._run_folder, [*earlier_stages, stage], self._progress.settings.plan)

    def _held_out_logits(self) -> Array:
        return read_named_arrays(self._folder / _RESULT)["logits"]

    # The stages

    def _linear_classifier(self) -> None:
        """Trains a linear classifier on the features."""
        start = time.monotonic()
        features = self._features()
        counts = self._counts()
        class_num = self._progress.settings.class_num
        problem, choice = chosen_problem(features.pooled, features.labels, class_num, self._seed)
        train_indices = np.arange(counts.train)
        held_out = problem.train(choice.strength, train_indices)
        val_logits = problem.logits(held_out, np.arange(counts.train, counts.train + counts.choose))
        classifier = problem.classifier(problem.train(choice.strength))
        self._write_classifiers(problem.classifier(held_out), classifier)
        if note := features.precision_note(problem.classifier(held_out).logits):
            logger.info(note)
        accuracy, loss = accuracy_and_loss(val_logits, features.labels[counts.train :])
        stage = StageRecord(
            name=LINEAR,
            seconds=round(time.monotonic() - start, 1),
            size=self._progress.settings.feature_size,
            epochs=None,
            accuracy=accuracy,
            loss=loss,
            is_chosen=True,
            choice=str(choice),
        )
        held_out_state = self._state_with(problem.classifier(held_out))
        self._take(stage, self._state_with(classifier), held_out_state=held_out_state, val_logits=val_logits)

    def _state_with(self, classifier: LinearClassifier) -> State:
        """Returns the weights of the network with a linear classifier."""
        network = self._feature_computer().network
        last_layer = network_parts(network).classifier
        last_layer.weight.set_value(classifier.weight)
        last_layer.bias.set_value(classifier.bias)
        return state_of(network)

    def _write_classifiers(self, held_out: LinearClassifier, classifier: LinearClassifier) -> None:
        write_named_arrays(
            self._folder / _CLASSIFIERS,
            held_out_weight=held_out.weight,
            held_out_bias=held_out.bias,
            weight=classifier.weight,
            bias=classifier.bias,
        )

    def _read_classifiers(self) -> tuple[LinearClassifier, LinearClassifier]:
        arrays = read_named_arrays(self._folder / _CLASSIFIERS)
        held_out = LinearClassifier(arrays["held_out_weight"], arrays["held_out_bias"])
        return held_out, LinearClassifier(arrays["weight"], arrays["bias"])

    def _exit_flow(self) -> None:
        """Trains the exit flow without the photographs that choose; if that is better, with all of them."""
        settings = self._progress.settings
        if not settings.keeps_activations:
            return
        start = time.monotonic()
        features = self._features()
        if features.activations is None:
            return
        counts = self._counts()
        held_out, classifier = self._read_classifiers()
        network = self._feature_computer().network
        self._computer = None  # its weights change
        training = ExitFlowTraining(network_parts(network), features, self._seed)
        seconds_per_image = training.seconds_per_photograph(held_out)
        epochs = settings.exit_epochs or self._exit_epochs(seconds_per_image)
        if not epochs:
            logger.info(f"{EXIT_FLOW}: not trained, because there is too little time")
            return
        if not settings.exit_epochs:
            self._progress.settings = replace(settings, exit_epochs=epochs)
            self._progress.save()
        val_indices = np.arange(counts.train, counts.train + counts.choose)
        training.train(np.arange(counts.train), held_out, epochs)
        val_logits = training.logits(val_indices)
        labels = features.labels[val_indices]
        is_chosen = has_better_logits(val_logits, self._held_out_logits(), labels)
        held_out_state = state_of(network) if is_chosen else {}
        if is_chosen:
            training.train(np.arange(len(features.labels)), classifier, epochs)
        accuracy, loss = accuracy_and_loss(val_logits, labels)
        stage = StageRecord(
            name=EXIT_FLOW,
            seconds=round(time.monotonic() - start, 1),
            size=settings.feature_size,
            epochs=epochs,
            accuracy=accuracy,
            loss=loss,
            is_chosen=is_chosen,
            choice="batch norms keep their statistics",
        )
        if is_chosen:
            self._take(stage, state_of(network), held_out_state=held_out_state, val_logits=val_logits)
        else:
            self._add_stage(stage, self._stages())

    def _exit_epochs(self, seconds_per_image: float) -> int:
        """Returns the number of epochs that the time allows."""
        counts = self._counts()
        seconds = _USED_TIME_SHARE * (self._clock.left - self._end_seconds())
        epochs = exit_flow_epochs(seconds_per_image, counts, seconds)
        logger.info(
            f"{EXIT_FLOW}: {epochs} epochs in about "
            f"{exit_flow_seconds(seconds_per_image, counts, epochs) / 60:.2g} min, "
            f"with {max(seconds, 0) / 60:.2g} min left"
        )
        return epochs

    def _end_seconds(self) -> float:
        """Returns the time of the final evaluation and the report."""
        return -remaining_seconds(0.0, self._counts(), self._measured(), self._progress.settings.feature_size)

    def _measured(self) -> Speeds:
        if self._speeds is None:
            self._speeds = speeds_of(self._progress.settings)
        return self._speeds

    def _all_layers(self) -> None:
        """Trains all layers with ``train.yaml``, if the time allows a few epochs."""
        decided_step = f"{ALL_LAYERS} decided"
        start = time.monotonic()
        if not self._is_done(decided_step):
            seconds = _USED_TIME_SHARE * (self._clock.left - self._end_seconds())
            size, epochs = all_layers_choice(self._measured(), self._counts(), seconds)
            if not epochs:
                return
            self._progress.settings = replace(self._progress.settings, size=size, epochs=epochs)
            self._progress.write_yaml(
                self._yaml, train_yaml(self._progress.settings, self._request.photos, self._request.output)
            )
            self._progress.finish(decided_step)
        folder = self._train_all_layers()
        self._judge_all_layers(folder, time.monotonic() - start)

    def _train_all_layers(self) -> Path:
        """Trains all layers in a folder of their own, and returns the folder of the run."""
        output = f"Global.output_dir={json_text(os.path.abspath(self._folder / _ALL))}"
        limits = EpochLimits(min_epochs=1, max_epochs=MAX_TUNING_EPOCHS, end_seconds=self._end_seconds())
        Training(self._request, self._progress, self._clock).run(
            ALL_LAYERS, self._yaml, overrides=[output], limits=limits
        )
        return self._config(output).run_folder

    def _judge_all_layers(self, folder: Path, seconds: float) -> None:
        """Takes the best epoch of the training of all layers, if it is better than the earlier stages."""
        best = read_manifest(folder / "best_model")["progress"]["best"]
        if not best:
            logger.warning(f"{ALL_LAYERS}: nothing was evaluated, so the earlier result stays")
            return
        labels = np.asarray(ListIndex(self._request.output / LISTS / VAL_LIST).labels)
        accuracy, loss = accuracy_and_loss(self._held_out_logits(), labels)
        is_chosen = is_better_score((best["value"], best["loss"]), (accuracy, loss), len(labels))
        settings = self._progress.settings
        stage = StageRecord(
            name=ALL_LAYERS,
            seconds=round(seconds, 1),
            size=settings.size,
            epochs=settings.epochs,
            accuracy=best["value"],
            loss=best["loss"],
            is_chosen=is_chosen,
            choice=f"epoch {best['epoch']}",
        )
        earlier_stages = self._stages()
        if is_chosen:
            write_result(
                self._config(*NO_WEIGHTS),
                read_state(weights_file(folder / "best_model")),
                epoch=len(earlier_stages) + 1,
                is_first=False,
                score=(best["value"], best["loss"]),
            )
            evaluate(load_config(self._run_folder, trust=self._request.trust))
        self._add_stage(stage, earlier_stages)


_NOTE = "by weights that were not trained on these photographs; those of best_model were, after the choice"


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
    return Counts(train=numbers[0], choose=numbers[1], judge=numbers[2])


def network_with_weights(config: Config, weights: str | None) -> nn.Layer:
    """Returns the network of a config in evaluation mode, with weights and a fresh classifier.

    Raises:
        CheckpointError: the weights can't be used.
    """
    network: nn.Layer = MODELS.build(config.Arch)
    if weights:
        load_weights(network, weights, keep_trunk=True)
    network.eval()
    return network
