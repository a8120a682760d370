"""Runs the server: loads the model, starts the decoders, and ends on SIGTERM or Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import uvicorn
from starlette.applications import Starlette

from ppxcls.deploy.answer_limits import AnswerShares
from ppxcls.deploy.build import load_with_shares
from ppxcls.serving.address import url_of
from ppxcls.serving.app import build_app
from ppxcls.serving.connections import ConnectionBook, allowed_count, protocol_class
from ppxcls.serving.decoders import DecoderPool
from ppxcls.serving.limits import DEFAULT_LIMITS, OPEN_ACCESS, Access, Limits
from ppxcls.system.environment import usable_cores
from ppxcls.system.logs import logger, set_up_logging

_BACKLOG = 2048  # connections that the system accepts before the server does
_ACCEPTED_AT_ONCE = 64  # of them, before the server looks at one; more could use up its descriptors
_POLL_SECONDS = 0.2  # time until Ctrl-C is noticed while the server runs in a thread
_UNBOUNDED_IMAGES = 1 << 40  # images; so many that the network is compiled at the first batch
_GRACE_SECONDS = 15  # for answers after SIGTERM; schedulers often kill a process after 30
_MAX_DECODERS = 8


def run_server(
    path: str | Path,
    listener: socket.socket,
    *,
    host: str = "",
    limits: Limits = DEFAULT_LIMITS,
    access: Access = OPEN_ACCESS,
    unknown_share: float | None = None,
    coverage: float | None = None,
    trust: bool = False,
) -> None:
    """Serves a run or an exported model until SIGTERM or SIGINT; requests that have begun are still answered.

    In a running event loop, such as a notebook's, the server runs in a thread with a loop of its own.

    Args:
        path: run or exported model, as for ``ppxcls.load``.
        listener: socket with the address to listen on.
        host: name of this address, as the user gave it.
        limits: limits of the server.
        access: clients and web pages that may use it.
        unknown_share: largest share of known images that are answered as unknown; None for that of the model.
        coverage: coverage of the sets of classes; None for that of the model.
        trust: True to run code that came with the files, as for ``ppxcls.load``.

    Raises:
        ConfigError, CheckpointError, DataError: the model can't be used, or has no such answers.
        OSError: another program has begun to listen at the address.
    """
    set_up_logging()
    shares = AnswerShares(unknown_share, coverage)
    predictor = load_with_shares(path, _UNBOUNDED_IMAGES, trust=trust, shares=shares)
    decoders = DecoderPool(
        min(usable_cores(), _MAX_DECODERS) + 1,  # one more, because a client may not use all of them
        limits.of_picture,
        max_file=limits.body,
        seconds=limits.decode_seconds,
        pixel_format=predictor.pixel_format,
    )
    try:
        logger.info(predictor.description)
        if predictor.limits.description:
            logger.info(predictor.limits.description)
        predictor.predict(np.zeros((600, 600, 3), np.uint8))  # compiles a network before the first request
        decoders.wait_until_ready()
        count = allowed_count(limits.connections.count, logger.warning)
        connection_limits = replace(limits.connections, count=count)
        limits = replace(limits, connections=connection_limits)
        book = ConnectionBook(connection_limits, access.proxy_keys)
        hosts = access.hosts_of(listener.getsockname()[0], host)
        app = build_app(predictor, limits, access=access, hosts=hosts, decoders=decoders, book=book)
        server = _Server(_server_config(app, book))
        listener.listen(_BACKLOG)  # from now on clients may connect
        logger.info(f"listening at {url_of(listener)}")
        run = _run_in_thread if _has_running_loop() else _run_here
        run(server, listener)
    finally:
        decoders.close()


class _Server(uvicorn.Server):
    """uvicorn's server, which ends the application also after a second Ctrl-C."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts to serve. uvicorn has one number for both kinds of waiting connections."""
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(_BACKLOG)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends the connections and the application."""
        await super().shutdown(sockets)
        if self.force_exit:
            await self.lifespan.shutdown()


def _server_config(app: Starlette, book: ConnectionBook) -> uvicorn.Config:
    """Returns uvicorn's settings. What other installed packages would change is chosen here."""
    return uvicorn.Config(
        app,
        http=protocol_class(book),
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_level="error",  # warnings about each invalid request would fill the log
        access_log=False,
        backlog=_ACCEPTED_AT_ONCE,
        proxy_headers=False,  # any client can write them
        server_header=False,
        timeout_keep_alive=int(book.limits.idle),
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )


def _has_running_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _run_here(server: uvicorn.Server, listener: socket.socket) -> None:
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again after the last answer
        server.run(sockets=[listener])


def _run_in_thread(server: uvicorn.Server, listener: socket.socket) -> None:
    """Runs a server in a thread, and waits for its end. Ctrl-C or a notebook's stop button ends it."""
    signals: list[int] = []

    def end(number: int, frame: object) -> None:
        signals.append(number)
        server.should_exit = True

    thread = threading.Thread(target=_run_here, args=(server, listener), name="ppxcls-server")
    is_main_thread = threading.current_thread() is threading.main_thread()
    handled_signals = (signal.SIGINT, signal.SIGTERM) if is_main_thread else ()
    # asyncio's own handler of Ctrl-C would only cancel the task that waits here.
    old_handlers = {number: signal.signal(number, end) for number in handled_signals}
    try:
        thread.start()
        while thread.is_alive():
            thread.join(_POLL_SECONDS)
    finally:
        for number, handler in old_handlers.items():
            signal.signal(number, handler)
    if signal.SIGTERM in signals:
        signal.raise_signal(signal.SIGTERM)
