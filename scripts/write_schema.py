"""Write ``docs/schema.json``, a JSON Schema of the YAML, from the sections and signatures:
``python scripts/write_schema.py``.

Editors with a YAML language server complete and check a YAML by it. It knows the components of this package;
those of a plugin are unknown to it.
"""

from __future__ import annotations

import inspect
import json
import sys
import types
import typing
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ppxcls.config.checks import Bound, ConfigPlace
from ppxcls.config.paddleclas import ALTERNATIVES
from ppxcls.config.registry import Component, Components, Registry, registries
from ppxcls.config.sections import Config
from scripts.write_reference import PLACES, descriptions, summary_of, texts_of

FILE = ROOT / "docs/schema.json"
Schema = dict[str, Any]
_SCALARS: dict[Any, Schema] = {
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    str: {"type": "string"},
    dict: {"type": "object"},
    list: {"type": "array"},
    # PaddleClas writes fractions, and YAML 1.1 reads 1e-3 as a string.
    float: {"anyOf": [{"type": "number"}, {"type": "string", "pattern": r"^[-+.eE0-9]+(/[-+.eE0-9]+)?$"}]},
    type(None): {"type": "null"},
    Any: {},
}


def of_hint(hint: Any) -> Schema:
    """The schema of a type annotation."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return of_mark(arguments[0], arguments[1])
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [of_hint(argument) for argument in arguments]}
    if origin is list:
        return {"type": "array", "items": of_hint(arguments[0])}
    if origin is tuple:
        return {
            "type": "array",
            "items": of_hint(arguments[0]),
            "minItems": len(arguments),
            "maxItems": len(arguments),
        }
    if is_dataclass(hint):
        return of_section(typing.cast(type, hint))
    return dict(_SCALARS.get(hint, {}))


def of_mark(hint: Any, mark: Any) -> Schema:
    """The schema of an annotated type: a range, a component, or a list of components."""
    if isinstance(mark, Component):
        return {"$ref": f"#/$defs/{mark.kind}"}
    if isinstance(mark, Components):
        return {"type": "array", "items": {"$ref": f"#/$defs/{mark.kind} item"}}
    schema = of_hint(hint)
    if isinstance(mark, Bound):
        number = schema["anyOf"][0] if "anyOf" in schema else schema
        limits = {
            "minimum": mark.ge,
            "maximum": mark.le,
            "exclusiveMinimum": mark.gt,
            "exclusiveMaximum": mark.lt,
        }
        limits = {key: value for key, value in limits.items() if abs(value) != float("inf")}
        number = {**number, **limits}
        return {**schema, "anyOf": [number, *schema["anyOf"][1:]]} if "anyOf" in schema else number
    return schema


def of_keys(hints: dict[str, Any], texts: dict[str, str], defaults: dict[str, Any]) -> Schema:
    """The schema of a mapping with these keys; those without a default are required."""
    properties: dict[str, Schema] = {}
    for key, hint in hints.items():
        schema = of_hint(hint)
        if text := texts.get(key):
            schema = {"description": text.replace("``", "`"), **schema}
        if isinstance(default := defaults.get(key, MISSING), str | int | float | bool):
            schema = {**schema, "default": default}
        properties[key] = schema
    required = [key for key in hints if defaults.get(key, MISSING) is MISSING]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def of_section(section: type) -> Schema:
    """The schema of a section."""
    hints = typing.get_type_hints(section, include_extras=True)
    defaults = {f.name: f.default for f in fields(section)}
    defaults |= {f.name: f.default_factory() for f in fields(section) if f.default_factory is not MISSING}
    shown = {f.name: hints[f.name] for f in fields(section) if f.init}
    schema = of_keys(shown, descriptions(section.__doc__), defaults)
    off = {
        "^(" + "|".join(sorted(ALTERNATIVES.keys() - shown.keys())) + ")$": {"enum": [None, False]}
    }  # PaddleClas's, turned off
    return {"description": (section.__doc__ or "").split("\n")[0], **schema, "patternProperties": off}


def of_component(registry: Registry[Any], name: str) -> Schema:
    """The schema of a component's arguments, with the common ones of its kind."""
    component = registry.get(name, ConfigPlace())
    parameters = inspect.signature(component).parameters
    texts = texts_of(component)
    hints = registry.schema(name)
    defaults = {
        key: MISSING if parameters[key].default is inspect.Parameter.empty else parameters[key].default
        for key in hints
    }
    if registry.common:
        common = typing.get_type_hints(registry.common, include_extras=True)
        hints = {**common, **hints}
        texts = {**descriptions(registry.common.__doc__), **texts}
        defaults = {f.name: f.default for f in fields(registry.common)} | defaults
    schema = of_keys(hints, texts, defaults)
    return {"description": summary_of(component).replace("``", "`"), **schema}


def of_registry(registry: Registry[Any]) -> dict[str, Schema]:
    """Two definitions: of ``{name: Name, ...}``, and of an item of a list, ``Name: {...}``."""
    names = [
        name
        for name in registry.names()
        if registry.get(name, ConfigPlace()).__module__.startswith("ppxcls.")
    ]
    schemas = {name: of_component(registry, name) for name in names}
    branches = [
        {
            "if": {"properties": {"name": {"const": name}}},
            "then": {
                **schema,
                "properties": {"name": {}, **schema["properties"]},
                "required": ["name", *schema["required"]],
            },
        }
        for name, schema in schemas.items()
    ]
    block = {
        "type": "object",
        "required": ["name"],
        "properties": {"name": {"enum": names}},
        "allOf": branches,
    }
    arguments = {
        name: {"anyOf": [schema, {"type": "null"}]} if not schema["required"] else schema
        for name, schema in schemas.items()
    }
    listed = {
        "type": "object",
        "minProperties": 1,
        "maxProperties": 1,
        "properties": arguments,
        "additionalProperties": False,
    }
    plain = {"enum": [name for name in names if not schemas[name]["required"]]}
    return {registry.kind: block, f"{registry.kind} item": {"anyOf": [listed, plain]}}


def schema() -> Schema:
    """The whole schema. A YAML with a ``base`` may leave anything out, so only its sections are checked."""
    whole = of_section(Config)
    loose = {
        "type": "object",
        "properties": {key: {} for key in ("base", *whole["properties"])},
        "additionalProperties": False,
    }
    definitions = {
        name: schema for kind in PLACES for name, schema in of_registry(registries()[kind]).items()
    }
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "A config of ppxcls"}
    return {**head, "if": {"required": ["base"]}, "then": loose, "else": whole, "$defs": definitions}


def text() -> str:
    """The file."""
    return json.dumps(schema(), indent=1, ensure_ascii=False, default=list) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
