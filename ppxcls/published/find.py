"""Finds the file of published weights: on this machine, or at its publisher's."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ppxcls.checkpoints.files import WEIGHTS, CheckpointError, with_extension
from ppxcls.models.foreign_weights import SUFFIXES
from ppxcls.published.caches import foreign_copy, own_copy
from ppxcls.published.catalogue import CATALOGUE, PublishedWeights, default_entry
from ppxcls.published.fetch import fetched
from ppxcls.published.words import (
    RemoteFile,
    WordError,
    is_weights_word,
    network_of_word,
    remote_files,
    unknown_word,
)
from ppxcls.system.logs import warn_once
from ppxcls.system.paths import url_problem

__all__ = [
    "cached_weights",
    "fetch_weights",
    "is_weights_word",
    "list_weights",
    "network_of_word",
    "weights_path",
]


@dataclass(frozen=True)
class ListedWeights:
    """Published weights, and their copy on this machine.

    Attributes:
        weights: what is published.
        path: file on this machine; None if there is none.
    """

    weights: PublishedWeights
    path: Path | None


def weights_path(word: str | bool | Path, network: str | None = None) -> Path:  # noqa: FBT001
    """Returns the path of weights, by a word or a path. Weights that are not on this machine are fetched.

    A path is returned unchanged. A file that exists is meant before a word of the same name.

    Args:
        word: ``True`` or ``imagenet`` for the default weights of the network; a name of the catalogue;
            ``hf-hub:OWNER/REPO`` or ``hf-hub:OWNER/REPO/FILE``; an address; or a path.
        network: network that the weights are for; None for any.

    Raises:
        CheckpointError: the word means nothing, or the weights of another network, or they can't be fetched.
        OSError: the cache can't be written.
    """
    if not is_weights_word(word):
        assert not isinstance(word, bool), "False stands for no weights"
        _check_path(str(word))
        return Path(word)
    assert isinstance(word, bool | str)
    if (file := _file_of_name(word)) is not None:
        warn_once(f"{word}: the file {file} is used, and not the published weights of this name")
        return file
    candidates = remote_files(word, network)
    return _local_copy(candidates) or fetched(candidates)


def cached_weights(network: str) -> Path | None:
    """Returns the default weights of a network if they are on this machine; nothing is fetched.

    Args:
        network: name of a network.
    """
    entry = default_entry(network)
    try:
        return _local_copy(remote_files(entry.name)) if entry else None
    except CheckpointError:  # an invalid variable, or a damaged file that can't be removed
        return None


def list_weights() -> list[ListedWeights]:
    """Lists the published weights of all networks, and their copies on this machine.

    Nothing is fetched, and no digest is compared.
    """
    files = [remote_files(entry.name)[0] for entry in CATALOGUE]
    paths = [own_copy(file, is_checked=False) or foreign_copy(file, is_checked=False) for file in files]
    return [ListedWeights(entry, path) for entry, path in zip(CATALOGUE, paths, strict=True)]


def fetch_weights(word: str) -> Path:
    """Returns the path of published weights. If they are not on this machine, they are fetched.

    Args:
        word: name from ``list_weights``, a network's name for its default weights, ``hf-hub:OWNER/REPO``, or
            an address.

    Raises:
        CheckpointError: the word means nothing, or the file can't be fetched.
        OSError: the cache can't be written.
    """
    if not is_weights_word(word):
        raise WordError(unknown_word(word))
    candidates = remote_files(word)
    return _local_copy(candidates) or fetched(candidates)


def _local_copy(candidates: list[RemoteFile]) -> Path | None:
    for remote in candidates:
        if file := own_copy(remote) or foreign_copy(remote):
            return file
    return None


def _file_of_name(word: str | bool) -> Path | None:  # noqa: FBT001
    """Returns a file of the same name as a word, with or without its extension; None if there is none."""
    if isinstance(word, bool) or not word or ":" in word:
        return None
    files = [Path(word), *(with_extension(Path(word), suffix) for suffix in (WEIGHTS, ".safetensors"))]
    return next((file for file in files if os.path.isfile(file)), None)


def _check_path(path: str) -> None:
    """Raises WordError for a URL of another kind, and for what looks like a name if there is no such file."""
    if (problem := url_problem(path)) is not None:
        raise WordError(problem)
    is_name = bool(path) and not any(mark in path for mark in ("/", "\\", ":")) and not path.startswith(".")
    if is_name and Path(path).suffix.lower() not in (WEIGHTS, *SUFFIXES) and _file_of_name(path) is None:
        raise WordError(unknown_word(path))
