"""The words that stand for published weights, and the files that they mean."""

from __future__ import annotations

import hashlib
import os
import re
import urllib.parse
from dataclasses import dataclass
from pathlib import PurePosixPath

from ppxcls.checkpoints.files import WEIGHTS, CheckpointError
from ppxcls.models.foreign_weights import SUFFIXES
from ppxcls.published.catalogue import (
    RECOMMENDED_NETWORK,
    PublishedWeights,
    default_entry,
    entry_of,
    entry_of_repository,
    word_names,
)
from ppxcls.system import environment
from ppxcls.system.paths import HUB_PREFIXES
from ppxcls.system.spelling import nearest_spelling

IMAGENET = "imagenet"  # the default weights of the network, as Keras calls them
HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # what a repository may have, in order of preference
LIST_HINT = "'ppxcls weights' lists the names"
_HUB_ADDRESS = "https://huggingface.co"
_HUB_WORD = re.compile(
    r"(?P<owner>[A-Za-z0-9][\w.-]{0,95})/(?P<name>[A-Za-z0-9][\w.-]{0,95})"
    r"(@(?P<revision>[A-Za-z0-9][\w.-]{0,99}))?(/(?P<file>[\w.-]{1,100}(/[\w.-]{1,100}){0,4}))?",
    re.ASCII,
)
_WEB_SCHEMES = ("https", "http")
_MAX_ADDRESS_LENGTH = 2000
_MAX_STEM_LENGTH = 80


class WordError(CheckpointError):
    """A word does not name weights, or not those of the network."""


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A weights file that can be fetched.

    Attributes:
        label: the word that selected it, for messages.
        file: name in the cache.
        addresses: addresses, which are tried in this order.
        network: network of the weights; None if it is not known.
        entry: entry of the catalogue; None for a repository or an address that a user has named.
        repository: repository of the hub; None for another server.
        revision: branch, tag or commit of the repository.
        repository_file: path of the file in the repository.
    """

    label: str
    file: str
    addresses: tuple[str, ...]
    network: str | None = None
    entry: PublishedWeights | None = None
    repository: str | None = None
    revision: str = "main"
    repository_file: str = HUB_FILES[0]


def is_weights_word(word: object) -> bool:
    """True if a value of a config or of the command line stands for published weights, and not for a path.

    Words are ``True``, ``imagenet``, a name of the catalogue, ``hf-hub:OWNER/REPO`` and an address that
    begins with ``https://`` or ``http://``. A file of the same name as a word is not looked for here.
    """
    if word is True:
        return True
    if not isinstance(word, str):
        return False
    return word == IMAGENET or word.startswith(HUB_PREFIXES) or _is_web(word) or entry_of(word) is not None


def network_of_word(word: str | bool) -> str | None:  # noqa: FBT001  PaddleClas's ``pretrained: True``
    """Returns the network whose weights a word stands for, without any access to the network.

    None if it is not known. For ``imagenet``, it is the recommended network.
    """
    if isinstance(word, bool) or word == IMAGENET:
        return RECOMMENDED_NETWORK
    entry = entry_of(word)
    if entry is None and word.startswith(HUB_PREFIXES):
        entry = entry_of_repository(word.partition(":")[2])
    return entry.network if entry else None


def hub_address() -> str:
    """Returns the address of the hub, or of the mirror that ``HF_ENDPOINT`` names.

    Raises:
        WordError: ``HF_ENDPOINT`` is no web address.
    """
    address = os.environ.get("HF_ENDPOINT", "").strip().rstrip("/") or _HUB_ADDRESS
    check_address(address, "environment variable HF_ENDPOINT")
    return address


def check_address(address: str, what: str) -> None:
    """Raises WordError if a text is not the address of a file on a web server.

    Args:
        address: text to check.
        what: description for the message.
    """
    try:
        parts = urllib.parse.urlsplit(address)
        is_valid = parts.scheme in _WEB_SCHEMES and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:  # a port that is no number, or half an IPv6 address
        is_valid = False
    if not is_valid or not address.isascii() or not address.isprintable() or " " in address:
        raise WordError(f"{what}: expected an address that begins with https:// or http://: {address}")
    if len(address) > _MAX_ADDRESS_LENGTH:
        raise WordError(f"{what}: an address may have {_MAX_ADDRESS_LENGTH:,} characters: {address}")
    if "@" in parts.netloc:
        raise WordError(f"{what}: refused, an address with a user name or a password")


def remote_files(word: str | bool, network: str | None = None) -> list[RemoteFile]:  # noqa: FBT001
    """Returns the files that a word may mean. The first one that exists is meant.

    Args:
        word: word for which ``is_weights_word`` is True.
        network: network that the weights are for; None for any.

    Raises:
        WordError: the word is malformed, or means the weights of another network.
    """
    if isinstance(word, bool) or word == IMAGENET:
        chosen_network = network or RECOMMENDED_NETWORK
        entry = default_entry(chosen_network)
        if entry is None and (address := _declared_address(chosen_network)):
            return [_of_address(address, chosen_network)]
        if entry is None:
            raise WordError(
                f"no published weights of {chosen_network} are known here; "
                "give the path or the address of a file, or hf-hub:OWNER/REPO"
            )
        return [_of_entry(entry)]
    if entry := entry_of(word):
        _check_network(word, entry, network)
        return [_of_entry(entry)]
    if word.startswith(HUB_PREFIXES):
        return _of_hub(word, network)
    if _is_web(word):
        return [_of_address(word, network)]
    raise WordError(unknown_word(word))


def unknown_word(word: str) -> str:
    """Returns the message for a text that is neither a file nor a word."""
    name = nearest_spelling(word, [IMAGENET, *word_names()])
    hint = f"did you mean {name!r}? " if name else ""
    return f"{word}: no such file, and no name of published weights; {hint}{LIST_HINT}"


def file_address(remote: RemoteFile, name: str) -> str:
    """Returns the address of another file of the same repository."""
    return f"{hub_address()}/{remote.repository}/resolve/{remote.revision}/{name}"


def _is_web(word: str) -> bool:
    return word.partition("://")[0].lower() in _WEB_SCHEMES and "://" in word


def _declared_address(network: str) -> str:
    """Returns the address of weights that a user's own network declares; empty if it declares none."""
    environment.import_paddle()
    from ppxcls.models.common_keys import MODELS

    facts = MODELS.fact(network, "published") if network in MODELS.names() else None
    return facts.url if facts else ""


