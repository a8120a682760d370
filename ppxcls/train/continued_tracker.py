"""The common part of trackers whose programs keep every point, for runs that resume without double points."""

from __future__ import annotations

import contextlib
import re
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ppxcls.checkpoints.compatibility import flatten
from ppxcls.checkpoints.progress import Progress
from ppxcls.config.load import RUN_CONFIG
from ppxcls.config.yaml_values import read_yaml
from ppxcls.system.appended_files import make_own_folder
from ppxcls.system.atomic_files import read_inside, write_text
from ppxcls.system.json_text import is_count, json_text, read_json
from ppxcls.system.logs import logger
from ppxcls.train.trackers import NAMES_WITHOUT_CURVE, Tracker

RUN_FILE = "ppxcls_run.json"  # id of the run there, and the last lines that it has
_MAX_BYTES = 1 << 20
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class ContinuedTracker(Tracker):
    """Sends each line of a run once. A subclass defines how it opens a run, sends points, and closes.

    Steps that a resumed run computes again are not sent again. The position of the last line is written
    before the line is sent, so a killed process can lose one point, and none is there twice. If the program
    fails, a warning is logged and the run continues without it.

    Args:
        folder: folder of the run.
        name: name of the program, for messages.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._run_folder = folder
        self._name = name
        self._id = ""
        self._last_lines: dict[str, list[int]] = {}
        self._is_open = False

    @property
    def home(self) -> Path:
        """The tracker's folder in the folder of the run."""
        return self._run_folder / self.files[0]

    @property
    def run_name(self) -> str:
        """The name of the run in the program: its folder, because its last part is the network's name."""
        return str(self._run_folder)

    @abstractmethod
    def open_run(self, run_id: str | None, settings: Mapping[str, Any]) -> str:
        """Opens a run in the program, and returns its id there, which is another one for a new run.

        Args:
            run_id: id of the run to continue; None for a new run.
            settings: keys of the config with their values.
        """

    @abstractmethod
    def send(self, values: Mapping[str, float], step: int) -> None:
        """Sends the points of one line.

        Args:
            values: values of the curves by name, such as ``train/loss``.
            step: number of optimizer steps.
        """

    @abstractmethod
    def close_run(self) -> None:
        """Closes the run in the program."""

    def start(self, progress: Progress) -> None:
        """Opens the run, or the one that it continues.

        Raises:
            OSError: the file of the tracker can't be written.
        """
        make_own_folder(self.home)
        run_id = self._read() if progress.step else None
        try:
            self._id = self.open_run(run_id, self._settings())
            self._is_open = True
        except Exception as error:  # a program of others may raise any error
            self._give_up(error)
            return
        if self._id != run_id:
            self._last_lines = {}
        self._write()

    def log(self, kind: str, place: dict[str, int], figures: dict[str, Any]) -> None:
        """Sends the line, unless an earlier start of the run has sent it."""
        position = [place["epoch"], place.get("iter", 0)]
        if not self._is_open or position <= self._last_lines.get(kind, [0, -1]):
            return
        names = sorted(figures.keys() - NAMES_WITHOUT_CURVE)
        self._last_lines[kind] = position
        try:
            self._write()
            self.send({f"{kind}/{name}": float(figures[name]) for name in names}, place["step"])
        except Exception as error:  # as above
            self._give_up(error)

    def close(self) -> None:
        """Closes the run there."""
        if self._is_open:
            self._is_open = False
            try:
                self.close_run()
            except Exception as error:  # as above
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._is_open = False
        reason = " ".join(str(error).split())[:300]
        logger.warning(f"{self._name} fails, the run continues without it: {type(error).__name__}: {reason}")

    def _settings(self) -> dict[str, Any]:
        """Returns the keys of the run's config; none if there is no config, as in a program of the user."""
        with contextlib.suppress(OSError, ValueError):
            data = read_inside(self._run_folder / RUN_CONFIG, [self._run_folder], _MAX_BYTES)
            return flatten(read_yaml(data.decode(), RUN_CONFIG))
        return {}

    def _write(self) -> None:
        write_text(self.home / RUN_FILE, json_text({"id": self._id, "last_lines": self._last_lines}))

    def _read(self) -> str | None:
        """Reads the last lines of the run to continue, and returns its id; None if there is no such run."""
        try:
            data = read_inside(self.home / RUN_FILE, [self._run_folder], _MAX_BYTES)
            content = read_json(data)
            run_id, last_lines = content["id"], content["last_lines"]
            is_valid = isinstance(run_id, str) and _RUN_ID.fullmatch(run_id) is not None
            for kind, position in last_lines.items():
                is_valid &= kind in ("train", "eval") and len(position) == 2 and all(map(is_count, position))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            is_valid = False
        if not is_valid:
            logger.warning(f"{self.home / RUN_FILE} is damaged: {self._name} gets a new run")
            return None
        self._last_lines = last_lines
        return str(run_id)
