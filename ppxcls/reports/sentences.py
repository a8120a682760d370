"""Sentences about the accuracy of a run, for its page and for the terminal."""

from __future__ import annotations

from ppxcls.reports import figures
from ppxcls.reports.fold_file import FoldFile
from ppxcls.reports.record import Record
from ppxcls.reports.run_files import Samples
from ppxcls.system.paths import bounded, printable

_MAX_NAME_LENGTH = 60  # characters of a class name in a sentence


def headline(record: Record) -> str:
    """Returns the first sentences of the page: accuracy on images that judge; empty if there are none."""
    if record.judged is None:
        return ""
    if record.judged.uses == 1:
        use = "They have judged once, after the training."
    else:
        use = (
            f"They have judged models of this folder {record.judged.uses:,} times. If such figures chose "
            "between models, they are rather too high."
        )
    return f"{_accuracy(record.judged.samples, 'images that neither trained nor chose')} {use}"


def result_sentence(record: Record) -> str:
    """Returns sentences for the terminal: accuracy, worst class, folds; empty without predictions."""
    samples = record.shown_samples
    if samples is None:
        return ""
    if record.judged is not None:
        images = "photographs that it had never seen"
    elif record.fold_samples is not None:
        images = "photographs, each by a fold that was not trained on it"
    elif record.has_known_samples:
        images = "photographs that chose the result, before it was trained on them"
    elif record.choice_note:
        images = "photographs that also chose the best epoch"
    else:
        images = "photographs"
    sentences = [_accuracy(samples, images), worst_class(samples, record.names), _folds(record.folds)]
    return " ".join(filter(None, sentences))


def _folds(folds: FoldFile | None) -> str:
    """Returns a sentence with the mean of the folds; empty without folds."""
    if folds is None or not folds.means:
        return ""
    return f"Mean of {len(folds.folds)} folds: {printable(str(folds.means[0]))}."


def _accuracy(samples: Samples, images: str) -> str:
    share = figures.topk_proportion(samples, 1)
    hits = round(share.value * len(samples))
    verb = "was" if hits == 1 else "were"
    interval = f"{100 * share.low:.1f} to {100 * share.high:.1f} %"
    return f"On {len(samples):,} {images}, {hits:,} {verb} right: {100 * share.value:.1f} % ({interval})."


def worst_class(samples: Samples, names: list[str]) -> str:
    """Returns a sentence about the class with the lowest recall; empty if no sample is wrong.

    Of several, it is the one with the most samples.
    """
    by_class = figures.by_class(samples, len(names))
    mistakes = figures.most_confused(figures.confusions(samples, len(names)), max_count=len(samples))
    if not mistakes:
        return ""
    labels = sorted({label for label, _, _ in mistakes})
    worst = min(labels, key=lambda label: (by_class["recall"][label], -by_class["support"][label], label))
    guess, count = next((guess, count) for label, guess, count in mistakes if label == worst)
    recall = f"{100 * by_class['recall'][worst]:.0f} %"
    return (
        f"Worst class: {_name(names[worst])} ({recall}), taken for {_name(names[guess])} "
        f"{count:,} of {by_class['support'][worst]:,} times."
    )


def _name(name: str) -> str:
    return bounded(printable(name), _MAX_NAME_LENGTH)
