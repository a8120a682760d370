"""Bounds the memory of all requests together, and of those of one client."""

from __future__ import annotations

import asyncio
import ipaddress
import mmap
from collections import Counter
from collections.abc import Callable, Collection
from types import TracebackType

from ppxcls.serving.batching import BusyError

_WAIT_SECONDS = 2.0  # time in which a slow client may make room for others
LONG_WAIT_SECONDS = 10.0  # the same, for bodies that have not been read yet
_RETRY_SECONDS = 0.05
_SMALL_BODY_BYTES = 256 << 10
_IPV6_PREFIX = 64  # bits of an address that one client can't choose


def client_key(address: str) -> str:
    """Returns what counts as one client: an address of IPv4, or a network of IPv6."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv4Address) or ip.is_loopback:
        return str(ip)
    mapped_address = ip.ipv4_mapped
    if mapped_address is not None:
        return str(mapped_address)
    return str(ipaddress.ip_network((ip, _IPV6_PREFIX), strict=False))


class BodyParts:
    """The parts of a body as they come.

    Those of a large body go to pages of their own, which the system gets back at once. Otherwise, many bodies
    that grow side by side would leave gaps all over the process's memory.

    Args:
        max_size: largest size of the body, in bytes.
    """

    def __init__(self, max_size: int) -> None:
        self._max_size = max_size
        self._parts: list[bytes] = []
        self._size = 0
        self._pages: mmap.mmap | None = None

    def append(self, part: bytes) -> None:
        """Adds a part. All parts together have at most the largest size."""
        if self._pages is None and self._size + len(part) > _SMALL_BODY_BYTES:
            self._pages = mmap.mmap(-1, self._max_size)  # takes only the memory that is written to
            self._pages.write(b"".join(self._parts))
            self._parts.clear()
        if self._pages is None:
            self._parts.append(part)
        else:
            self._pages.write(part)
        self._size += len(part)

    def join(self) -> bytes:
        """Returns the body."""
        return b"".join(self._parts) if self._pages is None else self._pages[: self._size]

    def close(self) -> None:
        """Gives the memory back."""
        self._parts.clear()
        if self._pages is not None:
            self._pages.close()


class MemoryBudget:
    """Bytes of the bodies and images of all requests that are not answered yet.

    Args:
        size: largest number of bytes. One client may take half of them.
        proxies: keys of clients that may take all of them.
        make_room: function that ends the slowest upload of a client, or of any client for None.
    """

    def __init__(
        self, size: int, proxies: Collection[str] = (), make_room: Callable[[str | None], None] | None = None
    ) -> None:
        self._size, self._proxies = size, frozenset(proxies)
        self._make_room = make_room
        self._client_sizes: Counter[str] = Counter()
        self.total = 0

    def has_room(self, client: str, count: int) -> bool:
        """True if a client may take more bytes now."""
        return self.total + count <= self._size and not self._is_over_share(client, count)

    def _is_over_share(self, client: str, count: int) -> bool:
        return client not in self._proxies and self._client_sizes[client] + count > self._size // 2

    def add(self, client: str, count: int) -> None:
        """Counts bytes of a client; a negative number gives them back."""
        self.total += count
        self._client_sizes[client] += count
        if not self._client_sizes[client]:
            del self._client_sizes[client]

    def make_room(self, client: str, count: int) -> None:
        """Ends the slowest upload of a client, or of any client if this one has not taken its share."""
        if self._make_room:
            self._make_room(client if self._is_over_share(client, count) else None)


class Reservation:
    """The bytes of one request; a context manager that gives them back.

    Args:
        budget: budget of the server.
        client: key of the client.
    """

    def __init__(self, budget: MemoryBudget, client: str) -> None:
        self._budget, self._client = budget, client
        self._size = 0

    async def resize(self, size: int, wait_s: float = _WAIT_SECONDS) -> None:
        """Reserves so many bytes in all. It waits a short time for room, and nothing is read then.

        Args:
            size: number of bytes.
            wait_s: longest time to wait, in seconds.

        Raises:
            BusyError: there is no room.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_s
        while size > self._size and not self._budget.has_room(self._client, size - self._size):
            self._budget.make_room(self._client, size - self._size)
            if loop.time() >= deadline:
                raise BusyError
            await asyncio.sleep(_RETRY_SECONDS)
        self._budget.add(self._client, size - self._size)
        self._size = size

    def __enter__(self) -> Reservation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._budget.add(self._client, -self._size)
        self._size = 0
