"""Starts the server, and reports missing packages and addresses that can't be used."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

from ppxcls.data.errors import DataError
from ppxcls.serving.address import check_origins, open_listener, taken_message

_INSTALL_HINT = "which is not installed: pip install 'ppxcls[serve]'"


def serve(
    path: str | Path,
    host: str = "127.0.0.1",
    *,
    port: int = 8000,
    batch: int = 16,
    queue: int = 128,
    cors: Sequence[str] = (),
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
        trust: True to run exported files that another exporter has written; see ``ppxcls.load``.

    Raises:
        DataError: a package is not installed, the address can't be used, or a number is below 1.
        ConfigError, CheckpointError, DataError: the model can't be used.
    """
    try:
        from ppxcls.serving import app
    except ImportError as error:
        raise DataError(f"a server needs {error.name}, {_INSTALL_HINT}") from None
    if min(batch, queue) < 1:
        raise DataError(f"expected a batch and a queue of at least 1, received {batch} and {queue}")
    origins = [cors] if isinstance(cors, str) else list(cors)
    check_origins(origins)
    with open_listener(host, port) as listener:
        try:
            app.run_server(path, listener, batch=batch, queue=queue, cors=origins, trust=trust)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise DataError(taken_message(host, listener.getsockname()[1])) from None
