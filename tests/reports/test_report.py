"""The page of a run is complete and loads nothing, also with hostile names and for runs with few results.

It is also tested in a browser.
"""

from __future__ import annotations

import base64
import csv
import html
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

import ppxcls
from ppxcls.reports import page
from ppxcls.reports.record import read_record
from ppxcls.train.predictions import COLUMNS
from tests.conftest import ROOT, copy_folder, run_tool, small_config, write_images

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")
pytest.importorskip("scipy")

HOSTILE = ["<script>alert(1)</script>", "a,b \"c\" 'd'", "${x} {{ y }} $\\frac"]


def train(folder: Path, names: list[str] = HOSTILE, **keys: Any) -> Path:
    """Trains Xception41 on small images and returns the run's folder."""
    data = write_images(folder / "data", 12)
    write_images(data, 7, seed=1, name="val")
    (data / "class_names.txt").write_text("".join(f"{i} {name}\n" for i, name in enumerate(names)))
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(small_config(data, folder / "output", **keys)))
    trainer = ppxcls.build_trainer(ppxcls.load_config(file))
    trainer.fit()
    return trainer.output_dir


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = train(tmp_path_factory.mktemp("run"), **{"Global.epochs": 2})
    assert ppxcls.report(folder) == folder / "report.html"
    return folder


def test_what_is_written(run: Path) -> None:
    text = (run / "report.html").read_text()
    expected = [
        "curves",
        "confusion",
        "confused",
        "classes",
        "calibration",
        "mistakes",
        "uncertain",
        "suspects",
        "cam",
        "balance",
    ]
    assert [name for name in expected if f'id="{name}"' not in text] == []
    assert "<script>alert" not in text
    assert html.escape(HOSTILE[0], quote=False) in text
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", text), "nothing is loaded from elsewhere"
    rows = list(csv.DictReader((run / "per_class.csv").read_text().splitlines()))
    assert [row["name"] for row in rows] == HOSTILE
    assert sum(int(row["support"]) for row in rows) == 7
    assert [int(row["training"]) for row in rows] == [4, 4, 4]
    assert {"curves.png", "calibration.png", "balance.png", "first_batch.png", "README.md"} <= {
        f.name for f in run.iterdir()
    }
    card = (run / "README.md").read_text().split("---\n")
    meta = yaml.safe_load(card[1])
    assert meta["pipeline_tag"] == "image-classification"
    (value,) = [m["value"] for m in meta["model-index"][0]["results"][0]["metrics"]]
    assert value == pytest.approx(
        json.loads((run / "best_model.json").read_text())["progress"]["best"]["value"], abs=1e-5
    )


def test_the_predictions_are_those_of_the_best_evaluation(run: Path, tmp_path: Path) -> None:
    run = copy_folder(run, tmp_path / "copy")
    rows = list(csv.DictReader((run / "predictions.csv").read_text().splitlines()))
    assert [row["file"].rsplit("/", 2)[1:] for row in rows] == [["val", f"{i:04d}.png"] for i in range(7)]
    assert {row["label_name"] for row in rows} == set(HOSTILE)
    files = [row["file"] for row in rows]
    predictions = ppxcls.load(run).predict(files, topk=3)
    for row, prediction in zip(rows, predictions, strict=True):
        assert [int(i) for i in row["top_ids"].split()] == prediction.class_ids
        np.testing.assert_allclose(
            [float(s) for s in row["top_scores"].split()], prediction.scores, atol=2e-5
        )
        own = dict(zip(prediction.class_ids, prediction.scores, strict=True))[int(row["label"])]
        assert float(row["label_score"]) == pytest.approx(own, abs=2e-5)
    ppxcls.evaluate(ppxcls.load_config(run))
    assert list(csv.DictReader((run / "predictions.csv").read_text().splitlines())) == rows


def test_two_processes_write_the_predictions_of_one(tmp_path: Path, run: Path) -> None:
    """Seven samples on two processes: each is gathered exactly once."""
    run = copy_folder(run, tmp_path / "copy")
    before = list(csv.DictReader((run / "predictions.csv").read_text().splitlines()))
    (run / "predictions.csv").unlink()
    result = run_tool(ROOT / "tools/eval.py", "-c", run, processes=2, log_dir=tmp_path / "log")
    assert result.returncode == 0, result.stdout + result.stderr
    after = list(csv.DictReader((run / "predictions.csv").read_text().splitlines()))
    assert [row["file"] for row in after] == [row["file"] for row in before]
    for own, theirs in zip(after, before, strict=True):  # other rounding: the batch sizes differ
        for key in ("label_score", "top_scores"):
            np.testing.assert_allclose(
                *([float(x) for x in row[key].split()] for row in (own, theirs)), atol=1e-5
            )


