"""Servers that send something else than published weights, and words and caches that lead elsewhere."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from hostility.cases import Case, Outcome, call, refusal_problem
from hostility.servers.file_tricks import (
    BODIES,
    CONFIG_TRICKS,
    DATA,
    LENGTHS,
    LOCATIONS,
    RANGES,
    RAW_ANSWERS,
    SMALL_TRICKS,
    half,
    in_small_letters,
    raw,
)
from hostility.servers.files import FileServer, Trick, answer, cut, redirect

from ppxcls.data import decode as _decode  # noqa: F401  sets a variable, which the cases must not undo
from ppxcls.published import attempts, fetch, hub, web
from ppxcls.published.find import cached_weights, fetch_weights, weights_path

PROMISE = "What is fetched is the published file or nothing, from web servers only, and nothing else stays"
Check = tuple[Outcome, str | None]
_NAME = "xception65.ra3_in1k"  # no digest of it is published
_DIGEST_NAME = "xception41p.ra3_in1k"  # its SHA-256 is
_PATHS = {name: f"/timm/{name}/resolve/main/model.safetensors" for name in (_NAME, _DIGEST_NAME)}
_MARK = "hf_mark_of_this_user"  # stands for the user's token
_VARIABLES = (
    *("PPXCLS_OFFLINE", "HF_HUB_OFFLINE", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "KERAS_HOME"),
    *("TORCH_HOME", "XDG_CACHE_HOME", "http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY"),
)
_WORDS = (
    *(
        "hf-hub:",
        "hf-hub:/",
        "hf-hub:a",
        "hf-hub:a/",
        "hf-hub:../..",
        "hf-hub:a/../../x",
        "hf-hub:a/b/../../c.h5",
    ),
    *(
        "hf-hub:a/b@../x",
        "hf-hub:a/b?x",
        "hf-hub:a/b#x",
        "hf-hub:a/b%2e%2e/x.h5",
        "hf-hub:a\\b/c",
        "hf-hub:a/b c",
    ),
    *(
        "hf-hub:.a/b",
        "hf-hub:a/.b",
        "hf-hub:a/b/.git/x.h5/",
        "hf-hub:" + "a" * 5000 + "/b",
        "hf-hub:a/b\n.h5",
    ),
    *(
        "https://",
        "https:///x.h5",
        "https://a:b@c/x.h5",
        "https://[/x.h5",
        "https://a:0x5/x.h5",
        "https://a\n/x.h5",
    ),
    *(
        "https://a/x.h5\r\nHost: b",
        "https://a/../x.exe",
        "https://a/x",
        "http://a/x.h5" + "x" * 4000,
        "HTTPS://a b/x.h5",
    ),
    *("https://\u202e/x.h5", "https://a/\x1b[2J.h5", "nothing", "xception65.ra3_in1k ", "XCEPTION41!"),
)


def cases() -> Iterator[Case]:
    """Returns the cases."""
    for location in LOCATIONS:
        yield _server_case(f"a redirection to {location[:40]!r}", [redirect(location)])
    yield _server_case("redirections without end", [redirect("/again")])
    yield _server_case("a redirection without a place", [answer(302)])
    for code in (100, 204, 206, 300, 304, 305, 400, 401, 402, 403, 404, 407, 410, 418, 451, 501, 505, 999):
        yield _server_case(f"the code {code}", [answer(code, DATA[:500])], is_quick=code != 100)
    for code in (408, 425, 429, 500, 502, 503, 504):
        yield _server_case(f"the code {code} for ever", [answer(code)])
    for value in (
        "1e400",
        "-5",
        "9" * 400,
        "Thu, 99 Foo 9999",
        "\x7f",
        "86400",
        "Fri, 31 Dec 9999 23:59:59 GMT",
    ):
        yield _server_case(f"Retry-After: {value[:20]!r}", [answer(429, Retry_After=value)])
    for value in LENGTHS:
        yield _server_case(f"Content-Length: {value[:20]!r}", [answer(200, DATA[:500], Content_Length=value)])
    for value in ("gzip", "br", "identity, gzip", "x" * 5000):
        name = f"Content-Encoding: {value[:20]}"
        yield _server_case(name, [answer(200, DATA, Content_Encoding=value)])
    for value in RANGES:
        name = f"a rest of the file with Content-Range: {value[:40]!r}"
        yield _server_case(name, [half, answer(206, DATA[:256000], Content_Range=value), answer(404)])
    yield from _other_cases()


def _other_cases() -> Iterator[Case]:
    """Returns the cases of contents, broken protocols, words, variables and caches."""
    for name, body in BODIES.items():
        for word in (_NAME, _DIGEST_NAME):
            yield _server_case(
                f"{name} in the place of {word}",
                [answer(200, body)],
                word=word,
                is_checked=True,
                is_quick=word == _DIGEST_NAME,
            )
    for name, trick in SMALL_TRICKS.items():
        yield _server_case(f"{name}, with headers in small letters", [in_small_letters, trick])
    for name, trick in CONFIG_TRICKS.items():
        yield _server_case(f"a config.json with {name}", [trick], word="hf-hub:me/x")
    for name, lines in RAW_ANSWERS.items():
        yield _server_case(f"an answer with {name}", [functools.partial(raw, lines)])
    for name, run in _OTHER_RUNS.items():
        yield Case(name, run, is_quick=True)
    for word in _WORDS:
        yield Case(f"the word {word[:40]!r}", functools.partial(_word, word), is_quick=True)
    for variable, value in _BAD_VARIABLES:
        run = functools.partial(_variable, variable, value)
        yield Case(f"{variable}={value[:30]!r}", run, is_quick=True)


@contextlib.contextmanager
def _machine(folder: Path, **variables: str) -> Iterator[None]:
    """Gives the process a home folder and a cache of its own, and no pauses."""
    home = folder / "home"
    home.mkdir(mode=0o700, exist_ok=True)
    values = {"HOME": str(home), "PPXCLS_CACHE": str(folder / "cache"), "no_proxy": "*", **variables}
    with (
        mock.patch.dict(os.environ, values),
        mock.patch.object(attempts, "pause", return_value=None),
        mock.patch.object(web, "TIMEOUT_SECONDS", 2.0),
        mock.patch.object(web, "HEAD_SECONDS", 0.3),
        mock.patch.object(hub, "_MAX_SECONDS", 0.3),
    ):
        for name in _VARIABLES:
            if name not in variables:
                os.environ.pop(name, None)
        yield


def _left(folder: Path) -> list[str]:
    """Returns what stays in the cache that is no part, no journal and no lock."""
    names = [file.name for file in (folder / "cache").rglob("*") if file.is_file()]
    return [name for name in names if ".part" not in name]


def _server_case(
    name: str, tricks: list[Trick], *, word: str = _NAME, is_checked: bool = False, is_quick: bool = True
) -> Case:
    """Returns the case of a server that plays tricks, the last one for ever."""
    run = functools.partial(_refused, tricks, word, is_checked)
    return Case(name, run, is_quick=is_quick)


def _refused(tricks: list[Trick], word: str, is_checked: bool, folder: Path) -> Check:  # noqa: FBT001
    server = FileServer(files=dict.fromkeys(_PATHS.values(), DATA), tricks=list(tricks), is_last_kept=True)
    unchecked = mock.patch.object(fetch, "content_problem", return_value=None)
    with (
        server.running(),
        _machine(folder, HF_ENDPOINT=server.address, HF_TOKEN=_MARK),
        contextlib.nullcontext() if is_checked else unchecked,
    ):
        outcome = call(weights_path, word)
    problem = refusal_problem(outcome)
    if problem is None and _left(folder):
        problem = f"{_left(folder)} stays"
    if problem is None and _MARK in outcome.errors:
        problem = "the token is in the message"
    return outcome, problem


def _word(word: str, folder: Path) -> Check:
    with _machine(folder, PPXCLS_OFFLINE="1"):
        outcome = call(fetch_weights, word)
    problem = refusal_problem(outcome)
    return outcome, problem or (f"{_left(folder)} stays" if _left(folder) else None)


_BAD_VARIABLES = (
    *(
        ("HF_ENDPOINT", value)
        for value in ("file:///etc", "ftp://a", "x", "https://", "https://u:p@a", "https://a b")
    ),
    *(("HF_TOKEN", value) for value in ("a\nb", "a\r\nX: y", "\xe9", "\x1b[2J")),
    *(("PPXCLS_CACHE", value) for value in ("/proc/x", "/dev/null", "/dev/null/x", "/etc/passwd")),
)


def _variable(name: str, value: str, folder: Path) -> Check:
    server = FileServer(files=dict.fromkeys(_PATHS.values(), DATA))
    with server.running(), _machine(folder, **{"HF_ENDPOINT": server.address, name: value}):
        outcome = call(weights_path, _NAME)
    problem = refusal_problem(outcome, *([name] if name != "PPXCLS_CACHE" else []))
    return outcome, problem or ("the server was asked" if server.requests else None)


def _token_elsewhere(folder: Path) -> Check:
    """The hub redirects to another server, which must not get the token."""
    with FileServer(files={"/x": DATA}).running() as storage, FileServer().running() as server:
        server.tricks = [redirect(f"{storage.address}/x")]
        with (
            _machine(folder, HF_ENDPOINT=server.address, HF_TOKEN=_MARK),
            mock.patch.object(fetch, "content_problem", return_value=None),
        ):
            outcome = call(weights_path, _NAME)
    texts = [
        *(request.headers for request in storage.requests),
        *(request.path for request in storage.requests),
    ]
    problem = "the token was sent elsewhere" if _MARK in repr(texts) else None
    return outcome, problem or (None if outcome.code == 0 else outcome.errors)


def _token_and_proxy(folder: Path) -> Check:
    """The hub's mirror is on this machine, and a proxy of open connections is asked for it."""
    address = "http://localhost:5000"
    server = FileServer(files={f"{address}{_PATHS[_NAME]}": DATA})
    with (
        server.running(),
        _machine(folder, HF_ENDPOINT=address, HF_TOKEN=_MARK, http_proxy=server.address, no_proxy=""),
        mock.patch.object(fetch, "content_problem", return_value=None),
    ):
        outcome = call(weights_path, _NAME)
    is_sent = any(_MARK in repr(request.headers) for request in server.requests)
    problem = "the token was sent to the proxy" if is_sent else None
    return outcome, problem or (None if outcome.code == 0 and server.requests else outcome.errors)


