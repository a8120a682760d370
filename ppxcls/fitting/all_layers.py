"""The last stage of ``fit`` with weights: all layers are trained by ``train.yaml``."""

from __future__ import annotations

import math
import os
import shutil
import time
from dataclasses import replace

import numpy as np
import paddle
from paddle import nn

from ppxcls.build.choices import network_classes, weights_for
from ppxcls.build.data import build_loader
from ppxcls.build.network import build_network
from ppxcls.calibration.temperature import fitted_temperature
from ppxcls.checkpoints.files import read_manifest
from ppxcls.config.sections import Config
from ppxcls.data.device import ModelInput
from ppxcls.fitting.classifiers import LinearClassifiers
from ppxcls.fitting.clock import Clock
from ppxcls.fitting.configs import config_of
from ppxcls.fitting.features import network_parts
from ppxcls.fitting.linear import accuracy_and_loss, mean_recall
from ppxcls.fitting.plan import (
    MAX_TUNING_EPOCHS,
    USED_TIME_SHARE,
    AllLayersChoice,
    Counts,
    Speeds,
    all_layers_choice,
    all_layers_seconds,
    end_seconds,
    min_tuning_epochs,
)
from ppxcls.fitting.progress import FitProgress, read_progress
from ppxcls.fitting.request import Request
from ppxcls.fitting.result import state_of, write_start
from ppxcls.fitting.stage_results import (
    ALL_LAYERS,
    AS_IT_IS,
    SECOND_TRAINING,
    TOO_LITTLE_TIME,
    StageResults,
    taken_decision,
)
from ppxcls.fitting.training import EpochLimits, Training
from ppxcls.fitting.yaml_files import (
    FEATURES_LIST,
    HELD_OUT_WEIGHTS,
    LISTS,
    STAGES_FOLDER,
    TRAIN_YAML,
    WHOLE_WEIGHTS,
    train_yaml,
)
from ppxcls.reports.result_files import FitStage
from ppxcls.system.arrays import Array
from ppxcls.system.json_text import json_text
from ppxcls.system.logs import logger

# Mean recall of the linear classifier from which all layers are not trained. The accuracy tells nothing if
# nearly all photographs are of one class.
_HIGH_RECALL = 0.99
_GOOD_RECALL = 0.95  # from which small images, or fewer photographs, are not tried
_FIRST_FOLDER, _SECOND_FOLDER = "all", "all_again"  # folders of the two trainings


