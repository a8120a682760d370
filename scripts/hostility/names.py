"""Hostile words on the command line: names of files, keys and values."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

from hostility.cases import Case, Outcome, call, refusal_problem

import ppxcls

PROMISE = "A hostile name is an error of one short line without control characters"
_NAMES = {
    "a terminal's escape codes": "\x1b]0;title\x07\x1b[2J",
    "100,000 characters": "a" * 100_000,
    "a line break": "a\nerror: b",
    "a NUL": "a\0b",
    "bytes that are not UTF-8": "\udcff\udcfe",
    "a folder's name": "/",
    "letters from right to left": "\u202egpj.exe",
}


def cases() -> Iterator[Case]:
    """Returns the cases: each name as a config file, and as a network."""
    for description, name in _NAMES.items():
        yield Case(f"a config named with {description}", functools.partial(_config, name), is_quick=True)
        yield Case(f"a network named with {description}", functools.partial(_network, name), is_quick=True)


def _config(name: str, _: Path) -> tuple[Outcome, str | None]:
    outcome = call(ppxcls.load_config, name)
    return outcome, refusal_problem(outcome)


def _network(name: str, _: Path) -> tuple[Outcome, str | None]:
    outcome = call(ppxcls.load_config, {"Arch": {"name": name}})
    return outcome, refusal_problem(outcome)
