"""Searches for the values of keys by trainings: ``ppxcls tune``."""

from __future__ import annotations

import contextlib
import hashlib
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ppxcls.build.start import start_terminal_log
from ppxcls.config.checks import ConfigError
from ppxcls.config.load import load_config
from ppxcls.config.sections import Config
from ppxcls.data.errors import DataError
from ppxcls.reports.study_file import (
    COMPLETE,
    FAILED,
    IN_PROGRESS,
    PRUNED,
    Study,
    Trial,
    trial_folder,
    write_study,
)
from ppxcls.system.appended_files import make_own_folder
from ppxcls.system.atomic_files import write_text
from ppxcls.system.file_lock import LockedError, locked
from ppxcls.system.json_text import json_text
from ppxcls.system.logs import logger
from ppxcls.system.paths import printable
from ppxcls.system.signals import EXIT_PREEMPTED, Preempted, StopSignals
from ppxcls.system.supervisor import launch_command
from ppxcls.train import METRICS_FILE
from ppxcls.train.loss_watch import TrainingError
from ppxcls.tuning import trial_process
from ppxcls.tuning.search_range import SearchRange, parse_ranges
from ppxcls.tuning.study_checks import check_request, check_values, continued_study
from ppxcls.tuning.suggestions import Suggestion, require_optuna

STUDY_FOLDER = "tune"  # in Global.output_dir
BASE_CONFIG, BEST_CONFIG, OUTPUT, _LOCK = "study.yaml", "best.yaml", "output.log", "tune.lock"
_PROGRAM = str(Path(__file__).resolve().parents[1] / "__main__.py")
_ADVICE = "the same command continues the study"
_RESUME = "Global.checkpoints=auto"
_NO_OTHER_CHECKPOINTS = 1_000_000  # epochs; a trial keeps latest and best_model only
_WARMUP_SHARE = 5  # of the epochs, the first one in so many ends no trial
_WAIT_SECONDS = 120.0  # time for the process of a killed study to save and end


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """The result of a search.

    Attributes:
        folder: folder of the study.
        metric: figure that was compared.
        trial: number of the best trial, from 1.
        figure: its best figure.
        overrides: overrides that give the best values to the keys.
        run: folder of its run.
        config: config with the best values.
        counts: number of trials by state.
    """

    folder: Path
    metric: str
    trial: int
    figure: float
    overrides: list[str]
    run: Path
    config: Path
    counts: dict[str, int]


@dataclass(kw_only=True)
class _Search:
    """A search in progress.

    Attributes:
        file: YAML of the study, with the overrides of the command. The user's YAML is not read again, because
            it may be edited while the study runs.
        overrides: overrides of the command. They are given again to each trial, because some keys mean more
            on a command line.
        ranges: ranges of the searched keys.
        folder: folder of the study.
        study: its trials.
        launcher: options of Paddle's launcher; empty for one process.
        is_pruned: False to end no trial early.
        has_trust: True to run the plugins that the file names.
        end_time: time on the monotonic clock at which the search ends.
    """

    file: Path
    overrides: Sequence[str]
    ranges: list[SearchRange]
    folder: Path
    study: Study
    launcher: Sequence[str]
    is_pruned: bool
    has_trust: bool
    end_time: float
    signals: StopSignals = field(default_factory=StopSignals)

    def overrides_of(self, parameters: Mapping[str, float]) -> list[str]:
        """Returns the overrides that give a trial's values to the keys."""
        return [item.override(parameters[item.key]) for item in self.ranges]

    def config_of(self, parameters: Mapping[str, float], *more_overrides: str) -> Config:
        """Returns the config of a trial."""
        overrides = [*self.overrides, *self.overrides_of(parameters), *more_overrides]
        return load_config(self.file, overrides, trust=self.has_trust)


