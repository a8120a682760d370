"""Writes ``docs/reference.md`` and ``docs/refused.md`` from the config sections and the components.

    python scripts/write_reference.py

``reference.md`` has every key of a YAML. ``refused.md`` has the PaddleClas keys and names that are refused.
"""

from __future__ import annotations

import inspect
import json
import sys
import typing
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import docstring_parser

from ppxcls.config.checks import ConfigPlace, type_name
from ppxcls.config.paddleclas import ALTERNATIVES, HARMLESS_VALUES
from ppxcls.config.registry import Component, Components, Registry, registries
from ppxcls.config.sections import Config

REFERENCE_FILE, REFUSED_FILE = ROOT / "docs/reference.md", ROOT / "docs/refused.md"
# Place in a YAML, by kind of component.
PLACES = {
    "model": "`Arch: {name: …}`",
    "loss": "lists `Loss.Train`, `Loss.Eval`",
    "optimizer": "`Optimizer: {name: …}`",
    "lr schedule": "`Optimizer.lr: {name: …}`",
    "regularizer": "`Optimizer.regularizer: {name: …}`",
    "dataset": "`DataLoader.*.dataset: {name: …}`",
    "transform": "lists `DataLoader.*.dataset.transform_ops`, `Infer.transforms`",
    "batch transform": "list `DataLoader.Train.dataset.batch_transform_ops`",
    "sampler": "`DataLoader.*.sampler: {name: …}`",
    "metric": "lists `Metric.Train`, `Metric.Eval`",
    "tracker": "list `Global.trackers`",
}
HEAD = """# Every key of a YAML

Written by `python scripts/write_reference.py` from the code; a test checks that it is current.
If PaddleClas has a key, its name is PaddleClas's. Components are written in one of two forms:

    Optimizer: {name: Momentum, momentum: 0.9}                  # one component
    transform_ops: [{DecodeImage: {}}, {CropImage: {size: 299}}]   # a list of components
"""
REFUSED_HEAD = """# PaddleClas keys and names that are refused

Written by `python scripts/write_reference.py` from the code.
A config with one of these keys or names is invalid. The error message contains the advice of the table.
A key is accepted with the values of the third column, because they ask for what happens here anyway.

`Global.use_gpu: True` is read as `Global.device: gpu`, and `Global.use_gpu: False` as `Global.device: cpu`.
`use_xpu`, `use_npu`, `use_mlu` and `use_gcu` are read in the same way.

| key or name | instead | accepted |
|---|---|---|
"""


def type_text(hint: Any) -> str:
    """Returns a type in words."""
    if typing.get_origin(hint) is typing.Annotated:
        mark = typing.get_args(hint)[1]
        if isinstance(mark, Component):
            return f"a component: {mark.kind}"
        if isinstance(mark, Components):
            return f"a list of components: {mark.kind}"
    arguments = typing.get_args(hint)
    if type(None) in arguments:
        return " or ".join([*(type_text(a) for a in arguments if a is not type(None)), "null"])
    return type_name(hint)


def default_text(value: Any) -> str:
    """Returns a default as it is written in a YAML."""
    if value is MISSING or value is inspect.Parameter.empty:
        return "required"
    if isinstance(value, bool):
        return f"`{value!s}`"
    return "null" if value is None else f"`{list(value) if isinstance(value, tuple) else value}`"


def descriptions(docstring: str | None) -> dict[str, str]:
    """Returns descriptions of arguments or attributes by name. Several names may share a description."""
    docstring_parts = docstring_parser.parse(docstring or "", docstring_parser.DocstringStyle.GOOGLE)
    return {
        name.strip(): " ".join((parameter.description or "").split())
        for parameter in docstring_parts.params
        for name in parameter.arg_name.split(",")
    }


