"""One process that loads parts of batches, as the training process sees it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess

from ppxcls.data.loader_messages import IGNORED_SIGNALS
from ppxcls.system.current_folder import isolated_command
from ppxcls.system.shared_memory import SharedMemory

_END_SECONDS = 5.0  # maximum time for the end of a process
_CODE = """
from ppxcls.data.loader_worker import run_worker
run_worker{descriptors!r}
"""


class WorkerProcess:
    """A process that runs ``loader_worker``.

    Args:
        dataset_memory: memory with the data set.
        table_memory: memory with the table of current samples.
        threads: places of the process's threads in this table.
    """

    def __init__(self, dataset_memory: SharedMemory, table_memory: SharedMemory, threads: range) -> None:
        self.threads = threads
        self.memories: set[int] = set()  # numbers of the shared memories that the process has
        self.connection, worker_connection = multiprocessing.Pipe()
        reading_end, self._life_line = os.pipe()
        descriptors = (
            worker_connection.fileno(),
            reading_end,
            dataset_memory.descriptor,
            table_memory.descriptor,
        )
        single_threaded = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        signals = {getattr(signal, name) for name in IGNORED_SIGNALS}
        previous_mask = signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # the process inherits the mask
        try:
            self.process = subprocess.Popen(  # noqa: S603  our own code
                isolated_command(_CODE.format(descriptors=descriptors)),
                stdin=subprocess.DEVNULL,
                pass_fds=descriptors,
                env={**os.environ, **single_threaded},
            )
        except BaseException:
            self.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)
            worker_connection.close()
            os.close(reading_end)

    def close(self) -> None:
        """Closes the connection and the life line, which ends the process."""
        if self._life_line >= 0:
            os.close(self._life_line)
            self._life_line = -1
            self.connection.close()

    def kill(self) -> None:
        """Ends the process at once, because it has nothing to save. ``wait`` waits for its end."""
        self.close()
        self.process.kill()

    def wait(self) -> None:
        """Waits for the end, but not for a process that waits for a disk that does not answer."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_END_SECONDS)

    def outcome(self) -> str:
        """Returns how the process ended, in words."""
        try:
            code = self.process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            return "closed its connection"
        if code >= 0:
            return f"ended with exit code {code}"
        reason = ", perhaps because the memory is full" if -code == signal.SIGKILL else ""
        return f"was ended by {signal.Signals(-code).name}{reason}"
