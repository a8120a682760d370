"""Compares the facts of a run's start with those of this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

# Facts that are digests: they say that a content differs, and not how.
_CONTENTS = {
    "code": "code of ppxcls",
    "plugins": "code of the plugins",
    "train_list": "training list",
    "optimizer": "settings of the optimizer",
    "start_weights": "weights before the first step",
    "files": "files of the first images",
    "images": "pixels of the first images, after decoding and augmentation",
}
_WORD_LISTS = {"instructions": "instructions of the processor", "variables": "environment variables"}
_MAX_WORDS = 12


def differing_facts(recorded: Mapping[str, str], current: Mapping[str, str]) -> list[str]:
    """Returns the differences as texts.

    Args:
        recorded: facts of the run by name.
        current: facts of this machine; those that it has and the run did not record are not compared.
    """
    texts = []
    for name in sorted(recorded.keys() & current.keys()):
        old, new = recorded[name], current[name]
        if old == new:
            continue
        if name in _CONTENTS:
            texts.append(f"{_CONTENTS[name]}: not the same content")
        elif name in _WORD_LISTS:
            only_old, only_new = set(old.split()) - set(new.split()), set(new.split()) - set(old.split())
            sides = ((only_old, "in the run only"), (only_new, "here only"))
            parts = [f"{_words(sorted(words))} {place}" for words, place in sides if words]
            texts.append(f"{_WORD_LISTS[name]}: {', '.join(parts)}")
        else:
            texts.append(f"{name}: {old} in the run, {new} here")
    missing_names = sorted(recorded.keys() - current.keys() - _CONTENTS.keys())
    return texts + [f"{name}: {recorded[name]} in the run, none here" for name in missing_names]


def _words(words: Sequence[str]) -> str:
    rest = f" and {len(words) - _MAX_WORDS} more" if len(words) > _MAX_WORDS else ""
    return " ".join(words[:_MAX_WORDS]) + rest