def texts_of(component: Any) -> dict[str, str]:
    """Returns descriptions of a component's arguments. For a function, the returned class's are included."""
    result_class = typing.get_type_hints(component).get("return") if inspect.isfunction(component) else None
    return {**descriptions(inspect.getdoc(result_class)), **descriptions(component.__doc__)}


def summary_of(component: Any) -> str:
    """Returns the first paragraph of a component's docstring, in one line."""
    return " ".join((inspect.getdoc(component) or "").split("\n\n")[0].split())


def table(rows: list[tuple[str, Any, Any, str]]) -> list[str]:
    """Returns the Markdown lines of a table of key, type, default and description."""
    lines = ["| key | type | default | |", "|---|---|---|---|"]
    for key, hint, default, text in rows:
        cells = [f"`{key}`", type_text(hint), default_text(default), text]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return [*lines, ""]


def section_in(hint: Any) -> type | None:
    """Returns the section type of a key of type ``Section`` or ``Section | None``, or None for other keys."""
    candidates = (hint, *typing.get_args(hint))
    return next((h for h in candidates if isinstance(h, type) and is_dataclass(h)), None)


def keys_of(section: type) -> list[tuple[str, Any, Any, str]]:
    """Returns a row for each key of a dataclass, without nested sections."""
    hints, texts = typing.get_type_hints(section, include_extras=True), descriptions(section.__doc__)
    rows = []
    for field in fields(section):
        if field.init and section_in(hints[field.name]) is None:
            default = field.default if field.default_factory is MISSING else field.default_factory()
            rows.append((field.name, hints[field.name], default, texts.get(field.name, "")))
    return rows


def sections(section: type, path: str = "") -> list[str]:
    """Returns the Markdown lines of a section and its nested sections, each with its keys."""
    lines = []
    if rows := keys_of(section):
        lines += [f"### {path or 'Top level'}", "", (section.__doc__ or "").split("\n")[0], "", *table(rows)]
    hints = typing.get_type_hints(section, include_extras=True)
    for field in fields(section):
        inner = section_in(hints[field.name])
        if field.init and inner is not None:
            lines += sections(inner, f"{path}.{field.name}".lstrip("."))
    return lines


def components(registry: Registry[Any]) -> list[str]:
    """Returns the Markdown lines of all components of one kind in this package."""
    lines = [f"## {registry.kind}: {PLACES[registry.kind]}", ""]
    if registry.common:
        lines += ["Common keys:", "", *table(keys_of(registry.common))]
    for name in registry.names():
        component = registry.get(name, ConfigPlace())
        if not component.__module__.startswith("ppxcls."):
            continue
        texts, hints = texts_of(component), registry.schema(name)
        parameters = inspect.signature(component).parameters
        rows = [(key, hint, parameters[key].default, texts.get(key, "")) for key, hint in hints.items()]
        lines += [f"### {name}", "", summary_of(component), ""]
        lines += table(rows) if rows else []
    return lines


def reference() -> str:
    """Returns the text of ``docs/reference.md``."""
    registries_by_kind = registries()
    parts = [line for kind in PLACES for line in components(registries_by_kind[kind])]
    page = "\n".join([HEAD, "## Sections", "", *sections(Config), *parts]).rstrip() + "\n"
    return page.replace("``", "`")


def accepted_values(word: str) -> str:
    """Returns the values with which a refused key is accepted, as YAML."""
    texts = [json.dumps(value) if value != "" else "''" for value in HARMLESS_VALUES.get(word, ())]
    return ", ".join(f"`{text}`" for text in texts)


def refused() -> str:
    """Returns the text of ``docs/refused.md``: PaddleClas keys and names that are refused."""
    rows = [
        f"| `{word}` | {instead} | {accepted_values(word)} |"
        for word, instead in sorted(ALTERNATIVES.items(), key=lambda item: item[0].lower())
    ]
    return REFUSED_HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    REFERENCE_FILE.write_text(reference(), encoding="utf-8")
    REFUSED_FILE.write_text(refused(), encoding="utf-8")
