"""The script of a run's page writes the table that ``ppxcls lists --apply`` reads."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

import ppxcls
from ppxcls.data.corrections import Correction, apply_corrections, corrections_text, read_corrections
from ppxcls.data.list_index import list_line
from ppxcls.train.predictions import COLUMNS
from tests.conftest import small_config

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")
pytest.importorskip("scipy")

NAMES = ["=1+1", 'a, "b"', "größe </script>"]
# Image, label and predicted class; each is suspect.
SUSPECTS = [
    ('=x, "y".png', 0, 1),
    ("sub/ü 'z'.png", 1, 2),
    ("line\nfeed.png", 2, 0),
    ("t.png", 0, 2),
]
# As much of a browser as the script needs. The last line prints what the button writes.
BROWSER = """
const page = JSON.parse(process.argv[1]), texts = [];
const element = (keys = {}) => ({append() {}, ...keys});
const parts = {"suspect-data": {textContent: page.data}, "corrections": element(), "corrections-state": element(), "class-names": element()};
const figures = page.ticks.map((_, i) => {
  const inputs = {".tick": {checked: false}, ".drop": {checked: false}, ".right": {value: ""}};
  return {dataset: {suspect: String(i)}, querySelector: name => inputs[name]};
});
globalThis.document = {getElementById: name => parts[name], querySelectorAll: () => figures, createElement: () => element({click() {}})};
globalThis.Blob = class { constructor(content) { texts.push(content.join("")); } };
globalThis.URL = {createObjectURL: () => "blob:"};
(0, eval)(page.script);
const values = figures.map(figure => figure.querySelector(".right").value);
figures.forEach(figure => {
  const drop = figure.querySelector(".drop");
  for (const isChecked of [true, false]) { drop.checked = isChecked; drop.onchange(); }
});
parts.corrections.onclick();
const states = [parts["corrections-state"].textContent];
page.ticks.forEach((tick, i) => {
  const input = name => figures[i].querySelector(name);
  if (tick === "drop") { input(".drop").checked = true; input(".drop").onchange(); }
  else if (tick === "wrong") { input(".right").value = "no such class"; input(".right").oninput(); parts.corrections.onclick(); states.push(parts["corrections-state"].textContent); input(".tick").checked = false; }
  else { input(".right").value = tick; input(".right").oninput(); }
});
parts.corrections.onclick();
states.push(parts["corrections-state"].textContent);
console.log(JSON.stringify({values, texts, states}));
"""


@pytest.fixture
def page(tmp_path: Path) -> str:
    """The page of a run without weights, whose predictions are known."""
    data, run = tmp_path / "data", tmp_path / "output" / "Xception41"
    (data / "sub").mkdir(parents=True)
    run.mkdir(parents=True)
    rows = []
    for name, label, predicted in SUSPECTS:
        cv2.imwrite(str(data / "t.png"), np.zeros((8, 8, 3), np.uint8))
        if name != "t.png":
            shutil.copy(data / "t.png", data / name)
        rows.append(
            [data / name, label, NAMES[label], predicted, NAMES[predicted], 0.9, 0.05, predicted, 0.9]
        )
    for label in range(3):  # certain ones, so that the thresholds of confident learning are below 0.9
        rows += [[data / "t.png", label, "", label, "", 0.6, 0.6, label, 0.6]] * 5
    with open(run / "predictions.csv", "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([COLUMNS, *rows])
    text = "".join(f"{list_line(name, label)}\n" for name, label, _ in SUSPECTS)
    (data / "train_list.txt").write_text(text)
    (data / "val_list.txt").write_text(text)
    (data / "class_names.txt").write_text("".join(f"{i} {name}\n" for i, name in enumerate(NAMES)))
    config = small_config(data, tmp_path / "output")
    (run / "config.yaml").write_text("# Written by ppxcls\n" + yaml.safe_dump(config))
    return ppxcls.report(run).read_text()


def test_ticks_write_the_table_that_lists_apply(page: str, tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    (data,) = re.findall(r'id="suspect-data">(.*?)</script>', page)
    (script,) = re.findall(r"<script>\n(const correctionsText = .*?)</script>", page, re.DOTALL)
    suspects = json.loads(data)["suspects"]
    images = [suspect["image"] for suspect in suspects]
    assert sorted(images) == sorted(name for name, _, _ in SUSPECTS)
    ticks = dict(zip([name for name, _, _ in SUSPECTS], [NAMES[1], NAMES[2], "drop", "wrong"], strict=True))
    argument = json.dumps({"data": data, "script": script, "ticks": [ticks[image] for image in images]})
    result = subprocess.run([node, "-e", BROWSER, argument], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    received = json.loads(result.stdout)
    assert received["values"] == [NAMES[suspect["predicted"]] for suspect in suspects], "a suggestion"
    assert received["states"] == [
        "nothing is ticked",
        "t.png: no class has the name no such class",
        "3 rows",
    ]
    (text,) = received["texts"]
    names = {suspect["image"]: NAMES[suspect["label"]] for suspect in suspects}
    expected = [
        Correction(image, names[image], None if ticks[image] == "drop" else ticks[image], line)
        for line, image in enumerate([image for image in images if ticks[image] != "wrong"], 2)
    ]
    assert text == corrections_text(expected)
    (tmp_path / "corrections.csv").write_text(text, encoding="utf-8", newline="")
    rows = read_corrections(tmp_path / "corrections.csv")
    assert [(row.image, row.label, row.new_label) for row in rows] == [
        (row.image, row.label, row.new_label) for row in expected
    ]
    summary = apply_corrections(tmp_path / "data/train_list.txt", tmp_path / "corrections.csv")
    assert "of 4, 2 changed, 1 dropped" in str(summary)


def test_the_page_loads_nothing_and_names_the_command(page: str, tmp_path: Path) -> None:
    assert f"ppxcls lists {tmp_path / 'data'} --apply corrections.csv" in page
    assert page.count('class="tick"') == len(SUSPECTS)
    assert "größe </script>" not in page
    assert "default-src 'none'" in page
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", page)
