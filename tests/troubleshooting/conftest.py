"""The fixtures of the cases: a user's desk, and a server that stands for the hub."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ppxcls.published import web
from tests.published.conftest import VARIABLES, FileServer
from tests.troubleshooting.desk import Desk


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Desk:
    return Desk(tmp_path, monkeypatch, capfd)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """A server on this machine that stands for the hub, an empty home, and no other host."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    tmp_path.chmod(0o700)
    (tmp_path / "home").mkdir(mode=0o700)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PPXCLS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(web, "TIMEOUT_SECONDS", 5.0)
    addresses = socket.getaddrinfo

    def addresses_here(host: Any, *arguments: Any, **settings: Any) -> Any:
        if host not in ("127.0.0.1", "localhost"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return addresses(host, *arguments, **settings)

    monkeypatch.setattr(socket, "getaddrinfo", addresses_here)
    with FileServer().running() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        yield server
