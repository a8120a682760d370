"""Runs commands of the tests in forks of a process that has imported Paddle, because each import takes seconds.

``tests/forks.py`` starts it. For each message on its socket it forks, and the fork runs the command: with the
command's own arguments, current folder, environment and streams, and to the end of the interpreter.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import socket
import sys
import types
import warnings
from typing import Any

# What the commands import. A package that is not installed is left out.
PACKAGES = (
    "ppxcls.cli.verbs",
    "ppxcls.build.trainer",
    "cv2",
    "numba",
    "PIL.Image",
    "scipy.optimize",
    "scipy.stats",
    "jinja2",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "safetensors.numpy",
)


def import_packages() -> None:
    """Imports Paddle by way of this package, which sets it up, and then the others."""
    import ppxcls

    ppxcls.load_config  # noqa: B018
    for name in PACKAGES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a fork that ends would go through all objects, and copy their pages


def serve(connection: socket.socket) -> dict[str, Any]:
    """Answers messages until the socket is closed, and then exits. In a fork, it returns the message.

    An answer has two lines: the fork's number, and its exit code as ``subprocess`` has it.
    """
    while True:
        data, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 2)
        if not data:
            os._exit(0)
        with warnings.catch_warnings():  # newer Pythons warn because of the threads that multiply matrices
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            for descriptor, stream in zip(descriptors, (1, 2), strict=True):
                os.dup2(descriptor, stream)
                os.close(descriptor)
            connection.close()
            return dict(json.loads(data))
        for descriptor in descriptors:
            os.close(descriptor)
        connection.sendall(f"{child}\n".encode())
        _, status = os.waitpid(child, 0)
        connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())


def run(words: list[str], folder: str, environment: dict[str, str]) -> None:
    """Runs ``python WORDS`` in this process."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    if words[0] == "-m":
        sys.argv, sys.path[0] = words[1:], folder
        runpy._run_module_as_main(words[1])  # type: ignore[attr-defined]  # what ``python -m`` calls
        return
    sys.argv, sys.path[0] = words, os.path.dirname(os.path.abspath(words[0]))
    module = types.ModuleType("__main__")
    module.__file__ = words[0]
    sys.modules["__main__"] = module
    with open(words[0], encoding="utf-8") as file:
        code = compile(file.read(), words[0], "exec")
    exec(code, vars(module))


if __name__ == "__main__":
    import_packages()
    message = serve(socket.socket(fileno=int(sys.argv[1])))
    run(**message)
