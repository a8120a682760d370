"""Runs commands of the tests in forks of a process that has imported Paddle, because each import takes seconds.

``tests/forks.py`` starts it. For each message on its socket it forks, and the fork runs the command: with the
command's own arguments, current folder, environment, streams and random numbers, and to the end of the
interpreter. What differs from a fresh process: all forks share the seed of hashes and the layout of addresses.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import json
import os
import pkgutil
import runpy
import signal
import socket
import sys
import types
import warnings
from typing import Any

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def import_objects(names: list[str]) -> dict[str, str]:
    """Imports modules and ``module:object``s, and returns the environment variables that this has set.

    A package that is not installed is left out.
    """
    variables = dict(os.environ)
    sys.path[0] = ROOT
    for name in names:
        with contextlib.suppress(ImportError):
            pkgutil.resolve_name(name)
    gc.collect()
    gc.freeze()  # a fork that ends would go through all objects, and copy their pages
    return {name: value for name, value in os.environ.items() if variables.get(name) != value}


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
            faulthandler.register(signal.SIGUSR2)  # its file is the command's stream of errors
            return dict(json.loads(data))
        for descriptor in descriptors:
            os.close(descriptor)
        connection.sendall(f"{child}\n".encode())
        _, status = os.waitpid(child, 0)
        connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())


def seed_anew() -> None:
    """Gives the global generators other seeds than those of earlier forks. Python's own does this at a fork."""
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    if "paddle" in sys.modules:
        sys.modules["paddle"].seed(int.from_bytes(os.urandom(4), "little"))


def run(words: list[str], folder: str, environment: dict[str, str], set_variables: dict[str, str]) -> None:
    """Runs ``python WORDS`` in this process. ``set_variables`` are those that the imports have set."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment | set_variables)
    seed_anew()
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
    set_variables = import_objects(sys.argv[2:])
    message = serve(socket.socket(fileno=int(sys.argv[1])))
    run(**message, set_variables=set_variables)
