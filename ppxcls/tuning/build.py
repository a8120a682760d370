"""The searches that ``--find-lr`` and ``--find-batch`` start, from a config like a training's."""

from __future__ import annotations

import contextlib
import importlib.util
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ppxcls.build.trainer import build_trainer
from ppxcls.config.load import load_config
from ppxcls.system import distributed
from ppxcls.system.logs import logger
from ppxcls.system.paths import printable
from ppxcls.system.whole_files import write_bytes, write_text
from ppxcls.train.trainer import Trainer
from ppxcls.tuning.batch_size import BatchSizes, try_batch_sizes
from ppxcls.tuning.rate_range import RateRange, draw, try_rates

FOLDER = "find"  # in Global.output_dir: a search leaves a run's own folder as it is
RATES, PICTURE, BATCHES = "find_lr.csv", "find_lr.png", "find_batch.csv"


def find_lr(config: Any, overrides: Sequence[str] = (), steps: int = 100) -> RateRange:
    """A learning-rate range test (arXiv:1506.01186): train for some steps while the rate rises, and look where
    the loss falls.

    It trains from where the config's training would begin, and forgets it. ``find_lr.csv`` and, with
    matplotlib, ``find_lr.png`` are written to ``find/<network>`` in the output folder.

    Args:
        config: YAML file, folder of a run, or the YAML's content as a dict.
        overrides: ``A.b=value``, as for training.
        steps: most optimizer steps.

    Raises:
        ConfigError, DataError, CheckpointError, RunFolderError, OSError: as ``build_trainer``.
        TrainingError: the loss was finite at too few rates.
    """
    with _searching(config, overrides) as trainer:
        found = try_rates(trainer, steps)
    if distributed.rank() == 0:
        rows = [f"{rate:.6g},{loss:.6g},{smooth:.6g}\n" for rate, loss, smooth in found.rows()]
        write_text(trainer.output_dir / RATES, "learning_rate,loss,smoothed\n" + "".join(rows))
        shown = PICTURE if importlib.util.find_spec("matplotlib") else RATES
        if shown == PICTURE:
            write_bytes(trainer.output_dir / PICTURE, draw(found))
        else:
            logger.warning(f"{PICTURE} is not drawn: it needs matplotlib, pip install 'ppxcls[report]'")
        logger.info(printable(f"{found} ({trainer.output_dir}/{shown})"))
    return found


def find_batch(config: Any, overrides: Sequence[str] = ()) -> BatchSizes:
    """Train on larger and larger batches of this process, until the device's memory is used up.

    ``find_batch.csv`` is written to ``find/<network>`` in the output folder.

    Args:
        config: YAML file, folder of a run, or the YAML's content as a dict.
        overrides: ``A.b=value``, as for training.

    Raises:
        ConfigError, DataError, CheckpointError, RunFolderError, OSError: as ``build_trainer``.
        TrainingError: not even a batch of 2 fits, or there are several processes.
    """
    with _searching(config, overrides) as trainer:
        found = try_batch_sizes(trainer)
    rows = [f"{size},{rate:.4g},{used}\n" for size, rate, used in found.tried]
    write_text(trainer.output_dir / BATCHES, "batch_size,images_per_second,bytes\n" + "".join(rows))
    for line in str(found).splitlines():
        logger.info(line)
    return found


@contextlib.contextmanager
def _searching(config: Any, overrides: Sequence[str]) -> Iterator[Trainer]:
    """A trainer whose folder is the search's own, and is free again after the block."""
    own = load_config(config, overrides)
    changes = [
        f"Global.output_dir={json.dumps(str(Path(own.Global.output_dir) / FOLDER))}",
        "Global.checkpoints=null",
        "Global.eval_during_train=false",
        "Global.use_visualdl=false",
        "Global.trackers=null",
    ]
    trainer = build_trainer(load_config(config, [*overrides, *changes]))
    try:
        yield trainer
    finally:
        trainer.run.folder.release()
