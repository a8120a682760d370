"""Connections end in order: no error of a client is an error of the server, and its own errors are seen."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import AsyncIterator

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from ppxcls.deploy.answer_limits import NO_LIMITS
from ppxcls.serving.address import open_listener
from ppxcls.serving.app import build_app
from ppxcls.serving.connections import ConnectionBook, ConnectionLimits, GuardedProtocol, protocol_class
from ppxcls.serving.endings import Endings, LastAnswers
from ppxcls.serving.limits import Limits
from ppxcls.serving.requests import RequestProblem


class Book(ConnectionBook):
    """A book whose connections a test can take."""

    @property
    def connections(self) -> list[GuardedProtocol]:
        return list(self._connections)


@contextlib.asynccontextmanager
async def running(
    app: ASGIApp, listener: socket.socket | None = None, lifespan: str = "off"
) -> AsyncIterator[tuple[int, Book]]:
    """Runs a server in this loop; its port and its connections."""
    book = Book(ConnectionLimits())
    listener = listener or socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app,
        http=protocol_class(book),
        ws="none",
        lifespan=lifespan,  # type: ignore[arg-type]
        log_config=None,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve([listener]))
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield listener.getsockname()[1], book
    finally:
        server.should_exit = True
        await task


async def read_body(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers after the whole body."""
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def problems(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_client_that_waits_for_100_and_sends_a_damaged_chunk(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> bytes:
        async with running(LastAnswers(read_body, Endings())) as (port, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            head = b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n"
            writer.write(head + b"XYZ\r\n")
            content = await reader.read()
            await asyncio.sleep(0.1)
            writer.close()
            return content

    assert asyncio.run(main()).startswith(b"HTTP/1.1 400 ")
    assert not problems(caplog)


def test_a_slow_body_whose_client_has_gone_is_ended_without_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        async with running(LastAnswers(read_body, Endings())) as (port, book):
            client = socket.create_connection(("127.0.0.1", port))
            client.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9000000\r\n\r\nx")
            while not any(connection.phase == "body" for connection in book.connections):
                await asyncio.sleep(0.01)
            connection = book.connections[0]
            connection.flow.pause_reading()
            client.close()
            connection.refuse(RequestProblem(408, "slow"))
            await asyncio.sleep(0.1)
            assert not book.connections

    asyncio.run(main())
    assert not problems(caplog)


def test_an_unexpected_error_is_logged_once_and_answered(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        raise KeyError("/home/secret")

    async def main() -> bytes:
        async with running(LastAnswers(fail, Endings())) as (port, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            content = await reader.read()
            writer.close()
            return content

    logging.getLogger("ppxcls").addHandler(caplog.handler)
    try:
        head, _, body = asyncio.run(main()).partition(b"\r\n\r\n")
    finally:
        logging.getLogger("ppxcls").removeHandler(caplog.handler)
    assert head.startswith(b"HTTP/1.1 500 ")
    assert json.loads(body) == {"error": "KeyError"}
    assert problems(caplog) == ["a request failed"]
    assert "KeyError: '/home/secret'" in caplog.text


def test_a_request_that_a_stopping_server_gives_up_gets_503(caplog: pytest.LogCaptureFixture) -> None:
    endings = Endings()

    async def wait(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(3600)

    async def main() -> bytes:
        async with running(LastAnswers(wait, endings)) as (port, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            while not endings.count:
                await asyncio.sleep(0.01)
        await endings.wait()
        content = await reader.read()
        writer.close()
        return content

    head, _, body = asyncio.run(main()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert json.loads(body) == {"error": "the server is stopping"}
    assert not any("Traceback" in text or "Exception" in text for text in problems(caplog))
    assert not endings.count


def test_a_client_that_only_reads_any_more_gets_its_answers(caplog: pytest.LogCaptureFixture) -> None:
    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.2)
        await read_body(scope, receive, send)

    async def main() -> bytes:
        async with running(slow) as (port, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx" * 3)
            writer.write_eof()
            content = await reader.read()
            writer.close()
            return content

    assert asyncio.run(main()).count(b"200 OK") == 3
    assert not problems(caplog)


def test_small_parts_of_an_answer_do_not_wait_for_each_other() -> None:
    async def main() -> int:
        async with running(read_body, listener=open_listener("127.0.0.1", 0)) as (port, book):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            while not book.connections:
                await asyncio.sleep(0.01)
            connection = book.connections[0].transport.get_extra_info("socket")
            option = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            writer.close()
            return option

    assert asyncio.run(main())


def test_large_bodies_side_by_side_wait_for_each_other() -> None:
    """The room is enough for one of them. Both are read in the end, because the second one does not begin."""

    class NoPredictor:
        decodes_images = True
        limits = NO_LIMITS

        def prepare(self, image: bytes) -> None:
            raise ValueError("no image")

    app = build_app(NoPredictor(), Limits(memory=4 << 20))  # type: ignore[arg-type]
    size, first_size = 1536 << 10, 1280 << 10
    head = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % size

    async def send(port: int, first: asyncio.Event) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head + bytes(first_size))
        await first.wait()
        writer.write(bytes(size - first_size))
        content = await reader.read()
        writer.close()
        return content

    async def main() -> list[bytes]:
        async with running(app, lifespan="on") as (port, _):
            event = asyncio.Event()
            tasks = [asyncio.create_task(send(port, event)) for _ in range(2)]
            await asyncio.sleep(0.5)
            event.set()
            return await asyncio.gather(*tasks)

    assert [answer[:13] for answer in asyncio.run(main())] == [b"HTTP/1.1 422 "] * 2


def test_a_body_that_the_server_does_not_read_is_not_slow() -> None:
    async def main() -> list[bool]:
        async with running(read_body) as (port, book):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nx")
            while not any(connection.phase == "body" for connection in book.connections):
                await asyncio.sleep(0.01)
            connection = book.connections[0]
            connection.phase_start -= 10
            states = [connection.is_slow]
            connection.flow.pause_reading()
            states.append(connection.is_slow)
            writer.close()
            return states

    assert asyncio.run(main()) == [True, False]


def test_a_connection_that_comes_while_the_server_stops_is_ended() -> None:
    async def main() -> bytes:
        async with running(read_body) as (port, book):
            book.is_stopping = True
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            content = await reader.read()
            writer.close()
            return content

    assert asyncio.run(main()) == b""
