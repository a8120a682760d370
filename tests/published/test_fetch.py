"""Weights are fetched whole and checked, whatever the server and the connection do."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from hostility.servers.files import FileServer, answer, cut, redirect, stall

import ppxcls
from ppxcls.published import attempts, catalogue, fetch, find, transfer, web
from ppxcls.published.caches import record_of
from ppxcls.published.web import FetchError

DATA = bytes(range(256)) * 4000
NAME = "xception65.ra3_in1k"
PINNED = "xception41p.ra3_in1k"
PATH = f"/timm/{NAME}/resolve/main/model.safetensors"
PINNED_PATH = f"/timm/{PINNED}/resolve/main/model.safetensors"


def left(cache: Path) -> set[str]:
    return {file.name for file in cache.iterdir()} if cache.is_dir() else set()


def pin(monkeypatch: pytest.MonkeyPatch, **facts: object) -> None:
    """Gives the pinned weights other facts than the published ones."""
    entries = tuple(
        dataclasses.replace(entry, **facts) if entry.name == PINNED else entry
        for entry in catalogue.CATALOGUE
    )
    for module in (catalogue, find):
        monkeypatch.setattr(module, "CATALOGUE", entries)


def test_weights_are_fetched_once(server: FileServer, cache: Path) -> None:
    server.files[PATH] = DATA
    file = find.weights_path(NAME)
    assert file == cache / f"{NAME}.safetensors"
    assert file.read_bytes() == DATA
    assert left(cache) == {file.name, f"{file.name}.source"}
    record = record_of(file)
    assert record is not None
    assert record["sha256"] == hashlib.sha256(DATA).hexdigest()
    assert record["address"] == server.address + PATH
    assert find.weights_path(NAME, "xception65") == find.weights_path("xception65") == file
    assert find.weights_path(True, "xception65") == find.weights_path("imagenet", "xception65") == file
    assert find.weights_path(f"hf-hub:timm/{NAME}") == find.weights_path(f"hf_hub:timm/{NAME}") == file
    assert find.weights_path(f"timm/{NAME}") == ppxcls.fetch_weights(NAME) == file
    assert find.cached_weights("xception65") == file
    assert len(server.requests) == 1
    assert server.requests[0].headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("has_tags", [True, False])
def test_a_broken_connection_goes_on_where_it_broke(
    has_tags: bool, server: FileServer, pauses: list[float]
) -> None:
    server.files[PATH], server.has_tags = DATA, has_tags
    server.tricks = [cut(0.3), cut(0.3)]
    assert find.weights_path(NAME).read_bytes() == DATA
    ranges = [request.headers.get("range") for request in server.requests]
    if has_tags:
        third = int(len(DATA) * 0.3)
        assert ranges == [None, f"bytes={third}-", f"bytes={2 * third}-"]
        assert server.requests[1].headers["if-range"] == server.requests[2].headers["if-range"]
    else:  # nothing tells if it is still the same file
        assert ranges == [None, None, None]
    assert len(pauses) == 2


def test_names_of_headers_may_be_in_small_letters(server: FileServer, cache: Path) -> None:
    """The size, the tag, the digest and the kind of a file are known in any spelling."""
    server.files[PATH], server.has_small_headers = DATA, True
    server.tricks = [cut(0.5)]
    assert find.weights_path(NAME).read_bytes() == DATA
    assert [request.headers.get("range") for request in server.requests] == [None, "bytes=512000-"]
    (cache / f"{NAME}.safetensors").unlink()
    server.linked_sha256 = "0" * 64
    with pytest.raises(FetchError, match="not the one that the hub states"):
        find.weights_path(NAME)
    server.tricks = [answer(200, b"<html>log in", Content_Type="text/html; charset=utf-8")]
    with pytest.raises(FetchError, match="sends a page in the place of the file"):
        find.weights_path(NAME)


def test_another_process_goes_on_with_a_part(
    server: FileServer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files[PATH] = DATA
    server.tricks = [cut(0.5), *[answer(503)] * 4]
    monkeypatch.setattr(attempts, "MAX_ATTEMPTS", 3)
    with pytest.raises(FetchError, match=r"the server answers 503, 3 times in a row .*goes on with it later"):
        find.weights_path(NAME)
    assert f"{NAME}.safetensors.part" in left(cache)
    server.tricks = []
    server.requests.clear()
    assert find.weights_path(NAME).read_bytes() == DATA
    assert [request.headers.get("range") for request in server.requests] == [f"bytes={len(DATA) // 2}-"]


def test_a_part_of_another_version_is_not_kept(server: FileServer) -> None:
    new_data = DATA[::-1]

    def replace(handler: object, owner: FileServer) -> None:
        cut(0.5)(handler, owner)  # type: ignore[arg-type]
        owner.files[PATH] = new_data

    server.files[PATH] = DATA
    server.tricks = [replace]
    assert find.weights_path(NAME).read_bytes() == new_data


def test_parts_that_do_not_fit_are_fetched_anew_by_their_digest(
    server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server has no tags, so the published digest alone tells that the parts are of two versions."""
    new_data = DATA[::-1]
    pin(monkeypatch, sha256=hashlib.sha256(new_data).hexdigest())

    def replace(handler: object, owner: FileServer) -> None:
        cut(0.5)(handler, owner)  # type: ignore[arg-type]
        owner.files[PINNED_PATH] = new_data

    server.files[PINNED_PATH], server.has_tags = DATA, False
    server.tricks = [replace]
    assert find.weights_path(PINNED).read_bytes() == new_data
    assert [request.headers.get("range") for request in server.requests] == [None, "bytes=512000-", None]


