"""``study.json``, in which ``ppxcls tune`` keeps its trials. A stranger may have written it.

It is JSON with a digest, written whole after each change, so reading it runs no code. An error gives the
file, and no part of the content.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ppxcls.config.load import RUN_CONFIG
from ppxcls.data.errors import DataError
from ppxcls.reports.run_files import read_own_file
from ppxcls.system.atomic_files import is_inside, write_text
from ppxcls.system.json_text import is_count, is_number, json_text, read_json
from ppxcls.system.sealed_json import SEAL_KEY, is_intact, sealed

STUDY_FILE = "study.json"
IN_PROGRESS, COMPLETE, PRUNED, FAILED = "in progress", "complete", "pruned", "failed"
_FORMAT = 1
_MAX_BYTES = 1 << 26
_MAX_TRIALS, _MAX_KEYS, _MAX_EPOCHS = 100_000, 1000, 1_000_000
_MAX_TEXT_LENGTH = 1000  # characters
_TRIAL_KEYS = {"parameters", "state", "figures", "reason"}
_EPOCH = re.compile("[0-9]{1,7}")


@dataclass
class Trial:
    """One training of a study.

    Attributes:
        parameters: parameter of each searched key: the number, or the index of a choice.
        state: ``in progress``, also after an interruption; ``complete``, ``pruned`` or ``failed``.
        figures: figure of each evaluation by epoch; those that are not finite are left out.
        reason: reason of a failure; empty otherwise.
    """

    parameters: dict[str, float]
    state: str = IN_PROGRESS
    figures: dict[int, float] = field(default_factory=dict)
    reason: str = ""


@dataclass
class Study:
    """The trials of a search, and what they must have in common.

    Attributes:
        metric: figure of the evaluation that is compared.
        larger_is_better: True if a larger figure is better.
        seed: seed of the search.
        ranges: range of each searched key, as text.
        config: SHA-256 of the config with the overrides of the command.
        trials: trials by their order; the first one is trial 1.
    """

    metric: str
    larger_is_better: bool
    seed: int
    ranges: dict[str, str]
    config: str
    trials: list[Trial] = field(default_factory=list)

    def best_figure(self, trial: Trial) -> float | None:
        """Returns the best figure of a trial; None if it has none."""
        pick = max if self.larger_is_better else min
        return pick(trial.figures.values(), default=None)

    @property
    def best_number(self) -> int | None:
        """Number of the best complete trial; None if there is none. Of equal ones, it is the first."""
        candidates = []
        for number, trial in enumerate(self.trials, 1):
            figure = self.best_figure(trial)
            if trial.state == COMPLETE and figure is not None:
                candidates.append((-figure if self.larger_is_better else figure, number))
        return min(candidates)[1] if candidates else None

    def count(self, state: str) -> int:
        """Returns the number of trials in a state."""
        return sum(trial.state == state for trial in self.trials)


def trial_folder(folder: Path, number: int) -> Path:
    """Returns the folder of a trial, which contains its run and its output."""
    return folder / f"trial_{number:03d}"


def is_study(folder: str | Path) -> bool:
    """True if a folder is the folder of a study. A path that no folder can have is not."""
    try:
        return (Path(folder) / STUDY_FILE).is_file()
    except (OSError, ValueError):
        return False


def runs_of_study(folder: Path) -> list[Path]:
    """Returns the run folders of a study's trials. Trials that failed before their first step have none.

    Raises:
        DataError: ``study.json`` can't be used, or no trial has a run.
    """
    study = read_study(folder)
    count = len(study.trials) if study else 0
    files = [
        file
        for number in range(1, count + 1)
        for file in sorted(trial_folder(folder, number).glob(f"*/{RUN_CONFIG}"))
        if is_inside(file, [folder])
    ]
    if not files:
        raise DataError(f"{folder}: no trial of this study has a run yet")
    return [file.parent for file in files]


def study_note(folder: Path) -> str:
    """Returns sentences about a study for a page: how its trials ended, and which one is the best.

    Raises:
        DataError: ``study.json`` can't be used.
    """
    study = read_study(folder)
    assert study
    counts = [(study.count(state), state) for state in (COMPLETE, PRUNED, FAILED, IN_PROGRESS)]
    parts = ", ".join(f"{count} {state}" for count, state in counts if count)
    text = f"{folder} compares trials by {study.metric}: {parts}."
    if number := study.best_number:
        figure = study.best_figure(study.trials[number - 1])
        text += (
            f" The best one is trial {number} ({figure:.5g}), whose figure is rather too high: it was chosen."
        )
    for number, trial in enumerate(study.trials, 1):
        if trial.state == FAILED:
            text += f" Trial {number} failed: {trial.reason}"
    return text


def write_study(folder: Path, study: Study) -> None:
    """Writes ``study.json``.

    Raises:
        OSError: the file can't be written.
    """
    content = sealed({"format": _FORMAT, **asdict(study)})
    write_text(folder / STUDY_FILE, json_text(content, indent=1) + "\n")


def read_study(folder: Path) -> Study | None:
    """Returns the study of a folder; None if there is none.

    Raises:
        DataError: the file is damaged, of a newer version, or not a study.
    """
    file = folder / STUDY_FILE
    data = read_own_file(file, _MAX_BYTES)
    if data is None:
        return None
    try:
        content = read_json(data)
        if not isinstance(content, dict) or not is_intact(content):
            raise ValueError("its digest is wrong")
        if content.pop("format", None) != _FORMAT:
            raise ValueError("it has the format of another version")
        content.pop(SEAL_KEY)
        return _checked_study(content)
    except (ValueError, TypeError, KeyError) as error:
        reason = str(error) if type(error) is ValueError else "a key is missing or has a wrong type"
        raise DataError(f"{file}: not the study of ppxcls tune: {reason}") from None


def _checked_study(content: dict[str, Any]) -> Study:
    """Returns a study from JSON. Raises ValueError, TypeError or KeyError if a value is invalid."""
    trials = content.pop("trials")
    study = Study(**content)
    if not isinstance(study.ranges, dict) or not isinstance(trials, list):
        raise TypeError
    texts = [study.metric, study.config, *study.ranges, *study.ranges.values()]
    is_valid = all(isinstance(text, str) and len(text) <= _MAX_BYTES for text in texts)
    is_valid &= isinstance(study.larger_is_better, bool) and is_count(study.seed)
    is_valid &= len(study.ranges) <= _MAX_KEYS and len(trials) <= _MAX_TRIALS
    if not is_valid:
        raise TypeError
    study.trials = [_checked_trial(trial, study) for trial in trials]
    if any(trial.state == IN_PROGRESS for trial in study.trials[:-1]):
        raise ValueError("a trial that is not the last one is in progress")
    return study


def _checked_trial(content: dict[str, Any], study: Study) -> Trial:
    trial = Trial(**content)
    if not isinstance(trial.parameters, dict) or not isinstance(trial.figures, dict):
        raise TypeError
    numbers = [*trial.parameters.values(), *trial.figures.values()]
    is_valid = trial.parameters.keys() == study.ranges.keys() and content.keys() == _TRIAL_KEYS
    is_valid &= trial.state in (IN_PROGRESS, COMPLETE, PRUNED, FAILED)
    is_valid &= trial.state not in (COMPLETE, PRUNED) or len(trial.figures) > 0
    is_valid &= isinstance(trial.reason, str) and len(trial.reason) <= _MAX_TEXT_LENGTH
    is_valid &= all(is_number(number) and math.isfinite(number) for number in numbers)
    is_valid &= len(trial.figures) <= _MAX_EPOCHS and all(map(_EPOCH.fullmatch, map(str, trial.figures)))
    if not is_valid:
        raise TypeError
    trial.figures = {int(epoch): figure for epoch, figure in trial.figures.items()}
    return trial
