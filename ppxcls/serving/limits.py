"""The limits of a server, which its options change."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field

from ppxcls.data.errors import DataError
from ppxcls.data.picture_headers import PictureLimits
from ppxcls.serving.address import check_origins
from ppxcls.serving.bodies import BodyLimits
from ppxcls.serving.connections import ConnectionLimits
from ppxcls.serving.hosts import AllowedHosts, check_host_names
from ppxcls.serving.memory import client_key

_DECODED_BYTES_PER_PIXEL = 6  # RGB of 16 bits each


@dataclass(frozen=True)
class Limits:
    """Limits of one server.

    Attributes:
        body: largest size of an image file, and of all image files of a request together, in bytes.
        images: largest number of images in a request.
        batch: largest number of images in a batch.
        wait: longest time that a batch waits for more images, in seconds.
        queue: largest number of waiting images; more are answered with 503. One client may have three
            quarters of them.
        seconds: longest time until an answer, in seconds; after it the answer is 504.
        memory: largest size of all bodies and images that are not answered yet, in bytes. One client may
            take half of it.
        pixels: largest number of pixels of an image.
        decode_seconds: longest time to decode an image, in seconds.
        connections: limits of the connections.
    """

    body: int = 20 << 20
    images: int = 16
    batch: int = 16
    wait: float = 0.005
    queue: int = 128
    seconds: float = 30.0
    memory: int = 256 << 20
    pixels: int = 51_000_000  # telephones write 8192 x 6144
    decode_seconds: float = 10.0
    connections: ConnectionLimits = field(default_factory=ConnectionLimits)

    @property
    def of_body(self) -> BodyLimits:
        """Limits of one request. Its images must fit into the queue."""
        return BodyLimits(self.body, min(self.images, self.queue))

    @property
    def of_picture(self) -> PictureLimits:
        """Limits of one image."""
        return PictureLimits(
            self.pixels, _DECODED_BYTES_PER_PIXEL * self.pixels, "the server's option --pixels"
        )


@dataclass(frozen=True)
class Access:
    """Who may use a server.

    Attributes:
        cors: origins of the web pages that may use it; ``*`` for all.
        allowed_hosts: names under which it answers, besides those of its address; ``*`` for all.
        proxies: addresses of clients that stand for many others, and may use all of the limits.
    """

    cors: Sequence[str] = ()
    allowed_hosts: Sequence[str] = ()
    proxies: Sequence[str] = ()

    def check(self) -> None:
        """Checks the values.

        Raises:
            DataError: one of them is invalid.
        """
        check_origins(self.cors)
        check_host_names(self.allowed_hosts)
        for proxy in self.proxies:
            try:
                ipaddress.ip_address(proxy if isinstance(proxy, str) else "")
            except ValueError:
                raise DataError(
                    f"expected the address of a proxy such as 127.0.0.1, received {proxy!r}"
                ) from None

    def hosts_of(self, address: str, host: str) -> AllowedHosts:
        """Returns the names of a server.

        Args:
            address: address that it listens on.
            host: name that the user gave for it.
        """
        return AllowedHosts(address, host, self.allowed_hosts)

    @property
    def proxy_keys(self) -> frozenset[str]:
        """Keys of the proxies, as ``client_key`` returns them."""
        return frozenset(map(client_key, self.proxies))


DEFAULT_LIMITS, OPEN_ACCESS = Limits(), Access()
