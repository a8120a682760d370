"""The door of the server, which says what is not installed."""

from __future__ import annotations

from pathlib import Path

from ppxcls.data.errors import DataError

_INSTALL = "which is not installed: pip install 'ppxcls[serve]'"


def serve(
    path: str | Path, host: str = "127.0.0.1", port: int = 8000, batch: int = 16, queue: int = 128
) -> None:
    """As ``ppxcls.serving.app.serve``.

    Raises:
        DataError: also if a package is not installed.
    """
    try:
        from ppxcls.serving import app
    except ImportError as error:
        raise DataError(f"a server needs {error.name}, {_INSTALL}") from None
    app.serve(path, host, port, batch, queue)
