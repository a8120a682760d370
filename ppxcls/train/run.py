"""A run: its output folder, its metadata, and resuming."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from paddle import nn

from ppxcls.calibration.fit import FittedCalibration, write_calibration
from ppxcls.checkpoints.compatibility import RunFacts, check_continues, convert_progress
from ppxcls.checkpoints.files import AVERAGE, WEIGHTS, CheckpointError
from ppxcls.checkpoints.progress import Progress, Snapshot, read_snapshot
from ppxcls.checkpoints.run_folder import RunFolder
from ppxcls.config.load import RUN_CONFIG, RUN_CONFIG_HEADER
from ppxcls.config.trust import config_codes, record_trust
from ppxcls.data.class_names import CLASS_NAMES_FILE, class_name_lines
from ppxcls.data.dataset import Dataset
from ppxcls.data.loader import Batch
from ppxcls.system.atomic_files import reason_of, write_text
from ppxcls.system.logs import logger
from ppxcls.system.paths import url_problem
from ppxcls.train import PREDICTIONS, STARTS_FILE
from ppxcls.train.evaluation import Evaluation
from ppxcls.train.predictions import write_predictions
from ppxcls.train.results import result_files, result_files_of_best
from ppxcls.train.starts import append_start, start_facts
from ppxcls.train.trackers import Tracker


@dataclass
class Run:
    """The folder, metadata and trackers of a run.

    Attributes:
        folder: folder of the checkpoints and logs.
        facts: metadata for the manifests of checkpoints. A resumed run keeps its id.
        trackers: receivers of the metrics; only the first process uses them.
        class_names: class names in the order of the class ids; empty if there are none.
        hang_timeout: seconds without progress after which a run of the tools is ended.
        is_own: False if the config came from a run that the user does not trust. Then it is not remembered as
            the user's own, so its folders to write to are still refused.
    """

    folder: RunFolder
    facts: RunFacts
    trackers: Sequence[Tracker] = field(default_factory=list)
    class_names: Sequence[str] = ()
    hang_timeout: float = 600.0
    is_own: bool = True
    _resume_position: tuple[int, int, int] | None = field(default=None, init=False, repr=False)

    def has_earlier_results(self) -> bool:
        """True if the folder holds results of an earlier run, which a new run moves aside."""
        return self.folder.has_results(result_files(self.trackers, self.folder.path))

    def begin(self, *, is_continued: bool) -> None:
        """Prepares the folder. Only the first process calls it.

        It moves old files aside, then writes the config and the class names, so that the folder describes the
        run completely.

        Args:
            is_continued: True if the run resumes from a checkpoint. Then files of other runs are moved
                aside, and checkpoints of this run that are newer than the resumed one. If False, all files
                of earlier runs are moved aside.

        Raises:
            OSError: a file can't be moved or written.
        """
        folder = self.folder.path
        self.folder.recover()
        if not is_continued or self.folder.run_ids() - {self.facts.run}:
            earlier_folder = self.folder.set_aside(result_files(self.trackers, folder))
        else:  # positions are in the checkpoint's units, as in the other manifests
            earlier_folder = None
            if self._resume_position:
                earlier_folder = self.folder.set_aside_after(self._resume_position, result_files_of_best())
        if earlier_folder:
            logger.warning(f"the files of an earlier run were moved to {earlier_folder}")
        config_text = RUN_CONFIG_HEADER + self.facts.config
        write_text(folder / RUN_CONFIG, config_text)
        if self.is_own:
            record_trust(config_codes(folder / RUN_CONFIG, config_text), warns=False)
        if self.class_names:
            write_text(folder / CLASS_NAMES_FILE, class_name_lines(self.class_names))

    def write_start(self, progress: Progress, network: nn.Layer, batch: Batch, dataset: Dataset) -> None:
        """Records where the run starts, and what decides its bits. ``ppxcls verify`` reads the record.

        If it can't be written, it logs a warning and the run continues.

        Args:
            progress: progress before the first step.
            network: network before the first step.
            batch: first batch.
            dataset: training data.
        """
        file = self.folder.path / STARTS_FILE
        try:
            append_start(file, progress, start_facts(self.facts, network, batch, dataset))
        except OSError as error:
            logger.warning(f"{file}: {reason_of(error)}")

    def write_predictions(self, evaluation: Evaluation) -> None:
        """Writes the predictions of an evaluation to the folder.

        If they can't be written, for example because the disk is full, it logs a warning and the run
        continues.

        Args:
            evaluation: finished evaluation.
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

    def save(
        self,
        names: Sequence[str],
        snapshot: Snapshot,
        flush: Callable[[], None],
        *,
        calibration: FittedCalibration | None = None,
    ) -> None:
        """Starts to write a checkpoint in the background.

        Args:
            names: names of the checkpoint, such as ``latest``.
            snapshot: content of the checkpoint.
            flush: function that is called in the background before the checkpoint is written.
            calibration: calibration of these weights, which is written with ``best_model``; None for none.

        Raises:
            OSError: the previous checkpoint could not be written. Complete checkpoints stay.
        """

        def write_calibration_of(prefix: Path, digests: Mapping[str, str]) -> None:
            if prefix.name == "best_model":
                write_calibration(self.folder.path, calibration, digests.get(AVERAGE) or digests[WEIGHTS])

        self.folder.save(
            names, snapshot, facts=self.facts.as_dict(), flush=flush, before_commit=write_calibration_of
        )

    def read(self, checkpoint: str | Path, *, allow_changes: bool = False) -> Snapshot | None:
        """Reads the checkpoint to resume from, and converts its progress to batches and steps of this run.

        Args:
            checkpoint: prefix of the files; ``auto`` means the newest complete checkpoint of the folder.
            allow_changes: True to resume even if the network, optimizer, seed, training list or number of
                samples per step has changed.

        Returns:
            The snapshot; None for ``auto`` if there is no checkpoint.

        Raises:
            CheckpointError: the checkpoint can't be used, or it belongs to a run that this run can't resume.
        """
        if checkpoint == "auto":
            newest = self.folder.read_newest()
            if newest is None:
                logger.info(f"no checkpoint in {self.folder.path}: the run starts from the beginning")
                return None
            snapshot, manifest = newest
        else:
            if (problem := url_problem(checkpoint)) is not None:
                raise CheckpointError(problem)
            snapshot, manifest = read_snapshot(checkpoint)
        check_continues(manifest, self.facts, allow_changes=allow_changes)
        self._resume_position = (
            snapshot.progress.epoch,
            snapshot.progress.batches_done,
            snapshot.progress.step,
        )
        inherited_facts = {key: manifest[key] for key in ("run", "started_from") if manifest.get(key)}
        self.facts = replace(self.facts, **inherited_facts)
        snapshot.progress = convert_progress(snapshot.progress, manifest, self.facts)
        return snapshot
