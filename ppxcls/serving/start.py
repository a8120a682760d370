"""Starts the server, and reports missing packages."""

from __future__ import annotations

from pathlib import Path

from ppxcls.data.errors import DataError

_INSTALL_HINT = "which is not installed: pip install 'ppxcls[serve]'"


def serve(
    path: str | Path, host: str = "127.0.0.1", *, port: int = 8000, batch: int = 16, queue: int = 128
) -> None:
    """Serves a model; see ``ppxcls.serving.app.run_server``.

    Raises:
        DataError: a package is not installed.
        ConfigError, CheckpointError, DataError: as in ``ppxcls.serving.app.run_server``.
    """
    try:
        from ppxcls.serving import app
    except ImportError as error:
        raise DataError(f"a server needs {error.name}, {_INSTALL_HINT}") from None
    app.run_server(path, host, port=port, batch=batch, queue=queue)
