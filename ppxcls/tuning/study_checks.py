"""Checks of a search before its first trial."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from ppxcls.config.checks import ConfigError
from ppxcls.config.early_stop_checks import reason_for_no_evaluation
from ppxcls.config.figures import deciding_figure
from ppxcls.config.load import load_config
from ppxcls.config.sections import Config
from ppxcls.config.values_of_runs import export_folder_of, images_of
from ppxcls.data.errors import DataError
from ppxcls.reports.study_file import STUDY_FILE, Study, read_study
from ppxcls.system.environment import launched_world_size
from ppxcls.tuning.search_range import SearchRange

# Keys that the study sets in each trial.
_OWN_KEYS = ("Global.output_dir", "Global.checkpoints")


def check_request(trials: int, *, hours: float | None, seed: int) -> None:
    """Raises ConfigError if a number is invalid, or if a launcher has started this process."""
    if launched_world_size() > 1:
        raise ConfigError("tune starts the processes of a trial itself: run it alone, with --launch OPTIONS")
    if trials < 1:
        raise ConfigError(f"--trials: expected a number from 1, received {trials}")
    if hours is not None and not 0 < hours < math.inf:
        raise ConfigError(f"--hours: expected a number above 0, received {hours:g}")
    if not 0 <= seed < 1 << 53:
        raise ConfigError(f"--seed: expected a number from 0, received {seed}")


def check_values(
    file: str | Path,
    ranges: Sequence[SearchRange],
    *,
    overrides: Sequence[str],
    base_config: Config,
    trust: bool,
) -> tuple[str, bool]:
    """Loads the config with values of each range, to find a wrong key or value before the first trial.

    Args:
        file: YAML or run folder.
        ranges: ranges of the searched keys.
        overrides: overrides of the command.
        base_config: config without a searched value.
        trust: True to run the plugins that the file names.

    Returns:
        The figure that decides, and True if a larger one is better.

    Raises:
        ConfigError: a value is invalid, a key is one that the study sets, a value changes what is
            compared, or the config of a run that this user doesn't trust names a folder outside of the run.
    """
    if reason := reason_for_no_evaluation(base_config):
        raise ConfigError(f"tune compares the evaluations of the trials, but {reason}")
    # The trials are the user's own runs, even if this config is a stranger's, so its folders are checked now.
    export_folder_of(base_config)
    images_of(base_config)
    figure = deciding_figure(base_config)
    for item in ranges:
        for key in _OWN_KEYS:
            if f"{key}.".startswith(f"{item.key}."):
                raise ConfigError(f"--set {item.key}: the study sets {key} for each trial; search other keys")
        for parameter in item.probes:
            override = item.override(parameter)
            config = load_config(file, [*overrides, override], trust=trust)
            if (name := deciding_figure(config)[0]) != figure[0]:
                raise ConfigError(
                    f"--set {item.key}: with {override}, trials are compared by {name}, not by {figure[0]}; "
                    "set Global.best_metric"
                )
    return figure


def continued_study(folder: Path, study: Study, ranges: Sequence[SearchRange]) -> Study:
    """Returns the earlier study of a folder if it is the same search, or the new study.

    Args:
        folder: folder of the study.
        study: new study.
        ranges: ranges of the searched keys.

    Raises:
        DataError: the folder has the trials of another search, or a trial has a value outside of its range.
    """
    earlier_study = read_study(folder)
    if earlier_study is None:
        if next(folder.glob("trial_*"), None) is not None:
            raise DataError(f"{folder} has trials, but no {STUDY_FILE}; give another --output")
        return study
    names = {
        "config": "config or overrides",
        "ranges": "ranges (--set)",
        "seed": "seed",
        "metric": "deciding figure",
        "larger_is_better": "direction of the figure",
    }
    for name, words in names.items():
        if getattr(earlier_study, name) != getattr(study, name):
            raise DataError(
                f"{folder} has a study with another {words}; repeat its command, or give another --output"
            )
    for number, trial in enumerate(earlier_study.trials, 1):
        if not all(item.has(trial.parameters[item.key]) for item in ranges):
            raise DataError(f"{folder / STUDY_FILE}: trial {number} has a value outside of its range")
    return earlier_study
