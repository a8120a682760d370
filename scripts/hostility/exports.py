"""Exports that are killed, written twice at once, damaged, forged, or aimed at other folders."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hostility.cases import Case, Outcome, call, refusal_problem, run_command

import ppxcls
from ppxcls.config.values_of_runs import export_folder_of
from ppxcls.data.transforms import build_transforms
from ppxcls.deploy.metadata import METADATA_FILE, ExportMetadata, parse_metadata, read_metadata
from ppxcls.deploy.whole_export import (
    PART_NAMES,
    check_parts,
    commit_export,
    read_export_part,
    staging_folder,
)
from ppxcls.system.sealed_json import sealed

PROMISE = (
    "An export is whole or not at all, whoever else writes and whenever it is killed. Damaged parts are "
    "refused. The config of a run does not choose where an export is written. Other files stay"
)
Check = tuple[Outcome, str | None]
_PADDLE_PARTS = ("inference.json", "inference.pdiparams", "inference.yml")
_ALL_PARTS = PART_NAMES
_ONNX_PARTS = ("inference.onnx", "inference.int8.onnx")
_EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")
_WRONG_VALUES: tuple[Any, ...] = (None, 3, -1, 1e300, "x", [], {}, [None], True)
_METADATA_KEYS = ("model", "transforms", "class_names", "class_num", "output", "parts")
_USER_FILES = {
    "README.md": b"mine",
    "inference.txt": b"mine",
    "model.onnx": b"mine",
    ".export-notes": b"mine",
}
_CONFIG_HEADER = "# Written by ppxcls: the config of the run in this folder. Edit another file.\n"


def cases() -> Iterator[Case]:
    """Returns the cases. Those that write much are not quick, because each write waits for the disk."""
    for description, parts in (("other", _ONNX_PARTS), ("fewer", _PADDLE_PARTS), ("more", _ALL_PARTS)):
        for step in range(_step_count(parts)):
            run = functools.partial(_killed, parts, step)
            name = f"a kill before step {step} of an export of {description} files"
            yield Case(name, run, is_quick=description == "other" and step % 2 == 0)
    yield Case("two exports at once", _two_at_once)
    yield Case("an export while another one has the lock", _locked, is_quick=True)
    yield from _damage_cases()
    yield from _description_cases()
    for key in _METADATA_KEYS:
        for value in _WRONG_VALUES:
            if (key, value) not in (("class_num", 3), ("model", "x"), ("output", "x")):
                run = functools.partial(_wrong_entry, key, value)
                yield Case(f"{value!r} as {key} of the metadata", run, is_quick=value is None)
    for name in ("../x", "/etc/passwd", "inference.json/../../x", "", "other.onnx", "inference.\0"):
        yield Case(f"a part named {name!r}", functools.partial(_forged_part, name), is_quick=True)
    yield from _place_cases()
    for name in (*PART_NAMES, METADATA_FILE):
        run = functools.partial(_folder_in_the_way, name)
        yield Case(f"a folder named {name}", run, is_quick=name == METADATA_FILE)
    for name in PART_NAMES:
        yield Case(f"a user's own {name}", functools.partial(_file_of_the_user, name), is_quick=True)
    yield Case("a user's hidden folder", _hidden_folder_of_the_user, is_quick=True)
    yield Case("a hidden folder that is a link", _hidden_link, is_quick=True)
    yield Case("leftovers of an earlier version", _old_leftovers, is_quick=True)


def _damage_cases() -> Iterator[Case]:
    """Returns the cases of a damaged part."""
    for name in (METADATA_FILE, *_ALL_PARTS):
        for place in (0.0, 0.3, 0.6, 0.99):
            run = functools.partial(_flipped, name, place)
            yield Case(f"a flipped bit at {place} of {name}", run, is_quick=place == 0.3)
        for description, harm in _HARMS.items():
            run = functools.partial(_harmed, name, harm)
            yield Case(f"{name} that is {description}", run, is_quick=name == "inference.onnx")
    for name in ("inference.json", "inference.pdiparams", METADATA_FILE, "inference.onnx"):
        for place in (0.2, 0.8):
            run = functools.partial(_infer_with_flipped_bit, name, place)
            yield Case(f"infer with a flipped bit at {place} of {name}", run)


def _description_cases() -> Iterator[Case]:
    """Returns the cases of intact metadata that would give long lines or long work."""
    long_names = {str(i): "x" * 50_000 for i in range(3)}
    for key, value in {"model": "x" * 50_000, "weights": "x" * 50_000, "class_names": long_names}.items():
        yield Case(f"50,000 characters as {key}", functools.partial(_long_text, key, value), is_quick=True)
    resizes = [{"ResizeImage": {"size": size}} for size in (9000, 9001)]
    for name, transforms in {
        "400 resizes": resizes * 200,
        "two large resizes": resizes,
        "a resize to 10^18 pixels": [{"ResizeImage": {"size": 10**9}}],
        "a large shorter side": [{"ResizeImage": {"resize_short": 100_000}}],
        "100,000 transforms": [{"ToCHWImage": {}}] * 100_000,
    }.items():
        run = functools.partial(_much_work, [{"DecodeImage": {}}, *transforms])
        yield Case(f"transforms: {name}", run, is_quick=True)


def _long_text(key: str, value: Any, folder: Path) -> Check:
    text = parse_metadata({**_values("x"), key: value}, str(folder)).describe()
    outcome = Outcome(0, text, "", 0)
    return outcome, None if len(text) <= 500 else f"a description of {len(text):,} characters"


def _much_work(transforms: list[Any], folder: Path) -> Check:
    values = {**_values("x"), "transforms": transforms}
    outcome = call(build_transforms, parse_metadata(values, str(folder)).transforms)
    return outcome, refusal_problem(outcome, "at most")


def _values(model: str) -> dict[str, Any]:
    return ExportMetadata(model, f"{model}.pdparams", [{"DecodeImage": {}}], ["a", "b", "c"], 3).as_dict()


def _write(folder: Path, model: str, names: tuple[str, ...]) -> None:
    """Writes an export whose parts contain the name of their model."""
    with staging_folder(folder) as staging:
        for name in names:
            (staging / name).write_bytes(f"{model} {name}\n".encode() * 50)
        commit_export(folder, staging, _values(model))


def _problem_of_mixture(folder: Path) -> str | None:
    """Returns what is wrong with the export in a folder; None if all of it is of one model."""
    metadata = read_metadata(folder)
    check_parts(folder, metadata)
    for name in metadata.parts:
        if not read_export_part(folder, name, metadata).startswith(f"{metadata.model} {name}".encode()):
            return f"{name} is of another model than the metadata, {metadata.model}"
    return None


def _in_child(function: Callable[[], object]) -> int:
    """Calls a function in a copy of this process, and returns the status of its end."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            function()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _write_until(folder: Path, names: tuple[str, ...], step: int, counter: Path | None = None) -> None:
    """Writes an export, and kills this process before a change of the file system."""
    count = 0

    def count_step(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        is_change = event in _EVENTS and (event != "open" or str(folder) in str(arguments[0]))
        if is_change and count == step:
            os.kill(os.getpid(), signal.SIGKILL)
        count += is_change

    sys.addaudithook(count_step)
    _write(folder, "B", names)
    if counter:
        counter.write_text(str(count), encoding="utf-8")


@functools.cache
def _step_count(names: tuple[str, ...]) -> int:
    """Returns the number of changes of the file system in an export that replaces another one."""
    with tempfile.TemporaryDirectory() as folder:
        target, counter = Path(folder) / "export", Path(folder) / "count"
        _write(target, "A", _PADDLE_PARTS)
        assert _in_child(lambda: _write_until(target, names, -1, counter)) == 0
        return int(counter.read_text(encoding="utf-8"))


def _killed(names: tuple[str, ...], step: int, folder: Path) -> Check:
    start = time.monotonic()
    target = folder / "export"
    _write(target, "A", _PADDLE_PARTS)
    for name, content in _USER_FILES.items():
        (target / name).write_bytes(content)
    code = _in_child(lambda: _write_until(target, names, step))
    problem = _problem_of_mixture(target)
    if code != -signal.SIGKILL:
        problem = problem or f"ended with {code}"
    _write(target, "C", _ALL_PARTS)
    problem = problem or _problem_of_mixture(target)
    received_names = {file.name for file in target.iterdir()}
    if received_names != {*_ALL_PARTS, METADATA_FILE, *_USER_FILES}:
        problem = problem or f"the next export leaves {sorted(received_names)}"
    if any((target / name).read_bytes() != content for name, content in _USER_FILES.items()):
        problem = problem or "a file of the user was changed"
    return Outcome(code, "", "", time.monotonic() - start), problem


def _two_at_once(folder: Path) -> Check:
    start = time.monotonic()
    target = folder / "export"

    def write_often(model: str) -> None:
        for number in range(15):
            with_other_parts = _ALL_PARTS if number % 2 else _ONNX_PARTS
            try:
                _write(target, model, with_other_parts)
            except ppxcls.CheckpointError:
                time.sleep(0.002)

    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            write_often("A")
        finally:
            os._exit(0)
    write_often("B")
    os.waitpid(pid, 0)
    problem = _problem_of_mixture(target)
    if any(file.name.startswith(".export-") for file in target.iterdir()):
        problem = problem or "a hidden folder is left"
    return Outcome(0, "", "", time.monotonic() - start), problem


def _locked(folder: Path) -> Check:
    with staging_folder(folder / "export"):
        outcome = call(_write, folder / "export", "B", _ONNX_PARTS)
    return outcome, refusal_problem(outcome, "another process exports to this folder")


def _read_all(folder: Path) -> None:
    metadata = read_metadata(folder)
    check_parts(folder, metadata)
    for name in metadata.parts:
        read_export_part(folder, name, metadata)


def _flipped(name: str, place: float, folder: Path) -> Check:
    _write(folder / "export", "A", _ALL_PARTS)
    _flip(folder / "export" / name, place)
    outcome = call(_read_all, folder / "export")
    return outcome, refusal_problem(outcome, name)


def _flip(file: Path, place: float) -> None:
    content = bytearray(file.read_bytes())
    position = int(place * (len(content) - 2))
    content[position] ^= 1
    file.write_bytes(content)


_HARMS: dict[str, Callable[[Path], object]] = {
    "empty": lambda file: file.write_bytes(b""),
    "cut": lambda file: os.truncate(file, file.stat().st_size // 2),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"\n}"),
    "a pipe": lambda file: (file.unlink(), os.mkfifo(file)),
    "a device": lambda file: (file.unlink(), file.symlink_to("/dev/zero")),
    "another file": lambda file: (file.unlink(), file.symlink_to("/etc/passwd")),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
}


def _harmed(name: str, harm: Callable[[Path], object], folder: Path) -> Check:
    _write(folder / "export", "A", _ALL_PARTS)
    harm(folder / "export" / name)
    outcome = call(_read_all, folder / "export")
    return outcome, refusal_problem(outcome)


def _rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the metadata of an export, with a digest that matches."""
    file = folder / METADATA_FILE
    values = json.loads(file.read_text(encoding="utf-8"))
    change(values)
    values.pop("sha256")
    file.write_text(json.dumps(sealed(values)), encoding="utf-8")


def _wrong_entry(key: str, value: Any, folder: Path) -> Check:
    _write(folder, "A", _ONNX_PARTS)
    is_empty_parts = key == "parts" and value == {}
    _rewrite(folder, lambda values: values.update({key: value}))
    outcome = call(_read_all, folder)
    if is_empty_parts or (key == "class_names" and value == {}) or (key == "transforms" and value == [None]):
        return outcome, None if outcome.code == 0 else refusal_problem(outcome)  # an earlier version's form
    return outcome, refusal_problem(outcome, METADATA_FILE)


def _forged_part(name: str, folder: Path) -> Check:
    _write(folder, "A", _ONNX_PARTS)

    def add(values: dict[str, Any]) -> None:
        values["parts"][name] = values["parts"]["inference.onnx"]

    _rewrite(folder, add)
    outcome = call(_read_all, folder)
    return outcome, refusal_problem(outcome, METADATA_FILE)


def _place_cases() -> Iterator[Case]:
    """Returns the cases of a run whose config names places to write."""
    for name in ("VICTIM", "../../victim", "victim", "./deep/victim", "~/victim", "run/link/x", "/", ".."):
        for is_whole_run in (True, False):
            kind = "a run" if is_whole_run else "a folder without results"
            run = functools.partial(_export_of_run, name, is_whole_run)
            yield Case(f"the export folder {name!r} in the config of {kind}", run, is_quick=True)
    for name in ("./inference", "inference", "RUN/deployed"):
        run = functools.partial(_allowed_export_of_run, name)
        yield Case(f"the allowed export folder {name!r}", run, is_quick=True)
    yield Case("another export folder on the command line", _export_by_option, is_quick=True)
    for mode in ("Train", "Eval"):
        for name in ("VICTIM", "../victim", "victim"):
            run = functools.partial(_cache_of_run, mode, name)
            yield Case(f"the cache folder {name!r} of {mode} in the config of a run", run, is_quick=True)
    for name in ("VICTIM", "../victim", "/"):
        run = functools.partial(_output_of_run, name)
        yield Case(f"the output folder {name!r} in the config of a run", run, is_quick=True)


def _run_config(
    folder: Path, sections: Mapping[str, Any], *, is_whole_run: bool = True
) -> tuple[Path, dict[str, Any]]:
    """Writes the folder of a run with a config."""
    run = folder / "run"
    run.mkdir()
    (folder / "victim").mkdir()
    (run / "link").symlink_to(folder / "victim")
    text = json.dumps({"Arch": {"name": "Xception41", "class_num": 3}, **sections})
    text = text.replace("VICTIM", str(folder / "victim")).replace("RUN", str(run))
    (run / "config.yaml").write_text((_CONFIG_HEADER if is_whole_run else "") + text, encoding="utf-8")
    return run, json.loads(text)


def _export_place(run: Path, overrides: tuple[str, ...] = ()) -> Path:
    return export_folder_of(ppxcls.load_config(run, overrides))


def _export_of_run(name: str, is_whole_run: bool, folder: Path) -> Check:  # noqa: FBT001  of partial
    sections = {"Global": {"save_inference_dir": name.replace("run/", "RUN/")}}
    run, _ = _run_config(folder, sections, is_whole_run=is_whole_run)
    outcome = call(_export_place, run)
    return outcome, refusal_problem(outcome, "not in the run's folder", "-o Global.save_inference_dir=")


def _allowed_export_of_run(name: str, folder: Path) -> Check:
    run, values = _run_config(folder, {"Global": {"save_inference_dir": name}})
    outcome = call(_export_place, run)
    expected = repr(Path(values["Global"]["save_inference_dir"]))
    return outcome, None if outcome.output == expected else f"received {outcome.output}{outcome.errors}"


def _export_by_option(folder: Path) -> Check:
    run, _ = _run_config(folder, {"Global": {"save_inference_dir": "VICTIM"}})
    outcome = call(_export_place, run, (f"Global.save_inference_dir={folder}/mine",))
    return outcome, None if outcome.output == repr(folder / "mine") else outcome.output + outcome.errors


def _cache_of_run(mode: str, name: str, folder: Path) -> Check:
    dataset = {
        "name": "PackedDataset",
        "pack": "x",
        "cache_dir": name,
        "transform_ops": [{"DecodeImage": {}}],
    }
    section = {"dataset": dataset, "sampler": {"name": "DistributedBatchSampler", "batch_size": 2}}
    run, _ = _run_config(folder, {"DataLoader": {mode: section}})
    outcome = call(ppxcls.load_config, run)
    return outcome, refusal_problem(outcome, "not in the run's folder", "cache_dir")


def _output_of_run(name: str, folder: Path) -> Check:
    run, _ = _run_config(folder, {"Global": {"output_dir": name}})
    start = time.monotonic()
    config = ppxcls.load_config(run, ["Arch.name=Xception65"])
    problem = None if config.run_folder == folder / "Xception65" else f"writes to {config.run_folder}"
    return Outcome(0, str(config.run_folder), "", time.monotonic() - start), problem


def _folder_in_the_way(name: str, folder: Path) -> Check:
    _write(folder, "A", _PADDLE_PARTS)
    (folder / name).unlink(missing_ok=True)
    (folder / name).mkdir()
    outcome = call(_write, folder, "B", _ALL_PARTS)
    problem = refusal_problem(outcome, name)
    return outcome, problem if (folder / name).is_dir() else "the folder was removed"


def _file_of_the_user(name: str, folder: Path) -> Check:
    (folder / name).write_bytes(b"mine")
    outcome = call(_write, folder, "B", _ALL_PARTS)
    problem = refusal_problem(outcome, name, "no export of ppxcls wrote it")
    if (folder / name).read_bytes() != b"mine" or len(list(folder.iterdir())) != 1:
        problem = "the folder was changed"
    return outcome, problem


def _hidden_folder_of_the_user(folder: Path) -> Check:
    (folder / ".export-settings").mkdir()
    (folder / ".export-settings/notes.txt").write_bytes(b"mine")
    outcome = call(_write, folder, "B", _ALL_PARTS)
    is_there = (folder / ".export-settings/notes.txt").is_file()
    return outcome, _problem_of_mixture(folder) if is_there else "it was removed"


def _hidden_link(folder: Path) -> Check:
    victim = folder / "victim"
    victim.mkdir()
    (victim / "inference.onnx").write_bytes(b"mine")
    (folder / "export").mkdir()
    (folder / "export/.export-0123456789abcdef").symlink_to(victim)
    outcome = call(_write, folder / "export", "B", _ALL_PARTS)
    is_there = (victim / "inference.onnx").is_file()
    return outcome, _problem_of_mixture(folder / "export") if is_there else "the link was followed"


def _old_leftovers(folder: Path) -> Check:
    (folder / ".export-a1b2c3d4/tmpabcdefgh").mkdir(parents=True)
    (folder / ".export-a1b2c3d4/inference.onnx").write_bytes(b"large")
    (folder / ".export-a1b2c3d4/tmpabcdefgh/inference.json").write_bytes(b"large")
    outcome = call(_write, folder, "B", _ALL_PARTS)
    is_left = (folder / ".export-a1b2c3d4").exists()
    return outcome, "a leftover stays" if is_left else _problem_of_mixture(folder)


@functools.cache
def _real_export() -> Path:
    """Returns a folder with a real export and an image."""
    folder = Path(tempfile.mkdtemp(prefix="hostile-export-"))
    code = (
        "import numpy as np, cv2, ppxcls; from ppxcls.models.weights import save_weights; "
        "from pathlib import Path; "
        "save_weights(ppxcls.build_model('Xception41', class_num=3), Path('w.pdparams')); "
        "cv2.imwrite('a.png', np.random.default_rng(0).integers(0, 255, (80, 80, 3)).astype('uint8'))"
    )
    outcome = run_command([sys.executable, "-c", code], folder)
    assert outcome.code == 0, outcome.errors
    config = folder / "config.yaml"
    transforms = [{"DecodeImage": {}}, {"ResizeImage": {"size": 75}}, {"NormalizeImage": {"order": ""}}]
    sections = {
        "Global": {"device": "cpu"},
        "Arch": {"name": "Xception41", "class_num": 3},
        "Infer": {"infer_imgs": "a.png", "transforms": [*transforms, {"ToCHWImage": {}}]},
    }
    config.write_text(json.dumps(sections), encoding="utf-8")
    outcome = run_command(["export", "-c", config, "-o", "Global.pretrained_model=w.pdparams"], folder)
    assert outcome.code == 0, outcome.errors
    return folder


def _infer_with_flipped_bit(name: str, place: float, folder: Path) -> Check:
    source = _real_export()
    shutil.copytree(source / "inference", folder / "inference")
    _flip(folder / "inference" / name, place)
    outcome = run_command(["infer", "--exported", "inference", source / "a.png"], folder)
    problem = refusal_problem(outcome, name)
    return outcome, problem if not outcome.output else f"an output: {outcome.output[:100]}"
