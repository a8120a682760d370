"""Starts the server, and reports missing packages and addresses that can't be used."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

from ppxcls.data.decode import MAX_PIXELS
from ppxcls.data.errors import DataError
from ppxcls.serving.address import open_listener, taken_message

_INSTALL_HINT = "which is not installed: pip install 'ppxcls[serve]'"
_MIN_MEMORY_MIB = 64  # one client may take half, and the largest body has 27 MiB


def serve(
    path: str | Path,
    host: str = "127.0.0.1",
    *,
    port: int = 8000,
    batch: int = 16,
    queue: int = 128,
    cors: Sequence[str] = (),
    allowed_hosts: Sequence[str] = (),
    proxies: Sequence[str] = (),
    connections: int = 512,
    memory: int = 256,
    pixels: float = 51,
    decode_seconds: float = 10,
    unknown_share: float | None = None,
    coverage: float | None = None,
    trust: bool = False,
) -> None:
    """Serves a run or an exported model over HTTP until SIGTERM or Ctrl-C.

    Everything that can be known is checked before the model is loaded. In a notebook, the server runs until
    the cell is interrupted.

    Args:
        path: run or exported model, as for ``ppxcls.load``.
        host: address to listen on. The server has no passwords: use an address of this machine only, or put a
            proxy before the server.
        port: port to listen on, from 0 to 65535; 0 for a free one, which is printed.
        batch: largest number of images in a batch.
        queue: largest number of waiting images.
        cors: origins of the web pages that may use the server from a browser, such as
            ``https://example.org``; ``*`` for all. Pages of the server itself need none.
        allowed_hosts: names under which the server answers, such as ``images.example.org``, besides
            ``localhost`` and the address that it listens on; ``*`` for all.
        proxies: addresses of proxies that stand for many clients. One other client may use half of the
            connections and half of the memory.
        connections: largest number of connections.
        memory: largest size of all requests that are not answered yet, in MiB, at least 64.
        pixels: largest number of pixels of an image, in millions, at most 178.
        decode_seconds: longest time to decode an image, in seconds; a fifth of it while others wait.
        unknown_share: largest share of known images that are answered with ``"known": false``, such as 0.05.
            The model needs a calibration. None for that of the run's YAML or of the exported files; if they
            have none either, answers are without it.
        coverage: share of images whose ``class_set`` contains the true class, such as 0.95; None as for
            ``unknown_share``. The model needs a calibration.
        trust: True to run code that came with the files, as for ``ppxcls.load``.

    Raises:
        DataError: a package is not installed, the address can't be used, or a number is out of its range.
        ConfigError, CheckpointError, DataError: the model can't be used.
    """
    try:
        from ppxcls.serving import connections as connection_limits
        from ppxcls.serving import limits, running
    except ImportError as error:
        raise DataError(f"a server needs {error.name}, {_INSTALL_HINT}") from None
    if min(batch, queue) < 1:
        raise DataError(f"expected a batch and a queue of at least 1, received {batch} and {queue}")
    check_range("connections", connections, 8, 100_000)
    check_range("memory", memory, _MIN_MEMORY_MIB, 1 << 20)
    check_range("pixels", pixels, 0.01, MAX_PIXELS / 1_000_000)
    check_range("decode_seconds", decode_seconds, 0.1, 3600)
    access = limits.Access(*map(_as_list, (cors, allowed_hosts, proxies)))
    access.check()
    server_limits = limits.Limits(
        batch=batch,
        queue=queue,
        memory=int(memory) << 20,
        pixels=int(pixels * 1_000_000),
        decode_seconds=decode_seconds,
        connections=connection_limits.ConnectionLimits(int(connections)),
    )
    with open_listener(host, port) as listener:
        try:
            running.run_server(
                path,
                listener,
                host=host,
                limits=server_limits,
                access=access,
                unknown_share=unknown_share,
                coverage=coverage,
                trust=trust,
            )
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise DataError(taken_message(host, listener.getsockname()[1])) from None


def _as_list(values: Sequence[str]) -> list[str]:
    return [values] if isinstance(values, str) else list(values)


def check_range(name: str, value: float, lowest: float, highest: float) -> None:
    """Checks a number.

    Args:
        name: name of the argument, for errors.
        value: number to check.
        lowest: smallest value.
        highest: largest value.

    Raises:
        DataError: the value is no number, or is out of the range.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not lowest <= value <= highest:
        raise DataError(f"{name}: expected a number from {lowest:g} to {highest:g}, received {value!r}")
