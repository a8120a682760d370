"""A run: where it writes, what it says of itself, and how it is continued."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ppxcls.checkpoints.compatibility import RunFacts, check_continues, converted_progress
from ppxcls.checkpoints.progress import Snapshot, read_snapshot
from ppxcls.checkpoints.run_folder import RunFolder
from ppxcls.system.logs import logger
from ppxcls.train.trackers import Tracker


@dataclass
class Run:
    """What a run has beside what it trains.

    Attributes:
        folder: of checkpoints and logs.
        facts: what the checkpoints' manifests say beside the progress.
        trackers: where the figures go; used by the first process alone.
        hang_timeout: seconds without progress after which a run of the tools ends.
    """

    folder: RunFolder
    facts: RunFacts
    trackers: Sequence[Tracker] = field(default_factory=list)
    hang_timeout: float = 600.0

    def save(self, names: Sequence[str], snapshot: Snapshot, before: Callable[[], None]) -> None:
        """Begin to write a checkpoint under these names in the background.

        Args:
            names: of the checkpoint.
            snapshot: what to write.
            before: called first, in the background.

        Raises:
            OSError: the checkpoint before can't be written; those that are whole stay.
        """
        self.folder.save(names, snapshot, self.facts.as_dict(), before)

    def read(self, checkpoint: str | Path, allow_changes: bool = False) -> Snapshot | None:
        """What this run can go on from, its progress in batches and steps of this run.

        Args:
            checkpoint: prefix of the files; ``auto`` is the newest whole checkpoint of the folder.
            allow_changes: go on although network, optimizer, seed, training list or samples a step have changed.

        Returns:
            None for ``auto`` if there is no checkpoint.

        Raises:
            CheckpointError: it can't be used, or belongs to a run that this one can't continue.
        """
        if checkpoint == "auto":
            newest = self.folder.read_newest()
            if newest is None:
                logger.info(f"no checkpoint in {self.folder.path}: the run starts afresh")
                return None
            snapshot, manifest = newest
        else:
            snapshot, manifest = read_snapshot(checkpoint)
        check_continues(manifest, self.facts, allow_changes)
        snapshot.progress = converted_progress(snapshot.progress, manifest, self.facts)
        return snapshot