def test_a_server_without_ranges_starts_anew(server: FileServer) -> None:
    server.files[PATH], server.takes_ranges = DATA, False
    server.tricks = [cut(0.4)]
    assert find.weights_path(NAME).read_bytes() == DATA


@pytest.mark.parametrize(
    "content_range",
    ["bytes 0-1023999/1024000", "bytes 5-1023999/1024000", "bytes 512000-512009/1024000", "bytes x", ""],
)
def test_a_range_that_was_not_asked_for_is_not_believed(content_range: str, server: FileServer) -> None:
    server.files[PATH] = DATA
    wrong = answer(206, DATA[512000:], Content_Range=content_range)
    server.tricks = [cut(0.5), wrong]
    assert find.weights_path(NAME).read_bytes() == DATA


def test_a_part_instead_of_the_file_is_refused(server: FileServer, cache: Path) -> None:
    server.tricks = [answer(206, DATA[:1000], Content_Range="bytes 0-999/1024000")]
    with pytest.raises(FetchError, match="a part of the file that was not asked for"):
        find.weights_path(NAME)
    assert left(cache) == set()


@pytest.mark.parametrize("digest", ["sha256", "md5", "size", "sha256_start"])
def test_a_file_that_is_not_the_published_one_is_removed(
    digest: str, server: FileServer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = {"sha256": "0" * 64, "md5": "0" * 32, "size": 5, "sha256_start": "00000000"}
    pin(monkeypatch, **{"sha256": None, digest: facts[digest]})
    server.files[PINNED_PATH] = DATA
    with pytest.raises(FetchError, match="published"):
        find.weights_path(PINNED)
    assert left(cache) == set()


def test_the_published_digests_are_accepted(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    sha256 = hashlib.sha256(DATA).hexdigest()
    pin(
        monkeypatch,
        sha256=sha256,
        md5=hashlib.md5(DATA).hexdigest(),
        size=len(DATA),
        sha256_start=sha256[:8],
    )
    server.files[PINNED_PATH] = DATA
    assert find.weights_path(PINNED).read_bytes() == DATA


def test_the_digest_that_the_hub_states_must_match(server: FileServer, cache: Path) -> None:
    server.files[PATH] = DATA
    server.linked_sha256 = "0" * 64
    with pytest.raises(FetchError, match="not the one that the hub states"):
        find.weights_path(NAME)
    assert left(cache) == set()
    server.linked_sha256 = hashlib.sha256(DATA).hexdigest()
    assert find.weights_path(NAME).read_bytes() == DATA


def test_the_digest_of_the_first_fetch_is_compared_ever_after(server: FileServer, cache: Path) -> None:
    server.files[PATH] = DATA
    file = find.weights_path(NAME)
    file.write_bytes(DATA[::-1])
    assert find.weights_path(NAME).read_bytes() == DATA  # damaged, so it was fetched again
    file.unlink()
    server.files[PATH] = DATA[::-1]
    with pytest.raises(FetchError, match=r"not that of the first fetch; .* remove .*\.source$"):
        find.weights_path(NAME)
    assert not file.exists()
    (cache / f"{file.name}.source").unlink()
    assert find.weights_path(NAME).read_bytes() == DATA[::-1]


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirections_are_followed(code: int, server: FileServer) -> None:
    server.files["/storage/x"] = DATA
    server.tricks = [redirect("/there", code), redirect(f"{server.address}/storage/x", code)]
    assert find.weights_path(NAME).read_bytes() == DATA


def test_redirections_end(server: FileServer, cache: Path) -> None:
    server.tricks, server.is_last_kept = [redirect("/again")], True
    with pytest.raises(FetchError, match="redirects more than 10 times"):
        find.weights_path(NAME)
    assert len(server.requests) == 11
    assert left(cache) == set()


@pytest.mark.parametrize(
    "location",
    [
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
        "data:,x",
        "http://user:word@127.0.0.1/x",
        "gopher://x",
    ],
)
def test_redirections_to_other_places_are_refused(location: str, server: FileServer) -> None:
    server.tricks = [redirect(location)]
    with pytest.raises(FetchError, match="refused, a redirection to"):
        find.weights_path(NAME)


@pytest.mark.parametrize(
    ("current", "location", "words"),
    [
        ("https://a.org/x", "http://a.org/x", "not encrypted"),
        ("https://a.org/x", "http://127.0.0.1/x", "not encrypted"),
        ("http://a.org/x", "http://127.0.0.1/x", "this machine itself"),
        ("https://a.org/x", "https://localhost/x", "this machine itself"),
        ("http://a.org/x", "http://[::1]/x", "this machine itself"),
    ],
)
def test_redirections_to_less_safe_places_are_refused(current: str, location: str, words: str) -> None:
    with pytest.raises(FetchError, match=words):
        web._next_address(current, location, current)


def test_the_token_goes_to_the_hub_only(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with FileServer(files={"/x": DATA}).running() as storage:
        server.tricks = [redirect("/next"), redirect(f"{storage.address}/x")]
        assert find.weights_path(NAME).read_bytes() == DATA
        assert [request.headers.get("authorization") for request in server.requests] == [
            "Bearer hf_secret"
        ] * 2
        assert [request.headers.get("authorization") for request in storage.requests] == [None]


def test_the_token_is_not_sent_over_an_open_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror.example.org")
    assert web._token("http://mirror.example.org/x") == {}
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example.org")
    assert web._token("https://mirror.example.org/x") == {"Authorization": "Bearer hf_secret"}
    assert web._token("https://huggingface.co/x") == {}


def test_the_token_is_not_sent_to_a_proxy_of_an_open_connection(
    server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mirror on this machine is asked through the proxy, which could read the token."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_ENDPOINT", "http://localhost:5000")
    assert web._token("http://localhost:5000/x") == {"Authorization": "Bearer hf_secret"}
    monkeypatch.setenv("http_proxy", server.address)
    assert web._token("http://localhost:5000/x") == {"Authorization": "Bearer hf_secret"}  # no_proxy is *
    monkeypatch.delenv("no_proxy")
    assert web._token("http://localhost:5000/x") == {}
    server.files[f"http://localhost:5000{PATH}"] = DATA
    assert find.weights_path(NAME).read_bytes() == DATA
    assert "authorization" not in server.requests[0].headers
    monkeypatch.setenv("no_proxy", "localhost")
    assert web._token("http://localhost:5000/x") == {"Authorization": "Bearer hf_secret"}


def test_a_server_that_stalls(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "TIMEOUT_SECONDS", 0.3)
    server.files[PATH] = DATA
    server.tricks = [stall]
    assert find.weights_path(NAME).read_bytes() == DATA


def test_a_server_that_sends_too_slowly(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "_SLOW_SECONDS", 0.0)
    monkeypatch.setattr(transfer, "_MIN_BYTES_PER_SECOND", 1e15)
    server.files[PATH] = DATA
    with pytest.raises(FetchError, match=r"only .* bytes in"):
        find.weights_path(NAME)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (401, "there is no such repository, or it is private; set HF_TOKEN"),
        (403, "there is no such repository, or it is private; set HF_TOKEN"),
        (404, "the server has no such file"),
        (410, "the server has no such file"),
        (400, "answers 400, and not with a file"),
        (451, "answers 451, and not with a file"),
        (204, "answers 204, and not with a file"),
    ],
)
def test_answers_without_a_file(code: int, words: str, server: FileServer, cache: Path) -> None:
    server.tricks, server.is_last_kept = [answer(code)], True
    with pytest.raises(FetchError, match=words):
        find.weights_path(NAME)
    assert len(server.requests) == 1
    assert left(cache) == set()


def test_another_server_that_refuses(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.tricks, server.is_last_kept = [answer(403)], True
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example.org")
    with pytest.raises(FetchError, match="get the file by other means, and give its path"):
        find.weights_path(f"{server.address}/model.safetensors")


def test_a_busy_server_is_asked_again(server: FileServer, pauses: list[float]) -> None:
    server.files[PATH] = DATA
    server.tricks = [answer(429, Retry_After="7"), answer(500), answer(502), answer(503, Retry_After="x")]
    assert find.weights_path(NAME).read_bytes() == DATA
    assert pauses == [7.0, 2.0, 4.0, 8.0]


def test_a_server_that_wants_to_be_asked_tomorrow(server: FileServer, pauses: list[float]) -> None:
    server.tricks = [answer(429, Retry_After="86400")]
    with pytest.raises(FetchError, match="wants to be asked again in 86,400 s"):
        find.weights_path(NAME)
    server.tricks = [answer(429, Retry_After="Fri, 31 Dec 9999 23:59:59 GMT")]
    with pytest.raises(FetchError, match="wants to be asked again in"):
        find.weights_path(NAME)
    assert pauses == []


def test_a_compressed_answer_is_refused(server: FileServer, cache: Path) -> None:
    server.tricks = [answer(200, DATA, Content_Encoding="gzip")]
    with pytest.raises(FetchError, match=r"compressed \(gzip\)"):
        find.weights_path(NAME)
    assert left(cache) == set()


def test_a_page_is_refused(server: FileServer, cache: Path) -> None:
    server.tricks = [answer(200, b"<html>log in", Content_Type="text/html; charset=utf-8")]
    with pytest.raises(FetchError, match="sends a page in the place of the file"):
        find.weights_path(NAME)
    assert left(cache) == set()


def test_a_size_that_is_too_large_is_refused(server: FileServer, cache: Path) -> None:
    server.tricks = [answer(200, b"x", Content_Length=str(1 << 40))]
    with pytest.raises(FetchError, match="a file of weights may have"):
        find.weights_path(NAME)
    server.tricks = [answer(200, b"x", Content_Length="")]
    with pytest.raises(FetchError, match="does not state the size"):
        find.weights_path(NAME)
    assert left(cache) == set()


def test_a_server_that_states_more_than_it_sends(server: FileServer) -> None:
    def close(handler: object, owner: FileServer) -> None:
        answer(200, DATA[:5000], Content_Length="6000")(handler, owner)  # type: ignore[arg-type]
        handler.close_connection = True  # type: ignore[attr-defined]

    server.tricks, server.is_last_kept = [close], True
    with pytest.raises(FetchError, match=r"broke at 5,000 of 6,000 bytes, 5 times in a row"):
        find.weights_path(NAME)


def test_chunks_are_read_to_their_end(server: FileServer) -> None:
    def chunks(handler: object, owner: FileServer) -> None:
        handler.send_response(200)  # type: ignore[attr-defined]
        handler.send_header("Transfer-Encoding", "chunked")  # type: ignore[attr-defined]
        handler.end_headers()  # type: ignore[attr-defined]
        write = handler.wfile.write  # type: ignore[attr-defined]
        for start in range(0, len(DATA), 100_000):
            block = DATA[start : start + 100_000]
            write(f"{len(block):x}\r\n".encode() + block + b"\r\n")
            if is_cut and start > 300_000:
                handler.close_connection = True  # type: ignore[attr-defined]
                return
        write(b"0\r\n\r\n")

    is_cut = True
    server.tricks, server.is_last_kept = [chunks], True
    with pytest.raises(FetchError, match="5 times in a row"):
        find.weights_path(NAME)
    is_cut = False
    assert find.weights_path(NAME).read_bytes() == DATA


@pytest.mark.parametrize("variable", ["PPXCLS_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_machines_ask_nobody(
    variable: str, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files[PATH] = DATA
    monkeypatch.setenv(variable, "1")
    with pytest.raises(FetchError, match=f"{variable} forbids to fetch it; 'ppxcls weights {NAME}'"):
        find.weights_path(NAME)
    assert server.requests == []
    monkeypatch.setenv(variable, "0")
    file = find.weights_path(NAME)
    monkeypatch.setenv(variable, "TRUE")
    assert find.weights_path(NAME) == file


def test_a_proxy_is_asked(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files[PATH] = DATA
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv("http_proxy", server.address)
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.example.org")
    server.files[f"http://hub.example.org{PATH}"] = DATA
    assert find.weights_path(NAME).read_bytes() == DATA
    assert server.requests[0].path == f"http://hub.example.org{PATH}"


def test_a_second_address_is_tried(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    pin(
        monkeypatch,
        sha256=None,
        repository=None,
        addresses=(f"{server.address}/gone", f"{server.address}/mirror"),
    )
    server.files["/mirror"] = DATA
    assert find.weights_path(PINNED).read_bytes() == DATA


def test_a_full_disk_and_a_small_one(
    server: FileServer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files[PATH] = DATA
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    with pytest.raises(FetchError, match=r"needs 1 MB in .*, and 1 MB are free; PPXCLS_CACHE"):
        find.weights_path(NAME)
    assert left(cache) == set()


def test_a_cache_that_is_read_only_is_read(
    server: FileServer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files[PATH] = DATA
    file = find.weights_path(NAME)
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    assert find.weights_path(NAME) == file
    with pytest.raises(FetchError, match=r"no cache for weights: .*can't be written to; set PPXCLS_CACHE"):
        find.weights_path("xception71")


def test_a_cache_that_others_can_write_is_not_used(server: FileServer, cache: Path) -> None:
    server.files[PATH] = DATA
    find.weights_path(NAME)
    cache.chmod(0o777)
    with pytest.raises(FetchError, match=r"no cache for weights: .* can be written by everybody"):
        find.weights_path(NAME)


def test_a_file_appears_after_its_check(
    server: FileServer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Meanwhile no other process finds it, and the check sees it with its extension."""
    server.files[PATH] = DATA
    files: list[Path] = []

    def check(file: Path, *_: object, **__: object) -> str | None:
        files.append(file)
        assert file.read_bytes() == DATA
        assert find.cached_weights("xception65") is None
        return None if len(files) > 1 else "nothing"

    monkeypatch.setattr(fetch, "content_problem", check)
    with pytest.raises(FetchError, match="refused, nothing"):
        find.weights_path(NAME)
    assert left(cache) == set()
    assert find.weights_path(NAME) == cache / f"{NAME}.safetensors"
    assert [file.suffix for file in files] == [".safetensors"] * 2


def test_the_log_says_what_is_fetched(server: FileServer, caplog: pytest.LogCaptureFixture) -> None:
    server.files[PATH] = DATA
    logger = logging.getLogger("ppxcls")
    logger.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.INFO, logger="ppxcls"):
            find.weights_path(NAME)
    finally:
        logger.removeHandler(caplog.handler)
    first, last = caplog.messages[0], caplog.messages[-1]
    assert first == f"fetching {NAME} (160 MB, Apache-2.0) from {server.address}{PATH}"
    assert last.endswith(f"1,024,000 bytes, SHA-256 {hashlib.sha256(DATA).hexdigest()}")


def test_a_missing_reader_is_named_before_anything_is_fetched(
    server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(FetchError, match=r"reading it needs safetensors, .*pip install"):
        find.weights_path(NAME)
    for suffix in (".h5", ".hdf5", ".keras", ".HDF5"):
        with pytest.raises(FetchError, match="reading it needs h5py"):
            find.weights_path(f"{server.address}/x{suffix}")
    assert server.requests == []