def copied(run: Path, tmp_path: Path) -> Path:
    shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns("*.pd*"))
    return tmp_path / "copy"


def test_figures_of_images_that_chose_the_epoch_say_so(run: Path, tmp_path: Path) -> None:
    folder = copied(run, tmp_path)
    note = "The same 7 images chose the best of 2 evaluations."
    text = ppxcls.report(folder).read_text()
    assert text.count(note) == 1
    assert "image_root=FOLDER -o DataLoader.Eval.dataset.cls_label_path=LIST" in text
    assert ", on the images that chose the epoch" in text
    assert (folder / "README.md").read_text().count(note) == 1
    rows = (folder / "metrics.jsonl").read_text().splitlines()
    evaluations = [row for row in rows if json.loads(row)["kind"] == "eval"]
    (folder / "metrics.jsonl").write_text("\n".join(row for row in rows if row != evaluations[0]) + "\n")
    text = ppxcls.report(folder).read_text()
    assert "chose the best of" not in text, "one evaluation is no choice"
    assert "chose the epoch" not in text


def test_pictures_and_counts_of_data_in_another_place(run: Path, tmp_path: Path) -> None:
    """The predictions have the paths of the training. The list tells where the images are now."""
    folder = copied(run, tmp_path)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    data = shutil.copytree(config["DataLoader"]["Eval"]["dataset"]["image_root"], tmp_path / "data")
    table = (folder / "predictions.csv").read_text()
    (folder / "predictions.csv").write_text(
        re.sub(r"^/.*/(val/\d+.png)", r"gone/\1", table, flags=re.MULTILINE)
    )
    assert "gone/val/0000.png" in (folder / "predictions.csv").read_text()
    text = ppxcls.report(folder).read_text()
    assert "The images are not where they were" not in text
    assert "no picture" not in text
    rows = list(csv.DictReader((folder / "per_class.csv").read_text().splitlines()))
    assert [row["training"] for row in rows] == ["4", "4", "4"]
    # Another training list under the path of the run's own has other counts.
    config["DataLoader"]["Train"]["dataset"]["cls_label_path"] = str(data / "val_list.txt")
    (folder / "config.yaml").write_text("# Written by ppxcls\n" + yaml.safe_dump(config))
    ppxcls.report(folder)
    rows = list(csv.DictReader((folder / "per_class.csv").read_text().splitlines()))
    assert [row["training"] for row in rows] == ["", "", ""]


def test_a_run_that_was_never_evaluated(run: Path, tmp_path: Path) -> None:
    folder = copied(run, tmp_path)
    (folder / "predictions.csv").unlink()
    text = ppxcls.report(folder).read_text()
    assert "This run was not evaluated" in text
    assert 'id="confusion"' not in text
    assert 'id="curves"' in text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "predictions.csv",
            "file,label\n",
            "predictions.csv:1: not a row of predictions: expected the columns",
        ),
        (
            "predictions.csv",
            "HEAD\na,9,b,0,c,1,1,0,1\n",
            "predictions.csv:2: .*a class from 0 to 2 as 'label'",
        ),
        ("predictions.csv", "HEAD\na,0,b,0,c,nan,1,0,1\n", "predictions.csv:2: .* from 0 to 1 as 'score'"),
        ("predictions.csv", "HEAD\na,0,b,0,c,1", "predictions.csv:2: .*expected 9 columns, received 6"),
        ("metrics.jsonl", "{]\n", r"metrics.jsonl:1: not a line of metrics: not JSON \(.*, column 2\)"),
        ("metrics.jsonl", "LINE\n[1]\n", "metrics.jsonl:2: not a line of metrics: expected an object"),
        (
            "metrics.jsonl",
            '{"kind": "train", "epoch": 1}\n',
            "metrics.jsonl:1: .*whole number from 0 as 'step'",
        ),
        ("metrics.jsonl", "[" * 100_000 + "\n", "metrics.jsonl:1: .*nested too deeply"),
        ("best_model.json", "{", r"best_model.json: not a checkpoint's manifest: not JSON"),
    ],
)
def test_an_invalid_file_of_a_run_is_named_with_its_line(
    name: str, content: str, message: str, run: Path, tmp_path: Path
) -> None:
    folder = copied(run, tmp_path)
    line = '{"kind": "train", "epoch": 1, "step": 1}'
    content = content.replace("HEAD", ",".join(COLUMNS)).replace("LINE", line)
    (folder / name).write_text(content)
    page_before = (folder / "report.html").read_bytes()
    with pytest.raises(ppxcls.DataError, match=message):
        ppxcls.report(folder)
    assert (folder / "report.html").read_bytes() == page_before