def _small_headers(folder: Path) -> Check:
    """A good server that writes its headers in small letters, and breaks off once."""
    server = FileServer(files=dict.fromkeys(_PATHS.values(), DATA), has_small_headers=True)
    server.tricks = [cut(0.5)]
    with (
        server.running(),
        _machine(folder, HF_ENDPOINT=server.address),
        mock.patch.object(fetch, "content_problem", return_value=None),
    ):
        outcome = call(weights_path, _NAME)
    has_resumed = len(server.requests) == 2 and "range" in server.requests[1].headers
    problem = None if outcome.code == 0 else outcome.errors
    return outcome, problem or (None if has_resumed else "the transfer began anew")


def _look_during_the_check(folder: Path) -> Check:
    """Another process looks for the file while its content is checked, and the file is refused then."""
    found_files: list[Path | None] = []

    def check(*_: object, **__: object) -> str:
        found_files.append(cached_weights("xception65"))
        return "nothing"

    server = FileServer(files=dict.fromkeys(_PATHS.values(), DATA))
    with (
        server.running(),
        _machine(folder, HF_ENDPOINT=server.address),
        mock.patch.object(fetch, "content_problem", check),
    ):
        outcome = call(weights_path, _NAME)
    problem = refusal_problem(outcome, "nothing")
    is_hidden = found_files == [None] and not _left(folder)
    return outcome, problem or (None if is_hidden else f"{found_files} can be used, {_left(folder)} stays")


