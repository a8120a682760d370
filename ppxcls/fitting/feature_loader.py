"""The photographs whose features ``fit`` computes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ppxcls.build.choices import network_classes
from ppxcls.build.data import build_loader
from ppxcls.config.sections import Config
from ppxcls.data.loader import Loader
from ppxcls.fitting.photographs import TRAIN_LIST, VAL_LIST
from ppxcls.fitting.yaml_files import FEATURES_LIST
from ppxcls.system.atomic_files import write_bytes
from ppxcls.system.json_text import json_text


def feature_loader(config_with: Callable[..., Config], lists: Path, batch_size: int) -> Loader:
    """Returns a loader of the photographs that train and of those that choose, in this order.

    They are prepared as for an evaluation.

    Args:
        config_with: function that returns the config of ``train.yaml`` with overrides ``A.b=value``.
        lists: folder of the lists, which receives another list.
        batch_size: photographs in a batch.

    Raises:
        ConfigError, DataError, OSError: the photographs can't be used.
    """
    file = lists / FEATURES_LIST  # beside the names of the classes
    write_bytes(file, b"".join((lists / name).read_bytes() for name in (TRAIN_LIST, VAL_LIST)))
    config = config_with(
        f"DataLoader.Eval.dataset.cls_label_path={json_text(os.path.abspath(file))}",
        f"DataLoader.Eval.sampler.batch_size={batch_size}",
    )
    return build_loader(config, "Eval", network_classes(config, "train", None))
