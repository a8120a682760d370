"""What ``fit`` writes for a training to start from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

import ppxcls
from ppxcls.build.classifier_rows import _rows_to_carry
from ppxcls.data.class_names import IMAGENET_NAMES_FILE, read_class_names
from ppxcls.fitting.result import write_start


def test_the_rows_of_a_thousand_classes_stay_in_their_order(
    small: Callable[..., Path], tmp_path: Path
) -> None:
    """Their names are ImageNet's in another order, as folders in the order of the alphabet have them."""
    names = sorted(read_class_names(IMAGENET_NAMES_FILE, None))
    (tmp_path / "class_names.txt").write_text("".join(f"{i} {name}\n" for i, name in enumerate(names)))
    (tmp_path / "list.txt").write_text("0.png 0\n")
    lists = {
        f"DataLoader.{mode}.dataset.cls_label_path": str(tmp_path / "list.txt") for mode in ("Train", "Eval")
    }
    config = ppxcls.load_config(small(**{"Arch.class_num": 1000, **lists}))
    file, bias = tmp_path / "start.pdparams", {"fc.bias": np.zeros(1000, np.float32)}
    assert _rows_to_carry(config, str(file), bias) is not None, "without names, they may be ImageNet's"
    write_start(file, bias, config)
    assert _rows_to_carry(config, str(file), bias) is None