def test_a_line_that_a_killed_run_has_cut_is_left_out(run: Path, tmp_path: Path) -> None:
    folder = copied(run, tmp_path)
    count = len(read_record(folder).train) + len(read_record(folder).evaluations)
    with open(folder / "metrics.jsonl", "a") as stream:
        stream.write('{"kind": "train", "epoch": 1, "st')
    record = read_record(folder)
    assert len(record.train) + len(record.evaluations) == count
    (folder / "predictions.csv").write_text("")
    with pytest.raises(ppxcls.DataError, match="predictions.csv:1: not a row of predictions"):
        ppxcls.report(folder)
    (folder / "predictions.csv").write_text(",".join(COLUMNS) + "\r\n")
    assert "This run was not evaluated" in ppxcls.report(folder).read_text()


def test_no_file_from_elsewhere_gets_into_the_page(run: Path, tmp_path: Path) -> None:
    folder = copied(run, tmp_path)
    secret = tmp_path / "key"
    secret.write_text("-----BEGIN OPENSSH PRIVATE KEY-----")
    private_picture = tmp_path / "private.png"
    cv2.imwrite(str(private_picture), np.full((64, 64, 3), 200, np.uint8))
    (folder / "first_batch.png").unlink()
    (folder / "first_batch.png").symlink_to(secret)
    (folder / "README.md").unlink()
    (folder / "README.md").symlink_to(secret)
    lines = (folder / "predictions.csv").read_text().splitlines()
    cells = lines[1].split(",")
    rows = [lines[0], *(",".join([str(private_picture), *cells[1:]]) for _ in range(5))]
    (folder / "predictions.csv").write_text("\n".join(rows) + "\n")
    text = ppxcls.report(folder).read_text()
    assert "first_batch.png is left out, because it is no picture that a run writes." in text
    assert "Pictures are left out that lie" in text
    assert "data:image/jpeg" not in text
    assert "OPENSSH" not in text
    assert secret.read_text() == "-----BEGIN OPENSSH PRIVATE KEY-----"
    (folder / "first_batch.png").unlink()
    picture = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    (folder / "first_batch.png").write_bytes(picture + b"SECRET-TAIL" * 9)
    text = ppxcls.report(folder).read_text()
    assert "First training batch" in text
    embedded = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    assert embedded
    assert not any(b"SECRET-TAIL" in base64.b64decode(content) for content in embedded)
    (folder / "class_names.txt").unlink()
    (folder / "class_names.txt").symlink_to(secret)
    with pytest.raises(ppxcls.DataError, match="class_names.txt is a link out of the run's folder"):
        ppxcls.report(folder)


def test_pictures_in_the_folder_of_the_run_are_shown(run: Path, tmp_path: Path) -> None:
    folder = copied(run, tmp_path)
    cv2.imwrite(str(folder / "mine.png"), np.full((64, 64, 3), 200, np.uint8))
    lines = (folder / "predictions.csv").read_text().splitlines()
    (folder / "predictions.csv").write_text(
        "\n".join([lines[0], ",".join([str(folder / "mine.png"), *lines[1].split(",")[1:]])]) + "\n"
    )
    assert "data:image/jpeg" in ppxcls.report(folder).read_text()


def test_two_reports_at_once(run: Path, tmp_path: Path) -> None:
    folder = copied(run, tmp_path)
    command = [sys.executable, "-m", "ppxcls", "report", str(folder)]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        for _ in range(2)
    ]
    outputs = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert (folder / "report.html").read_text().rstrip().endswith("</html>")
    assert not list(folder.glob("*.new"))


def test_line_separators_in_names_do_not_split_rows(run: Path, tmp_path: Path) -> None:
    folder = copied(run, tmp_path)
    text = (folder / "predictions.csv").read_text()
    (folder / "predictions.csv").write_text(text.replace("0001.png", "00\x85\u2028\x0b\x1c01.png"))
    record = read_record(folder)
    assert record.samples
    assert len(record.samples) == 7


def test_a_card_of_the_user_stays(run: Path, tmp_path: Path) -> None:
    folder = copied(run, tmp_path)
    (folder / "README.md").write_text("# Mine\n")
    ppxcls.report(folder)
    assert (folder / "README.md").read_text() == "# Mine\n"


def test_one_class_without_samples_and_images_that_are_gone(run: Path, tmp_path: Path) -> None:
    folder = copied(run, tmp_path)
    lines = (folder / "predictions.csv").read_text().splitlines()
    kept = [line.replace("/val/", "/gone/") for line in lines if line.split(",")[1] != "2"]
    (folder / "predictions.csv").write_text("\n".join(kept) + "\n")
    text = ppxcls.report(folder).read_text()
    assert "1 of 3 classes have no evaluated sample" in text
    assert "The images are not where they were during the evaluation" in text
    assert "no picture" in text


