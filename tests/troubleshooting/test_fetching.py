"""Rows about published weights, in the section "Weights and checkpoints" of ``docs/troubleshooting.md``.

A server on this machine stands for the hub, and no host has an address but this machine.
"""

from __future__ import annotations

import http.server
import os
import re
import shutil
from pathlib import Path

import paddle
import pytest
from hostility.servers.files import FileServer, answer, send, send_file

import ppxcls
from tests.models.written_files import write_torch
from tests.troubleshooting.desk import Desk, case

WORD = "hf-hub:me/flowers/best.pdparams"
PATH = "/me/flowers/resolve/main/best.pdparams"


def publish(desk: Desk, hub: FileServer) -> Path:
    """Gives the hub the weights of an untrained network. Returns a copy of the file, which has another name."""
    ppxcls.load_config(desk.config())
    file = desk.folder / "copy.pdparams"
    paddle.save(ppxcls.build_model("SmallNetwork").state_dict(), str(file))
    hub.files[PATH] = file.read_bytes()
    return file


def use(desk: Desk, weights: str | Path) -> tuple[str, ...]:
    """Returns the command that evaluates weights."""
    return ("eval", "-c", desk.config(), "-o", f"Global.pretrained_model={weights}")


def printed_path(desk: Desk, word: str) -> Path:
    """Returns what ``ppxcls weights WORD`` prints."""
    path = Path(desk.works("weights", word).splitlines()[0])
    assert path.is_file()
    return path


def cached_files(desk: Desk) -> list[Path]:
    return [file for file in (desk.folder / "cache").rglob("*") if file.is_file()]


@case("no such file, and no name of published weights")
def test_unknown_name(desk: Desk, hub: FileServer) -> None:
    reason = "no such file, and no name of published weights"
    name = "xception65.ra3_in1k"
    message = desk.fails("weights", name[:-1])
    assert f"{name[:-1]}: {reason}; did you mean '{name}'? 'ppxcls weights' lists the names" in message
    assert name in [line.partition(" ")[0] for line in desk.works("weights").splitlines()]
    copy = desk.folder / f"cache/weights/{name}.safetensors"
    copy.parent.mkdir(mode=0o700, parents=True)
    copy.write_bytes(b"the right name finds its file")
    assert printed_path(desk, name) == copy

    state = paddle.load(str(publish(desk, hub)))
    file = desk.folder / "flowers.pth"
    write_torch(file, {key: value.numpy() for key, value in state.items()})
    assert f"flowers: {reason}" in desk.fails(*use(desk, "flowers"), code=2)
    desk.works(*use(desk, "flowers.pth"))
    assert hub.requests == []


@case("no such host, or this machine is offline")
def test_no_connection(desk: Desk, hub: FileServer) -> None:
    copy = publish(desk, hub)
    publisher, patch = "http://hub.invalid", desk.monkeypatch
    patch.setenv("HF_ENDPOINT", publisher)
    message = desk.fails(*use(desk, WORD))
    assert "hub.invalid: no such host, or this machine is offline; copy the file to this machine" in message
    assert hub.requests == []
    desk.works(*use(desk, copy))  # brought by other means

    hub.files[f"{publisher}{PATH}"] = hub.files[PATH]
    with patch.context() as proxy:
        proxy.setenv("http_proxy", hub.address)
        file = printed_path(desk, WORD)
        assert f"{publisher}{PATH}" in [request.path for request in hub.requests]
    desk.works(*use(desk, WORD))  # it is in the cache now

    for left in (file, file.with_name(f"{file.name}.source")):
        left.unlink()
    assert "no such host" in desk.fails(*use(desk, WORD))
    patch.setenv("HF_ENDPOINT", hub.address)  # a mirror
    desk.works(*use(desk, WORD))


@pytest.mark.parametrize("variable", ["PPXCLS_OFFLINE", "HF_HUB_OFFLINE"])
def test_each_variable_forbids(variable: str, desk: Desk, hub: FileServer) -> None:
    desk.monkeypatch.setenv(variable, "1")
    message = desk.fails("weights", WORD)
    assert f"not on this machine, and {variable} forbids to fetch it" in message
    assert hub.requests == []


