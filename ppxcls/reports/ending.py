"""How far a run came, and why it ended: for its page, its card, and the comparison of runs."""

from __future__ import annotations

from ppxcls.build.schedules import early_stop, learning_rate
from ppxcls.config.checks import ConfigError
from ppxcls.reports.record import Record
from ppxcls.system.json_text import is_count
from ppxcls.system.paths import bounded, printable
from ppxcls.train.early_stop import early_end
from ppxcls.train.lr_schedules import LRSchedule

_MAX_LENGTH = 600  # characters of the note; the name of a plugin's figure is part of it


def epochs_done(record: Record) -> int:
    """Returns the number of epochs that the run has trained; the planned number if that is not known."""
    planned = record.config.Global.epochs
    # The stages of fit have their own numbers of epochs, and end by its clock.
    if record.progress is None or (record.stages and not has_stopped_early(record)):
        return planned
    return min(record.progress.epoch - 1, planned)


def has_stopped_early(record: Record) -> bool:
    """True if ``Global.early_stop`` has ended the run before its last epoch."""
    rule, progress = early_stop(record.config), record.progress
    if rule is None or progress is None:
        return False
    return progress.epoch <= record.config.Global.epochs and rule.has_ended(progress)


def epochs_text(record: Record) -> str:
    """Returns the number of epochs, such as ``10``, or ``5 of 10, stopped early``."""
    planned, count = record.config.Global.epochs, epochs_done(record)
    if count == planned:
        return f"{planned:,}"
    return f"{count:,} of {planned:,}, {'stopped early' if has_stopped_early(record) else 'not finished'}"


def ending_note(record: Record) -> str:
    """Returns the reason of an end before the last epoch, in sentences; empty after the last epoch."""
    planned, progress = record.config.Global.epochs, record.progress
    if progress is not None and has_stopped_early(record):
        try:
            schedule, steps_per_epoch = _schedule(record)
            note = early_end(progress, planned, schedule, steps_per_epoch)
        except (ConfigError, ArithmeticError, ValueError):  # the manifest is not of this config
            note = early_end(progress, planned, None, 0)
        return bounded(printable(note), _MAX_LENGTH)
    count = epochs_done(record)
    if count == planned:
        return ""
    hours = record.config.Global.max_hours
    limit = f" One start trains for at most {hours:g} h (Global.max_hours)." if hours else ""
    return (
        f"The training is not finished: {count:,} of {planned:,} epochs are done.{limit} "
        "Train with -o Global.checkpoints=auto to go on."
    )


def _schedule(record: Record) -> tuple[LRSchedule | None, int]:
    """Returns the learning-rate schedule, and the number of optimizer steps per epoch.

    Raises:
        ConfigError: the schedule is invalid.
    """
    counts = [record.manifest.get(key) for key in ("steps_per_epoch", "global_batch", "update_freq")]
    if not all(is_count(count) and count for count in counts):
        return None, 0
    steps_per_epoch, global_batch, update_freq = map(int, counts)  # type: ignore[arg-type]
    return learning_rate(record.config, steps_per_epoch, global_batch * update_freq), steps_per_epoch