def test_images_of_one_pixel(tmp_path: Path) -> None:
    folder = train(tmp_path, ["a", "b", "c"])
    record = read_record(folder)
    assert record.samples
    import cv2

    for file in record.samples.files:
        cv2.imwrite(file, np.full((1, 1, 3), 7, np.uint8))
    assert 'id="cam"' in ppxcls.report(folder).read_text()


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ppxcls.ConfigError, match="no such config file"):
        ppxcls.report(tmp_path)


def test_without_the_packages_training_ends_well(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    lines: list[str] = []
    monkeypatch.setattr(page.logger, "info", lines.append)
    page.report_after_training(run)
    assert lines == [
        "a report needs jinja2, matplotlib and scipy, which "
        "are not all installed: pip install 'ppxcls[report]'"
    ]


def test_the_page_of_one_run_has_its_place(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "one.html"
    message = f"{file}: expected several runs, to compare them in this file; the page of one run is {run}/report.html"
    with pytest.raises(ppxcls.DataError) as caught:
        ppxcls.report(run, file)
    assert str(caught.value) == message
    result = run_tool("report", run, "--output", file)
    assert (result.returncode, result.stderr.splitlines()[-1]) == (1, f"error: {message}")
    assert not file.exists()


def test_runs_side_by_side(run: Path, tmp_path: Path) -> None:
    other = train(tmp_path, **{"Optimizer.lr": {"name": "ConstLR", "learning_rate": 0.01}})
    result = run_tool("report", run, other, "--output", tmp_path / "both.html")
    assert result.returncode == 0, result.stderr
    text = (tmp_path / "both.html").read_text()
    assert str(other) in text
    assert "Optimizer.lr.name" in text
    assert "Optimizer.momentum" not in text, "only what differs"
    assert "evaluated on different lists" not in text
    manifest = json.loads((other / "best_model.json").read_text())
    (other / "best_model.json").write_text(json.dumps({**manifest, "eval_list": "0" * 64}))
    ppxcls.report([run, other], tmp_path / "both.html")
    assert "The runs were evaluated on different lists" in (tmp_path / "both.html").read_text()


@pytest.mark.parametrize("classes", [1000, 21_841])
def test_many_classes_stay_small(classes: int, run: Path, tmp_path: Path) -> None:
    """50,000 predictions. Above 2,000 classes the confusion matrix has no picture."""
    folder = copied(run, tmp_path)
    count, rng = 50_000, np.random.default_rng(0)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["Arch"]["class_num"] = classes
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "class_names.txt").write_text("".join(f"{i} class {i}\n" for i in range(classes)))
    labels = np.arange(count) % classes
    predicted = np.where(rng.random(count) < 0.8, labels, rng.integers(0, classes, count))
    header = (run / "predictions.csv").read_text().splitlines()[0]
    image = (run / "predictions.csv").read_text().splitlines()[1].split(",")[0]
    rows = [
        f"{image},{a},x,{b},y,{s:.3f},{s:.3f},{b},{s:.3f},1.0"
        for a, b, s in zip(labels, predicted, rng.random(count), strict=True)
    ]
    (folder / "predictions.csv").write_text("\n".join([header, *rows]) + "\n")
    file = ppxcls.report(folder)
    assert file.stat().st_size < 20e6
    assert ('<canvas id="matrix" width="1000"' in file.read_text()) == (classes == 1000)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None or importlib.util.find_spec("playwright") is None:
        pytest.skip("no Chromium, or no Playwright to drive it")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield browser
        browser.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser(width: int, scheme: str, run: Path, browser: Any) -> None:
    """No request leaves the page, no script fails, and nothing is wider than the window.

    The tables are sorted and filtered by keyboard only.
    """
    tab = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    requests: list[str] = []
    problems: list[str] = []
    tab.on("request", lambda request: requests.append(request.url))
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("console", lambda message: problems.append(message.text))
    tab.goto((run / "report.html").as_uri())
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    names: Callable[[], list[str]] = lambda: tab.eval_on_selector_all(  # noqa: E731
        "#per-class tbody tr", "rows => rows.filter(row => !row.hidden).map(row => row.cells[0].textContent)"
    )
    assert names() == HOSTILE
    tab.focus("#per-class th:first-child button")
    tab.keyboard.press("Enter")
    assert names() == sorted(HOSTILE, reverse=True)
    tab.keyboard.press("Enter")
    assert names() == sorted(HOSTILE)
    assert tab.get_attribute("#per-class th:first-child", "aria-sort") == "ascending"
    tab.focus("input[data-for=per-class]")
    tab.keyboard.type("SCRIPT")
    assert names() == [HOSTILE[0]]
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    assert problems == []
    tab.close()
