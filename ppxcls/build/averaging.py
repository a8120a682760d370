"""Averages the weights of a run's ``epoch_N`` checkpoints: the last ones, named ones, or a greedy choice."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from ppxcls.build.choices import Weights, class_names_for, network_classes
from ppxcls.build.data import build_loader
from ppxcls.build.evaluation import build_evaluation, check_choice
from ppxcls.build.losses import classes_for_losses, evaluation_loss
from ppxcls.build.network import build_network, mixed_precision
from ppxcls.build.start import required_section, start_job, start_terminal_log
from ppxcls.checkpoints.averaging import StateSum
from ppxcls.checkpoints.files import (
    AVERAGE,
    WEIGHTS,
    CheckpointError,
    State,
    parts_of,
    read_manifest,
    read_part,
    write_checkpoint,
)
from ppxcls.checkpoints.run_folder import AVERAGED, RunFolder
from ppxcls.config.load import load_config
from ppxcls.config.sections import Config
from ppxcls.data.device import ModelInput
from ppxcls.data.errors import DataError
from ppxcls.data.loader import Loader
from ppxcls.models.norm_statistics import batch_norms, estimate_statistics, statistics_of
from ppxcls.models.weights import set_weights
from ppxcls.system.environment import launched_world_size
from ppxcls.system.logs import logger
from ppxcls.train.evaluation import Evaluation
from ppxcls.train.precision import set_evaluation_precision
from ppxcls.train.run_log import format_results

DEFAULT_BATCHES = 100
_EPOCH_NAME = re.compile(r"epoch_(\d+)")
_MIN_CHECKPOINTS = 2
_MAX_SHOWN_NAMES = 5


@dataclass(frozen=True)
class AveragedWeights:
    """The result of ``average``.

    Attributes:
        path: prefix of its files, ``RUN/averaged``.
        names: names of the checkpoints in the mean.
        results: results of its evaluation; empty without ``DataLoader.Eval``.
        metric: name of the figure that chose the run's best model; empty if it is not known.
        best_value: this figure of ``best_model``; None if it is not known.
    """

    path: Path
    names: Sequence[str]
    results: dict[str, float]
    metric: str
    best_value: float | None


@dataclass(frozen=True)
class _Checkpoint:
    """A checkpoint of the run.

    Attributes:
        epoch: its epoch.
        prefix: prefix of its files.
        manifest: its manifest.
    """

    epoch: int
    prefix: Path
    manifest: dict[str, Any]

    @property
    def name(self) -> str:
        return self.prefix.name


def average(
    run: str | Path,
    *,
    last: int | None = None,
    epochs: Sequence[int] = (),
    greedy: bool = False,
    batches: int = DEFAULT_BATCHES,
    overrides: Sequence[str] = (),
    trust: bool = False,
) -> AveragedWeights:
    """Averages the weights of checkpoints ``epoch_N`` of a run, and writes ``averaged`` beside them.

    The weights are summed in float64, and written in their own number type. If all checkpoints have an
    average of the weights (EMA), the averages are averaged, unless ``EMA=null`` or ``EMA.use_ema=False`` is
    among the overrides. Batch norms get the statistics of training images, see ``estimate_statistics``. Those
    whose statistics are the same in all checkpoints are frozen, and keep them. The result is evaluated on
    ``DataLoader.Eval``. It replaces an earlier ``averaged``, and no other checkpoint.

    Args:
        run: run folder.
        last: number of the newest checkpoints to average, at least 2.
        epochs: epochs whose checkpoints are averaged, at least 2.
        greedy: True for a greedy soup (arXiv:2203.05482, recipe 1): all checkpoints are evaluated, and added
            in the order of their figures if the figure of the mean does not fall.
        batches: number of batches of training images for the batch norms, at most those of an epoch; 0 for
            the means of the checkpoints' statistics.
        overrides: config overrides ``A.b=value``.
        trust: True to run the plugins that the run names; see ``load_config``.

    Raises:
        ConfigError: the folder is not a run folder.
        DataError: not one of ``last``, ``epochs`` and ``greedy`` is given, there are too few checkpoints, no
            figure of a greedy choice is finite, or a data set can't be used.
        CheckpointError: a checkpoint is damaged, or the mean is not finite.
        RunFolderError: the run is still training.
        OSError: the result can't be written.
    """
    if (last is not None) + bool(epochs) + greedy != 1:
        raise DataError("expected one of --last, --epochs and --greedy")
    if batches < 0:
        raise DataError(f"--batches: expected at least 0, received {batches}")
    if launched_world_size() > 1:
        raise DataError("average runs in one process")
    config = load_config(run, list(overrides), trust=trust)
    folder = RunFolder(config.run_folder, safe=config.Global.weights_format == "safetensors")
    checkpoints = _selected(folder, last, set(epochs), config.Global.save_interval)
    if greedy:
        required_section(config, "DataLoader.Eval")
    start_terminal_log()
    start_job(config, folder)
    try:
        with contextlib.closing(_Averaging(config, checkpoints, batches)) as averaging:
            result = _written(folder, averaging, averaging.greedy() if greedy else averaging.all())
    finally:
        folder.release()
    return result


def _selected(folder: RunFolder, last: int | None, epochs: set[int], save_interval: int) -> list[_Checkpoint]:
    """Returns the checkpoints to average, the oldest first. Raises DataError if there are too few."""
    checkpoints = sorted(
        (
            _Checkpoint(int(match[1]), prefix, manifest)
            for prefix, manifest in folder.checkpoints()[0]
            if (match := _EPOCH_NAME.fullmatch(prefix.name))
        ),
        key=lambda checkpoint: checkpoint.epoch,
    )
    requested_count = max(last or 0, len(epochs), _MIN_CHECKPOINTS)
    for name, count in (("--last", last), ("--epochs", len(epochs) or None)):
        if count is not None and count < _MIN_CHECKPOINTS:
            raise DataError(f"{name}: expected at least {_MIN_CHECKPOINTS} checkpoints, received {count}")
    missing_epochs = sorted(epochs - {checkpoint.epoch for checkpoint in checkpoints})
    if len(checkpoints) < requested_count or missing_epochs:
        names = [checkpoint.name for checkpoint in checkpoints]
        missing_text = "".join(f", no epoch_{epoch}" for epoch in missing_epochs[:_MAX_SHOWN_NAMES])
        raise DataError(
            f"{folder.path}: expected {requested_count} checkpoints of epochs, received {_text(names)}"
            f"{missing_text}; the run keeps one in {save_interval:,} epochs (Global.save_interval)"
        )
    if epochs:
        return [checkpoint for checkpoint in checkpoints if checkpoint.epoch in epochs]
    return checkpoints[-last:] if last else checkpoints


def _text(names: Sequence[str]) -> str:
    if not names:
        return "none"
    more = ", ..." if len(names) > _MAX_SHOWN_NAMES else ""
    return f"{len(names)} ({', '.join(names[:_MAX_SHOWN_NAMES])}{more})"


@dataclass(frozen=True)
class _Mean:
    """A mean of checkpoints.

    Attributes:
        checkpoints: checkpoints in the mean.
        state: its weights, by state key.
        results: results of its evaluation; empty without evaluation.
        batch_count: number of batches that its batch norms have seen.
    """

    checkpoints: list[_Checkpoint]
    state: State
    results: dict[str, float]
    batch_count: int = 0


class _Averaging:
    """Computes means, and evaluates them.

    Args:
        config: config of the run.
        checkpoints: checkpoints to choose from, the oldest first.
        batches: number of batches of training images for the batch norms.
    """

    def __init__(self, config: Config, checkpoints: Sequence[_Checkpoint], batches: int) -> None:
        self._checkpoints = list(checkpoints)
        self._part = _part_to_average(config, checkpoints)
        newest = self._checkpoints[-1]
        weights = Weights(str(newest.prefix), average=self._part == AVERAGE, is_own=False, note="")
        classes = network_classes(config, "evaluate", weights)
        self._network = build_network(config, "evaluate", weights)
        self._norms = batch_norms(self._network)
        self._batches = batches
        self._evaluation: Evaluation | None = None
        if config.DataLoader and config.DataLoader.Eval:
            names = class_names_for(config, "evaluate", weights)
            loss = evaluation_loss(config, classes_for_losses(config, classes, names))
            self._evaluation = build_evaluation(config, classes, names=names, loss=loss)
            check_choice(config, self._evaluation)
            # A network of its own, because the statistics of batch norms are estimated in float32.
            self._evaluated_network = set_evaluation_precision(
                mixed_precision(config.AMP), build_network(config, "evaluate", weights)
            )
        self._loader: Loader | None = None
        if batches and self._norms:
            required_section(config, "DataLoader.Train")
            self._loader = build_loader(config, "Train", classes)
        self._first_statistics: State = {}
        self._changed_norms: set[str] = set()

    @property
    def has_averages(self) -> bool:
        """True if averages of the weights (EMA) are averaged."""
        return self._part == AVERAGE

    def all(self) -> _Mean:
        """Returns the mean of all checkpoints."""
        first, *later_checkpoints = self._checkpoints
        total = StateSum.of(self._read(first))
        for checkpoint in later_checkpoints:
            total = total.plus(self._read(checkpoint), checkpoint.prefix)
        return self._mean(total, self._checkpoints)

    def greedy(self) -> _Mean:
        """Returns the greedy soup of the checkpoints."""
        results_by_epoch: dict[int, dict[str, float]] = {}
        for checkpoint in self._checkpoints:
            results = self._evaluated(self._read(checkpoint), checkpoint)
            results_by_epoch[checkpoint.epoch] = results
            logger.info(f"{checkpoint.name}: {format_results(results)}")
        best, *candidates = sorted(  # the newest first of those with equal figures
            self._checkpoints,
            key=lambda checkpoint: (self._rank(results_by_epoch[checkpoint.epoch]), checkpoint.epoch),
            reverse=True,
        )
        if self._rank(results_by_epoch[best.epoch]) == -math.inf:
            raise DataError(f"--greedy: expected a checkpoint whose {self.metric} is finite, received none")
        soup = _Mean([best], self._read(best), results_by_epoch[best.epoch])
        total = StateSum.of(soup.state)
        for checkpoint in candidates:
            candidate_total = total.plus(self._read(checkpoint), checkpoint.prefix)
            candidate = self._mean(candidate_total, [*soup.checkpoints, checkpoint])
            is_added = self._rank(candidate.results) >= self._rank(soup.results)
            verdict = "added" if is_added else "not added"
            logger.info(f"with {checkpoint.name}: {format_results(candidate.results)}: {verdict}")
            if is_added:
                soup, total = candidate, candidate_total
        return soup

    def close(self) -> None:
        """Ends the loader processes."""
        for loader in (self._loader, self._evaluation.loader if self._evaluation else None):
            if loader:
                loader.close()

    @property
    def metric(self) -> str:
        """The name of the figure that chooses the best model; empty without evaluation."""
        return self._evaluation.deciding_figure if self._evaluation else ""

    def progress(self, mean: _Mean) -> dict[str, Any]:
        """Returns the progress for the manifest of a mean: that of its newest checkpoint, and its figures."""
        newest = max(mean.checkpoints, key=lambda checkpoint: checkpoint.epoch)
        best: dict[str, Any] = {}
        if self._evaluation:
            value, loss = mean.results[self.metric], mean.results[self._evaluation.loss_name]
            best = {"metric": self.metric, "value": value, "epoch": newest.epoch, "loss": loss}
        return {**newest.manifest["progress"], "best": best}

    def _rank(self, results: dict[str, float]) -> float:
        """Returns a number that is larger for a better evaluation."""
        assert self._evaluation
        value = results[self.metric]
        if not math.isfinite(value):
            return -math.inf
        return value if self._evaluation.larger_is_better(self.metric) else -value

    def _read(self, checkpoint: _Checkpoint) -> State:
        """Reads the weights of a checkpoint, and notes which batch norms differ between checkpoints."""
        state = read_part(checkpoint.prefix, checkpoint.manifest, self._part)
        for name in self._norms:
            for key in _statistics_keys(name):
                statistic = np.asarray(state.get(key))
                if not np.array_equal(self._first_statistics.setdefault(key, statistic), statistic):
                    self._changed_norms.add(name)
        return state

    def _mean(self, total: StateSum, checkpoints: list[_Checkpoint]) -> _Mean:
        """Returns an evaluated mean with new statistics of its batch norms."""
        state = total.mean()
        set_weights(self._network, state, checkpoints[-1].prefix)
        norms = {name: norm for name, norm in self._norms.items() if name in self._changed_norms}
        count = 0
        if norms and self._loader:
            inputs = self._training_inputs(self._loader)
            count = estimate_statistics(self._network, inputs, list(norms.values()))
            for name, norm in norms.items():
                for key, statistic in zip(_statistics_keys(name), statistics_of(norm), strict=True):
                    state[key] = statistic.astype(state[key].dtype)
        return _Mean(checkpoints, state, self._evaluated(state, checkpoints[-1]), count)

    def _training_inputs(self, loader: Loader) -> Iterator[paddle.Tensor]:
        """Yields batches of training images of equal size, in the order of the newest checkpoint's epoch."""
        to_input = ModelInput(loader.dataset.device_stage)
        size = 0
        for batch in islice(loader.epoch(self._checkpoints[-1].epoch), self._batches):
            size = size or len(batch.images)
            if len(batch.images) == size:
                yield to_input(batch.images)

    def _evaluated(self, state: State, checkpoint: _Checkpoint) -> dict[str, float]:
        if self._evaluation is None:
            return {}
        set_weights(self._evaluated_network, state, checkpoint.prefix)
        return self._evaluation(self._evaluated_network, self._evaluation.loader.epoch())


