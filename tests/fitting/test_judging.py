"""The end of ``fit``: the photographs that judge are evaluated once for each result."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import ppxcls
from ppxcls.fitting.judging import judge, sentence_of
from tests.conftest import write_images

pytest.importorskip("jinja2")


def test_each_result_is_judged_once(small: Callable[..., Path], images: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "others", 8, seed=2, name="test")
    test = {"cls_label_path": str(tmp_path / "others/test_list.txt"), "image_root": str(tmp_path / "others")}
    trainer = ppxcls.build_trainer(ppxcls.load_config(small(**{"DataLoader.Test": test})))
    trainer.fit()
    run = trainer.output_dir
    assert sentence_of(run).startswith("On 7 photographs, ")
    for _ in range(2):
        judge(run)
        assert json.loads((run / "test.json").read_text())["uses"] == 1
    assert "On 8 images that neither trained nor chose" in (run / "report.html").read_text()
    assert sentence_of(run).startswith("On 8 photographs that it had never seen, ")
    manifest = (run / "best_model.json").read_text()
    (run / "best_model.json").write_text(manifest.replace("}", " }", 1))  # as another result would
    assert sentence_of(run).startswith("On 7 photographs, ")
    judge(run)
    assert json.loads((run / "test.json").read_text())["uses"] == 2


def test_a_run_that_nobody_judges(small: Callable[..., Path]) -> None:
    trainer = ppxcls.build_trainer(ppxcls.load_config(small()))
    trainer.fit()
    judge(trainer.output_dir)
    assert not (trainer.output_dir / "test.json").exists()
    assert (trainer.output_dir / "report.html").exists()
