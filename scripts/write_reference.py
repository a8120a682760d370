"""Write ``docs/reference.md``, every key of a YAML, from the sections and signatures:
``python scripts/write_reference.py``."""

from __future__ import annotations

import inspect
import sys
import typing
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import docstring_parser

from ppxcls.config.checks import ConfigPlace, type_name
from ppxcls.config.paddleclas import ALTERNATIVES
from ppxcls.config.registry import Component, Components, Registry, registries
from ppxcls.config.sections import Config

FILE, REFUSED = ROOT / "docs/reference.md", ROOT / "docs/refused.md"
# Kind of component: its keys in a YAML.
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
The names are PaddleClas's, as far as PaddleClas has the key. Components are written in one of two forms:

    Optimizer: {name: Momentum, momentum: 0.9}                  # one component
    transform_ops: [{DecodeImage: {}}, {CropImage: {size: 299}}]   # a list of components
"""
REFUSED_HEAD = """# What is refused of PaddleClas

Written by `python scripts/write_reference.py` from the code.
A config with one of these keys or names is an error that says the same.

| key or name | instead |
|---|---|
"""


def shown_type(hint: Any) -> str:
    """A type in words."""
    if typing.get_origin(hint) is typing.Annotated:
        mark = typing.get_args(hint)[1]
        if isinstance(mark, Component):
            return f"a component: {mark.kind}"
        if isinstance(mark, Components):
            return f"a list of components: {mark.kind}"
    arguments = typing.get_args(hint)
    if type(None) in arguments:
        return " or ".join([*(shown_type(a) for a in arguments if a is not type(None)), "null"])
    return type_name(hint)


def shown_default(value: Any) -> str:
    """A default as a YAML has it."""
    if value is MISSING or value is inspect.Parameter.empty:
        return "required"
    if isinstance(value, bool):
        return f"`{value!s}`"
    return "null" if value is None else f"`{list(value) if isinstance(value, tuple) else value}`"


def descriptions(docstring: str | None) -> dict[str, str]:
    """Descriptions of arguments or attributes by name; several names may share one."""
    parsed = docstring_parser.parse(docstring or "", docstring_parser.DocstringStyle.GOOGLE)
    return {
        name.strip(): " ".join((parameter.description or "").split())
        for parameter in parsed.params
        for name in parameter.arg_name.split(",")
    }


def texts_of(component: Any) -> dict[str, str]:
    """Descriptions of a component's arguments, also those of the class that a function makes."""
    made = typing.get_type_hints(component).get("return") if inspect.isfunction(component) else None
    return {**descriptions(inspect.getdoc(made)), **descriptions(component.__doc__)}


def summary_of(component: Any) -> str:
    """The first paragraph of a component's docstring, in one line."""
    return " ".join((inspect.getdoc(component) or "").split("\n\n")[0].split())


def table(rows: list[tuple[str, Any, Any, str]]) -> list[str]:
    """Rows of key, type, default and description."""
    lines = ["| key | type | default | |", "|---|---|---|---|"]
    for key, hint, default, text in rows:
        cells = [f"`{key}`", shown_type(hint), shown_default(default), text]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return [*lines, ""]


def section_in(hint: Any) -> type | None:
    """The section that a key holds, if it holds one: ``Section`` or ``Section | None``."""
    candidates = (hint, *typing.get_args(hint))
    return next((h for h in candidates if isinstance(h, type) and is_dataclass(h)), None)


def keys_of(section: type) -> list[tuple[str, Any, Any, str]]:
    """The keys of a dataclass, without sections inside it."""
    hints, texts = typing.get_type_hints(section, include_extras=True), descriptions(section.__doc__)
    rows = []
    for f in fields(section):
        if f.init and section_in(hints[f.name]) is None:
            default = f.default if f.default_factory is MISSING else f.default_factory()
            rows.append((f.name, hints[f.name], default, texts.get(f.name, "")))
    return rows


def sections(section: type, path: str = "") -> list[str]:
    """A section, and the sections in it, each with its keys."""
    lines = []
    if rows := keys_of(section):
        lines += [f"### {path or 'Top level'}", "", (section.__doc__ or "").split("\n")[0], "", *table(rows)]
    hints = typing.get_type_hints(section, include_extras=True)
    for f in fields(section):
        inner = section_in(hints[f.name])
        if f.init and inner is not None:
            lines += sections(inner, f"{path}.{f.name}".lstrip("."))
    return lines


def components(registry: Registry[Any]) -> list[str]:
    """All components of the package of one kind."""
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
    """The whole page."""
    found = registries()
    parts = [line for kind in PLACES for line in components(found[kind])]
    page = "\n".join([HEAD, "## Sections", "", *sections(Config), *parts]).rstrip() + "\n"
    return page.replace("``", "`")


def refused() -> str:
    """The page of PaddleClas's words that are refused."""
    rows = [
        f"| `{word}` | {instead} |"
        for word, instead in sorted(ALTERNATIVES.items(), key=lambda item: item[0].lower())
    ]
    return REFUSED_HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    FILE.write_text(reference(), encoding="utf-8")
    REFUSED.write_text(refused(), encoding="utf-8")
