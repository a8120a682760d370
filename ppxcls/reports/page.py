"""Writes ``report.html`` and the other report files of a run, and a page that compares several runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ppxcls.config.checks import ConfigError
from ppxcls.data.errors import DataError
from ppxcls.reports import BALANCE, CARD, CURVES, REPORT, RESULTS
from ppxcls.reports.card import MARK, model_card
from ppxcls.reports.comparison import write_comparison
from ppxcls.reports.curves import draw_balance, draw_curves, has_missing_characters
from ppxcls.reports.evaluation_content import evaluation_content
from ppxcls.reports.losses import loss_differences
from ppxcls.reports.pictures import data_uri, own_png
from ppxcls.reports.record import read_record
from ppxcls.reports.rendering import ReportError, render, require_packages
from ppxcls.reports.sentences import headline
from ppxcls.reports.stages import stages_content
from ppxcls.reports.study_file import is_study, runs_of_study, study_note
from ppxcls.reports.summary import best_evaluation, facts, figure_rows, folds_content, notes, numbers
from ppxcls.system.atomic_files import check_own_names, read_regular, write_bytes, write_text
from ppxcls.system.logs import logger
from ppxcls.system.paths import printable
from ppxcls.train import FIRST_BATCH
from ppxcls.train.group_figures import GROUP_COUNT

_MAX_CARD_BYTES = 1 << 20


def report(
    runs: str | Path | Sequence[str | Path], output: str | Path | None = None, *, trust: bool = False
) -> Path:
    """Writes the page of a run into its folder, or a page that compares several runs.

    Args:
        runs: run folder, or several.
        output: file for a comparison; None for ``comparison.html``. The page of one run has a fixed place.
        trust: True to run the plugins that a run names; see ``load_config``.

    Returns:
        Path of the page.

    Raises:
        ConfigError, DataError, OSError: a folder is not a run folder, a package is not installed, a file
            can't be written, or there is one run and an output.
    """
    folders = [runs] if isinstance(runs, str | Path) else list(runs)
    if any(map(is_study, folders)):
        return _report_of_studies(folders, output, trust=trust)
    if len(folders) == 1 and output is not None:
        raise DataError(
            f"{output}: expected several runs, to compare them in this file; "
            f"the page of one run is {Path(folders[0]) / REPORT}"
        )
    try:
        if len(folders) == 1:
            return write_report(folders[0], trust=trust)
        return write_comparison(folders, None if output is None else Path(output), trust=trust)
    except ReportError as error:
        raise DataError(str(error)) from None


def _report_of_studies(folders: Sequence[str | Path], output: str | Path | None, *, trust: bool) -> Path:
    """Writes the comparison of the trials of studies, and of single runs, as ``report``."""
    runs: list[str | Path] = []
    notes = []
    for folder in folders:
        if is_study(folder):
            runs += runs_of_study(Path(folder))
            notes.append(study_note(Path(folder)))
        else:
            runs.append(folder)
    file = None if output is None else Path(output)
    place = Path(folders[0]) if len(folders) == 1 else Path()
    try:
        return write_comparison(runs, file, folder=place, trust=trust, notes=notes)
    except ReportError as error:
        raise DataError(str(error)) from None


def write_report(folder: str | Path, *, trust: bool = False) -> Path:
    """Writes ``report.html`` and its pictures, ``per_class.csv``, and the model card ``README.md``.

    Args:
        folder: run folder, which receives the files.
        trust: True to run the plugins that the run names; see ``load_config``.

    Returns:
        Path of the page. The page is one file and loads nothing from elsewhere.

    Raises:
        ConfigError: the folder is not a run folder.
        ReportError: a package is not installed.
        OSError: a file can't be written.
    """
    record = read_record(folder, trust=trust)
    check_own_names(record.folder, RESULTS)
    require_packages()
    pictures: dict[str, bytes] = {}
    if record.train:
        pictures[CURVES] = draw_curves([record])
    page: dict[str, Any] = {
        "title": printable(record.title),
        "names": [printable(name) for name in record.names],
    }
    page |= {
        "notes": notes(record),
        "headline": headline(record),
        "numbers": numbers(record),
        "figures": figure_rows(record),
        "has_group_figures": GROUP_COUNT in best_evaluation(record),
        "has_judged_figures": record.judged is not None,
        "stages": stages_content(record),
        "folds": folds_content(record.folds),
        "facts": facts(record),
        "config": record.config.to_yaml(),
        "loss_differences": printable(loss_differences(record.config)),
    }
    if record.shown_samples is not None:
        page |= evaluation_content(record, record.shown_samples, pictures)
    if record.class_counts is not None:
        pictures[BALANCE] = draw_balance(record.class_counts, record.names)
    for name, data in pictures.items():
        write_bytes(record.folder / name, data)
        page[name.removesuffix(".png")] = data_uri(data)
    if record.class_counts is not None and has_missing_characters(record.names):
        page["balance"] = data_uri(draw_balance(record.class_counts, record.names, "svg"), "svg+xml")
    page["first_batch"] = own_png(record.folder / FIRST_BATCH)
    if page["first_batch"] is None and os.path.lexists(record.folder / FIRST_BATCH):
        page["notes"].append(f"{FIRST_BATCH} is left out, because it is no picture that a run writes.")
    page["sections"] = _sections(page)
    write_text(record.folder / REPORT, render("report.html.j2", page))
    if _may_be_replaced(record.folder / CARD):
        write_text(record.folder / CARD, model_card(record))
    return record.folder / REPORT


def report_after_training(folder: Path) -> None:
    """Writes the report at the end of a training.

    An error is only logged, as one line, because the run itself has succeeded.
    """
    try:
        logger.info(f"report: {write_report(folder)}")
    except ReportError as error:
        logger.info(str(error))
    except (OSError, ConfigError, DataError) as error:
        logger.warning(f"the report can't be written: {error}")
    # A drawing library may raise any error. The weights are safe, and the report can be written again.
    except Exception as error:
        logger.warning(f"the report can't be written: {type(error).__name__}: {' '.join(str(error).split())}")


def _may_be_replaced(card: Path) -> bool:
    """True if there is no model card, or if ppxcls wrote it, not the user."""
    if not os.path.lexists(card):
        return True
    try:
        return MARK.encode() in read_regular(card, _MAX_CARD_BYTES, follows_links=False)
    except (OSError, ValueError):  # such as a link, or a text that is larger than a card
        return False


def _sections(page: dict[str, Any]) -> list[tuple[str, str]]:
    sections = [("stages", "Stages")] if page.get("stages") else []
    if page.get("folds"):
        sections.append(("folds", "Folds"))
    if page.get("figures"):
        sections.append(("figures", "Figures"))
    sections.append(("curves", "Curves"))
    if "matrix" in page:
        sections += [
            ("confusion", "Confusion"),
            ("confused", "Most confused"),
            ("classes", "Classes"),
            *([("roc", "ROC curve")] if page.get("ranking") else []),
            ("calibration", "Calibration"),
            ("risk", "Risk"),
        ]
        sections += [
            ("mistakes", "Worst mistakes"),
            ("uncertain", "Least certain"),
            ("suspects", "Suspected labels"),
        ]
    optional_sections = (
        ("cams", "cam", "Grad-CAM"),
        ("balance", "balance", "Class balance"),
        ("first_batch", "batch", "First batch"),
    )
    sections += [(id_, name) for key, id_, name in optional_sections if page.get(key)]
    return [*sections, ("run", "The run")]
