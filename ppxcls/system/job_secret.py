"""The secret by which the processes of a job know one another."""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ppxcls.system.atomic_files import read_regular, reason_of
from ppxcls.system.errors import UserError
from ppxcls.system.private_files import create_private, read_private, state_folder

SECRET_VARIABLE = "PPXCLS_JOB_SECRET_FILE"  # noqa: S105  environment variable with a file of all nodes
_ENDPOINTS_VARIABLE = "PADDLE_TRAINER_ENDPOINTS"
_MAX_SECRET_BYTES = 4096
_MIN_SECRET_BYTES = 16
_KEY_NAME = "job_key"
_KEY_BYTES = 32
_KEY_SECONDS = 2.0  # longest time in which another process writes the key


class JobError(UserError):
    """The processes of a job can't reach one another, or differ in a value that must be equal."""


def job_secret(*, is_one_host: bool) -> bytes | None:
    """Returns what only the processes of the job know; None if they share nothing.

    It comes from the file of ``PPXCLS_JOB_SECRET_FILE``, or, for a job on one host, from a key that only this
    user can read.

    Args:
        is_one_host: True if all processes are on this host.

    Raises:
        JobError: the file can't be used.
    """
    file = os.environ.get(SECRET_VARIABLE)
    if not file:
        return _key_of_user() if is_one_host else None
    try:
        text = read_regular(file, _MAX_SECRET_BYTES).strip()
    except (OSError, ValueError) as error:
        raise JobError(f"{SECRET_VARIABLE}: {file}: {reason_of(error)}") from None
    if len(text) < _MIN_SECRET_BYTES:
        raise JobError(
            f"{SECRET_VARIABLE}: {file}: expected at least {_MIN_SECRET_BYTES} bytes, received {len(text)}"
        )
    return hashlib.sha256(text).digest()


def _key_of_user() -> bytes | None:
    """Returns a random key that is in a file of this user; None if there is no folder for it."""
    for folder in _private_folders():
        try:
            if read_private(folder, _KEY_NAME) is None:
                create_private(folder, _KEY_NAME, os.urandom(_KEY_BYTES))
        except OSError:
            continue
        deadline = time.monotonic() + _KEY_SECONDS
        while time.monotonic() < deadline:
            key = read_private(folder, _KEY_NAME)
            if key is not None and len(key) == _KEY_BYTES:
                return key
            time.sleep(0.05)
    return None


def _private_folders() -> Iterator[Path]:
    if (folder := state_folder()) is not None:
        yield folder
    if os.path.isabs(runtime_folder := os.environ.get("XDG_RUNTIME_DIR", "")):
        yield Path(runtime_folder) / "ppxcls"
    if hasattr(os, "getuid"):
        with contextlib.suppress(FileNotFoundError):  # no folder can be written to
            yield Path(tempfile.gettempdir()) / f"ppxcls-{os.getuid()}"


def is_loopback(host: str) -> bool:
    """True if a name or address leads to this host only, and is not reachable from others."""
    addresses = addresses_of(host)
    return bool(addresses) and all(ipaddress.ip_address(address).is_loopback for address in addresses)


def is_on_one_host(host: str, world_size: int) -> bool:
    """True if all processes of the job are on this host, by what the launcher says.

    Args:
        host: host of the first process.
        world_size: number of processes.
    """
    local_size = os.environ.get("PADDLE_LOCAL_SIZE", "")
    if local_size.isdecimal():
        return int(local_size) == world_size
    hosts = endpoint_hosts()
    return is_loopback(host) or (len(hosts) >= world_size and len(set(hosts)) == 1)


def endpoint_hosts() -> list[str]:
    """Returns the host of each process, by what the launcher says; empty if it says nothing."""
    endpoints = os.environ.get(_ENDPOINTS_VARIABLE, "").split(",")
    return [endpoint.strip().rpartition(":")[0].strip("[]") for endpoint in endpoints if ":" in endpoint]


def addresses_of(host: str) -> set[str]:
    """Returns the IP addresses of a name; empty if it has none."""
    try:
        entries = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return set()
    return {plain_address(str(entry[4][0])) for entry in entries}


def plain_address(address: str) -> str:
    """Returns an IP address without its scope, and an IPv4 address that is written as IPv6 as IPv4."""
    ip_address = ipaddress.ip_address(address.partition("%")[0])
    return str(getattr(ip_address, "ipv4_mapped", None) or ip_address)
