"""Types and mutations shared by all kinds of fuzzing cases."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Generator = np.random.Generator
Case = tuple[Callable[[], object], type[Exception]]  # an attempt, and the error that it may raise


def mutate(data: bytes, rng: Generator) -> bytes:
    """Flips bits, or overwrites, cuts, inserts, repeats or removes a part, one to four times."""
    output = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        if not output:
            break
        position, length = int(rng.integers(len(output))), int(rng.integers(1, 64))
        kind = int(rng.integers(7))
        if kind == 0:
            output[position] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            output[position : position + length] = rng.bytes(min(length, len(output) - position))
        elif kind == 2:
            del output[position:]
        elif kind == 3:
            output[position:position] = rng.bytes(length)
        elif kind == 4:
            output[position:position] = output[position : position + length]
        elif kind == 5:
            del output[position : position + length]
        else:
            output[position] = int(rng.choice([0, 1, 127, 128, 255]))
    return bytes(output)
