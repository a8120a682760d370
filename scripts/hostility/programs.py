"""Hostile exported programs: Paddle's two formats, ONNX, and their weights and metadata."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from hostility.builders import onnx, onnx_programs, paddle2, paddle_programs, pir
from hostility.cases import ROOT, Case, Outcome, call, message_problem, refusal_problem, run_command

import ppxcls

PROMISE = (
    "A program that can do anything but bounded arithmetic is refused in one line before a library reads it"
)
_CONTENT = "canary-content"
_METADATA = {
    "model": "tiny",
    "weights": "none",
    "transforms": [{"DecodeImage": {}}, {"ResizeImage": {"size": [4, 4]}}],
    "class_names": {"0": "a", "1": "b"},
    "class_num": 2,
    "output": "probabilities",
    "preprocessing in the graph": True,
}
_TEXT = json.dumps(_METADATA)
_IMAGE = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
_HAS_ONNX = importlib.util.find_spec("onnxruntime") is not None
_FLIP_COUNT = 40
_QUICK_BYTES = 700_000
_PNG = cv2.imencode(".png", _IMAGE)[1].tobytes()


def cases() -> Iterator[Case]:
    """Returns the cases of all formats, and some as real commands."""
    yield Case("good programs give scores", _good_programs, is_quick=True)
    groups = {
        "": paddle_programs.forbidden_operators,
        "size: ": paddle_programs.large_sizes,
        "pdmodel: ": paddle_programs.damaged_paddle2,
        "json: ": paddle_programs.damaged_pir,
    }
    for group, programs in groups.items():
        for name, file, data, word in programs():
            run = functools.partial(_refused, {file: data, "inference.pdiparams": paddle2.weights()}, word)
            is_quick = len(data) < _QUICK_BYTES
            yield Case(f"{file.rpartition('.')[2]} {group}{name}", run, is_quick=is_quick)
    for name, data in onnx_programs.files(_TEXT):
        run = functools.partial(_refused, {"inference.onnx": data}, "")
        yield Case(f"onnx: {name}", run, is_quick=len(data) < _QUICK_BYTES)
    yield from _weights_cases()
    yield from _file_cases()
    for seed in range(_FLIP_COUNT):
        yield Case(f"flipped bits {seed}", functools.partial(_flipped, seed), is_quick=seed < 12)
    yield from _command_cases()


def _write(folder: Path, files: dict[str, bytes]) -> Path:
    """Writes an exported folder, and returns the canary. Its path is in the programs."""
    canary = folder / "c".ljust(len(paddle_programs.CANARY) - len(str(folder)) - 1, "x")
    canary.write_text(_CONTENT)
    exported = folder / "exported"
    exported.mkdir()
    (exported / "inference_config.json").write_text(_TEXT)
    for name, data in files.items():
        (exported / name).write_bytes(data.replace(paddle_programs.CANARY.encode(), str(canary).encode()))
    return canary


def _predict(path: Path, **options: Any) -> list[float]:
    (prediction,) = ppxcls.load(path, **options).predict(_IMAGE)
    if prediction.error:
        raise ppxcls.DataError(prediction.error)
    assert len(prediction.scores) == 2, prediction
    return prediction.scores


def _checked(folder: Path, canary: Path, outcome: Outcome, problem: str | None) -> tuple[Outcome, str | None]:
    """Returns the outcome, and a problem if the canary was read or written."""
    names = {file.name for file in folder.iterdir()} - {canary.name, "exported"}
    if not canary.is_file() or canary.read_text() != _CONTENT or names:
        return outcome, f"the canary or the folder has changed: {sorted(names)}"
    if _CONTENT in outcome.output + outcome.errors:
        return outcome, "the canary was read"
    return outcome, problem


def _refused(files: dict[str, bytes], word: str, folder: Path) -> tuple[Outcome, str | None]:
    canary = _write(folder, files)
    is_onnx = "inference.onnx" in files
    path = folder / "exported" / ("inference.onnx" if is_onnx else "")
    outcome = call(_predict, path)
    return _checked(folder, canary, outcome, refusal_problem(outcome, "inference", word))


def _good_programs(folder: Path) -> tuple[Outcome, str | None]:
    scores = []
    for number, files in enumerate(_good_files()):
        part = folder / str(number)
        part.mkdir()
        _write(part, files)
        scores.append(_predict(part / "exported"))
    outcome = Outcome(0, repr(scores), "", 0)
    return outcome, None if np.allclose(scores, scores[0], atol=1e-5) else "the scores differ"


def _good_files() -> Iterator[dict[str, bytes]]:
    weights = {"inference.pdiparams": paddle2.weights()}
    yield {"inference.pdmodel": paddle2.program(), **weights}
    if ppxcls.system.environment.paddle_version() >= (3, 0):
        yield {"inference.json": json.dumps(pir.program()).encode(), **weights}
    if _HAS_ONNX:
        yield {"inference.onnx": onnx.model(onnx.graph(), _TEXT)}


def _weights_cases() -> Iterator[Case]:
    good = paddle2.weights()
    for name, data in {
        "nothing": b"",
        "cut off": good[:-1],
        "one byte more": good + b"x",
        "twice": good * 2,
        "another shape": paddle2.weights([2, 48]),
        "another type": paddle2.weights(dtype=3, data=bytes(96 * 8)),
        "texts": paddle2.weights(dtype=26, data=bytes(96 * 4)),
        "levels": paddle2.weights(levels=1),
        "2^60 elements": paddle2.weights([1 << 30, 1 << 30], data=bytes(384)),
        "a negative side": paddle2.weights([-48, -2], data=bytes(384)),
        "a description of 2 GB": good[:16] + b"\xff\xff\xff\x7f" + good[20:],
        "zeros": bytes(len(good)),
        "a pickle": b"\x80\x04cos\nsystem\n.".ljust(len(good), b"."),
    }.items():
        for program in (
            {"inference.pdmodel": paddle2.program()},
            {"inference.json": json.dumps(pir.program()).encode()},
        ):
            files = {**program, "inference.pdiparams": data}
            run = functools.partial(_refused, files, "inference.pdiparams")
            if next(iter(program)) == "inference.pdmodel" or ppxcls.system.environment.paddle_version() >= (
                3,
                0,
            ):
                yield Case(f"weights for {next(iter(program))}: {name}", run, is_quick=True)


def _file_cases() -> Iterator[Case]:
    changes: dict[str, Callable[[Path], object]] = {
        "a pipe": os.mkfifo,
        "a folder": lambda file: file.mkdir(),
        "an endless device": lambda file: file.symlink_to("/dev/zero"),
        "a link to nothing": lambda file: file.symlink_to("/nothing"),
        "a link to itself": lambda file: file.symlink_to(file),
        "a terminal": lambda file: file.symlink_to("/dev/tty"),
    }
    for name in ("inference.pdmodel", "inference.pdiparams", "inference.onnx", "inference_config.json"):
        for description, change in changes.items():
            run = functools.partial(_special_file, name, change)
            yield Case(f"{name} is {description}", run, is_quick=True)
    for description, values in {
        "other classes": {"class_num": 3, "class_names": {"0": "a", "1": "b", "2": "c"}},
        "images of another size": {"transforms": [{"DecodeImage": {}}, {"ResizeImage": {"size": [5, 4]}}]},
        "images of floating-point numbers": {"preprocessing in the graph": False},
    }.items():
        text = json.dumps({**_METADATA, **values}).encode()
        for files in ({"inference.pdmodel": paddle2.program(), "inference.pdiparams": paddle2.weights()},):
            run = functools.partial(_refused, {**files, "inference_config.json": text}, "inference.pdmodel")
            yield Case(f"metadata of {description}", run, is_quick=True)
    yield Case("a program that is swapped after its check", _swapped, is_quick=True)
    yield Case("weights that grow after their check", _swapped_weights, is_quick=True)


def _special_file(name: str, change: Callable[[Path], object], folder: Path) -> tuple[Outcome, str | None]:
    files = {"inference.pdmodel": paddle2.program(), "inference.pdiparams": paddle2.weights()}
    if name == "inference.onnx":
        files = {name: onnx.model(onnx.graph(), _TEXT)}
    canary = _write(folder, files)
    (folder / "exported" / name).unlink()
    change(folder / "exported" / name)
    path = folder / "exported" / ("inference.onnx" if name == "inference.onnx" else "")
    outcome = call(functools.partial(_predict, path))
    if name == "inference_config.json" and outcome.code == 1:
        return _checked(folder, canary, outcome, message_problem(outcome.errors))
    return _checked(folder, canary, outcome, refusal_problem(outcome, "inference"))


def _swap_before_loading(folder: Path, name: str, data: bytes) -> tuple[Outcome, str | None]:
    """Predicts while another process replaces a file after the check, before Paddle reads it."""
    from ppxcls.deploy import runners

    files = {"inference.pdmodel": paddle2.program(), "inference.pdiparams": paddle2.weights()}
    canary = _write(folder, files)
    expected = _predict(folder / "exported")
    loader = runners.InferenceProgram

    def swapped(*arguments: Any, **options: Any) -> Any:
        (folder / "exported" / name).write_bytes(
            data.replace(paddle_programs.CANARY.encode(), str(canary).encode())
        )
        return loader(*arguments, **options)

    runners.InferenceProgram = swapped  # type: ignore[assignment, misc]
    try:
        outcome = call(_predict, folder / "exported")
    finally:
        runners.InferenceProgram = loader  # type: ignore[misc]
    problem = (
        None if outcome.output == repr(expected) else f"other scores: {outcome.output or outcome.errors}"
    )
    return _checked(folder, canary, outcome, problem)


def _swapped(folder: Path) -> tuple[Outcome, str | None]:
    attributes = (("file_path", "str", paddle_programs.CANARY), ("overwrite", "bool", True))
    save = paddle2.operator("save", {"X": ["w"]}, {}, *attributes)
    return _swap_before_loading(folder, "inference.pdmodel", paddle2.with_operator(save))


def _swapped_weights(folder: Path) -> tuple[Outcome, str | None]:
    return _swap_before_loading(folder, "inference.pdiparams", paddle2.weights([1 << 30, 1 << 30], data=b""))


def _flipped(seed: int, folder: Path) -> tuple[Outcome, str | None]:
    """Flips bits of a file. The result is scores, or one line."""
    rng = np.random.default_rng(seed)
    all_files = list(_good_files())
    files = all_files[seed % len(all_files)]
    name = sorted(files)[0] if seed % 2 else sorted(files)[-1]
    data = bytearray(files[name])
    for position in rng.integers(0, len(data), 1 + seed % 3):
        data[position] ^= 1 << int(rng.integers(0, 8))
    canary = _write(folder, {**files, name: bytes(data)})
    outcome = call(_predict, folder / "exported")
    problem = None if outcome.code == 0 else message_problem(outcome.errors)
    return _checked(folder, canary, outcome, problem)


def _command_cases() -> Iterator[Case]:
    save = paddle2.operator(
        "save", {"X": ["w"]}, {}, ("file_path", "str", paddle_programs.CANARY), ("overwrite", "bool", True)
    )
    read = pir.operator("1.read_file", [], {9: [-1]}, filename=paddle_programs.CANARY)
    target_file = onnx.tensor("w", [48, 2], None, more=onnx.external("../" + "c" * 20))
    weights = {"inference.pdiparams": paddle2.weights()}
    programs = {
        "save": {"inference.pdmodel": paddle2.with_operator(save), **weights},
        "read_file": {"inference.json": pir.with_operator(read), **weights},
        "a cut file": {"inference.pdmodel": paddle2.program()[:200], **weights},
        "external data": {"inference.onnx": onnx.model(onnx.graph(constants=[target_file]), _TEXT)},
        "Loop": {
            "inference.onnx": onnx.model(
                onnx.with_nodes(onnx.node("Loop", ["logits"], ["e"], body=onnx.graph())), _TEXT
            )
        },
    }
    for name, files in programs.items():
        for verb in ("infer", "serve"):
            yield Case(f"{verb} with {name}", functools.partial(_command, verb, files, []))
    if _HAS_ONNX:
        for location in ("../outside.bin", "/etc/hostname", "*/_ORT_MEM_ADDR_/*", "link.bin"):
            run = functools.partial(_trusted_external_data, location)
            yield Case(f"infer --trust with data in {location}", run)
        yield Case("serve with a good program", _served)


def _command(
    verb: str, files: dict[str, bytes], options: list[str], folder: Path
) -> tuple[Outcome, str | None]:
    canary = _write(folder, files)
    (folder / "exported/image.png").write_bytes(_PNG)
    words = ["infer", "exported/image.png", "--exported", "exported"]
    if verb == "serve":
        words = ["serve", "exported", "--port", "0"]
    outcome = run_command([*words, *options], folder)
    return _checked(folder, canary, outcome, refusal_problem(outcome, "inference"))


def _trusted_external_data(location: str, folder: Path) -> tuple[Outcome, str | None]:
    constant = onnx.tensor("w", [48, 2], None, more=onnx.external(location, offset="0", length="384"))
    files = {"inference.onnx": onnx.model(onnx.graph(constants=[constant]), _TEXT)}
    target_file = folder.parent / f"{folder.name}-outside.bin"
    target_file.write_bytes(onnx.WEIGHTS)
    try:
        canary = _write(folder, files)
        (folder / "exported/link.bin").symlink_to(target_file)
        (folder / "exported/image.png").write_bytes(_PNG)
        outcome = run_command(["infer", "exported/image.png", "--exported", "exported", "--trust"], folder)
        return _checked(folder, canary, outcome, refusal_problem(outcome, "inference.onnx"))
    finally:
        target_file.unlink()


def _served(folder: Path) -> tuple[Outcome, str | None]:
    """Serves a good program, and asks for a prediction."""
    canary = _write(folder, {"inference.onnx": onnx.model(onnx.graph(), _TEXT)})
    start = time.monotonic()
    # S603: runs this package with fixed words, without a shell.
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, str(ROOT / "ppxcls/__main__.py"), "serve", "exported", "--port", "0"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    errors, answer = "", ""
    try:
        assert process.stdout
        for line in process.stdout:
            errors += line
            if address := re.search(r"listening at (http://\S+)", line):
                # S310: an address of this machine that the server itself printed.
                url, headers = f"{address[1]}/predict", {"Content-Type": "image/png"}
                request = urllib.request.Request(url, _PNG, headers)  # noqa: S310
                answer = urllib.request.urlopen(request, timeout=30).read().decode()  # noqa: S310
                break
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    outcome = Outcome(process.returncode, answer, errors, time.monotonic() - start)
    return _checked(folder, canary, outcome, None if '"scores"' in answer else f"no scores: {errors[-200:]}")