def tune(
    config: str | Path,
    ranges: Sequence[str],
    *,
    trials: int = 20,
    hours: float | None = None,
    output: str | Path | None = None,
    overrides: Sequence[str] = (),
    launcher: Sequence[str] = (),
    seed: int = 0,
    prune: bool = True,
    trust: bool = False,
) -> Tuned:
    """Searches for the best values of keys. Each trial is a training in a process and a folder of its own.

    Optuna's TPE sampler (NeurIPS 2011) chooses the values. A trial whose best figure is below the median of
    the others at the same epoch is ended early. The figure is that of ``Global.best_metric``. The same call
    continues a study that was interrupted.

    Args:
        config: YAML file or run folder.
        ranges: ``KEY=RANGE`` texts with ``loguniform(a,b)``, ``uniform(a,b)``, ``int(a,b)`` or
            ``choice(x,y,...)``.
        trials: number of trials of the whole study.
        hours: hours after which this call saves the running trial and ends; None for no limit.
        output: folder of the study; None for ``tune`` in ``Global.output_dir``.
        overrides: config overrides ``A.b=value`` of all trials.
        launcher: options of ``paddle.distributed.launch``, to run each trial in several processes.
        seed: seed of the search. The trainings have that of ``Global.seed``.
        prune: False to end no trial early.
        trust: True to run the plugins that the file names; see ``load_config``.

    Raises:
        ConfigError: a range or a value in it is invalid, nothing is evaluated, or Optuna is not installed.
        DataError: the folder belongs to another search, or another process uses it.
        TrainingError: no trial is complete.
        Preempted: a signal stopped the search after the running trial has saved.
        OSError: a file can't be written.
    """
    start_time = time.monotonic()
    search_ranges = parse_ranges(ranges)
    check_request(trials, hours=hours, seed=seed)
    base_config = load_config(config, overrides, trust=trust)
    figure = check_values(config, search_ranges, overrides=overrides, base_config=base_config, trust=trust)
    require_optuna()
    start_terminal_log()
    folder = Path(output) if output is not None else Path(base_config.Global.output_dir) / STUDY_FOLDER
    text = base_config.to_yaml(is_run=True, has_absolute_paths=True)
    study = Study(
        *figure,
        seed=seed,
        ranges={item.key: item.text for item in search_ranges},
        config=hashlib.sha256(text.encode()).hexdigest(),
    )
    make_own_folder(folder)
    with _only_study_in(folder):
        search = _Search(
            file=folder.resolve() / BASE_CONFIG,
            overrides=overrides,
            ranges=search_ranges,
            folder=folder.resolve(),
            study=continued_study(folder, study, search_ranges),
            launcher=launcher,
            is_pruned=prune,
            has_trust=trust,
            end_time=start_time + 3600 * (hours or math.inf),
        )
        head = "# Written by ppxcls tune: the config of all trials, without the values that are searched.\n"
        write_text(search.file, head + base_config.to_yaml(has_absolute_paths=True))
        with search.signals.noted():
            _run_trials(search, trials)
        return _result(search)


@contextlib.contextmanager
def _only_study_in(folder: Path) -> Iterator[None]:
    """Runs a block while no other study of this host works in a folder, if the file system has locks."""
    try:
        with locked(folder / _LOCK, waits=False, is_kept=False):
            yield
    except LockedError as error:
        raise DataError(f"{error}: another study runs there; wait, or give another --output") from None


def _run_trials(search: _Search, count: int) -> None:
    """Runs the trials that are not finished.

    Raises:
        Preempted: a signal stopped the search.
    """
    trials = search.study.trials
    finished_count = len(trials) - search.study.count(IN_PROGRESS)
    if finished_count:
        logger.info(f"{search.folder} is continued: {finished_count} of {count} trials are finished")
    number = finished_count + 1
    while number <= count:
        if search.signals.received:  # while a trial ended by itself, or between two trials
            raise Preempted(f"stopped by {search.signals.received} before trial {number}", _ADVICE)
        end = _run_trial(search, number, count)
        note = ", which has saved" if end.has_saved else ""
        if end.cause == trial_process.TIME_OVER:
            logger.info(f"the time is over in trial {number}{note}; {_ADVICE}")
            return
        if trials[number - 1].state == IN_PROGRESS:
            signal = search.signals.received or "a signal to its process"
            raise Preempted(f"stopped by {signal} in trial {number}{note}", _ADVICE)
        number += 1


def _run_trial(search: _Search, number: int, count: int) -> trial_process.TrialEnd:
    """Runs a trial, or continues the one that was interrupted, and records its end."""
    study = search.study
    is_continued = number <= len(study.trials)
    earlier_parameters = study.trials[number - 1].parameters if is_continued else None
    config = load_config(search.file, search.overrides, trust=search.has_trust)
    suggestion = Suggestion(
        study,
        search.ranges,
        number=number,
        parameters=earlier_parameters,
        warmup_epochs=config.Global.epochs // _WARMUP_SHARE,
        is_pruned=search.is_pruned,
    )
    trial = Trial(suggestion.parameters)
    study.trials[number - 1 :] = [trial]
    write_study(search.folder, study)
    folder = trial_folder(search.folder, number)
    make_own_folder(folder)
    values = " ".join(search.overrides_of(trial.parameters))
    logger.info(printable(f"trial {number} of {count}{' continues' if is_continued else ''}: {values}"))

    def observe(epoch: int, figure: float) -> bool:
        trial.figures[epoch] = figure
        logger.info(f"trial {number}, epoch {epoch}: {study.metric} {figure:.5f}")
        return suggestion.is_over(epoch, figure)

    try:
        run = _trial_config(search, trial, number).run_folder
    except ConfigError as error:  # values that don't fit together
        trial.state, trial.reason = FAILED, printable(str(error))[:400]
        end = trial_process.TrialEnd(2, "")
    else:
        _wait_for_earlier_process(run)
        end = trial_process.run_process(
            _words(search, trial, number, is_continued=is_continued),
            folder / OUTPUT,
            lines=trial_process.EvaluationLines(run / METRICS_FILE, study.metric),
            observe=observe,
            end_time=search.end_time,
            is_stopped=lambda: search.signals.received is not None,
        )
        _judge(trial, end, folder)
    write_study(search.folder, study)
    _log_end(search, number)
    return end


