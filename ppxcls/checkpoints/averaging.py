"""The mean of several states: each array is summed in float64, and keeps its number type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ppxcls.checkpoints.files import CheckpointError, State
from ppxcls.system.arrays import Array


@dataclass(frozen=True)
class StateSum:
    """A sum of states with the same keys.

    Attributes:
        sums: sums of the arrays of floating-point numbers, float64, by state key.
        newest: the state that was added last. Its other values stay as they are.
        count: number of states.
    """

    sums: Mapping[str, Array]
    newest: State
    count: int

    @classmethod
    def of(cls, state: State) -> StateSum:
        """Returns the sum of one state."""
        sums = {key: value.astype(np.float64) for key, value in state.items() if _is_float(value)}
        return cls(sums, state, 1)

    def plus(self, state: State, file: Path) -> StateSum:
        """Returns the sum of these states and one more.

        Args:
            state: state to add.
            file: file of the state, for messages.

        Raises:
            CheckpointError: the state has other keys, shapes or number types.
        """
        if _kinds(state) != _kinds(self.newest):
            raise CheckpointError(f"{file}: expected the keys, shapes and types of the other checkpoints")
        sums = {key: total + state[key] for key, total in self.sums.items()}
        return StateSum(sums, state, self.count + 1)

    def mean(self) -> State:
        """Returns the mean, with the number types of the states."""
        means = {key: (total / self.count).astype(self.newest[key].dtype) for key, total in self.sums.items()}
        return {**self.newest, **means}


def _is_float(value: object) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def _kinds(state: State) -> dict[str, tuple[tuple[int, ...], str]]:
    return {
        key: (value.shape, str(value.dtype)) for key, value in state.items() if isinstance(value, np.ndarray)
    }