def _killed_in_the_check(folder: Path) -> Check:
    """A process is killed while it checks the content of a file, and the next one has another server."""
    script = (
        "import os, signal, sys\n"
        "from ppxcls.published import fetch, find\n"
        "fetch.content_problem = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)\n"
        "find.weights_path(sys.argv[1])\n"
    )
    server = FileServer(files=dict.fromkeys(_PATHS.values(), DATA))
    with server.running(), _machine(folder, HF_ENDPOINT=server.address):
        # S603: runs the lines above, without a shell.
        subprocess.run([sys.executable, "-c", script, _NAME], check=False, capture_output=True)  # noqa: S603
        found_file = cached_weights("xception65")
        server.files = {}
        outcome = call(weights_path, _NAME)
    problem = refusal_problem(outcome, "no such file")
    return outcome, problem or (f"{found_file} is used" if found_file else None)


def _name_of_an_address(folder: Path) -> Check:
    """The name of a file in an address leads out of the cache."""
    paths = ("/..%2f..%2fx.h5", "/%00.h5", "/.h5", "/-rf.h5", "/" + "x" * 1500 + ".h5", "/%F0%9F%98%80.h5")
    server = FileServer(files=dict.fromkeys(paths, DATA))
    cache = folder / "cache"
    problem = None
    with (
        server.running(),
        _machine(folder, HF_ENDPOINT=server.address),
        mock.patch.object(fetch, "content_problem", return_value=None),
    ):
        for path in paths:
            outcome = call(weights_path, server.address + path)
            is_inside = all(cache in file.parents for file in folder.rglob("*.h5"))
            problem = problem or (None if is_inside else f"{path} leads out of the cache")
    return outcome, problem


