"""``ppxcls eval`` after ``fit``: best_model has been trained on the photographs that chose it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import ppxcls
from ppxcls.checkpoints.files import read_manifest
from ppxcls.fitting.judging import judge, sentence_of
from tests.fitting.small_fits import OPTIONS, only_linear

pytest.importorskip("scipy")
pytest.importorskip("jinja2")


def test_an_evaluation_does_not_replace_the_figures_of_unknown_photographs(
    weights: str,
    speeds: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    only_linear(monkeypatch)
    run = ppxcls.fit("photos", weights, **OPTIONS, test_share=0.0)
    assert read_manifest(run / "best_model")["trained_on_eval_list"] is True
    names = ("eval.json", "predictions.csv")
    contents = [(run / name).read_bytes() for name in names]
    assert "not trained on these photographs" in json.loads(contents[0])["about"]
    capsys.readouterr()
    ppxcls.evaluate(ppxcls.load_config(run))
    log = capsys.readouterr().out
    assert [(run / name).read_bytes() for name in names] == contents
    assert (run / "eval_other.json").exists()
    assert (run / "predictions_other.csv").exists()
    assert "trained on these images, too, after they had chosen it: these figures are too high" in log
    assert "eval_other.json, because it is not the run's own evaluation: weights trained on this list" in log


def test_the_page_says_whose_figures_they_are(
    weights: str, speeds: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    only_linear(monkeypatch)
    run = ppxcls.fit("photos", weights, **OPTIONS, test_share=0.0)
    count = len(Path("out/lists/val_list.txt").read_text().splitlines())
    judge(run)
    expected = (
        "These figures are of weights that had not been trained on them; best_model was, after the choice."
    )
    for name in ("report.html", "README.md"):
        text = " ".join((run / name).read_text().split())
        assert (
            f"The same {count} images chose the result of fit, so the figures are rather too high. {expected}"
            in text
        )
    assert "on the images that chose the result" in (run / "report.html").read_text()
    sentence = sentence_of(run)
    assert sentence.startswith(
        f"On {count} photographs that chose the result, before it was trained on them, "
    )


def test_an_evaluation_on_other_photographs_needs_no_warning(
    weights: str,
    speeds: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    only_linear(monkeypatch)
    run = ppxcls.fit("photos", weights, **OPTIONS)
    capsys.readouterr()
    ppxcls.evaluate(ppxcls.load_config(run), test=True)
    assert "too high" not in capsys.readouterr().out
    assert sentence_of(run).startswith("On 6 photographs that it had never seen, ")
    lists = Path("out/lists/test_list.txt").resolve()
    ppxcls.evaluate(ppxcls.load_config(run, [f"DataLoader.Eval.dataset.cls_label_path={lists}"]))
    log = capsys.readouterr().out
    assert "too high" not in log
    assert "not the run's own evaluation: another list" in log
