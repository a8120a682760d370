"""Ends requests in order: those that fail unexpectedly, and those that a stopping server gives up."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ppxcls.system.json_text import json_text
from ppxcls.system.logs import logger

_LAST_SECONDS = 2.0  # for the answers of requests that are given up
_POLL_SECONDS = 0.01


class Endings:
    """Counts the requests of a server that are not answered yet."""

    def __init__(self) -> None:
        self.count = 0

    async def wait(self) -> None:
        """Waits a short time for the answers of the requests that uvicorn has cancelled.

        If the loop ended before, they would be cancelled again while they answer.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _LAST_SECONDS
        while self.count and loop.time() < deadline:
            await asyncio.sleep(_POLL_SECONDS)


class LastAnswers:
    """Middleware that answers if the application does not: with 500 after an error, or 503 at the end.

    An error is logged once, with its traceback. uvicorn cancels the requests that are left when the time for
    the end of the server is over. This is no error.

    Args:
        app: application behind it.
        endings: count of the server's requests.
    """

    def __init__(self, app: ASGIApp, endings: Endings) -> None:
        self._app, self._endings = app, endings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_begun = False

        async def send_noted(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        self._endings.count += 1
        try:
            try:
                await self._app(scope, receive, send_noted)
                return
            except asyncio.CancelledError:
                status, message = 503, "the server is stopping"
            except Exception as error:
                logger.exception("a request failed")
                status, message = 500, type(error).__name__
            if not has_begun:
                await send_error(send, status, message, ends_connection=True)
        finally:
            self._endings.count -= 1


async def send_error(send: Send, status: int, message: str, *, ends_connection: bool = False) -> None:
    """Sends a whole answer with an error, as middleware does.

    Args:
        send: function that sends the parts of an answer.
        status: status code.
        message: one short line.
        ends_connection: True if no other request follows on the connection.
    """
    body = json_text({"error": message}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if ends_connection:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
