"""What is refused without a server: heads by the parser, and sizes of pictures by their headers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import h11
from hostility.servers import heads
from hostility.servers.pictures import huge_pictures

from ppxcls.data.picture_headers import PictureLimits, picture_size
from ppxcls.serving.requests import RequestParser

_UNKNOWN_FORMATS = ("OpenEXR", "QOI", "PSD", "ICO")  # no decoder here reads them


def quick_cases() -> Iterator[tuple[str, Callable[[], str | None]]]:
    """Yields cases that take milliseconds."""
    for name, data, statuses, must_close in heads.requests():
        if must_close:
            yield f"{name}, parsed", functools.partial(_parse, data, tuple(statuses))
    for name, picture in huge_pictures(60_000, 60_000):
        if name not in _UNKNOWN_FORMATS:
            yield f"the size in the header of {name}", functools.partial(_measure, picture)


def _parse(data: bytes, statuses: tuple[int, ...]) -> str | None:
    parser = RequestParser()
    for start in range(0, len(data), 1 << 16):
        parser.receive_data(data[start : start + (1 << 16)])
        try:
            while parser.next_event() not in (h11.NEED_DATA, h11.PAUSED):
                pass
        except h11.RemoteProtocolError:
            assert parser.problem
            is_right = parser.problem.status in statuses and len(parser.problem.message) <= 200
            return None if is_right else f"{parser.problem}"
    return "accepted"


def _measure(picture: bytes) -> str | None:
    size = picture_size(picture)
    if size is None:
        return "no size"
    try:
        PictureLimits(50_000_000, 300_000_000, "an option").check(size)
    except ValueError as error:
        return None if len(str(error)) < 200 else f"a message of {len(str(error))} characters"
    return f"accepted as {size}"
