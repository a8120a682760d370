"""The folder of a run. One run at a time writes there; its checkpoints are written in the background."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import shutil
import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

from ppxcls.checkpoints.files import (
    EXTENSIONS,
    OPTIMIZER,
    CheckpointError,
    MissingPackageError,
    check_whole,
    has_any_part,
    is_complete,
    read_manifest,
    recover,
    remove_checkpoint,
    with_extension,
    write_checkpoint,
)
from ppxcls.checkpoints.progress import Snapshot, UnknownProgressError, read_snapshot
from ppxcls.system.logs import logger

try:
    import fcntl
except ImportError:  # Windows has no such locks, so two runs in one folder are not noticed there
    fcntl = None  # type: ignore[assignment]


_LOCKS: dict[Path, BinaryIO] = {}  # locks of this process; they stay open as long as its runs
_DESCRIPTIONS = (
    "config.yaml",
    "class_names.txt",
)  # of a run; without anything else they are not worth keeping
_EXTENSIONS = "|".join(map(re.escape, (".json", ".pdstates", ".pdstate", *EXTENSIONS)))
_CHECKPOINT = re.compile(rf"(latest|best_model|(?:step|epoch)_\d+)(?:{_EXTENSIONS})(\.new)?")
_FULL = (errno.ENOSPC, errno.EDQUOT)


class RunFolderError(Exception):
    """Another run uses the folder."""


class RunFolder:
    """The folder that a run writes to.

    Args:
        path: ``<output_dir>/<Arch.name>``.
        keep_last: number of whole ``step_N`` checkpoints that are kept.
        safe: write weights as ``.safetensors``.
        best_with_optimizer: write the optimizer's state with ``best_model`` too.
    """

    def __init__(
        self, path: Path, keep_last: int = 2, safe: bool = False, best_with_optimizer: bool = False
    ) -> None:
        self.path = path
        self.keep_last, self.safe = keep_last, safe
        self._without = {} if best_with_optimizer else {path / "best_model": (OPTIMIZER,)}
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="ppxcls-checkpoint")
        self._pending: Future[None] | None = None
        self._whole: set[tuple[str, int]] = set()  # name and step of checkpoints that are known to be whole

    def lock(self) -> None:
        """Create the folder and lock it for this run, until ``release`` or the end of the process.

        Raises:
            RunFolderError: another run has it, or a link in it leads out of it.
            OSError: it can't be written.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self._refuse_links()
        if self._is_mine(_LOCKS.get(self.path.resolve())):  # a notebook has built its trainer before
            return
        file = open(self.path / "run.lock", "a+b")  # noqa: SIM115  open as long as the run
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                owner = file.read(200).decode("utf-8", "replace").strip() or "unknown"
                file.close()
                raise RunFolderError(
                    f"{self.path}: another run writes there ({owner}); give this one another Global.output_dir"
                ) from None
            except OSError:  # the file system has no locks
                logger.warning(
                    f"{self.path}: the file system has no locks; a second run here would not be noticed"
                )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        file.flush()
        _LOCKS[self.path.resolve()] = file

    def _refuse_links(self) -> None:
        """A run writes to its files by name.

        What a link leads to, such as another user's file, must not be overwritten.
        """
        inside = self.path.resolve()
        for entry in os.scandir(self.path):
            if entry.is_symlink() and inside not in Path(entry.path).resolve().parents:
                raise RunFolderError(
                    f"{entry.path} is a link out of the run's folder, through which the run would write; remove it"
                )

    def release(self) -> None:
        """Release the lock."""
        lock = _LOCKS.pop(self.path.resolve(), None)
        if lock is not None:
            lock.close()

    def _is_mine(self, lock: BinaryIO | None) -> bool:
        """Whether the lock belongs to the file that is in the folder now."""
        with contextlib.suppress(FileNotFoundError):
            return lock is not None and os.path.samestat(
                os.stat(self.path / "run.lock"), os.fstat(lock.fileno())
            )
        return False

    def ensure(self) -> None:
        """Create and lock the folder again if somebody has removed it during the run.

        Raises:
            RunFolderError: another run has started there in the meantime.
        """
        lock = _LOCKS.get(self.path.resolve())
        if lock is not None and not self._is_mine(lock):
            logger.warning(f"{self.path} was removed under the run; it is made again, what was in it is lost")
            self.release()
            self.lock()

    def run_ids(self) -> set[str]:
        """The ids of the runs whose checkpoints are here. Older versions wrote none."""
        return {manifest["run"] for _, manifest in self._manifests()[0] if manifest.get("run")}

    def set_aside(self, results: Collection[str]) -> Path | None:
        """Move the checkpoints and results of an earlier run into a folder of their own.

        Args:
            results: names of the files and folders that runs write here, beside checkpoints.

        Returns:
            The folder; None if there is nothing to move.

        Raises:
            OSError: they can't be moved.
        """
        names = {*_DESCRIPTIONS, *results}
        files = [
            file for file in self.path.iterdir() if file.name in names or _CHECKPOINT.fullmatch(file.name)
        ]
        return None if all(file.name in _DESCRIPTIONS for file in files) else self._move_aside(files)

    def is_checkpoint(self, file: Path) -> bool:
        """Whether a file is part of a checkpoint in this folder, which a new run would move aside."""
        return file.resolve().parent == self.path.resolve() and _CHECKPOINT.fullmatch(file.name) is not None

    def set_aside_after(self, place: tuple[int, int, int], results: Collection[str]) -> Path | None:
        """Move the checkpoints after a place in the run into a folder of their own.

        Args:
            place: epoch, batches done in it, and step, as the manifests have them.
            results: names of the files that describe ``best_model``, which are moved with it.

        Returns:
            The folder; None if there is nothing to move.

        Raises:
            OSError: they can't be moved.
        """
        later = {prefix.name for prefix, manifest in self._manifests()[0] if _position(manifest)[2:] > place}
        files = [
            file
            for file in self.path.iterdir()
            if _CHECKPOINT.fullmatch(file.name) and file.name.split(".")[0] in later
        ]
        if not files:
            return None
        if "best_model" in later:
            files += [self.path / name for name in sorted(results) if (self.path / name).exists()]
        return self._move_aside(files)

    def _move_aside(self, files: Sequence[Path]) -> Path:
        number = next(i for i in itertools.count(1) if not (self.path / f"earlier_{i}").exists())
        target = self.path / f"earlier_{number}"
        target.mkdir()
        for file in sorted(files):
            if file.name in _DESCRIPTIONS:  # copied, so that the folder has a config at every moment
                shutil.copy2(file, target / file.name)
            else:
                file.replace(target / file.name)
        self._whole.clear()
        return target

    def checkpoints(self) -> tuple[list[tuple[Path, dict[str, Any]]], list[str]]:
        """Prefix and manifest of the run's checkpoints, the newest first; and the reasons why other manifests
        can't be read.

        Of files that somebody has copied together from several runs, those of the run of ``latest`` are
        meant.
        """
        found, damaged = self._manifests()
        own = next((manifest.get("run") for prefix, manifest in found if prefix.name == "latest"), None)
        found = [item for item in found if own is None or item[1].get("run") in (own, None)]
        # Of several with one step, prefer the furthest, and then ``latest``.
        return sorted(
            found, key=lambda item: (*_position(item[1]), item[0].name == "latest"), reverse=True
        ), damaged

    def _manifests(self) -> tuple[list[tuple[Path, dict[str, Any]]], list[str]]:
        found, damaged = [], []
        for file in sorted(self.path.glob("*.json")):
            prefix = file.with_suffix("")
            try:
                manifest = read_manifest(prefix)
                if has_any_part(prefix, manifest):
                    found.append((prefix, manifest))
                else:
                    logger.warning(
                        f"{file} is the rest of a checkpoint whose files were removed; it is ignored"
                    )
            except CheckpointError as error:
                if any(
                    _CHECKPOINT.fullmatch(f.name) and f != file for f in self.path.glob(f"{prefix.name}.*")
                ):
                    damaged.append(str(error))
        return found, damaged

    def read_newest(self) -> tuple[Snapshot, dict[str, Any]] | None:
        """The newest checkpoint that is whole: what it holds, and its manifest.

        None if there is no checkpoint.

        A warning names the newer ones that are damaged.

        Raises:
            CheckpointError: there are checkpoints, but none is whole.
        """
        found, damaged = self.checkpoints()
        for prefix, _ in (item for item in found if is_complete(item[1])):
            try:
                snapshot, manifest = read_snapshot(prefix)
            except (UnknownProgressError, MissingPackageError):  # it may be whole
                raise
            except CheckpointError as error:
                damaged.append(str(error))
                continue
            for reason in damaged:
                logger.warning(f"refused: {reason}; the next older checkpoint is taken")
            return snapshot, manifest
        if damaged:
            raise CheckpointError(
                f"no checkpoint in {self.path} is whole, so none can be resumed: {'; '.join(damaged)}"
            )
        return None

    def save(
        self,
        names: Sequence[str],
        snapshot: Snapshot,
        facts: Mapping[str, Any],
        before: Callable[[], None] | None = None,
    ) -> None:
        """Write a checkpoint in the background. Waits until the one before is written.

        Args:
            names: of the checkpoint.
            snapshot: its parts must not change any more.
            facts: about the run, for the manifest.
            before: called first, in the background.

        Raises:
            OSError: the one before could not be written.
        """
        self.wait()
        manifest = snapshot.manifest(facts)

        def write() -> None:
            self.ensure()
            if before:
                before()
            paths = [self.path / name for name in names]
            self._write(lambda: write_checkpoint(paths, snapshot.parts, manifest, self.safe, self._without))
            self._whole |= {(name, snapshot.progress.step) for name in names}
            self._remove_old()
            logger.info(f"Saved {', '.join(map(str, paths))}")

        self._pending = self._writer.submit(write)

    def _write(self, write: Callable[[], None]) -> None:
        """Write.

        If the disk is full, remove the older ``step_N`` and write once more; also if the folder was removed
        meanwhile.
        """
        try:
            write()
        except FileNotFoundError:
            self.ensure()
            write()
        except OSError as error:
            removed = self._free_room() if error.errno in _FULL else []
            if not removed:
                raise
            logger.warning(
                f"{error.strerror}: removed {', '.join(removed)}, and the checkpoint is written once more"
            )
            write()

    def _free_room(self) -> list[str]:
        """Remove every ``step_N`` but the newest whole checkpoint; returns their names."""
        complete = [item for item in self.checkpoints()[0] if is_complete(item[1])]
        newest = next((prefix for prefix, manifest in complete if self._is_whole(prefix, manifest)), None)
        steps = [
            prefix for prefix, _ in complete if prefix != newest and re.fullmatch(r"step_\d+", prefix.name)
        ]
        if newest is not None:
            for prefix in steps:
                remove_checkpoint(prefix)
        return [prefix.name for prefix in steps] if newest is not None else []

    def recover(self) -> None:
        """Finish or remove what saves have left that were cut off."""
        for name in {
            match[1] for file in self.path.glob("*.new") if (match := _CHECKPOINT.fullmatch(file.name))
        }:
            recover(self.path / name)

    def poll(self) -> None:
        """Raise the error of a save in the background, if one has failed."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait for the background save.

        Raises:
            OSError: it could not be written.
            RunFolderError: another run has the folder.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _remove_old(self) -> None:
        """Keep the newest ``keep_last`` whole ``step_N``, and what is newer than the oldest of these.

        Remove the others.
        """
        steps = [item for item in self.checkpoints()[0] if re.fullmatch(r"step_\d+", item[0].name)]
        kept = 0
        for prefix, manifest in steps:
            if kept >= self.keep_last:
                remove_checkpoint(prefix)
                continue
            recover(prefix)
            kept += self._is_whole(prefix, manifest)

    def _is_whole(self, prefix: Path, manifest: dict[str, Any]) -> bool:
        key = (prefix.name, manifest["progress"]["step"])
        if key not in self._whole:
            with contextlib.suppress(CheckpointError):
                check_whole(prefix)
                self._whole.add(key)
        elif not all(with_extension(prefix, extension).exists() for extension in manifest["parts"]):
            return False
        return key in self._whole


def _position(manifest: Mapping[str, Any]) -> tuple[bool, str, int, int, int]:
    """How far a checkpoint stands.

    Without the id of a run, the clock tells runs apart, as in older versions.
    """
    progress = manifest["progress"]
    numbers = [
        value if isinstance(value := progress.get(key), int) else 0
        for key in ("epoch", "batches_done", "step")
    ]
    has_id = bool(manifest.get("run"))  # a run of an earlier version that goes on has one from then on
    return has_id, "" if has_id else str(progress.get("started", "")), numbers[0], numbers[1], numbers[2]
