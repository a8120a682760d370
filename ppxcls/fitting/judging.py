"""The end of ``fit``: the photographs that judge are evaluated once, and the page is written."""

from __future__ import annotations

from pathlib import Path

from ppxcls.build.evaluation import evaluate
from ppxcls.build.judging import is_judged
from ppxcls.config.load import load_config
from ppxcls.fitting.yaml_files import TRAIN_YAML
from ppxcls.reports.page import report_after_training
from ppxcls.reports.record import read_record
from ppxcls.reports.sentences import result_sentence


def judge(run_folder: Path, *, trust: bool = False) -> None:
    """Evaluates ``best_model`` on the photographs that judge, if there are any, and writes the report.

    Weights that they have judged already are not evaluated again, because each further use would count.

    Args:
        run_folder: run folder of a finished training.
        trust: True to run the plugins that the run names; see ``load_config``.

    Raises:
        ConfigError, DataError, CheckpointError, OSError: as in ``evaluate``.
    """
    config = load_config(run_folder, trust=trust)
    if config.DataLoader and config.DataLoader.Test and not is_judged(run_folder / "best_model"):
        evaluate(config, test=True)
    report_after_training(run_folder)


def next_commands(folder: Path) -> list[str]:
    """Returns the commands that a user may need after ``fit``."""
    return [
        f"  ppxcls infer -c {folder} NEW_IMAGES",
        f"  ppxcls export -c {folder}",
        f"  ppxcls train -c {folder.parent / TRAIN_YAML}    # again, after editing that file",
    ]


def sentence_of(run_folder: Path, *, trust: bool = False) -> str:
    """Returns one sentence about the accuracy of a run and its worst class; empty if nothing was evaluated.

    Args:
        run_folder: run folder.
        trust: True to run the plugins that the run names.

    Raises:
        ConfigError, DataError: the run can't be read.
    """
    return result_sentence(read_record(run_folder, trust=trust))
