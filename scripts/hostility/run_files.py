"""Hostile content in the files of a run: each file, each of its values, each wrong kind of value."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hostility.cases import Case, Outcome, call, refusal_problem

from ppxcls.checkpoints.files import CHECKPOINT_FORMAT, EXTENSIONS, read_manifest
from ppxcls.config.load import RUN_CONFIG_HEADER
from ppxcls.train.predictions import COLUMNS

PROMISE = "A hostile file of a run is an error of one short line with its name, without its content"
SECRET = "SECRET-7e3f"  # noqa: S105  a marker that no message and no page may contain
_MISSING, _REPEATED = "MISSING", "REPEATED"
# Values by description, in the words of JSON.
_VALUES = {
    "null": "null",
    "a list": f'["{SECRET}"]',
    "an object": f'{{"{SECRET}": 1}}',
    "true": "true",
    "a word": f'"{SECRET}"',
    "a text with a NUL": '"a\\u0000b"',
    "half of a surrogate": '"\\ud800"',
    "400 digits": "9" * 400,
    "5,000 digits": "9" * 5000,
    "1e999": "1e999",
    "NaN": "NaN",
    "minus infinity": "-Infinity",
    "a negative number": "-1",
    "2 to the 80": str(1 << 80),
    "a fraction": "0.5",
    "10,000 lists in lists": "[" * 10_000 + "]" * 10_000,
    "a missing value": _MISSING,
    "a repeated key": _REPEATED,
}
_LINE = {
    **{"kind": '"train"', "epoch": "1", "iter": "0", "step": "1", "samples": "4", "lr": "0.1"},
    **{"loss": "1.0", "top1": "0.5", "ips_total": "10.0"},
}
# Values that a line may have although they are odd. null is written for NaN; versions up to 0.12.0 wrote NaN.
_FREE_KEYS = ("lr", "loss", "top1", "ips_total")
_OPTIONAL_KEYS = ("iter", "samples")
_CELLS = {
    "an empty cell": "",
    "a word": SECRET,
    "NaN": "nan",
    "infinity": "inf",
    "1e999": "1e999",
    "a negative number": "-1",
    "400 digits": "9" * 400,
    "100,000 characters": "9" * 100_000,
    "200,000 characters": "9" * 200_000,
    "a NUL": "a\0b",
    "other digits": "٣",
    "an underscore": "1_0",
    "a number that is too large": "7",
}
_ROW = dict(zip(COLUMNS, ("data/a.png", "0", "x", "1", "y", "0.9", "0.1", "1 0", "0.9 0.1"), strict=True))
_FACTS = {
    **{"ppxcls": '"0.12.2"', "paddle": '"3.3.0"', "config": '"Arch:"', "train_list": '"a"', "run": '"b"'},
    **{"eval_list": '"c"', "started_from": "null", "samples": "4", "global_batch": "2", "update_freq": "1"},
    **{"steps_per_epoch": "2", "world_size": "1", "class_names": '["x", "y"]'},
}
_PROGRESS = {
    **{"epoch": "1", "batches_done": "0", "step": "2", "skipped": "0", "skipped_total": "0"},
    **{"best": '{"metric": "top1", "value": 0.5, "epoch": 1, "loss": 1.0}', "totals": "{}"},
    **{"scaler": "{}", "plateau": "{}", "started": '"2026-01-01T00:00:00+00:00"'},
}
_CONTENTS: dict[str, bytes] = {
    "bytes that are not UTF-8": b"\xff\xfe\xfd{\n",
    "a text": SECRET.encode() + b"\n",
    "zeros": bytes(1000) + b"\n",
    "a list": b"[1]\n",
    "null": b"null\n",
    "a cut object": b'{"kind": "train", "epoch"\n',
    "100,000 lists in lists": b"[" * 100_000 + b"\n",
    "a line of 2 MB": b'{"kind": "train", "a": "' + b"x" * 2_000_000 + b'"}\n',
}
_USE = {"uses": "1", "checkpoint": "null", "list": '"a"', "top1": "0.5"}
_STAGE = {
    **{"name": '"linear classifier"', "seconds": "71.2", "size": "299", "epochs": "null"},
    **{"accuracy": "0.9", "loss": "0.1", "chosen": "true", "choice": '"C = 1"'},
}
_PLAN_STEP = {"name": '"all layers"', "size": "299", "minutes": "8.1"}
# Values that a stage may have although most values of this kind are invalid for its key.
_VALID_VALUES = {
    **{
        "uses": (),
        "list": tuple(_VALUES),
        "top1": tuple(_VALUES),
        "name": ("a word", "a missing value"),  # a plan may lack it
        "choice": ("a word",),
    },
    "checkpoint": ("null", "NaN", "minus infinity", "a missing value"),
    **dict.fromkeys(("seconds", "minutes"), ("a fraction",)),
    "size": (),
    "epochs": ("null", "NaN", "minus infinity"),
    "accuracy": ("null", "NaN", "minus infinity", "a fraction"),
    "loss": ("null", "NaN", "minus infinity", "a fraction", "a negative number", "2 to the 80"),
    "chosen": ("true",),
    **dict.fromkeys(("format", "stages", "plan"), ()),
}
_CSV_FILES = ("predictions.csv", "test_predictions.csv")
_JSON_FILES = ("metrics.jsonl", "best_model.json", "latest.json", "test.json", "stages.json")
_RUN_FILES = (
    *("config.yaml", "metrics.jsonl", *_CSV_FILES, "class_names.txt", "best_model.json"),
    *("test.json", "stages.json"),
)


def cases() -> Iterator[Case]:
    """Returns the cases of all files."""
    yield Case("an unchanged run", _unchanged, is_quick=True)
    families = (
        *(*_metrics_cases(), *_prediction_cases(), *_manifest_cases(), *_fit_cases()),
        *(*_judging_cases(), *_stage_cases()),
    )
    for number, case in enumerate(families):
        yield dataclasses.replace(case, is_quick=number % 4 == 0)
    for name in (*_JSON_FILES, *_CSV_FILES):
        for description, content in _CONTENTS.items():
            run = functools.partial(_content, name, content)
            yield Case(f"{name} with {description}", run, is_quick=True)
    for name in _RUN_FILES:
        for description, make in _KINDS.items():
            yield Case(f"{name} is {description}", functools.partial(_kind, name, make), is_quick=True)
    for description, content in _LARGE.items():
        yield Case(f"metrics.jsonl with {description}", functools.partial(_content, "metrics.jsonl", content))
    for description, make in _PICTURES.items():
        yield Case(f"first_batch.png is {description}", functools.partial(_picture, make))
        yield Case(f"a picture in predictions.csv is {description}", functools.partial(_listed_picture, make))


def _metrics_cases() -> Iterator[Case]:
    for key in _LINE:
        for description, value in _VALUES.items():
            run = functools.partial(_metrics, key, value)
            yield Case(f"metrics.jsonl: {key} is {description}", run)


def _prediction_cases() -> Iterator[Case]:
    for name in _CSV_FILES:
        for column in COLUMNS:
            for description, value in _CELLS.items():
                run = functools.partial(_prediction, name, column, value)
                yield Case(f"{name}: {column} is {description}", run)


def _judging_cases() -> Iterator[Case]:
    for key in _USE:
        for description in _VALUES:
            run = functools.partial(_result, "test.json", key, description, lambda text: text, _USE)
            yield Case(f"test.json: {key} is {description}", run)


def _stage_cases() -> Iterator[Case]:
    for key in ("format", "stages", "plan"):
        for description in _VALUES:
            whole = {"format": "1", "stages": f"[{_json(_STAGE)}]", "plan": f"[{_json(_PLAN_STEP)}]"}
            run = functools.partial(_result, "stages.json", key, description, lambda text: text, whole)
            yield Case(f"stages.json: {key} is {description}", run)
    for values, frame in (
        (_STAGE, lambda text: f'{{"format": 1, "stages": [{_json(_STAGE)}, {text}], "plan": []}}'),
        (_PLAN_STEP, lambda text: f'{{"format": 1, "stages": [], "plan": [{text}]}}'),
    ):
        for key in values:
            for description in _VALUES:
                run = functools.partial(_result, "stages.json", key, description, frame, values)
                yield Case(f"stages.json: {key} of {len(values)} keys is {description}", run)


def _manifest_cases() -> Iterator[Case]:
    for key in (*_FACTS, "format", "parts", "progress"):
        for description, value in _VALUES.items():
            run = functools.partial(_manifest, "", key, value)
            yield Case(f"a manifest: {key} is {description}", run)
    for key in _PROGRESS:
        for description, value in _VALUES.items():
            run = functools.partial(_manifest, "progress", key, value)
            yield Case(f"a manifest: progress.{key} is {description}", run)


def _fit_cases() -> Iterator[Case]:
    for key in ("arguments", "photographs", "settings", "finished_steps", "yaml_digests", "folder"):
        for description, value in _VALUES.items():
            yield Case(f"fit.json: {key} is {description}", functools.partial(_fit, key, value))


def make_run(folder: Path) -> Path:
    """Writes a small run folder without weights, and returns it."""
    run = folder / "run"
    (run / "data").mkdir(parents=True)
    loader = (
        '{dataset: {name: ImageNetDataset, image_root: ".", cls_label_path: list.txt}, '
        "sampler: {name: DistributedBatchSampler, batch_size: 2, drop_last: false, shuffle: false}, "
        "loader: {num_workers: 1}}"
    )
    (run / "config.yaml").write_text(
        f"{RUN_CONFIG_HEADER}Global: {{output_dir: .}}\nArch: {{name: Xception41, class_num: 3}}\n"
        f"DataLoader: {{Eval: {loader}}}\n"
    )
    (run / "class_names.txt").write_text("0 x\n1 y\n2 z\n")
    (run / "list.txt").write_text("data/a.png 0\n")
    (run / "metrics.jsonl").write_text(_json(_LINE) + "\n" + _json({**_LINE, "kind": '"eval"'}) + "\n")
    (run / "predictions.csv").write_text(f"{','.join(COLUMNS)}\n{','.join(_ROW.values())}\n")
    (run / "best_model.json").write_text(_manifest_text({}, {}))
    (run / "test_predictions.csv").write_text((run / "predictions.csv").read_text())
    checkpoint = hashlib.sha256((run / "best_model.json").read_bytes()).hexdigest()
    (run / "test.json").write_text(_json({**_USE, "checkpoint": f'"{checkpoint}"'}))
    (run / "stages.json").write_text(
        f'{{"format": 1, "stages": [{_json(_STAGE)}], "plan": [{_json(_PLAN_STEP)}]}}'
    )
    return run


def _json(values: dict[str, str]) -> str:
    return "{" + ", ".join(f'"{key}": {value}' for key, value in values.items()) + "}"


def _with(values: dict[str, str], key: str, value: str) -> str:
    """Returns an object as JSON, with one value changed, missing, or twice."""
    if value == _MISSING:
        return _json({name: text for name, text in values.items() if name != key})
    if value == _REPEATED:
        return _json(values)[:-1] + f', "{key}": {values[key]}}}'
    return _json({**values, key: value})


def _manifest_text(facts: dict[str, str], progress: dict[str, str]) -> str:
    part = json.dumps({"size": 1, "sha256": "0" * 64})
    values = {
        "format": str(CHECKPOINT_FORMAT),
        **_FACTS,
        "progress": _json({**_PROGRESS, **progress}),
        "parts": _json({EXTENSIONS[0]: part}),
        **facts,
    }
    return _json(values)


def _use(run: Path) -> Any:
    """Reads a run as a report does, and computes what the page shows of its values."""
    from ppxcls.reports.curves import intervals, throughput
    from ppxcls.reports.record import read_record
    from ppxcls.reports.sentences import headline, result_sentence
    from ppxcls.reports.stages import stages_content
    from ppxcls.reports.summary import best_evaluation, facts, notes, numbers

    record = read_record(run)
    assert record.stages or not (run / "stages.json").exists()
    stages_content(record)
    headline(record)
    result_sentence(record)
    intervals(record.train)
    throughput(record.train)
    return best_evaluation(record), notes(record), numbers(record), facts(record)


def _problem(outcome: Outcome, *words: str, is_allowed: bool = False) -> str | None:
    if SECRET in outcome.errors:
        return f"the message has content: {outcome.errors[:200]}"
    return None if is_allowed and outcome.code == 0 else refusal_problem(outcome, *words)


def _unchanged(folder: Path) -> tuple[Outcome, str | None]:
    outcome = call(_use, make_run(folder))
    return outcome, None if outcome.code == 0 else f"refused: {outcome.errors}"


def _metrics(key: str, value: str, folder: Path) -> tuple[Outcome, str | None]:
    run = make_run(folder)
    (run / "metrics.jsonl").write_text(_json(_LINE) + "\n" + _with(_LINE, key, value) + "\n")
    outcome = call(_use, run)
    is_free = key in _FREE_KEYS and value in ("null", "NaN", "-Infinity", "-1", "0.5", _MISSING)
    is_optional = key in _OPTIONAL_KEYS and value == _MISSING
    if outcome.code == 0 and not is_free and not is_optional:
        return outcome, "accepted"
    return outcome, _problem(outcome, "metrics.jsonl:2: not a line of metrics", is_allowed=True)


def _prediction(name: str, column: str, value: str, folder: Path) -> tuple[Outcome, str | None]:
    run = make_run(folder)
    row = ",".join({**_ROW, column: value}.values())
    (run / name).write_text(f"{','.join(COLUMNS)}\n{','.join(_ROW.values())}\n{row}\n")
    outcome = call(_use, run)
    is_text = column in ("label_name", "predicted_name", "top_scores", "file")
    if outcome.code == 0 and not is_text:
        return outcome, "accepted"
    return outcome, _problem(outcome, f"{name}:3: not a row of predictions", is_allowed=True)


def _result(
    name: str, key: str, description: str, frame: Callable[[str], str], values: dict[str, str], folder: Path
) -> tuple[Outcome, str | None]:
    run = make_run(folder)
    (run / name).write_text(frame(_with(values, key, _VALUES[description])))
    outcome = call(_use, run)
    is_stage_without_name = values is _STAGE and key == "name" and description == "a missing value"
    if outcome.code == 0 and (description not in _VALID_VALUES[key] or is_stage_without_name):
        return outcome, "accepted"
    return outcome, _problem(outcome, name, is_allowed=True)


def _manifest(section: str, key: str, value: str, folder: Path) -> tuple[Outcome, str | None]:
    run = make_run(folder)
    if section:
        text = _manifest_text({"progress": _with(_PROGRESS, key, value)}, {})
    else:
        part = json.dumps({"size": 1, "sha256": "0" * 64})
        facts = {"format": "1", **_FACTS, "progress": _json(_PROGRESS), "parts": _json({".pdparams": part})}
        text = _with(facts, key, value)
    (run / "best_model.json").write_text(text)
    outcome = call(_use, run)
    if outcome.code == 0:
        manifest = read_manifest(run / "best_model")
        outcome_of_resuming = call(_resume, manifest)
        if outcome_of_resuming.code != 0:
            outcome = outcome_of_resuming
    return outcome, _problem(outcome, "best_model", is_allowed=True)


def _resume(manifest: dict[str, Any]) -> Any:
    from ppxcls.checkpoints.progress import progress_of

    return progress_of(manifest, Path("best_model"))


def _fit(key: str, value: str, folder: Path) -> tuple[Outcome, str | None]:
    from ppxcls.fitting.progress import read_progress

    numbers = dict.fromkeys(("class_num", "size", "batch_size", "epochs", "head_epochs"), "2")
    texts = {"network": '"Xception41"', "device": '"cpu"', "weights": "null", "learning_rate": "0.1"}
    settings = {**numbers, **texts, "mean": "[0.5, 0.5, 0.5]", "std": "[1, 1, 1]", "reasons": "[]"}
    content = {
        **{"arguments": "{}", "photographs": '"a"', "settings": _json(settings), "finished_steps": "[]"},
        **{"yaml_digests": "[]", "folder": '"/a"'},
    }
    (folder / "fit.json").write_text(_with(content, key, value))
    outcome = call(read_progress, folder, [])
    return outcome, _problem(outcome, "fit.json is damaged", is_allowed=True)


def _content(name: str, content: bytes | Callable[[], bytes], folder: Path) -> tuple[Outcome, str | None]:
    run = make_run(folder)
    if name == "latest.json":
        (run / "best_model.json").unlink()
    (run / name).write_bytes(content if isinstance(content, bytes) else content())
    outcome = call(_use, run)
    return outcome, _problem(outcome, name)


def _kind(name: str, make: Callable[[Path], None], folder: Path) -> tuple[Outcome, str | None]:
    run = make_run(folder)
    (run / name).unlink()
    make(run / name)
    outcome = call(_use, run)
    is_optional = name in (*_CSV_FILES, "class_names.txt") and make is os.mkdir
    return outcome, _problem(outcome, name, is_allowed=is_optional or name == "class_names.txt")


def _link_out(file: Path) -> None:
    target = file.parents[1] / "key"
    target.write_text(f"{SECRET}\n{SECRET}\n{SECRET}\n")
    file.symlink_to(target)


def _sparse(file: Path) -> None:
    with open(file, "wb") as stream:
        stream.truncate(1 << 40)


_KINDS: dict[str, Callable[[Path], None]] = {
    "a link to a private file": _link_out,
    "a link to nothing": lambda file: file.symlink_to("/nonexistent/file"),
    "a link to an endless device": lambda file: file.symlink_to("/dev/zero"),
    "a link to itself": lambda file: file.symlink_to(file.name),
    "a pipe": os.mkfifo,
    "a folder": os.mkdir,
    "a terabyte of nothing": _sparse,
}
_LARGE: dict[str, Callable[[], bytes]] = {
    "10 million lines": lambda: b"{}\n" * 10_000_000,
    "a line of 200 MB": lambda: b'{"a": "' + b"x" * 200_000_000 + b'"}\n',
    "a million keys in a line": lambda: b"{" + b'"a":1,' * 1_000_000 + b'"b":1}\n',
    "a million empty lines and a word": lambda: b"\n" * 1_000_000 + b"word\n",
}


def _png(folder: Path, tail: bytes = b"") -> bytes:
    import cv2
    import numpy as np

    del folder
    return bytes(cv2.imencode(".png", np.full((32, 32, 3), 200, np.uint8))[1].tobytes() + tail)


def _private_picture(file: Path) -> None:
    target = file.parents[2] / "private.png"
    target.write_bytes(_png(target))
    file.symlink_to(target)


def _huge_header(file: Path) -> None:
    data = bytearray(_png(file))
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    file.write_bytes(data)


def _two_gigabytes(file: Path) -> None:
    with open(file, "wb") as stream:
        stream.write(_png(file))
        stream.truncate(1 << 31)


_PICTURES: dict[str, Callable[[Path], object]] = {
    **{name: make for name, make in _KINDS.items() if name != "a link to a private file"},
    "a link to a private picture": _private_picture,
    "a text": lambda file: file.write_text(SECRET),
    "a picture with a secret behind it": lambda file: file.write_bytes(_png(file, SECRET.encode() * 9)),
    "a picture of 3,600 million pixels": _huge_header,
    "a picture of 2 GB": _two_gigabytes,
    "an empty file": lambda file: file.touch(),
}


def _report(run: Path) -> str:
    from ppxcls.reports.page import write_report

    return write_report(run).read_text()


def _page_problem(outcome: Outcome, run: Path, *, is_picture_allowed: bool) -> str | None:
    """Returns what the page of a run shows that it must not show; None if there is nothing."""
    import base64
    import re

    if outcome.code != 0:
        return refusal_problem(outcome)
    text = (run / "report.html").read_text()
    contents = [base64.b64decode(content) for content in re.findall(r'base64,([^"]+)"', text)]
    if SECRET in text or any(SECRET.encode() in content for content in contents):
        return "the page has content of another file"
    if not is_picture_allowed and "data:image/jpeg" in text:
        return "the page has a picture of another folder"
    return None


def _picture(make: Callable[[Path], object], folder: Path) -> tuple[Outcome, str | None]:
    run = make_run(folder / "deep")
    for name in _CSV_FILES:
        (run / name).unlink()
    file = run / "first_batch.png"
    make(file) if make is not _private_picture else _private_picture(file)
    outcome = call(_report, run)
    if outcome.code == 0 and file.is_symlink() and 'id="batch"' in (run / "report.html").read_text():
        return outcome, "the page has a picture of another folder"
    return outcome, _page_problem(outcome, run, is_picture_allowed=False)


def _listed_picture(make: Callable[[Path], object], folder: Path) -> tuple[Outcome, str | None]:
    run = make_run(folder / "deep")
    file = run / "data/a.png"
    make(file)
    row = ",".join({**_ROW, "file": str(file)}.values())
    (run / "predictions.csv").write_text(f"{','.join(COLUMNS)}\n{row}\n")
    (run / "test_predictions.csv").unlink()
    outcome = call(_report, run)
    return outcome, _page_problem(outcome, run, is_picture_allowed=not file.is_symlink())
