"""Whose requests are answered, and how much of the server one client may take."""

from __future__ import annotations

import asyncio

import h11
import pytest
from starlette.types import Message, Receive, Scope, Send

from ppxcls.data.errors import DataError
from ppxcls.serving.batching import BusyError
from ppxcls.serving.hosts import AllowedHosts, Doorkeeper, check_host_names, is_same_origin
from ppxcls.serving.limits import Access
from ppxcls.serving.memory import MemoryBudget, Reservation, client_key
from ppxcls.serving.requests import RequestParser


@pytest.mark.parametrize(
    ("host", "is_allowed"),
    [
        ("localhost", True),
        ("LOCALHOST:8000", True),
        ("localhost.", True),
        ("127.0.0.1:8000", True),
        ("[::1]:8000", True),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("10.0.0.1", False),
        ("127.0.0.1:a", False),
        ("user@localhost", False),
        ("", False),
        ("2130706433", False),
    ],
)
def test_hosts_of_a_server_on_the_loopback_address(host: str, is_allowed: bool) -> None:
    assert AllowedHosts("127.0.0.1", "localhost").allow(host) == is_allowed
    assert AllowedHosts("127.0.0.1", names=["*"]).allow(host)


def test_hosts_of_other_servers() -> None:
    hosts = AllowedHosts("192.0.2.7", "model.example", ["Images.example"])
    for name in ("192.0.2.7", "model.example:80", "images.example", "localhost"):
        assert hosts.allow(name)
    assert not hosts.allow("192.0.2.8")
    for address in ("0.0.0.0", "::"):
        hosts = AllowedHosts(address)
        assert hosts.allow("192.0.2.8:8000")
        assert hosts.allow("[2001:db8::1]:8000")
        assert not hosts.allow("evil.example")


@pytest.mark.parametrize("name", ["", "a b", "https://a.example", "a.example:80", "-", "a/b", "a" * 300, 5])
def test_what_is_no_host_name(name: object) -> None:
    with pytest.raises(DataError, match="expected an allowed host"):
        check_host_names([name])  # type: ignore[list-item]


def test_host_names() -> None:
    check_host_names(["*", "a.example", "my_service", "10.0.0.1", "::1", "[::1]"])


@pytest.mark.parametrize("proxy", ["", "proxy.example", "10.0.0.0/8", "*", 5])
def test_what_is_no_proxy(proxy: object) -> None:
    with pytest.raises(DataError, match="expected the address of a proxy"):
        Access(proxies=[proxy]).check()  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("origin", "host", "is_same"),
    [
        ("http://localhost:8000", "localhost:8000", True),
        ("https://a.example", "a.example", True),
        ("https://a.example", "a.example:443", True),
        ("http://a.example:80", "a.example", True),
        ("http://localhost:8001", "localhost:8000", False),
        ("http://127.0.0.1:8000", "localhost:8000", False),
        ("null", "localhost:8000", False),
        ("", "", False),
        ("http://", "", True),
        ("file://", "", False),
    ],
)
def test_origins(origin: str, host: str, is_same: bool) -> None:
    assert is_same_origin(origin, host) == is_same


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::1"),
        ("testclient", "testclient"),
    ],
)
def test_what_counts_as_one_client(address: str, key: str) -> None:
    assert client_key(address) == key


def test_memory_of_all_and_of_one_client() -> None:
    ended: list[str | None] = []

    async def use() -> None:
        budget = MemoryBudget(100, ["proxy"], ended.append)
        with Reservation(budget, "a") as first, Reservation(budget, "b") as second:
            await first.resize(50)
            with pytest.raises(BusyError):
                await first.resize(51)
            assert set(ended) == {"a"}
            await second.resize(30)
            with Reservation(budget, "proxy") as third:
                ended.clear()
                with pytest.raises(BusyError):
                    await third.resize(21)
                assert set(ended) == {None}
                await first.resize(10)
                await third.resize(60)
                assert budget.total == 100
        assert budget.total == 0

    asyncio.run(use())


def test_memory_that_becomes_free_in_time() -> None:
    async def use() -> None:
        budget = MemoryBudget(100)
        with Reservation(budget, "a") as first, Reservation(budget, "b") as second:
            await first.resize(50)
            await second.resize(40)
            task = asyncio.create_task(second.resize(50))
            await first.resize(0)
            await task
            assert budget.total == 50

    asyncio.run(use())


def parse(data: bytes) -> list[object]:
    """Returns the events of a parser; its problem is the last one."""
    parser = RequestParser()
    parser.receive_data(data)
    events: list[object] = []
    try:
        while (event := parser.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
            events.append(event)
    except h11.RemoteProtocolError:
        events.append(parser.problem)
    return events


HOST = b"Host: a\r\n"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"X" * 70_000 + b" / HTTP/1.1\r\n" + HOST + b"\r\n", 501),
        (b"GET / HTTP/2.0\r\n" + HOST + b"\r\n", 505),
        (b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 414),
        (b"GET / HTTP/1.1\r\n" + HOST + b"A: b\r\n" * 101 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + HOST + b"A: " + b"b" * 20_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + b"a" * 20_000, 431),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET a HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"TRACE / HTTP/1.1\r\n" + HOST + b"\r\n", 405),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Expect: tea\r\n\r\n", 417),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 100_000, 400),
    ],
)  # fmt: skip
def test_heads_that_are_refused(data: bytes, status: int) -> None:
    problem = parse(data)[-1]
    assert getattr(problem, "status", None) == status, problem
    assert len(problem.message) <= 200


def test_heads_that_are_accepted() -> None:
    (request, _) = parse(b"GET http://B.example:80/healthz?a=b HTTP/1.1\r\n" + HOST + b"\r\n")
    assert isinstance(request, h11.Request)
    assert (request.target, dict(request.headers)[b"host"]) == (b"/healthz?a=b", b"B.example:80")
    chunks = b"".join(b"40\r\n" + b"a" * 64 + b"\r\n" for _ in range(10_000)) + b"0\r\n\r\n"
    events = parse(b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n" + chunks)
    assert isinstance(events[-1], h11.EndOfMessage)
    assert sum(len(event.data) for event in events if isinstance(event, h11.Data)) == 640_000


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([], 200),
        ([("origin", "http://localhost:8000")], 200),
        ([("origin", "http://evil.example")], 403),
        ([("origin", "http://localhost:8000"), ("origin", "http://evil.example")], 403),
        ([("origin", "")], 403),
        ([("sec-fetch-site", "none")], 200),
        ([("sec-fetch-site", "cross-site")], 403),
        ([("sec-fetch-site", "same-origin"), ("sec-fetch-site", "cross-site")], 403),
        # A proxy that sends its own name for the server's.
        ([("origin", "https://images.example"), ("sec-fetch-site", "same-origin")], 200),
        ([("origin", "https://images.example"), ("sec-fetch-site", "same-site")], 403),
    ],
)
def test_pages_that_may_post(headers: list[tuple[str, str]], status: int) -> None:
    messages: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: Message) -> None:
        messages.append(message)

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    lines = [(name.encode(), value.encode()) for name, value in [("host", "localhost:8000"), *headers]]
    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": lines}
    asyncio.run(Doorkeeper(app, AllowedHosts("127.0.0.1"), [])(scope, receive, send))
    assert messages[0]["status"] == status
