"""Repositories of the hub, and what they say about their weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hostility.servers.files import FileServer, answer, cut

from ppxcls.published import find, hub, web
from ppxcls.published.web import FetchError

DATA = bytes(range(256)) * 40
FILE = "model.safetensors"


def test_a_repository_of_the_hub(server: FileServer, cache: Path) -> None:
    server.files["/me/mine/resolve/main/model.safetensors"] = DATA
    file = find.weights_path("hf-hub:me/mine")
    assert file.read_bytes() == DATA
    assert file.name.startswith("me--mine--model-")
    assert file.suffix == ".safetensors"
    assert [request.path for request in server.requests] == [
        "/me/mine/resolve/main/config.json",
        "/me/mine/resolve/main/model.safetensors",
    ]
    server.files["/me/old/resolve/v1/pytorch_model.bin"] = DATA
    assert find.weights_path("hf-hub:me/old@v1").suffix == ".bin"
    server.files["/me/old/resolve/main/deep/er/net.h5"] = DATA
    assert find.weights_path("hf-hub:me/old/deep/er/net.h5").read_bytes() == DATA
    with pytest.raises(FetchError, match="the server has no such file"):
        find.weights_path("hf-hub:me/empty")


@pytest.mark.parametrize(
    ("architecture", "network", "message"),
    [
        ("xception65", "xception65", None),
        ("xception65", None, None),
        ("xception", "legacy_xception", None),
        ("legacy_xception", "Xception", None),
        ("xception65", "xception41", "these are weights of xception65, and the network is xception41"),
        ("resnet50", None, "these are weights of resnet50, and of no network of 'ppxcls list'"),
        ("XceptionNet", "legacy_xception", None),  # a name of its own; keys and shapes decide
        (5, "xception65", None),
    ],
)
def test_a_repository_says_which_network_it_has(
    architecture: object, network: str | None, message: str | None, server: FileServer
) -> None:
    config = json.dumps({"architecture": architecture}).encode()
    server.files |= {
        f"/me/x/resolve/main/{name}": data for name, data in ((FILE, DATA), ("config.json", config))
    }
    if message is None:
        assert find.weights_path("hf-hub:me/x", network).read_bytes() == DATA
        return
    with pytest.raises(FetchError, match=message):
        find.weights_path("hf-hub:me/x", network)
    assert len(server.requests) == 1


@pytest.mark.parametrize("config", [b"{", b"[" * 100_000, b" " * (2 << 20), b"\xff"])
def test_a_damaged_config_of_a_repository(config: bytes, server: FileServer) -> None:
    server.files["/me/x/resolve/main/config.json"] = config
    with pytest.raises(FetchError, match=r"its config\.json is damaged"):
        find.weights_path("hf-hub:me/x")


def test_a_server_that_is_busy_with_the_config(server: FileServer, pauses: list[float]) -> None:
    server.files |= {f"/me/x/resolve/main/{FILE}": DATA, "/me/x/resolve/main/config.json": b"{}"}
    server.tricks = [answer(503), answer(429, Retry_After="7")]
    assert find.weights_path("hf-hub:me/x").read_bytes() == DATA
    assert pauses == [1.0, 7.0]
    server.tricks, server.is_last_kept = [answer(503)], True
    with pytest.raises(
        FetchError, match=r"hf-hub:me/y: the server answers 503, 5 times in a row .*try again"
    ):
        find.weights_path("hf-hub:me/y")


def test_a_config_that_is_cut_off(server: FileServer) -> None:
    path = "/me/x/resolve/main/config.json"
    server.files |= {
        f"/me/x/resolve/main/{FILE}": DATA,
        path: b'{"architecture": "xception65"}' + b" " * 2000,
    }
    server.tricks = [cut(0.5)]
    assert find.weights_path("hf-hub:me/x").read_bytes() == DATA
    assert [request.path for request in server.requests].count(path) == 2


def test_a_config_that_comes_too_slowly(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes in time, but the file never ends, while other processes wait for the lock."""
    monkeypatch.setattr(hub, "_MAX_SECONDS", 0.1)

    def drip(handler: Any, owner: FileServer) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000000")
        handler.end_headers()
        while not owner.release.wait(0.02):
            handler.wfile.write(b" ")

    server.tricks, server.is_last_kept = [drip], True
    with pytest.raises(FetchError, match=r"hf-hub:me/x: only \d+ bytes in 0 s, 5 times in a row"):
        find.weights_path("hf-hub:me/x")
    assert len(server.requests) == 5


def test_headers_that_come_too_slowly(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "HEAD_SECONDS", 0.1)

    def drip(handler: Any, owner: FileServer) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        while not owner.release.wait(0.02):
            handler.wfile.write(b"x")

    server.tricks, server.is_last_kept = [drip], True
    for word in ("hf-hub:me/x", f"{server.address}/x.h5"):
        server.requests.clear()
        with pytest.raises(FetchError, match=": no whole headers in 0 s, 5 times in a row"):
            find.weights_path(word)
        assert len(server.requests) == 5
