"""Hostile names and values in every place that a message may show."""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hostility.cases import Case, Outcome, call, message_problem, refusal_problem, run_command

import ppxcls
from ppxcls.checkpoints.files import read_checkpoint, read_manifest, read_state
from ppxcls.data.class_names import read_class_names
from ppxcls.data.label_mapping import ClassNames, label_mapping
from ppxcls.data.list_index import ListIndex
from ppxcls.deploy.build import load
from ppxcls.models.weights import load_weights
from ppxcls.packed.format import read_pack_manifest

PROMISE = "A message is one printable line of up to 500 characters, whatever is in the names that it shows"
_TEXTS = {
    "100,000 characters": "a" * 100_000,
    "100,000 different characters": "".join(chr(0x4E00 + i * 7919 % 20_000) for i in range(100_000)),
    "escape codes": "\x1b]0;title\x07\x1b[2J\x1b[31m",
    "line breaks": "a\nerror: forged\r\n\u2028b",
    "bytes that are not UTF-8": "\udcff\udcfe" * 300,
    "letters from right to left": "\u202egpj.exe" * 100,
}
_YAML_TEXTS = {name: text for name, text in _TEXTS.items() if "UTF-8" not in name}
_MINIMAL: dict[str, Any] = {"Arch": {"name": "Xception41"}}


def _changed(*keys: str) -> Callable[[str], dict[str, Any]]:
    """Returns a function that puts a text at a key path of a config."""

    def config_with(text: str) -> dict[str, Any]:
        config: dict[str, Any] = {"Arch": {"name": "Xception41"}}
        part = config
        for key in keys[:-1]:
            part = part.setdefault(key, {})
        part[keys[-1]] = text
        return config

    return config_with


_LOADER = {"dataset": {"name": "ImageNetDataset", "image_root": "a", "cls_label_path": "b"}}
# Places in a config: functions of a text that return the config.
_CONFIGS: dict[str, Callable[[str], dict[str, Any]]] = {
    "a section": lambda text: {text: {}},
    "a key": lambda text: {"Global": {text: 1}},
    "a network": _changed("Arch", "name"),
    "a number": _changed("Global", "epochs"),
    "a choice": _changed("Global", "weights_format"),
    "a plugin": lambda text: {"Global": {"plugins": [text]}},
    "a base": lambda text: {"base": text},
    "a loss": lambda text: {**_MINIMAL, "Loss": {"Train": [{text: {"weight": 1.0}}]}},
    "a key of a loss": lambda text: {**_MINIMAL, "Loss": {"Train": [{"CELoss": {text: 1.0}}]}},
    "an optimizer": _changed("Optimizer", "name"),
    "a metric": lambda text: {**_MINIMAL, "Metric": {"Eval": [{text: {}}]}},
    "a transform": lambda text: {
        **_MINIMAL,
        "DataLoader": {"Eval": {"dataset": {**_LOADER["dataset"], "transform_ops": [{text: {}}]}}},
    },
    "a value of a transform": lambda text: {
        **_MINIMAL,
        "DataLoader": {
            "Eval": {"dataset": {**_LOADER["dataset"], "transform_ops": [{"ResizeImage": {"size": text}}]}}
        },
    },
    "a nested key": lambda text: {"Global": {"trackers": [{"TensorBoard": {text: {text: text}}}]}},
}
_OVERRIDES: dict[str, Callable[[str], str]] = {
    "an override's section": lambda text: f"{text}=1",
    "an override's key": lambda text: f"Global.{text}=1",
    "an override's value": lambda text: f"Global.epochs='{text}'",
    "an override without a value": str,
    "an override that is no YAML": lambda text: f"Global.epochs=[{text}",
}
# Files: functions of a folder and a text that write one, and call what reads it.
_Reader = Callable[[Path, str], Outcome]


def _write(file: Path, text: str) -> Path:
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    return file


