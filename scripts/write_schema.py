"""Writes ``docs/schema.json``, a JSON Schema of the YAML, from the config sections and the components.

    python scripts/write_schema.py

Editors with a YAML language server use it to complete and check a YAML. It contains the components of this
package, but not those of plugins.
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
from ppxcls.config.device_switches import DEVICE_SWITCHES
from ppxcls.config.paddleclas import HARMLESS_VALUES
from ppxcls.config.registry import Component, Components, Registry, registries
from ppxcls.config.sections import Config, GlobalSection
from scripts.write_reference import PLACES, descriptions, summary_of, texts_of

SCHEMA_FILE = ROOT / "docs/schema.json"
Schema = dict[str, Any]
_SCALARS: dict[Any, Schema] = {
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    str: {"type": "string"},
    dict: {"type": "object"},
    list: {"type": "array"},
    # Strings too: PaddleClas's configs contain fractions, and YAML 1.1 reads 1e-3 as a string.
    float: {"anyOf": [{"type": "number"}, {"type": "string", "pattern": r"^[-+.eE0-9]+(/[-+.eE0-9]+)?$"}]},
    type(None): {"type": "null"},
    Any: {},
}


def hint_schema(hint: Any) -> Schema:
    """Returns the schema of a type annotation."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return mark_schema(arguments[0], arguments[1])
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [hint_schema(argument) for argument in arguments]}
    if origin is list:
        return {"type": "array", "items": hint_schema(arguments[0])}
    if origin is dict:
        return {"type": "object", "additionalProperties": hint_schema(arguments[1])}
    if origin is tuple:
        return {
            "type": "array",
            "items": hint_schema(arguments[0]),
            "minItems": len(arguments),
            "maxItems": len(arguments),
        }
    if is_dataclass(hint):
        return section_schema(typing.cast(type, hint))
    return dict(_SCALARS.get(hint, {}))


def mark_schema(hint: Any, mark: Any) -> Schema:
    """Returns the schema of an annotated type: a range, a component, or a list of components."""
    if isinstance(mark, Component):
        return {"$ref": f"#/$defs/{mark.kind}"}
    if isinstance(mark, Components):
        return {"type": "array", "items": {"$ref": f"#/$defs/{mark.kind} item"}}
    schema = hint_schema(hint)
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


def mapping_schema(hints: dict[str, Any], texts: dict[str, str], defaults: dict[str, Any]) -> Schema:
    """Returns the schema of a mapping with these keys. Keys without a default are required."""
    properties: dict[str, Schema] = {}
    for key, hint in hints.items():
        schema = hint_schema(hint)
        if text := texts.get(key):
            schema = {"description": text.replace("``", "`"), **schema}
        if isinstance(default := defaults.get(key, MISSING), str | int | float | bool):
            schema = {**schema, "default": default}
        properties[key] = schema
    required = [key for key in hints if defaults.get(key, MISSING) is MISSING]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def section_schema(section: type) -> Schema:
    """Returns the schema of a section."""
    hints = typing.get_type_hints(section, include_extras=True)
    defaults = {f.name: f.default for f in fields(section)}
    defaults |= {f.name: f.default_factory() for f in fields(section) if f.default_factory is not MISSING}
    visible_hints = {f.name: hints[f.name] for f in fields(section) if f.init}
    schema = mapping_schema(visible_hints, descriptions(section.__doc__), defaults)
    # Refused PaddleClas keys are allowed if they ask for what happens here anyway.
    refused_keys: dict[str, Schema] = {}
    for values in {repr(values): values for values in HARMLESS_VALUES.values()}.values():
        names = [key for key, harmless in HARMLESS_VALUES.items() if harmless == values]
        if names := sorted(set(names) - visible_hints.keys()):
            refused_keys["^(" + "|".join(names) + ")$"] = {"enum": list(values)}
    if section is GlobalSection:
        refused_keys["^(" + "|".join(DEVICE_SWITCHES) + ")$"] = {"type": "boolean"}
    return {
        "description": (section.__doc__ or "").split("\n")[0],
        **schema,
        "patternProperties": refused_keys,
    }


def component_schema(registry: Registry[Any], name: str) -> Schema:
    """Returns the schema of a component's arguments, with the common arguments of its kind."""
    component = registry.get(name, ConfigPlace())
    parameters = inspect.signature(component).parameters
    texts = texts_of(component)
    hints = registry.schema(name)
    defaults = {
        key: MISSING if parameters[key].default is inspect.Parameter.empty else parameters[key].default
        for key in hints
    }
    if registry.common:
        common_hints = typing.get_type_hints(registry.common, include_extras=True)
        hints = {**common_hints, **hints}
        texts = {**descriptions(registry.common.__doc__), **texts}
        defaults = {f.name: f.default for f in fields(registry.common)} | defaults
    schema = mapping_schema(hints, texts, defaults)
    return {"description": summary_of(component).replace("``", "`"), **schema}


def registry_schemas(registry: Registry[Any]) -> dict[str, Schema]:
    """Returns two definitions for a kind of component.

    One is for ``{name: Name, ...}``, the other for a list item, ``Name: {...}``.
    """
    names = [
        name
        for name in registry.names()
        if registry.get(name, ConfigPlace()).__module__.startswith("ppxcls.")
    ]
    schemas = {name: component_schema(registry, name) for name in names}
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
    list_item = {
        "type": "object",
        "minProperties": 1,
        "maxProperties": 1,
        "properties": arguments,
        "additionalProperties": False,
    }
    bare_name = {"enum": [name for name in names if not schemas[name]["required"]]}
    return {registry.kind: block, f"{registry.kind} item": {"anyOf": [list_item, bare_name]}}


def schema() -> Schema:
    """Returns the whole schema.

    A YAML with a ``base`` may leave anything out, so only its section names are checked.
    """
    full_schema = section_schema(Config)
    partial_schema = {
        "type": "object",
        "properties": {key: {} for key in ("base", *full_schema["properties"])},
        "additionalProperties": False,
    }
    definitions = {
        name: schema for kind in PLACES for name, schema in registry_schemas(registries()[kind]).items()
    }
    header = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "A config of ppxcls"}
    return {
        **header,
        "if": {"required": ["base"]},
        "then": partial_schema,
        "else": full_schema,
        "$defs": definitions,
    }


def text() -> str:
    """Returns the text of ``docs/schema.json``."""
    return json.dumps(schema(), ensure_ascii=False, default=list, separators=(",", ":")) + "\n"


if __name__ == "__main__":
    SCHEMA_FILE.write_text(text(), encoding="utf-8")
