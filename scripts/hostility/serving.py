"""Hostile clients of ``ppxcls serve``: requests, bodies, pictures, floods of connections, and signals."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

from hostility.cases import Case, Outcome
from hostility.servers import bodies, crowds, floods, heads, lives, parsing
from hostility.servers.lies import LYING_PICTURES
from hostility.servers.pictures import ODD_PICTURES, damaged_pictures, huge_pictures
from hostility.servers.process import MemoryWatch, Server, the_server
from hostility.servers.wire import answer_problem, each_form, exchange, file_part, form

PROMISE = (
    "A hostile request gets a short error, takes bounded time and memory, and others are answered meanwhile"
)
MAX_GROWTH_MIB = 700  # of the server and its decoders together, in one case
_MAX_SECONDS = 25.0
Attack: TypeAlias = Callable[[Server], "str | None"]


def cases() -> Iterator[Case]:
    """Returns the cases. The quick ones need no server."""
    for name, run in parsing.quick_cases():
        yield Case(name, functools.partial(_quick, run), is_quick=True)
    for name, data, statuses, must_close in heads.requests():
        yield _request_case(name, data, statuses, must_close=must_close)
    for name, make_data, statuses in bodies.requests():
        yield _case(name, functools.partial(_send_made, make_data, statuses))
    yield from _picture_cases()
    for name, attack in floods.ATTACKS.items():
        yield _case(name, attack)
    for name, attack in crowds.ATTACKS.items():
        yield _case(name, attack)
    for name, attack in lives.ATTACKS.items():
        yield _case(name, attack)
    for name, life in lives.LIVES.items():
        yield Case(name, functools.partial(_own_server, life))


def _picture_cases() -> Iterator[Case]:
    """Returns each hostile picture as a body, and some in the other forms."""
    for sides in ((60_000, 60_000), (7_200, 7_200), (0, 50), (2**31 - 1, 3)):
        for name, picture in huge_pictures(*sides):
            if sides == (60_000, 60_000):
                for way, request in each_form(picture):
                    yield _request_case(f"{name} of {sides[0]} x {sides[1]}, {way}", request, (422,))
            else:
                request = next(each_form(picture))[1]
                yield _request_case(f"{name} of {sides[0]} x {sides[1]}", request, (422,))
    for name, picture in damaged_pictures():
        # Decoders fill in what is missing in some formats.
        yield _request_case(f"a {name}", next(each_form(picture))[1], (200, 422))
    for name, make_picture in (ODD_PICTURES | LYING_PICTURES).items():
        yield _case(name, functools.partial(_send_picture, make_picture))
    for name, picture in list(huge_pictures(7_000, 7_000))[:3]:
        parts = form(*(file_part(picture) for _ in range(16)))
        yield _request_case(f"16 times a {name} of 49 million pixels", parts, (200, 422, 503))


def _send_picture(make_picture: Callable[[], bytes], server: Server) -> str | None:
    request = next(each_form(make_picture()))[1]
    return answer_problem(exchange(server, request), (200, 413, 422, 503))


def _send_made(make_data: Callable[[], bytes], statuses: Sequence[int], server: Server) -> str | None:
    return answer_problem(exchange(server, make_data()), statuses)


def _request_case(name: str, data: bytes, statuses: Sequence[int], *, must_close: bool = False) -> Case:
    def send(server: Server) -> str | None:
        return answer_problem(exchange(server, data), statuses, must_close=must_close)

    return _case(name, send)


def _case(name: str, attack: Attack) -> Case:
    return Case(name, functools.partial(_attacked, attack))


def _attacked(attack: Attack, _: Path) -> tuple[Outcome, str | None]:
    """Attacks the server, and measures it. Afterwards it must answer an honest client and have no files."""
    server = the_server()
    with MemoryWatch(server) as watch:
        start = time.monotonic()
        problem = attack(server)
        seconds = time.monotonic() - start
        problem = problem or server.honest_problem() or server.leftover_problem()
    growth = watch.peak_mib - watch.start_mib
    if problem is None and growth > MAX_GROWTH_MIB:
        problem = f"the memory grew by {growth:.0f} MiB"
    if problem is None and seconds > (floods.SECONDS | crowds.SECONDS).get(attack, _MAX_SECONDS):
        problem = f"it took {seconds:.0f} s"
    if problem is None and any("Traceback" in line for line in server.lines):
        problem = "a traceback in the server's log"
        server.lines.clear()
    return Outcome(0, "", problem or "", seconds, watch.peak_mib), problem


def _own_server(life: lives.Life, _: Path) -> tuple[Outcome, str | None]:
    """Starts a server for one case, because the case ends it."""
    server = Server(*life.words)
    try:
        with MemoryWatch(server) as watch:
            start = time.monotonic()
            problem = life.run(server)
            seconds = time.monotonic() - start
    finally:
        with contextlib.suppress(OSError):
            server.remove()
    return Outcome(0, "", problem or "", seconds, watch.peak_mib), problem


def _quick(run: Callable[[], str | None], _: Path) -> tuple[Outcome, str | None]:
    start = time.monotonic()
    problem = run()
    return Outcome(0, "", problem or "", time.monotonic() - start), problem