def _list(folder: Path, lines: str) -> Outcome:
    return call(ListIndex, _write(folder / "list.txt", lines))


def _yaml(folder: Path, text: str) -> Outcome:
    return call(ppxcls.load_config, _write(folder / "a.yaml", text))


def _classes(folder: Path, lines: str) -> Outcome:
    return call(read_class_names, _write(folder / "class_names.txt", lines), 3)


def _manifest(folder: Path, content: Any) -> Outcome:
    _write(folder / "latest.json", json.dumps(content))
    outcome = call(read_manifest, folder / "latest")
    return outcome if outcome.code else call(read_checkpoint, folder / "latest")


def _unknown_class(_: Path, text: str) -> Outcome:
    mapping = label_mapping(
        ClassNames((text, "b"), "list"), ClassNames((f"c{text}", "d", "e", *[text + "f"] * 500), "network")
    )
    assert mapping is not None
    return Outcome(1, "", str(ppxcls.DataError(mapping.unknown_class_message(0))), 0.0)


def _mapped_classes(_: Path, text: str) -> Outcome:
    from ppxcls.system.logs import logger

    mapping = label_mapping(ClassNames(("b", text), text), ClassNames((text, "b"), text))
    record = logger.makeRecord("ppxcls", 30, "", 0, str(mapping), None, None)
    logger.filter(record)
    return Outcome(1, "", record.getMessage(), 0.0)


_READERS: dict[str, _Reader] = {
    "a line of a list without a label": lambda folder, text: _list(folder, text.replace("\n", " ") + "\n"),
    "a label of a list": lambda folder, text: _list(folder, f"a.jpg x{text}\n"),
    "the path of a line": lambda folder, text: _list(folder, f"{text} 0 0x\n"),
    "a line of the class names": lambda folder, text: _classes(folder, f"0 a\n{text}\n"),
    "a class name that occurs twice": lambda folder, text: _classes(folder, f"0 {text}\n0 {text}\n"),
    "an unknown class": _unknown_class,
    "the source of a mapping": _mapped_classes,
    "a part of a manifest": lambda folder, text: _manifest(
        folder, {"format": 1, "parts": {text: {"bytes": 1, "sha256": text}}}
    ),
    "the format of a manifest": lambda folder, text: _manifest(folder, {"format": text, "parts": {}}),
    "a manifest": _manifest,
    "a manifest of a pack": lambda folder, text: call(
        read_pack_manifest, _write(folder / "pack.json", json.dumps({"format": text, text: text}))
    ),
    "a YAML": lambda folder, text: _yaml(folder, f"a: [{text}"),
    "a tag of a YAML": lambda folder, text: call(
        ppxcls.load_config, _write(folder / "a.yaml", f"a: !{text} 1")
    ),
    "an alias of a YAML": lambda folder, text: call(
        ppxcls.load_config, _write(folder / "a.yaml", f"a: *{text}")
    ),
}
# Functions of the public face that take the name of a file.
_FUNCTIONS: dict[str, Callable[[str], Any]] = {
    "a config": ppxcls.load_config,
    "weights": lambda text: load_weights(None, text),  # type: ignore[arg-type]
    "a state": read_state,
    "a list": ListIndex,
    "class names": lambda text: read_class_names(text, 3),
    "a folder of photographs": lambda text: ppxcls.make_lists(text, "lists"),
    "a run to report": ppxcls.report,
    "exported files": load,
    "a pack": lambda text: ppxcls.unpack(text, "unpacked"),
    "a folder to fit": lambda text: ppxcls.fit(text, device="cpu"),
}
_COMMANDS: dict[str, Callable[[str], list[str]]] = {
    "a verb": lambda text: [text],
    "an option": lambda text: ["list", f"--{text}"],
    "a config": lambda text: ["eval", "-c", text],
    "an override": lambda text: ["eval", "-c", "a.yaml", "-o", f"Global.{text}=1"],
    "an image": lambda text: ["infer", "--exported", text, text],
    "an output": lambda text: ["lists", "photos", "-o", f"/proc/{text}"],
    "a number": lambda text: ["lists", "photos", "-o", "lists", "--seed", text],
    "a run": lambda text: ["report", text],
    "a pack": lambda text: ["pack", "--unpack", text, "-o", "b"],
}
_COMMAND_TEXTS = {
    name: text for name, text in _TEXTS.items() if name in ("100,000 characters", "escape codes")
}


