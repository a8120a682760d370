"""A tracker that writes curves for TensorBoard."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

from ppxcls.checkpoints.progress import Progress
from ppxcls.system.appended_files import make_own_folder
from ppxcls.system.atomic_files import new_file
from ppxcls.system.logs import logger
from ppxcls.train.trackers import NAMES_WITHOUT_CURVE, TRACKERS, Tracker


@TRACKERS.register
class TensorBoard(Tracker):
    """Writes curves for TensorBoard to ``tensorboard/`` in the run's folder.

    ``tensorboard --logdir output`` displays them. A run that resumes from a checkpoint starts a new file,
    which makes TensorBoard drop the points after the checkpoint. If the curves can't be written, a warning is
    logged and the run continues without them.

    Args:
        folder: folder of the run.

    Raises:
        ValueError: TensorBoard is not installed.
    """

    files = ("tensorboard",)

    def __init__(self, folder: Path) -> None:
        try:
            from tensorboard.compat.proto import event_pb2
            from tensorboard.compat.proto.summary_pb2 import Summary
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError:
            raise ValueError("TensorBoard is not installed: pip install 'ppxcls[tensorboard]'") from None
        self._folder = folder / self.files[0]
        self._events = event_pb2
        self._summary = Summary
        self._make_writer = RecordWriter
        self._writer: Any = None

    def start(self, progress: Progress) -> None:
        """Opens a new file. If the run resumes, it also marks the step after which old points are dropped.

        Raises:
            OSError: the file can't be written.
        """
        make_own_folder(self._folder)
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._writer = self._make_writer(new_file(self._folder / name))  # until the run ends
        self._write(file_version="brain.Event:2")
        if progress.step:
            session_start = self._events.SessionLog(status=self._events.SessionLog.START)
            self._write(step=progress.step + 1, session_log=session_start)

    def log(self, kind: str, place: dict[str, int], figures: dict[str, Any]) -> None:
        """Adds a point to each curve."""
        names = sorted(figures.keys() - NAMES_WITHOUT_CURVE)
        values = [self._summary.Value(tag=f"{kind}/{name}", simple_value=figures[name]) for name in names]
        self._write(step=place["step"], summary=self._summary(value=values))

    def _write(self, **event: Any) -> None:
        if self._writer is None:
            return
        try:
            self._writer.write(self._events.Event(wall_time=time.time(), **event).SerializeToString())
            self._writer.flush()
        except OSError as error:
            logger.warning(
                f"TensorBoard's curves can't be written, the run continues without them: {error.strerror}"
            )
            self._writer = None

    def close(self) -> None:
        """Closes the file."""
        if self._writer is not None:
            self._writer.close()