def _statistics_keys(norm: str) -> tuple[str, str]:
    return f"{norm}._mean", f"{norm}._variance"


def _part_to_average(config: Config, checkpoints: Sequence[_Checkpoint]) -> str:
    """Returns the part of the checkpoints that is averaged: EMA if all of them have it, or the weights."""
    wants_average = config.EMA.use_ema if config.EMA else not config.is_override("EMA")
    has_average = all(AVERAGE in parts_of(checkpoint.manifest) for checkpoint in checkpoints)
    return AVERAGE if wants_average and has_average else WEIGHTS


def _written(folder: RunFolder, averaging: _Averaging, mean: _Mean) -> AveragedWeights:
    """Writes a mean with its manifest, and returns what was written."""
    checkpoints = sorted(mean.checkpoints, key=lambda checkpoint: checkpoint.epoch)
    names = [checkpoint.name for checkpoint in checkpoints]
    kept_facts = {
        key: value for key, value in checkpoints[-1].manifest.items() if key not in ("format", "parts")
    }
    facts = {"averaged_from": names, "norm_batches": mean.batch_count, "progress": averaging.progress(mean)}
    path = folder.path / AVERAGED
    write_checkpoint([path], {WEIGHTS: mean.state}, manifest={**kept_facts, **facts}, safe=folder.safe)
    kind = "averages of the weights (EMA)" if averaging.has_averages else "weights"
    text = f"{kind} of {', '.join(names)}, batch norms by {mean.batch_count} batches of training images"
    logger.info(f"{path}: {text}" + (f": {format_results(mean.results)}" if mean.results else ""))
    metric = averaging.metric
    best_value = None
    with contextlib.suppress(CheckpointError):
        best = read_manifest(folder.path / "best_model")["progress"].get("best", {})
        best_value = best.get("value") if best.get("metric") == metric else None
    return AveragedWeights(path, names, mean.results, metric, best_value)