def _of_entry(entry: PublishedWeights) -> RemoteFile:
    addresses = entry.addresses
    if entry.repository:
        addresses = (f"{hub_address()}/{entry.repository}/resolve/main/{HUB_FILES[0]}",)
    return RemoteFile(
        label=entry.name,
        file=entry.file,
        addresses=addresses,
        network=entry.network,
        entry=entry,
        repository=entry.repository,
    )


def _check_network(word: str, entry: PublishedWeights, network: str | None) -> None:
    if network is not None and entry.network != network:
        raise WordError(f"{word}: these are weights of {entry.network}, and the network is {network}")


def _of_hub(word: str, network: str | None) -> list[RemoteFile]:
    match = _HUB_WORD.fullmatch(word.partition(":")[2])
    if match is None or ".." in word:
        raise WordError(f"expected hf-hub:OWNER/REPO, or hf-hub:OWNER/REPO/FILE, received {word}")
    repository, revision = f"{match['owner']}/{match['name']}", match["revision"] or "main"
    entry = entry_of_repository(repository)
    if entry and revision == "main" and match["file"] in (None, HUB_FILES[0]):
        _check_network(word, entry, network)
        return [_of_entry(entry)]
    for name in [match["file"]] if match["file"] else []:
        _check_suffix(name, word)
    return [
        RemoteFile(
            label=word,
            file=_safe_name(
                "--".join([*repository.split("/"), *name.split("/")]), f"{repository}@{revision}/{name}"
            ),
            addresses=(f"{hub_address()}/{repository}/resolve/{revision}/{name}",),
            network=network,
            repository=repository,
            revision=revision,
            repository_file=name,
        )
        for name in ([match["file"]] if match["file"] else HUB_FILES)
    ]


def _of_address(word: str, network: str | None) -> RemoteFile:
    check_address(word, "weights")
    parts = urllib.parse.urlsplit(word)
    if "/blob/" in parts.path and parts.hostname in ("huggingface.co", "github.com"):
        kind = "resolve" if parts.hostname == "huggingface.co" else "raw"
        raise WordError(
            f"{word} is a page about a file; the file is at {word.replace('/blob/', f'/{kind}/', 1)}"
        )
    name = PurePosixPath(urllib.parse.unquote(parts.path)).name
    _check_suffix(name, word)
    return RemoteFile(
        label=word,
        file=_safe_name(name, word),
        addresses=(parts._replace(fragment="").geturl(),),
        network=network,
    )


def _check_suffix(name: str, word: str) -> None:
    if PurePosixPath(name).suffix.lower() not in (WEIGHTS, *SUFFIXES):
        raise WordError(
            f"{word}: expected the address of a weights file, with one of {', '.join((WEIGHTS, *SUFFIXES))}"
        )


def _safe_name(name: str, key: str) -> str:
    """Returns a name for the cache: readable, with a known extension, and another one for each key."""
    path = PurePosixPath(name)
    stem = re.sub(r"[^A-Za-z0-9_.-]", "_", path.name.removesuffix(path.suffix))[:_MAX_STEM_LENGTH].lstrip(
        ".-"
    )
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:12]
    return f"{stem or 'weights'}-{digest}{path.suffix.lower()}"
