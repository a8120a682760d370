"""A server on this machine, an empty cache, and no real network."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ppxcls.published import attempts, fetch, web
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
from hostility.servers.files import FileServer

VARIABLES = (
    *("PPXCLS_OFFLINE", "HF_HUB_OFFLINE", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN"),
    *("KERAS_HOME", "TORCH_HOME", "XDG_CACHE_HOME", "http_proxy", "https_proxy", "all_proxy"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "HUGGING_FACE_HUB_TOKEN"),
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder of its own, and the cache in it."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").mkdir(mode=0o700)
    tmp_path.chmod(0o700)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PPXCLS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    return tmp_path / "home"


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between attempts, which take no time here."""
    seconds: list[float] = []
    monkeypatch.setattr(attempts, "pause", seconds.append)
    return seconds


@pytest.fixture
def server(home: Path, pauses: list[float], monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """A server that stands for the hub. The content of files is not checked."""
    monkeypatch.setattr(fetch, "content_problem", lambda *_, **__: None)
    monkeypatch.setattr(web, "TIMEOUT_SECONDS", 5.0)
    with FileServer().running() as running_server:
        monkeypatch.setenv("HF_ENDPOINT", running_server.address)
        yield running_server


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache/weights"
