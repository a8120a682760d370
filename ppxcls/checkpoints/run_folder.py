"""The folder of a run. One run at a time writes to it; its checkpoints are written in the background."""

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
    BeforeCommit,
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
from ppxcls.system.appended_files import append_descriptor
from ppxcls.system.atomic_files import is_inside, named_errors
from ppxcls.system.errors import UserError
from ppxcls.system.logs import logger
from ppxcls.system.open_folder import OpenFolder
from ppxcls.system.temporary_files import remove_leftovers

try:
    import fcntl
except ImportError:  # Windows has no such locks, so two runs in one folder are not detected there
    fcntl = None  # type: ignore[assignment]


_LOCKS: dict[Path, BinaryIO] = {}  # locks of this process by folder; open until they are released
# files that describe a run; they are not kept if the run has no other files
_DESCRIPTION_FILES = ("config.yaml", "class_names.txt")
_EXTENSION_PATTERN = "|".join(map(re.escape, (".json", ".pdstates", ".pdstate", *EXTENSIONS)))
AVERAGED = "averaged"  # name of the mean of several checkpoints
_NAME_PATTERN = rf"latest|best_model|{AVERAGED}|(?:step|epoch)_\d+"
_CHECKPOINT_PATTERN = re.compile(rf"({_NAME_PATTERN})(?:{_EXTENSION_PATTERN})(\.new)?")
_DISK_FULL_ERRORS = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


class RunFolderError(UserError):
    """Another run uses the folder, or it is or contains a link that must not be followed."""