def _trial_overrides(search: _Search, number: int) -> list[str]:
    """Returns the overrides of a trial beside those of the command and its values."""
    output = json_text(str(trial_folder(search.folder, number)))
    overrides = [f"Global.output_dir={output}"]
    keys = [*(text.partition("=")[0] for text in search.overrides), *(item.key for item in search.ranges)]
    if "Global.save_interval" not in keys:
        overrides.append(f"Global.save_interval={_NO_OTHER_CHECKPOINTS}")
    return overrides


def _trial_config(search: _Search, trial: Trial, number: int) -> Config:
    return search.config_of(trial.parameters, *_trial_overrides(search, number))


def _words(search: _Search, trial: Trial, number: int, *, is_continued: bool) -> list[str]:
    """Returns the command of a trial: a training as a user would start it."""
    overrides = [
        *search.overrides,
        *search.overrides_of(trial.parameters),
        *_trial_overrides(search, number),
        # Of a trial that is new, nothing in its folder is to be continued.
        _RESUME if is_continued else "Global.checkpoints=null",
    ]
    words = [_PROGRAM, "train", "-c", str(search.file)]
    words += [word for override in overrides for word in ("-o", override)]
    words += ["--trust"] if search.has_trust else []
    if not search.launcher:
        return [sys.executable, *words]
    log_folder = trial_folder(search.folder, number) / "log"
    return launch_command([*search.launcher, "--log_dir", str(log_folder)], words, resume=False)


def _wait_for_earlier_process(run: Path) -> None:
    """Waits for the training of a killed study, which saves and ends."""
    if (run / "run.lock").exists():
        with locked(run / "run.lock", max_seconds=_WAIT_SECONDS):
            pass


def _judge(trial: Trial, end: trial_process.TrialEnd, folder: Path) -> None:
    """Sets the state of a trial whose process has ended."""
    is_stopped = end.code in (
        EXIT_PREEMPTED,
        15,
        -15,
    )  # of a training, of Paddle's launcher, before a training
    if end.cause == trial_process.WORSE:
        trial.state = PRUNED
    elif end.code == 0 and trial.figures:
        trial.state = COMPLETE
    elif end.code == 0:
        trial.state, trial.reason = FAILED, "no evaluation gave a finite figure"
    elif not end.cause and not is_stopped:
        trial.state = FAILED
        trial.reason = trial_process.failure_reason(folder / OUTPUT, end.code)


def _log_end(search: _Search, number: int) -> None:
    """Logs the end of a trial. If it is the best one, its config is written."""
    study = search.study
    trial = study.trials[number - 1]
    best = study.best_number
    if trial.state == FAILED:
        logger.warning(printable(f"trial {number} failed: {trial.reason}"))
    elif trial.state != IN_PROGRESS:
        figure = study.best_figure(trial)
        best_text = f"; the best is trial {best}" if best and best != number else ""
        logger.info(f"trial {number} is {trial.state}: {study.metric} {figure:.5f}{best_text}")
    if best == number:
        _write_best(search, number)


def _write_best(search: _Search, number: int) -> None:
    trial = search.study.trials[number - 1]
    text = search.config_of(trial.parameters).to_yaml(is_run=True, has_absolute_paths=True)
    figure = f"{search.study.metric} {search.study.best_figure(trial):.5f}"
    head = f"# Written by ppxcls tune: the config of trial {number}, the best one ({figure}).\n"
    write_text(search.folder / BEST_CONFIG, head + text)


def _result(search: _Search) -> Tuned:
    """Returns the result. Raises TrainingError if no trial is complete."""
    study = search.study
    counts = {state: study.count(state) for state in (COMPLETE, PRUNED, FAILED, IN_PROGRESS)}
    number = study.best_number
    if number is None:
        reasons = [trial.reason for trial in study.trials if trial.state == FAILED]
        if reasons and counts[FAILED] == len(study.trials):
            raise TrainingError(f"all {len(reasons)} trials have failed, the last one with: {reasons[-1]}")
        raise TrainingError(f"no trial is complete yet; {_ADVICE}")
    trial = study.trials[number - 1]
    figure = study.best_figure(trial)
    assert figure is not None
    return Tuned(
        folder=search.folder,
        metric=study.metric,
        trial=number,
        figure=figure,
        overrides=search.overrides_of(trial.parameters),
        run=_trial_config(search, trial, number).run_folder,
        config=search.folder / BEST_CONFIG,
        counts=counts,
    )
