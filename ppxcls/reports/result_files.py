"""Reads ``test.json``, ``eval_tta.json`` and ``stages.json`` of a run. A stranger may have written them.

An error gives the file, and no part of the content, which may be another file's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppxcls.data.errors import DataError
from ppxcls.reports.run_files import read_own_file
from ppxcls.system.json_text import is_count, is_number, read_json

_MAX_BYTES = 1 << 20
_MAX_USES = 1_000_000
_MAX_STAGES = 100  # stages, and sizes in a plan
_MAX_NAME_LENGTH, _MAX_CHOICE_LENGTH = 200, 1000  # characters
_MAX_SIZE_PIXELS = 100_000
_MAX_SECONDS = 1e9
_MAX_EPOCHS = 1_000_000
_MAX_VIEWS = 100
_MAX_IMAGES = 1 << 40
_MAX_LOSS = 1e100  # as in metrics.jsonl
_STAGES_FORMAT = 1
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class JudgingUse:
    """What ``test.json`` says about the images that judge.

    Attributes:
        uses: how often they have judged models of this folder.
        checkpoint: SHA-256 of the judged checkpoint's manifest; None if it had none.
        figures: numbers by name, among them the figures of the evaluation.
    """

    uses: int
    checkpoint: str | None
    figures: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class ViewFigures:
    """The result of an evaluation with several views of each image.

    Attributes:
        kinds: kinds of views, such as ``flip,crops``.
        views: number of views.
        top1: share of correct predictions.
        num_samples: number of images.
        checkpoint: SHA-256 of the evaluated checkpoint's manifest; None if it had none.
        is_judging: True for images that judge, False for those of ``DataLoader.Eval``.
    """

    kinds: str
    views: int
    top1: float
    num_samples: int
    checkpoint: str | None
    is_judging: bool


@dataclass(frozen=True, kw_only=True)
class FitStage:
    """One stage of ``ppxcls fit``.

    Attributes:
        name: what was trained.
        seconds: time that it took.
        size: side of the images, pixels.
        epochs: number of epochs; None if the stage has none.
        accuracy: share of correct predictions on the images that choose; None if it is not known.
        loss: loss on the same images; None if it is not known.
        is_chosen: True if the result of the stage became the result of ``fit``.
        choice: what the stage chose, and how.
        mean_recall: mean over the classes of their share of correct predictions on the images that choose;
            None if it is not known.
    """

    name: str
    seconds: float
    size: int
    epochs: int | None
    accuracy: float | None
    loss: float | None
    is_chosen: bool
    choice: str
    mean_recall: float | None = None


@dataclass(frozen=True)
class PlanStep:
    """A choice that the plan of a fit compared.

    Attributes:
        size: side of the images, pixels.
        minutes: estimated time of the whole command.
        name: what is trained; None if only the size tells.
    """

    size: int
    minutes: float
    name: str | None = None


@dataclass(frozen=True)
class StageFile:
    """The content of ``stages.json``: the stages in order, and what other minutes would buy."""

    stages: list[FitStage]
    plan: list[PlanStep]


def read_judging_use(file: Path) -> JudgingUse | None:
    """Returns what ``test.json`` says about the use of the images that judge; None if there is no such file.

    Raises:
        DataError: the file can't be read, or a value is invalid.
    """
    values = _read_object(file, "the results of images that judge")
    if values is None:
        return None
    uses, checkpoint = values.get("uses"), values.get("checkpoint")
    if not is_count(uses, _MAX_USES) or not uses:
        raise DataError(f"{file}: expected a whole number from 1 to {_MAX_USES:,} as 'uses'")
    if not _is_digest_or_none(checkpoint):
        raise DataError(f"{file}: expected a SHA-256 or null as 'checkpoint'")
    figures = {name: value for name, value in values.items() if is_number(value) and abs(value) <= _MAX_LOSS}
    return JudgingUse(uses, checkpoint, figures)


def read_view_figures(file: Path, *, is_judging: bool) -> ViewFigures | None:
    """Returns the result of an evaluation with several views; None if there is no such file, or no top-1.

    Args:
        file: file with the result.
        is_judging: True if the file is about images that judge.

    Raises:
        DataError: the file can't be read, or a value is invalid.
    """
    values = _read_object(file, "the results of several views")
    if values is None or "top1" not in values:
        return None
    for key, (is_valid, expected) in _VIEW_RULES.items():
        if not is_valid(values.get(key)):
            raise DataError(f"{file}: expected {expected} as '{key}'")
    figures = {key: values[key] for key in _VIEW_RULES if key in ("views", "top1", "checkpoint")}
    count = int(values["num_samples"])
    return ViewFigures(kinds=values["tta"], num_samples=count, is_judging=is_judging, **figures)


def _is_digest_or_none(value: Any) -> bool:
    return value is None or (isinstance(value, str) and bool(_SHA256.fullmatch(value)))


def read_stages(file: Path) -> StageFile | None:
    """Returns the content of ``stages.json``; None if there is no such file.

    Raises:
        DataError: the file can't be read, or a value is invalid.
    """
    values = _read_object(file, "the stages of a fit")
    if values is None:
        return None
    if type(values.get("format")) is not int or values["format"] != _STAGES_FORMAT:
        raise DataError(f"{file}: expected {_STAGES_FORMAT} as 'format'; a later version may have written it")
    # Earlier versions have not written it.
    stages = _entries(file, values, key="stages", rules=_STAGE_RULES, optional="mean_recall")
    plan = _entries(file, values, key="plan", rules=_PLAN_RULES, optional="name")
    return StageFile(
        [
            FitStage(
                is_chosen=entry["chosen"], **{key: entry[key] for key in _STAGE_RULES if key != "chosen"}
            )
            for entry in stages
        ],
        [PlanStep(**entry) for entry in plan],
    )


def _read_object(file: Path, description: str) -> dict[str, Any] | None:
    data = read_own_file(file, _MAX_BYTES)
    if data is None:
        return None
    try:
        values = read_json(data, is_nan_null=True)
    except ValueError as error:
        raise DataError(f"{file}: not {description}: {error}") from None
    if not isinstance(values, dict):
        raise DataError(f"{file}: not {description}: expected an object")
    return values


_Rule = tuple[Callable[[Any], bool], str]  # check of a value, and words for what was expected


def _is_text(value: Any, max_length: int) -> bool:
    return isinstance(value, str) and len(value) <= max_length and value.isprintable()


def _is_between(value: Any, low: float, high: float) -> bool:
    return is_number(value) and math.isfinite(value) and low <= value <= high


_SIZE_RULE: _Rule = (
    lambda value: is_count(value, _MAX_SIZE_PIXELS) and value > 0,
    f"a whole number from 1 to {_MAX_SIZE_PIXELS:,}",
)
_STAGE_RULES: dict[str, _Rule] = {
    "name": (lambda value: _is_text(value, _MAX_NAME_LENGTH), "a printable name"),
    "seconds": (lambda value: _is_between(value, 0, _MAX_SECONDS), "a number of seconds"),
    "size": _SIZE_RULE,
    "epochs": (lambda value: value is None or is_count(value, _MAX_EPOCHS), "a whole number from 0 or null"),
    "accuracy": (lambda value: value is None or _is_between(value, 0, 1), "a number from 0 to 1 or null"),
    "loss": (
        lambda value: value is None or _is_between(value, -_MAX_LOSS, _MAX_LOSS),
        "a number or null",
    ),
    "chosen": (lambda value: isinstance(value, bool), "true or false"),
    "choice": (lambda value: _is_text(value, _MAX_CHOICE_LENGTH), "a printable text"),
    "mean_recall": (lambda value: value is None or _is_between(value, 0, 1), "a number from 0 to 1 or null"),
}
_VIEW_RULES: dict[str, _Rule] = {
    "tta": (lambda value: value in ("flip", "crops", "flip,crops"), "flip, crops or flip,crops"),
    "views": (lambda value: is_count(value, _MAX_VIEWS) and value > 1, "a number of views"),
    "top1": (lambda value: _is_between(value, 0, 1), "a number from 0 to 1"),
    "num_samples": (lambda value: _is_between(value, 1, _MAX_IMAGES), "a number of images"),
    "checkpoint": (_is_digest_or_none, "a SHA-256 or null"),
}
_PLAN_RULES: dict[str, _Rule] = {
    "name": (lambda value: _is_text(value, _MAX_NAME_LENGTH), "a printable name"),
    "size": _SIZE_RULE,
    "minutes": (lambda value: _is_between(value, 0, _MAX_SECONDS / 60), "a number of minutes"),
}


def _entries(
    file: Path, values: dict[str, Any], *, key: str, rules: dict[str, _Rule], optional: str | None = None
) -> list[dict[str, Any]]:
    """Returns the known values of a list of objects. Unknown keys of an object are left out.

    Args:
        file: file with the list.
        values: content of the file.
        key: key of the list.
        rules: rules of the values, by key.
        optional: key that an object may lack; None for none.
    """
    entries = values.get(key)
    if not isinstance(entries, list) or len(entries) > _MAX_STAGES:
        raise DataError(f"{file}: expected a list of up to {_MAX_STAGES} objects as '{key}'")
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict):
            raise DataError(f"{file}: expected an object as '{key}', number {number}")
        for name, (is_valid, expected) in rules.items():
            if name not in entry and name == optional:
                continue
            if name not in entry or not is_valid(entry[name]):
                raise DataError(f"{file}: expected {expected} as '{name}' in '{key}', number {number}")
    return [{name: entry.get(name) for name in rules} for entry in entries]
