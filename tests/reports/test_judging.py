"""The page leads with the images that judge, says what chose, and shows the stages of a fit."""

from __future__ import annotations

import csv
import hashlib
import html
import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

import ppxcls
from ppxcls.config.load import RUN_CONFIG_HEADER
from ppxcls.reports.record import read_record
from ppxcls.reports.result_files import read_stages
from ppxcls.reports.sentences import headline, result_sentence, worst_class
from ppxcls.reports.summary import numbers
from ppxcls.train.predictions import COLUMNS
from tests.conftest import small_config, write_images

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")
pytest.importorskip("scipy")

NAMES = ("ant", "bee", "cat")


def write_predictions(file: Path, labels: list[int], predicted: list[int], root: Path) -> None:
    with open(file, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        for number, (label, guess) in enumerate(zip(labels, predicted, strict=True)):
            path = root / f"{number:04d}.png"
            score = 0.8 if label == guess else 0.1
            writer.writerow([path, label, NAMES[label], guess, NAMES[guess], 0.8, score, guess, 0.8])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with 4 wrong of 40 images that judge, and 1 wrong of 10 that chose."""
    data = write_images(tmp_path / "data", 6)
    write_images(data, 10, seed=1, name="val")
    write_images(data, 40, seed=2, name="test")
    (data / "class_names.txt").write_text("".join(f"{i} {name}\n" for i, name in enumerate(NAMES)))
    keys = {"DataLoader.Test": {"cls_label_path": str(data / "test_list.txt")}}
    folder = tmp_path / "output/Xception41"
    folder.mkdir(parents=True)
    text = yaml.safe_dump(small_config(data, tmp_path / "output", **keys))
    (folder / "config.yaml").write_text(RUN_CONFIG_HEADER + text)
    (folder / "class_names.txt").write_text((data / "class_names.txt").read_text())
    line = {"kind": "eval", "step": 3, "loss": 0.5, "top1": 0.9}
    rows = [{**line, "epoch": 1}, {**line, "epoch": 2}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    labels = [i % 3 for i in range(10)]
    write_predictions(folder / "predictions.csv", labels, [2, *labels[1:]], data / "val")
    labels = [i % 3 for i in range(40)]
    guesses = labels.copy()
    guesses[1] = guesses[4] = guesses[7] = 2  # three bees, taken for cats
    guesses[0] = 1  # an ant, taken for a bee
    write_predictions(folder / "test_predictions.csv", labels, guesses, data / "test")
    (folder / "test.json").write_text(json.dumps({"uses": 1, "checkpoint": None, "top1": 0.9}))
    return folder


def test_the_page_leads_with_the_images_that_judge(run: Path) -> None:
    stats = pytest.importorskip("scipy.stats")
    interval = stats.binomtest(36, 40).proportion_ci(method="wilson")
    expected = (
        "On 40 images that neither trained nor chose, 36 were right: "
        f"90.0 % ({100 * interval.low:.1f} to {100 * interval.high:.1f} %). They have judged once, after the training."
    )
    assert headline(read_record(run)) == expected
    text = html.unescape(ppxcls.report(run).read_text())
    assert text.index(expected) < text.index('class="numbers"')
    assert "chose the best of 2 evaluations" not in text, "these figures are not of those images"
    tiles = numbers(read_record(run))
    assert [(tile["name"], tile["value"]) for tile in tiles[:3]] == [
        ("top-1", "90.00 %"),
        ("top-1, of images that chose", "90.00 %"),
        ("evaluated", "40"),
    ]


def test_what_the_page_shows_is_of_the_images_that_judge(run: Path) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    text = ppxcls.report(run).read_text()
    shown = set(re.findall(r"test/(\d{4})\.png", text))
    assert {"0000", "0001", "0004", "0007"} <= shown, "the mistakes"
    assert not re.findall(r"val/\d{4}\.png", text)
    assert text.count("data:image/jpeg") >= 4, "pictures of that list"
    rows = list(csv.DictReader((run / "per_class.csv").read_text().splitlines()))
    labels = [i % 3 for i in range(40)]
    guesses = labels.copy()
    guesses[1] = guesses[4] = guesses[7] = 2
    guesses[0] = 1
    precision, recall, _, support = metrics.precision_recall_fscore_support(labels, guesses)
    np.testing.assert_allclose([float(row["precision"]) for row in rows], precision)
    np.testing.assert_allclose([float(row["recall"]) for row in rows], recall)
    assert [int(row["support"]) for row in rows] == support.tolist()


def test_the_sentence_of_the_terminal(run: Path) -> None:
    record = read_record(run)
    assert record.judged
    assert worst_class(record.judged.samples, record.names) == (
        "Worst class: bee (77 %), taken for cat 3 of 13 times."
    )
    sentence = result_sentence(record)
    assert sentence.startswith("On 40 photographs that it had never seen, 36 were right: 90.0 % (")
    assert sentence.endswith("Worst class: bee (77 %), taken for cat 3 of 13 times.")
    (run / "test.json").unlink()
    assert result_sentence(read_record(run)).startswith(
        "On 10 photographs that also chose the best epoch, 9 were right: 90.0 % ("
    )
    (run / "predictions.csv").unlink()
    assert result_sentence(read_record(run)) == ""


def test_images_that_have_judged_before(run: Path) -> None:
    (run / "test.json").write_text(json.dumps({"uses": 3, "checkpoint": None}))
    assert "They have judged models of this folder 3 times." in ppxcls.report(run).read_text()


def test_the_card_has_the_figures_of_the_images_that_judge(run: Path) -> None:
    ppxcls.report(run)
    card = (run / "README.md").read_text()
    metadata = yaml.safe_load(card.split("---\n")[1])
    (result,) = metadata["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "accuracy", "name": "top1", "value": 0.9}]
    assert result["dataset"]["name"] == "data/test_list.txt"
    assert "On 40 images of `data/test_list.txt`, which neither trained nor chose (used once):" in card


def test_results_of_earlier_weights_are_not_shown(run: Path) -> None:
    digest = hashlib.sha256(b"an earlier best_model.json").hexdigest()
    (run / "test.json").write_text(json.dumps({"uses": 1, "checkpoint": digest}))
    text = html.unescape(ppxcls.report(run).read_text())
    assert "test.json judges earlier weights, so it is not shown: ppxcls eval -c Xception41 --test" in text
    assert "neither trained nor chose" not in text
    assert "The same 10 images chose the best of 2 evaluations." in text


STAGES = {
    "format": 1,
    "stages": [
        {
            **{"name": "linear <b>classifier</b>", "seconds": 71.2, "size": 299, "epochs": None},
            **{"accuracy": 0.9583, "loss": 0.15, "chosen": True, "choice": "C = 1.0 of 7"},
        },
        {
            **{"name": "all layers", "seconds": 300, "size": 128, "epochs": 2, "accuracy": 0.9417},
            **{"loss": None, "chosen": False, "choice": "epoch 2", "of a later version": 1},
        },
    ],
    "plan": [{"size": 71, "minutes": 3}, {"name": "<all> layers", "size": 299, "minutes": 25.04}],
}


def test_the_stages_of_a_fit(run: Path) -> None:
    (run / "stages.json").write_text(json.dumps(STAGES))
    text = ppxcls.report(run).read_text()
    table = text[text.index('id="stages"') : text.index('id="curves"')]
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", table)]
    assert rows[1] == [
        *(
            "linear &lt;b&gt;classifier&lt;/b&gt;",
            "299 px",
            "",
            "1.2",
            "95.83 %",
            "0.15",
            "✓",
            "C = 1.0 of 7",
        ),
    ]
    assert rows[2] == ["all layers", "128 px", "2", "5.0", "94.17 %", "", "no", "epoch 2"]
    assert "71 px: 3 min | &lt;all&gt; layers: 25 min" in table
    assert '<a href="#stages">' in text


def test_a_run_without_stages_has_no_table(run: Path) -> None:
    assert 'id="stages"' not in ppxcls.report(run).read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "expected 1 as 'format'"),
        ({"format": True}, "expected 1 as 'format'"),
        ({"stages": {}}, "expected a list of up to 100 objects as 'stages'"),
        ({"plan": [{"size": 71, "minutes": 3}] * 101}, "a list of up to 100 objects as 'plan'"),
        ({"plan": [{"size": 71}]}, "expected a number of minutes as 'minutes' in 'plan', number 1"),
        (
            {"stages": [{**STAGES["stages"][0], "accuracy": 1.5}]},
            "a number from 0 to 1 or null as 'accuracy'",
        ),
        ({"stages": [{**STAGES["stages"][0], "choice": "SECRET\n"}]}, "a printable text as 'choice'"),
        (
            {"stages": [{**STAGES["stages"][0], "size": 0}]},
            "from 1 to 100,000 as 'size' in 'stages', number 1",
        ),
    ],
)
def test_refused_stages(change: dict[str, object], message: str, tmp_path: Path) -> None:
    (tmp_path / "stages.json").write_text(json.dumps({**STAGES, **change}))
    with pytest.raises(ppxcls.DataError, match="stages.json: expected") as error:
        read_stages(tmp_path / "stages.json")
    assert message in str(error.value)
    assert "SECRET" not in str(error.value)
