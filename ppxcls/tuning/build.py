"""Runs the searches of ``--find-lr`` and ``--find-batch``, with the config of a training."""

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
from ppxcls.system.appended_files import refuse_link_out
from ppxcls.system.atomic_files import write_bytes, write_text
from ppxcls.system.logs import logger
from ppxcls.system.paths import printable
from ppxcls.train.trainer import Trainer
from ppxcls.tuning.batch_size import BatchSizes, try_batch_sizes
from ppxcls.tuning.rate_range import RateRange, draw, try_rates

SEARCH_FOLDER = "find"  # in Global.output_dir, so that a search does not change a run's own folder
RATES_FILE, PICTURE_FILE, BATCHES_FILE = "find_lr.csv", "find_lr.png", "find_batch.csv"


def find_lr(
    config: Any, overrides: Sequence[str] = (), steps: int = 100, *, trust: bool = False
) -> RateRange:
    """Runs a learning-rate range test (arXiv:1506.01186).

    It trains for some steps while the rate rises, and finds the rate at which the loss falls. It starts from
    the same state as the config's training, and discards the trained weights. ``find_lr.csv`` and, with
    matplotlib, ``find_lr.png`` are written to ``find/<network>`` in the output folder.

    Args:
        config: YAML file, run folder, or the YAML's content as a dict.
        overrides: config overrides ``A.b=value``, as for training.
        steps: largest number of optimizer steps.
        trust: True to run the plugins that the file names; see ``load_config``.

    Raises:
        ConfigError, DataError, CheckpointError, RunFolderError, OSError: as in ``build_trainer``.
        TrainingError: the loss was finite at too few rates.
    """
    with _search_trainer(config, overrides, trust=trust) as trainer:
        rate_range = try_rates(trainer, steps)
    if distributed.rank() == 0:
        rows = [f"{rate:.6g},{loss:.6g},{smooth:.6g}\n" for rate, loss, smooth in rate_range.rows()]
        write_text(trainer.output_dir / RATES_FILE, "learning_rate,loss,smoothed\n" + "".join(rows))
        output_file = PICTURE_FILE if importlib.util.find_spec("matplotlib") else RATES_FILE
        if output_file == PICTURE_FILE:
            write_bytes(trainer.output_dir / PICTURE_FILE, draw(rate_range))
        else:
            logger.warning(f"{PICTURE_FILE} is not drawn: it needs matplotlib, pip install 'ppxcls[report]'")
        logger.info(printable(f"{rate_range} ({trainer.output_dir}/{output_file})"))
    return rate_range


def find_batch(config: Any, overrides: Sequence[str] = (), *, trust: bool = False) -> BatchSizes:
    """Trains this process on larger and larger batches, until the device's memory or the data is full.

    ``find_batch.csv`` is written to ``find/<network>`` in the output folder.

    Args:
        config: YAML file, run folder, or the YAML's content as a dict.
        overrides: config overrides ``A.b=value``, as for training.
        trust: True to run the plugins that the file names; see ``load_config``.

    Raises:
        ConfigError, DataError, CheckpointError, RunFolderError, OSError: as in ``build_trainer``.
        TrainingError: not even the smallest batch fits, or there are several processes.
    """
    with _search_trainer(config, overrides, trust=trust) as trainer:
        batch_sizes = try_batch_sizes(
            trainer, load_config(config, overrides, trust=trust).Global.samples_per_step
        )
    rows = [f"{size},{rate:.4g},{peak_bytes}\n" for size, rate, peak_bytes in batch_sizes.measurements]
    write_text(trainer.output_dir / BATCHES_FILE, "batch_size,images_per_second,bytes\n" + "".join(rows))
    for line in str(batch_sizes).splitlines():
        logger.info(line)
    return batch_sizes


@contextlib.contextmanager
def _search_trainer(config: Any, overrides: Sequence[str], *, trust: bool) -> Iterator[Trainer]:
    """Yields a trainer with the search's own folder, and releases the folder after the block."""
    base_config = load_config(config, overrides, trust=trust)
    changes = [
        f"Global.output_dir={json.dumps(str(Path(base_config.Global.output_dir) / SEARCH_FOLDER))}",
        "Global.checkpoints=null",
        "Global.eval_during_train=false",
        "Global.early_stop=null",
        "Global.use_visualdl=false",
        "Global.trackers=null",
    ]
    refuse_link_out(Path(base_config.Global.output_dir) / SEARCH_FOLDER)
    search_config = load_config(config, [*overrides, *changes], trust=trust)
    refuse_link_out(search_config.run_folder)
    trainer = build_trainer(search_config)
    try:
        yield trainer
    finally:
        trainer.run.folder.release()