def cases() -> Iterator[Case]:
    """Returns the cases: each place with each text."""
    for description, text in _YAML_TEXTS.items():
        for place, config in _CONFIGS.items():
            run = functools.partial(_config, config, text)
            yield Case(f"{place} of a config with {description}", run, is_quick=True)
    for description, text in _TEXTS.items():
        for place, override in _OVERRIDES.items():
            run = functools.partial(_override, override, text)
            yield Case(f"{place} with {description}", run, is_quick=True)
        for place, reader in _READERS.items():
            yield Case(f"{place} with {description}", functools.partial(_read, reader, text), is_quick=True)
        for place, function in _FUNCTIONS.items():
            run = functools.partial(_name, function, text)
            yield Case(f"{place} named with {description}", run, is_quick=True)
    for description, text in _COMMAND_TEXTS.items():
        for place, words in _COMMANDS.items():
            yield Case(f"{place} of a command with {description}", functools.partial(_command, words, text))
    yield Case("a config with 20,000 unknown keys", _many_keys, is_quick=True)
    yield Case("a YAML with a key of a million characters", _long_key, is_quick=True)


def _problem(outcome: Outcome) -> str | None:
    """Returns what is wrong with a refusal: also an unprintable character."""
    if (problem := refusal_problem(outcome)) is not None:
        return problem
    characters = {c for c in outcome.errors if not c.isprintable() and c != "\n"}
    return f"unprintable characters: {sorted(characters)!r}" if characters else None


def _config(config: Callable[[str], dict[str, Any]], text: str, _: Path) -> tuple[Outcome, str | None]:
    outcome = call(ppxcls.load_config, config(text))
    return outcome, _problem(outcome)


def _override(override: Callable[[str], str], text: str, _: Path) -> tuple[Outcome, str | None]:
    outcome = call(ppxcls.load_config, _MINIMAL, [override(text)])
    return outcome, _problem(outcome)


def _read(reader: _Reader, text: str, folder: Path) -> tuple[Outcome, str | None]:
    outcome = reader(folder, text)
    return outcome, _problem(outcome)


def _name(function: Callable[[str], Any], text: str, folder: Path) -> tuple[Outcome, str | None]:
    previous_folder = os.getcwd()
    os.chdir(folder)
    try:
        outcome = call(function, text)
    finally:
        os.chdir(previous_folder)
    return outcome, _problem(outcome)


def _command(words: Callable[[str], list[str]], text: str, folder: Path) -> tuple[Outcome, str | None]:
    (folder / "a.yaml").write_text("Arch: {name: Xception41}\n")
    (folder / "photos").mkdir()
    outcome = run_command(words(text), folder, timeout_s=60)
    if words is _COMMANDS["a verb"]:  # the verbs are listed first
        return outcome, message_problem("\n".join(outcome.errors.splitlines()[-1:]), "there is no verb")
    return outcome, _problem(outcome)


def _many_keys(_: Path) -> tuple[Outcome, str | None]:
    start = time.monotonic()
    outcome = call(ppxcls.load_config, {f"key{i}": {} for i in range(20_000)})
    problem = "took more than 30 s" if time.monotonic() - start > 30 else None
    return outcome, _problem(outcome) or problem


def _long_key(folder: Path) -> tuple[Outcome, str | None]:
    outcome = call(ppxcls.load_config, _write(folder / "a.yaml", f"? {'a' * 1_000_000}\n: 1\n"))
    return outcome, _problem(outcome)
