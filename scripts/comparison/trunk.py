"""Converts a published trunk with ppxcls, for networks of torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def trunk_network(weights: Path, name: str = "Xception") -> Any:
    """Builds the network without a classifier, with the trunk of a file that ppxcls reads."""
    import ppxcls
    from ppxcls.models.weights import load_weights

    whole = ppxcls.build_model("Xception", class_num=2)
    load_weights(whole, weights, keep_trunk=True)
    trunk = ppxcls.build_model(name, class_num=0)
    trunk.set_state_dict({key: value for key, value in whole.state_dict().items() if key[:3] != "fc."})
    trunk.eval()
    return trunk


def write_state(weights: Path, file: Path) -> None:
    """Writes the trunk's arrays by ppxcls's state keys.

    Args:
        weights: weights file of Keras's Xception, in any layout that ppxcls reads.
        file: ``.npz`` file to write.
    """
    state = trunk_network(weights).state_dict()
    np.savez(file, **{key: np.asarray(value) for key, value in state.items()})