class RunFolder:
    """The folder that a run writes to.

    Args:
        path: ``<output_dir>/<Arch.name>``.
        keep_last: number of whole ``step_N`` checkpoints to keep.
        safe: True to write weights as ``.safetensors``.
        best_with_optimizer: True to write the optimizer's state with ``best_model`` too.
    """

    def __init__(
        self, path: Path, keep_last: int = 2, *, safe: bool = False, best_with_optimizer: bool = False
    ) -> None:
        self.path = path
        self.keep_last = keep_last
        self.safe = safe
        self._excluded_parts = {} if best_with_optimizer else {path / "best_model": (OPTIMIZER,)}
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="ppxcls-checkpoint")
        self._pending_save: Future[None] | None = None
        # Name and step of checkpoints that passed the check.
        self._whole_checkpoints: set[tuple[str, int]] = set()

    def lock(self) -> None:
        """Creates the folder and locks it for this run, until ``release`` or the end of the process.

        Raises:
            RunFolderError: another run uses it, a link in it leads out of it, or its name is a link to a
                folder with the files of something else.
            OSError: the folder or its lock file can't be written.
        """
        self._refuse_foreign_target()
        self.path.mkdir(parents=True, exist_ok=True)
        self._refuse_unsafe_entries()
        if self._is_mine(_LOCKS.get(self.path.resolve())):  # such as a notebook that builds a second trainer
            return
        file = open(append_descriptor(self.path / "run.lock"), "a+b")  # noqa: SIM115  stays open
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                owner = file.read(200).decode("utf-8", "replace").strip() or "unknown"
                file.close()
                raise RunFolderError(
                    f"{self.path}: another run writes there ({owner}); "
                    "give this one another Global.output_dir"
                ) from None
            except OSError:  # the file system has no locks
                logger.warning(
                    f"{self.path}: the file system has no locks; a second run here would not be detected"
                )
        with named_errors(self.path / "run.lock"):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
            file.flush()
        _LOCKS[self.path.resolve()] = file

    def _refuse_foreign_target(self) -> None:
        """Refuses a name that is a link to a folder that is neither empty nor a run's.

        A user may keep a run on another disk by a link. In a stranger's output folder, the link may lead to
        any folder of the user.
        """
        if not self.path.is_symlink() or not self.path.is_dir() or not any(self.path.iterdir()):
            return
        if not (self.path / "run.lock").is_file() and not self.checkpoints()[0]:
            raise RunFolderError(
                f"{self.path} is a link to {os.path.realpath(self.path)}, a folder with other files than a "
                "run's; a run is written only to a link to an empty folder or to a run"
            )

    def _refuse_unsafe_entries(self) -> None:
        """Refuses links that lead out of the folder, and pipes and devices.

        A run writes to its files by name. It must not overwrite the target of a link, such as another user's
        file. Opening a pipe would wait for ever.
        """
        for entry in os.scandir(self.path):
            is_plain = entry.is_symlink() or entry.is_dir() or entry.is_file()
            if not is_plain:
                raise RunFolderError(
                    f"{entry.path} is no regular file; remove it, so that the run can use its name"
                )
            if entry.is_symlink() and not is_inside(entry.path, [self.path]):
                raise RunFolderError(
                    f"{entry.path} is a link out of the run's folder; "
                    "remove it, so that the run can't write through it"
                )

    def release(self) -> None:
        """Releases the lock."""
        lock = _LOCKS.pop(self.path.resolve(), None)
        if lock is not None:
            lock.close()

    def _is_mine(self, lock: BinaryIO | None) -> bool:
        """True if the lock belongs to the lock file that is in the folder now."""
        if lock is None:
            return False
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(os.stat(self.path / "run.lock"), os.fstat(lock.fileno()))
        return False

    def ensure(self) -> None:
        """Creates and locks the folder again if it was removed during the run.

        Raises:
            RunFolderError: another run has started there in the meantime.
        """
        lock = _LOCKS.get(self.path.resolve())
        if lock is not None and not self._is_mine(lock):
            logger.warning(
                f"{self.path} was removed during the run; it is created again, but its files are lost"
            )
            self.release()
            self.lock()

    def run_ids(self) -> set[str]:
        """Returns the ids of the runs that wrote the checkpoints here. Older versions wrote no ids."""
        return {manifest["run"] for _, manifest in self._manifests()[0] if manifest.get("run")}

    def set_aside(self, results: Collection[str]) -> Path | None:
        """Moves the checkpoints and results of an earlier run into a new subfolder.

        Args:
            results: names of the files and folders that runs write here, beside checkpoints.

        Returns:
            The subfolder; None if there is nothing to move.

        Raises:
            OSError: they can't be moved.
        """
        files = self._files_of_runs(results)
        return self._move_aside(files) if files else None

    def has_results(self, results: Collection[str]) -> bool:
        """True if ``set_aside`` would move files."""
        return bool(self._files_of_runs(results))

    def _files_of_runs(self, results: Collection[str]) -> list[Path]:
        """Returns the files that an earlier run has written here; none if they only describe a run."""
        names = {*_DESCRIPTION_FILES, *results}
        files = [
            file
            for file in self.path.iterdir()
            if file.name in names or _CHECKPOINT_PATTERN.fullmatch(file.name)
        ]
        return [] if all(file.name in _DESCRIPTION_FILES for file in files) else files

    def is_checkpoint(self, file: Path) -> bool:
        """True if a file belongs to a checkpoint in this folder.

        A new run would move it to a subfolder.
        """
        return (
            file.resolve().parent == self.path.resolve()
            and _CHECKPOINT_PATTERN.fullmatch(file.name) is not None
        )

    def set_aside_after(self, place: tuple[int, int, int], results: Collection[str]) -> Path | None:
        """Moves the checkpoints after a point of the run into a new subfolder.

        Args:
            place: epoch, batches done in it, and step, as the manifests have them.
            results: names of the files that describe ``best_model``, which are moved with it.

        Returns:
            The folder; None if there is nothing to move.

        Raises:
            OSError: they can't be moved.
        """
        later_names = {
            prefix.name for prefix, manifest in self._manifests()[0] if _position(manifest)[2:] > place
        }
        files = [
            file
            for file in self.path.iterdir()
            if _CHECKPOINT_PATTERN.fullmatch(file.name) and file.name.split(".")[0] in later_names
        ]
        if not files:
            return None
        if "best_model" in later_names:
            files += [self.path / name for name in sorted(results) if (self.path / name).exists()]
        return self._move_aside(files)

    def _move_aside(self, files: Sequence[Path]) -> Path:
        number = next(i for i in itertools.count(1) if not os.path.lexists(self.path / f"earlier_{i}"))
        target = self.path / f"earlier_{number}"
        target.mkdir()
        for file in sorted(files):
            if file.name in _DESCRIPTION_FILES:  # copied, so that the folder always has a config
                shutil.copy2(file, target / file.name)
            else:
                file.replace(target / file.name)
        self._whole_checkpoints.clear()
        return target

    def checkpoints(self) -> tuple[list[tuple[Path, dict[str, Any]]], list[str]]:
        """Returns the run's checkpoints, and the errors of manifests that can't be read.

        If the folder contains checkpoints of several runs, only those of the run of ``latest`` are returned.

        Returns:
            Prefix and manifest of each checkpoint, the newest first; and one message per unreadable manifest.
        """
        checkpoints, errors = self._manifests()
        run_id = next(
            (manifest.get("run") for prefix, manifest in checkpoints if prefix.name == "latest"), None
        )
        checkpoints = [item for item in checkpoints if run_id is None or item[1].get("run") in (run_id, None)]
        # The checkpoint with the most progress comes first. If two are equal, ``latest`` comes first.
        return sorted(
            checkpoints, key=lambda item: (*_position(item[1]), item[0].name == "latest"), reverse=True
        ), errors

    def _manifests(self) -> tuple[list[tuple[Path, dict[str, Any]]], list[str]]:
        checkpoints, errors = [], []
        for file in sorted(self.path.glob("*.json")):
            prefix = file.with_suffix("")
            try:
                manifest = read_manifest(prefix)
                if has_any_part(prefix, manifest):
                    checkpoints.append((prefix, manifest))
                else:
                    logger.warning(f"{file} belongs to a checkpoint without files; it is ignored")
            except CheckpointError as error:
                if any(
                    _CHECKPOINT_PATTERN.fullmatch(f.name) and f != file
                    for f in self.path.glob(f"{prefix.name}.*")
                ):
                    errors.append(str(error))
        return checkpoints, errors

    def read_newest(self) -> tuple[Snapshot, dict[str, Any]] | None:
        """Reads the newest checkpoint that is whole.

        A warning names the newer ones that are damaged.

        Returns:
            The snapshot and the manifest; None if there is no checkpoint.

        Raises:
            CheckpointError: there are checkpoints, but none is whole.
        """
        checkpoints, errors = self.checkpoints()
        for prefix, _ in (item for item in checkpoints if is_complete(item[1])):
            try:
                snapshot, manifest = read_snapshot(prefix)
            except (UnknownProgressError, MissingPackageError):  # the checkpoint may be whole
                raise
            except CheckpointError as error:
                errors.append(str(error))
                continue
            for reason in errors:
                logger.warning(f"refused: {reason}; trying the next older checkpoint")
            return snapshot, manifest
        if errors:
            raise CheckpointError(
                f"no checkpoint in {self.path} is whole, so none can be resumed: {'; '.join(errors)}"
            )
        return None

    def save(
        self,
        names: Sequence[str],
        snapshot: Snapshot,
        *,
        facts: Mapping[str, Any],
        flush: Callable[[], None] | None = None,
        before_commit: BeforeCommit | None = None,
    ) -> None:
        """Writes a checkpoint in the background, after the previous save has ended.

        Args:
            names: names of the checkpoint, such as ``latest``.
            snapshot: state to save. Its arrays must not change any more.
            facts: facts about the run, for the manifest.
            flush: function that the background thread calls first; None for none.
            before_commit: function that the background thread calls, see ``write_checkpoint``.

        Raises:
            OSError: the previous checkpoint could not be written.
        """
        self.wait()
        manifest = snapshot.manifest(facts)

        def write() -> None:
            self.ensure()
            if flush:
                flush()
            paths = [self.path / name for name in names]
            self._write(
                lambda: write_checkpoint(
                    paths,
                    snapshot.parts,
                    manifest=manifest,
                    safe=self.safe,
                    without=self._excluded_parts,
                    before_commit=before_commit,
                )
            )
            self._whole_checkpoints |= {(name, snapshot.progress.step) for name in names}
            self._remove_old()
            logger.info(f"Saved {', '.join(map(str, paths))}")

        self._pending_save = self._writer.submit(write)

    def _write(self, write: Callable[[], None]) -> None:
        """Calls ``write``, and calls it once more after an error that can be resolved.

        If the folder was removed, it is created again. If the disk is full, the older ``step_N`` are removed.
        """
        try:
            write()
        except FileNotFoundError:
            self.ensure()
            write()
        except OSError as error:
            removed_names = self._free_space() if error.errno in _DISK_FULL_ERRORS else []
            if not removed_names:
                raise
            logger.warning(
                f"{error.strerror}: removed {', '.join(removed_names)}, and the checkpoint is written again"
            )
            write()

    def _free_space(self) -> list[str]:
        """Removes each ``step_N`` except the newest whole checkpoint; returns their names."""
        complete_checkpoints = [item for item in self.checkpoints()[0] if is_complete(item[1])]
        newest_prefix = next(
            (prefix for prefix, manifest in complete_checkpoints if self._is_whole(prefix, manifest)), None
        )
        old_prefixes = [
            prefix
            for prefix, _ in complete_checkpoints
            if prefix != newest_prefix and re.fullmatch(r"step_\d+", prefix.name)
        ]
        if newest_prefix is not None:
            for prefix in old_prefixes:
                remove_checkpoint(prefix)
        return [prefix.name for prefix in old_prefixes] if newest_prefix is not None else []

    def recover(self) -> None:
        """Completes or removes interrupted saves, and removes the temporary files of killed processes."""
        with OpenFolder(self.path) as folder:
            remove_leftovers(folder)
        for name in {
            match[1]
            for file in self.path.glob("*.new")
            if (match := _CHECKPOINT_PATTERN.fullmatch(file.name))
        }:
            recover(self.path / name)

    def poll(self) -> None:
        """Raises the error of a background save, if one has failed."""
        if self._pending_save is not None and self._pending_save.done():
            self.wait()

    def wait(self) -> None:
        """Waits for the background save.

        Raises:
            OSError: the checkpoint could not be written.
            RunFolderError: another run uses the folder.
        """
        save, self._pending_save = self._pending_save, None
        if save is not None:
            save.result()

    def _remove_old(self) -> None:
        """Removes each ``step_N`` that is older than the newest ``keep_last`` whole ones."""
        step_checkpoints = [item for item in self.checkpoints()[0] if re.fullmatch(r"step_\d+", item[0].name)]
        whole_count = 0
        for prefix, manifest in step_checkpoints:
            if whole_count >= self.keep_last:
                remove_checkpoint(prefix)
                continue
            recover(prefix)
            whole_count += self._is_whole(prefix, manifest)

    def _is_whole(self, prefix: Path, manifest: dict[str, Any]) -> bool:
        key = (prefix.name, manifest["progress"]["step"])
        if key not in self._whole_checkpoints:
            with contextlib.suppress(CheckpointError):
                check_whole(prefix)
                self._whole_checkpoints.add(key)
        elif not all(with_extension(prefix, extension).exists() for extension in manifest["parts"]):
            return False
        return key in self._whole_checkpoints


def _position(manifest: Mapping[str, Any]) -> tuple[bool, str, int, int, int]:
    """Returns a sort key: the progress of a checkpoint.

    Checkpoints without a run id, from older versions, are ordered by the start time of their run first.
    """
    progress = manifest["progress"]
    numbers = [
        value if isinstance(value := progress.get(key), int) else 0
        for key in ("epoch", "batches_done", "step")
    ]
    has_id = bool(manifest.get("run"))  # a run of an older version gets an id when it is resumed
    return has_id, "" if has_id else str(progress.get("started", "")), numbers[0], numbers[1], numbers[2]
