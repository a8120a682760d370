"""A run: where it writes, what it says of itself, and how it is continued."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ppxcls.checkpoints.compatibility import RunFacts, check_continues, converted_progress
from ppxcls.checkpoints.files import CheckpointError
from ppxcls.checkpoints.progress import Snapshot, read_snapshot
from ppxcls.checkpoints.run_folder import RunFolder
from ppxcls.config.load import RUN_CONFIG, RUN_MARK
from ppxcls.data.class_names import CLASS_NAMES, class_name_lines
from ppxcls.system.logs import logger
from ppxcls.system.paths import url_problem
from ppxcls.system.whole_files import write_text
from ppxcls.train import PREDICTIONS
from ppxcls.train.evaluation import Evaluation
from ppxcls.train.predictions import write_predictions
from ppxcls.train.results import result_files, result_files_of_best
from ppxcls.train.trackers import Tracker


@dataclass
class Run:
    """What a run has beside what it trains.

    Attributes:
        folder: of checkpoints and logs.
        facts: what the checkpoints' manifests say beside the progress. A continued run takes over its id.
        trackers: where the figures go; used by the first process alone.
        class_names: in the order of the ids; empty for no names.
        hang_timeout: seconds without progress after which a run of the tools ends.
    """

    folder: RunFolder
    facts: RunFacts
    trackers: Sequence[Tracker] = field(default_factory=list)
    class_names: Sequence[str] = ()
    hang_timeout: float = 600.0
    _resumed_at: tuple[int, int, int] | None = field(default=None, init=False, repr=False)

    def begin(self, is_continued: bool) -> None:
        """Prepare the folder in the first process: what a run is, so that its folder needs nothing else.

        Args:
            is_continued: whether the run goes on from a checkpoint. Files of any other run are moved aside,
                and those that an abandoned continuation of this one wrote after the checkpoint.

        Raises:
            OSError: a file can't be moved or written.
        """
        folder = self.folder.path
        self.folder.recover()
        if not is_continued or self.folder.run_ids() - {self.facts.run}:
            aside = self.folder.set_aside(result_files(self.trackers, folder))
        else:  # by the place in the checkpoint's own units, which are those of the other manifests
            aside = None
            if self._resumed_at:
                aside = self.folder.set_aside_after(self._resumed_at, result_files_of_best())
        if aside:
            logger.warning(f"the files of an earlier run were moved to {aside}")
        write_text(folder / RUN_CONFIG, RUN_MARK + self.facts.config)
        if self.class_names:
            write_text(folder / CLASS_NAMES, class_name_lines(self.class_names))

    def write_predictions(self, evaluation: Evaluation) -> None:
        """Write the predictions of an evaluation to the folder.

        A full disk is a warning: the run is worth more.

        Args:
            evaluation: one that has been done.
        """
        assert evaluation.predictions
        try:
            write_predictions(
                self.folder.path / PREDICTIONS,
                evaluation.predictions,
                evaluation.loader.dataset,
                self.class_names,
            )
        except OSError as error:
            logger.warning(f"{self.folder.path / PREDICTIONS}: {error.strerror}")

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
            allow_changes: go on although network, optimizer, seed, training list or samples a step have
                changed.

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
            if (problem := url_problem(checkpoint)) is not None:
                raise CheckpointError(problem)
            snapshot, manifest = read_snapshot(checkpoint)
        check_continues(manifest, self.facts, allow_changes)
        self._resumed_at = (snapshot.progress.epoch, snapshot.progress.batches_done, snapshot.progress.step)
        known = {key: manifest[key] for key in ("run", "started_from") if manifest.get(key)}
        self.facts = replace(self.facts, **known)
        snapshot.progress = converted_progress(snapshot.progress, manifest, self.facts)
        return snapshot