class AllLayers:
    """Trains all layers without the photographs that choose; if that is better, with all of them.

    Args:
        request: arguments of ``fit``.
        progress: progress of ``fit``.
        clock: time of the command.
        results: results of the stages.
        counts: numbers of photographs.
        classifiers: linear classifiers to start from.
    """

    def __init__(
        self,
        request: Request,
        progress: FitProgress,
        *,
        clock: Clock,
        results: StageResults,
        counts: Counts,
        classifiers: LinearClassifiers,
    ) -> None:
        self._request = request
        self._progress = progress
        self._clock = clock
        self._results = results
        self._counts = counts
        speeds = progress.settings.speeds
        self._speeds = Speeds(size=int(speeds["size"]), feature=speeds["feature"], step=speeds["step"])
        self._classifiers = classifiers
        self._folder = request.output / STAGES_FOLDER
        self._yaml = request.output / TRAIN_YAML
        self._training = Training(request, progress, clock)

    def run(self) -> None:
        """Trains, if the time allows a few epochs, and takes the result if it is better.

        Raises:
            DataError, CheckpointError, TrainingError, OSError: the training has failed.
        """
        start = time.monotonic()
        if not self._is_planned():
            return
        self._write_starts()
        limits = EpochLimits(
            min_epochs=1,
            max_epochs=self._progress.settings.epochs if self._request.whole else MAX_TUNING_EPOCHS,
            end_seconds=self._end_seconds(),
            again_share=self._counts.again_share * self._progress.settings.trains_again,
        )
        overrides = [self._output(_FIRST_FOLDER)]
        epochs = self._training.run(ALL_LAYERS, self._yaml, overrides=overrides, limits=limits)
        best = read_manifest(self._config(*overrides).run_folder / "latest")["progress"]["best"]
        if not best:
            logger.warning(f"{ALL_LAYERS}: nothing was evaluated, so the earlier result stays")
            return
        network = self._trained_network(_FIRST_FOLDER, "best_model")
        val_logits, labels = self._val_logits(network)
        temperature = fitted_temperature(val_logits, labels)  # smoothed labels make the network less sure
        val_logits = val_logits / np.float32(temperature)
        score = accuracy_and_loss(val_logits, labels)
        has_time = self._clock.has_time(self._again_seconds(best["epoch"]), self._end_seconds())
        decision = self._results.decision(ALL_LAYERS, score, len(labels), has_time=has_time)
        if decision == SECOND_TRAINING:
            network = self._train_again(best["epoch"])
        _divide_logits(network, temperature)
        notes = [
            f"epoch {best['epoch']}",
            f"temperature {temperature:.3g}",
        ]
        if decision == AS_IT_IS and not self._request.whole:
            notes.append(TOO_LITTLE_TIME)
        stage = FitStage(
            name=ALL_LAYERS,
            seconds=round(time.monotonic() - start, 1),
            size=self._progress.settings.size,
            epochs=epochs,
            accuracy=score[0],
            loss=score[1] if math.isfinite(score[1]) else None,
            is_chosen=decision is not None,
            choice="; ".join(notes),
            mean_recall=mean_recall(val_logits, labels),
        )
        if decision is None:
            self._results.add(stage)
        else:
            self._results.take(
                stage, state_of(network), val_logits=val_logits, is_trained_again=decision == SECOND_TRAINING
            )

    def remove_checkpoints(self) -> None:
        """Removes the checkpoints of the trainings, which are several times as large as the result.

        It keeps the weights that ``train.yaml`` starts from.
        """
        for name in (_FIRST_FOLDER, _SECOND_FOLDER):
            shutil.rmtree(self._folder / name, ignore_errors=True)
        file = self._request.output / WHOLE_WEIGHTS
        for part in (file.with_suffix(".json"), file):
            part.unlink(missing_ok=True)

    def _is_planned(self) -> bool:
        """True if there is time for enough epochs. Writes their number and the image sizes to the YAML."""
        decided_step = f"{ALL_LAYERS} decided"
        if decided_step in self._progress.finished_steps:
            return True
        choice = self._choice_of_whole() if self._request.whole else self._own_choice()
        if choice is None:
            return False
        settings = replace(
            self._progress.settings,
            size=choice.size,
            feature_size=choice.size,
            epochs=choice.epochs,
            trains_again=choice.is_repeated,
        )
        self._progress.settings = settings
        self._progress.write_yaml(
            self._yaml, train_yaml(settings, self._request.photos, self._request.output)
        )
        self._progress.finish(decided_step)
        logger.info(
            f"{ALL_LAYERS}: {choice.epochs} epochs at {choice.size} px, with {self._seconds_left / 60:.2g} "
            "min left"
        )
        return True

    @property
    def _seconds_left(self) -> float:
        """Time for this stage, in seconds; negative if it is over."""
        return self._clock.left - self._end_seconds()

    def _choice_of_whole(self) -> AllLayersChoice | None:
        """Returns the size and the epochs of the fit of all photographs, for a fold of it.

        So the folds are trained like its result, whatever their clocks and their linear classifiers say.

        Returns:
            The choice; None if that result is the linear classifier.

        Raises:
            DataError: the progress of that fit is damaged.
        """
        whole = read_progress(self._request.whole, ()) if self._request.whole else None
        if whole is None or not taken_decision(ALL_LAYERS, whole):
            logger.info(
                f"{ALL_LAYERS}: not trained, because the result of all photographs is a linear classifier"
            )
            return None
        return AllLayersChoice(whole.settings.size, whole.settings.epochs, is_repeated=False)

    def _own_choice(self) -> AllLayersChoice | None:
        """Returns what the time allows; None if there is too little, or no need for this stage."""
        recall = self._results.recall_before(ALL_LAYERS)
        if recall >= _HIGH_RECALL:
            logger.info(
                f"{ALL_LAYERS}: not trained, because {recall:.1%} of those that choose are right, "
                "as a mean over the classes"
            )
            return None
        seconds_left = self._seconds_left
        choice = all_layers_choice(
            self._speeds, self._counts, USED_TIME_SHARE * seconds_left, is_good=recall >= _GOOD_RECALL
        )
        if choice.epochs:
            return choice
        stage_seconds = all_layers_seconds(
            self._speeds,
            self._counts,
            size=choice.size,
            epochs=min_tuning_epochs(self._counts),
            is_repeated=choice.is_repeated,
        )
        logger.info(
            f"{ALL_LAYERS}: not trained, because it takes {stage_seconds / 60:.2g} min at {choice.size} px, "
            f"with {max(seconds_left, 0) / 60:.2g} min left"
        )
        return None

    def _write_starts(self) -> None:
        """Writes the weights to start from. Their last layer is linear classifiers at the evaluated size."""
        step = f"{ALL_LAYERS} starts"
        if step in self._progress.finished_steps:
            return
        pair = self._classifiers.pair()
        config = self._config()
        mirrored = "with" if self._progress.settings.flips else "without"
        logger.info(
            f"{ALL_LAYERS}: starts from a linear classifier at {self._progress.settings.feature_size} px, "
            f"{pair.score[0]:.4f} of the photographs that choose; trained {mirrored} mirror images"
        )
        for name, classifier in ((HELD_OUT_WEIGHTS, pair.held_out), (WHOLE_WEIGHTS, pair.whole)):
            write_start(self._request.output / name, self._classifiers.state_with(classifier), config)
        self._progress.finish(step)

    def _end_seconds(self) -> float:
        """Returns the longest time of the final evaluation and the report."""
        return end_seconds(self._counts, self._speeds, self._speeds.size)

    def _again_seconds(self, epochs: int) -> float:
        """Returns the time of training again, with all photographs and without evaluations."""
        epoch_seconds = self._training.epoch_seconds
        if epoch_seconds is None:  # an earlier command has trained
            size = self._progress.settings.size
            epoch_seconds = self._counts.train * self._speeds.step * self._speeds.at(size)
        return epochs * epoch_seconds * self._counts.again_share

    def _train_again(self, epochs: int) -> nn.Layer:
        """Trains with all photographs but those that judge, as long as before."""
        list_file = os.path.abspath(self._request.output / LISTS / FEATURES_LIST)
        start = os.path.abspath(self._request.output / WHOLE_WEIGHTS)
        step = f"{ALL_LAYERS} again"
        if step not in self._progress.finished_steps:
            overrides = [
                self._output(_SECOND_FOLDER),
                f"DataLoader.Train.dataset.cls_label_path={json_text(list_file)}",
                f"Global.pretrained_model={json_text(start)}",
                "Global.eval_during_train=false",
                "Global.early_stop=null",  # it needs evaluations; the number of epochs is known already
            ]
            self._training.run(step, self._yaml, overrides=overrides, last_epoch=epochs)
            self._progress.finish(step)
        return self._trained_network(_SECOND_FOLDER, "latest")

    def _trained_network(self, name: str, checkpoint: str) -> nn.Layer:
        """Returns the network of one of the trainings in evaluation mode.

        Raises:
            CheckpointError: the checkpoint can't be used.
        """
        output = self._output(name)
        path = os.path.abspath(self._config(output).run_folder / checkpoint)
        config = self._config(output, f"Global.pretrained_model={json_text(path)}")
        network = build_network(config, "evaluate", weights_for(config, "evaluate"))
        network.eval()
        return network

    def _val_logits(self, network: nn.Layer) -> tuple[Array, Array]:
        """Returns logits of the photographs that choose, float32 [N, class_num], and their classes, [N]."""
        config = self._config()
        loader = build_loader(config, "Eval", network_classes(config, "train", None))
        to_input = ModelInput(loader.dataset.device_stage)
        logits = np.zeros((len(loader.dataset), self._progress.settings.class_num), np.float32)
        with paddle.no_grad():
            for batch in loader.epoch():
                logits[batch.plan.indices] = network(to_input(batch.images)).numpy()
        loader.close()
        return logits, np.asarray(loader.dataset.labels[: len(logits)], np.int64)

    def _output(self, name: str) -> str:
        """Returns the override of the output folder of one of the trainings."""
        return f"Global.output_dir={json_text(os.path.abspath(self._folder / name))}"

    def _config(self, *overrides: str) -> Config:
        return config_of(self._request, self._yaml, overrides)


def _divide_logits(network: nn.Layer, temperature: float) -> None:
    """Divides weight and bias of the classifier, and so the logits."""
    classifier = network_parts(network).classifier
    for parameter in (classifier.weight, classifier.bias):
        parameter.set_value(parameter.numpy() / np.float32(temperature))
