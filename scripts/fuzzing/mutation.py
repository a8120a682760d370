"""What every kind of fuzzing case shares."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Generator = np.random.Generator
Case = tuple[Callable[[], object], type[Exception]]  # what is tried, and the error that it may give


def mutate(data: bytes, rng: Generator) -> bytes:
    """Flip bits, overwrite, cut, insert, repeat or remove a part, once or a few times."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        if not out:
            break
        at, length = int(rng.integers(len(out))), int(rng.integers(1, 64))
        kind = int(rng.integers(7))
        if kind == 0:
            out[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            out[at : at + length] = rng.bytes(min(length, len(out) - at))
        elif kind == 2:
            del out[at:]
        elif kind == 3:
            out[at:at] = rng.bytes(length)
        elif kind == 4:
            out[at:at] = out[at : at + length]
        elif kind == 5:
            del out[at : at + length]
        else:
            out[at] = int(rng.choice([0, 1, 127, 128, 255]))
    return bytes(out)
