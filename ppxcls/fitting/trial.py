"""Builds the trainers of ``fit`` without training, so that their errors come before any result."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ppxcls.build.trainer import build_trainer
from ppxcls.config.sections import Config
from ppxcls.system.logs import logger, set_up_logging


def build_and_close(config: Config) -> None:
    """Builds the trainer of a config, and closes it.

    Raises:
        ConfigError, DataError, CheckpointError: as in ``build_trainer``.
    """
    with _silent():
        trainer = build_trainer(config)
        trainer.log.close()
        trainer.close_loaders()
        trainer.run.folder.release()


@contextmanager
def _silent() -> Iterator[None]:
    """Keeps the log silent in a block. The same lines come again when the training starts."""
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = False
        set_up_logging()  # closes the log file of the block