@case("forbids to fetch it")
def test_forbidden_fetch(desk: Desk, hub: FileServer) -> None:
    publish(desk, hub)
    with desk.monkeypatch.context() as patch:
        patch.setenv("PPXCLS_CACHE", str(desk.folder / "another machine"))
        file = printed_path(desk, WORD)
    hub.requests.clear()
    with desk.monkeypatch.context() as patch:
        patch.setenv("PPXCLS_OFFLINE", "1")
        message = desk.fails(*use(desk, WORD))
        assert "PPXCLS_OFFLINE forbids to fetch it" in message
        assert f"'ppxcls weights {WORD}' on another machine prints the path of the file" in message
        copy = desk.folder / "cache/weights" / file.name
        copy.parent.mkdir(mode=0o700, parents=True)
        shutil.copyfile(file, copy)
        desk.works(*use(desk, WORD))
        assert hub.requests == []
        copy.unlink()
        assert "forbids to fetch it" in desk.fails(*use(desk, WORD))
    desk.works(*use(desk, WORD))  # the variable is unset
    assert copy.is_file()


@case("there is no such repository, or it is private")
def test_private_repository(desk: Desk, hub: FileServer) -> None:
    publish(desk, hub)
    hub.files[PATH.replace("flowers", "private")] = hub.files[PATH]

    def refuse(handler: http.server.BaseHTTPRequestHandler, server: FileServer) -> None:
        is_allowed = "/flowers/" in handler.path or handler.headers.get("Authorization") == "Bearer secret"
        if is_allowed:
            send_file(handler, server)
        else:
            send(handler, 401, b"")

    hub.tricks, hub.is_last_kept = [refuse], True
    for name in ("flower", "private"):
        message = desk.fails("weights", WORD.replace("flowers", name))
        assert "refuses (401): there is no such repository, or it is private; set HF_TOKEN" in message
    desk.works(*use(desk, WORD))
    desk.monkeypatch.setenv("HF_TOKEN", "secret")
    desk.works(*use(desk, WORD.replace("flowers", "private")))


@case("the server sends a page in the place of the file")
def test_page_of_a_login(desk: Desk, hub: FileServer) -> None:
    copy = publish(desk, hub)
    address = f"{hub.address}{PATH}"
    hub.tricks, hub.is_last_kept = [answer(200, b"<html>log in", Content_Type="text/html")], True
    message = desk.fails(*use(desk, address))
    assert f"{address}: the server sends a page in the place of the file, such as a log-in" in message
    assert cached_files(desk) == []
    desk.works(*use(desk, copy))  # what the browser has fetched
    hub.tricks = []  # the user has logged in
    desk.works(*use(desk, address))


@case("is not that of the first fetch")
def test_changed_file(desk: Desk, hub: FileServer) -> None:
    publish(desk, hub)
    file = printed_path(desk, WORD)
    first_content = file.read_bytes()
    file.unlink()
    publish(desk, hub)
    assert hub.files[PATH] != first_content
    message = desk.fails(*use(desk, WORD))
    assert "its SHA-256 is not that of the first fetch" in message
    assert not file.exists()
    named_file = re.search(r"remove (\S+)$", message)
    assert named_file is not None
    (file.parent / named_file[1]).unlink()
    desk.works(*use(desk, WORD))
    assert file.read_bytes() == hub.files[PATH]


@case("no cache for weights")
@pytest.mark.skipif(os.name == "nt", reason="Windows has access lists instead of such permissions")
def test_cache_that_others_can_change(desk: Desk, hub: FileServer) -> None:
    publish(desk, hub)
    folder = desk.folder / "common"
    folder.mkdir()
    folder.chmod(0o777)
    with desk.monkeypatch.context() as patch:
        patch.setenv("PPXCLS_CACHE", str(folder))
        message = desk.fails(*use(desk, WORD))
        assert f"no cache for weights: {folder} can be written by everybody; set PPXCLS_CACHE" in message
    assert hub.requests == []
    assert list(folder.iterdir()) == []
    desk.works(*use(desk, WORD))
    assert printed_path(desk, WORD).parent == desk.folder / "cache/weights"