def _planted(plant: Callable[[Path], Any], folder: Path) -> Check:
    """Something that is no file of this package lies in the cache under the name of the weights."""
    cache = folder / "cache/weights"
    cache.mkdir(mode=0o700, parents=True)
    (folder / "cache").chmod(0o700)
    plant(cache)
    with tempfile.TemporaryDirectory() as home, _machine(folder, HOME=home, PPXCLS_OFFLINE="1"):
        outcome = call(weights_path, _DIGEST_NAME)
    return outcome, refusal_problem(outcome)


def _plant_wrong(cache: Path) -> None:
    (cache / f"{_DIGEST_NAME}.safetensors").write_bytes(DATA)


def _plant_link(cache: Path) -> None:
    (cache / f"{_DIGEST_NAME}.safetensors").symlink_to("/etc/passwd")


def _plant_pipe(cache: Path) -> None:
    os.mkfifo(cache / f"{_DIGEST_NAME}.safetensors")


def _plant_folder(cache: Path) -> None:
    (cache / f"{_DIGEST_NAME}.safetensors").mkdir()


def _plant_record(cache: Path) -> None:
    _plant_wrong(cache)
    (cache / f"{_DIGEST_NAME}.safetensors.source").write_text(
        '{"format": 1, "sha256": "' + "0" * 64 + '", "size": 5}'
    )


def _plant_open(cache: Path) -> None:
    _plant_wrong(cache)
    cache.chmod(0o777)


def _changed_after_the_fetch(folder: Path) -> Check:
    """A file of the cache is replaced, and the server has another one too by then."""
    server = FileServer(files=dict.fromkeys(_PATHS.values(), DATA))
    with (
        server.running(),
        _machine(folder, HF_ENDPOINT=server.address),
        mock.patch.object(fetch, "content_problem", return_value=None),
    ):
        weights_path(_NAME).write_bytes(DATA[::-1])
        server.files = dict.fromkeys(_PATHS.values(), DATA[::-1])
        outcome = call(weights_path, _NAME)
    return outcome, refusal_problem(outcome, "first fetch")


def _linked_name(name: str, folder: Path) -> Check:
    """The name of a file beside the weights is a link out of the cache. A fetch fails, and one succeeds."""
    cache = folder / "cache/weights"
    cache.mkdir(mode=0o700, parents=True)
    (folder / "cache").chmod(0o700)
    victim = folder / "victim"
    victim.write_text("keep")
    (cache / name.format(f"{_NAME}.safetensors")).symlink_to(victim)
    server = FileServer(files=dict.fromkeys(_PATHS.values(), DATA), tricks=[answer(404)])
    with (
        server.running(),
        _machine(folder, HF_ENDPOINT=server.address, PADDLE_TRAINERS_NUM="2"),
        mock.patch.object(fetch, "content_problem", return_value=None),
    ):
        call(weights_path, _NAME)
        outcome = call(weights_path, _NAME)
    return outcome, None if victim.read_text() == "keep" else "a file outside of the cache was written"


_OTHER_RUNS: dict[str, Callable[[Path], Check]] = {
    "a hub that sends the token's owner to another server": _token_elsewhere,
    "names of files in addresses": _name_of_an_address,
    "another file in the cache": functools.partial(_planted, _plant_wrong),
    "a link in the cache": functools.partial(_planted, _plant_link),
    "a pipe in the cache": functools.partial(_planted, _plant_pipe),
    "a folder in the cache": functools.partial(_planted, _plant_folder),
    "a forged record in the cache": functools.partial(_planted, _plant_record),
    "a cache that others can write": functools.partial(_planted, _plant_open),
    "a file that changes after the first fetch": _changed_after_the_fetch,
    "a proxy between the token and a mirror on this machine": _token_and_proxy,
    "a good server with headers in small letters": _small_headers,
    "a look at a file during its check": _look_during_the_check,
    "a process that is killed in the check": _killed_in_the_check,
    **{
        f"a link of the name {name.format('x')}": functools.partial(_linked_name, name)
        for name in ("{}.part", "{}.part.source", "{}.source", ".{}.failed", ".unchecked.{}", ".{}.lock")
    },
}
