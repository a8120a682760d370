"""From a folder of photographs to a classifier in one command, as a user types it.

The examples of ``--help`` run as printed.
"""

from __future__ import annotations

import csv
import json
import os
import pickle
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

import ppxcls
from ppxcls.checkpoints.files import read_state
from ppxcls.cli.verbs import VERBS
from ppxcls.fitting.settings import choose, network_of
from ppxcls.fitting.yaml_files import NON_CLASSIFIER_PATTERN, train_yaml
from ppxcls.models.weights import save_weights
from tests.conftest import ROOT, copy_folder, run_python, write_images

pytest.importorskip("jinja2")


def typed(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs ``ppxcls ...`` in a folder."""
    assert words[0] == "ppxcls"
    return run_python(["-m", *words], folder, {**os.environ, "PYTHONPATH": str(ROOT)})


def photographs(folder: Path, count: int = 12, side: int = 80) -> Path:
    """Writes folders of two classes. The colour depends on the class."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(("cats & dogs", "birds")):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            image = rng.integers(0, 60, (side, side + i, 3)).astype(np.uint8)
            image[..., label] += 150
            cv2.imwrite(str(folder / name / f"{i}.jpg"), image)
    odd = os.fsencode(folder / "birds") + b"/caf\xe9.jpg"  # Latin-1, which is not valid UTF-8
    with open(odd, "wb") as stream:
        stream.write((folder / "birds/0.jpg").read_bytes())
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``photos/``, and the result of the first command."""
    folder = tmp_path_factory.mktemp("place")
    photographs(folder / "photos")
    save_weights(
        ppxcls.build_model("legacy_xception", class_num=1000), folder / "legacy_xception.safetensors"
    )
    result = typed(["ppxcls", "fit", "photos", "--minutes", "0.05"], folder)
    assert result.returncode == 0, result.stderr
    assert "report: output/photos/Xception41/report.html" in result.stdout
    assert re.search(r"^On 4 photographs that it had never seen, \d (was|were) right: ", result.stdout, re.M)
    return folder


def test_one_command(place: Path) -> None:
    before = {f.relative_to(place / "photos") for f in (place / "photos").rglob("*")}
    assert len(before) == 27, "the folder stays as it was"
    run = place / "output/photos/Xception41"
    assert {"report.html", "README.md", "predictions.csv", "eval.json", "best_model.pdparams"} <= {
        f.name for f in run.iterdir()
    }
    judged = json.loads((run / "test.json").read_text())
    assert (judged["uses"], judged["num_samples"]) == (1, 4)
    judged_files = {
        row["file"]
        for row in csv.DictReader(
            (run / "test_predictions.csv").read_text(errors="surrogateescape").splitlines()
        )
    }
    lists = place / "output/photos/lists"
    files = {
        part: set((lists / f"{part}_list.txt").read_bytes().splitlines()) for part in ("train", "val", "test")
    }
    assert len(judged_files) == len(files["test"]) == 4
    assert not files["test"] & (files["train"] | files["val"])
    assert not files["train"] & files["val"]
    short = yaml.safe_load((place / "output/photos/train.yaml").read_text())
    assert short["base"] == "photographs"
    assert short["Arch"] == {"name": "Xception41", "class_num": 2}
    predictions = ppxcls.load(run).predict([place / "photos/birds/0.jpg"])
    assert set(predictions[0].label_names) == {"birds", "cats & dogs"}


def copied(place: Path, target: Path) -> Path:
    copy_folder(place, target)
    for file in target.rglob("*.yaml"):
        text = file.read_text(encoding="utf-8")
        file.write_text(text.replace(str(place), str(target)), encoding="utf-8")
    return target


# Verbs whose examples are run one after another. The later examples of a row read what the earlier ones wrote.
EXAMPLES = [
    ["train"],
    ["launch"],
    ["eval", "export", "infer"],
    ["report"],
    ["check"],
    ["lists", "pack"],
    ["convert"],
    ["list"],
    ["weights"],
]
# Verbs with tests of their own in this package and others.
OTHER_VERBS = {"fit", "doctor", "serve", "average", "tune", "verify"}


def test_no_verb_is_left_out() -> None:
    assert {verb for verbs in EXAMPLES for verb in verbs} | OTHER_VERBS == VERBS.keys()


@pytest.mark.parametrize("verbs", EXAMPLES, ids=" ".join)
def test_the_examples_run_as_printed(verbs: list[str], place: Path, tmp_path: Path) -> None:
    folder = copied(place, tmp_path / "place")
    if "eval" in verbs:  # new photographs for --calibrate
        write_images(folder / "photos", 50, classes=2, seed=1, name="new")
        (folder / "lists").mkdir()
        shutil.copy(folder / "photos/new_list.txt", folder / "lists/calibration.txt")
    for verb in verbs:
        shown = typed(["ppxcls", verb, "--help"], folder)
        for example in VERBS[verb].examples:
            assert f"  {example}\n" in shown.stdout
            result = typed(shlex.split(example), folder)
            assert result.returncode == 0, f"{example}: {result.stderr}"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_examples_of_fit_run_as_printed(tmp_path: Path) -> None:
    photographs(tmp_path / "photos")
    save_weights(
        ppxcls.build_model("legacy_xception", class_num=1000), tmp_path / "legacy_xception.safetensors"
    )
    for example in VERBS["fit"].examples:
        result = typed(shlex.split(example), tmp_path)
        assert result.returncode == 0, f"{example}: {result.stderr}"


def test_weights_give_a_linear_classifier_first(tmp_path: Path) -> None:
    """With too little time for more, only the classifier differs from the weights."""
    photographs(tmp_path / "photos", 4)
    model = ppxcls.build_model("Xception41", class_num=1000)
    save_weights(model, tmp_path / "Xception41_pretrained.pdparams")
    words = ["fit", "photos", "--minutes", "0.01", "--weights", "Xception41_pretrained.pdparams"]
    result = typed(["ppxcls", *words, "--output", "mine"], tmp_path)
    assert result.returncode == 0, result.stderr
    assert "report: mine/Xception41/report.html" in result.stdout
    state = read_state(tmp_path / "mine/Xception41/best_model.pdparams")
    before = {key: value.numpy() for key, value in model.state_dict().items()}
    changed = {
        key
        for key in before
        if before[key].shape != state[key].shape or not np.array_equal(before[key], state[key])
    }
    assert changed == {"_exit_flow._out.weight", "_exit_flow._out.bias"}
    stages = json.loads((tmp_path / "mine/Xception41/stages.json").read_text())
    assert [stage["name"] for stage in stages["stages"]] == ["linear classifier"]
    for verb in ("eval", "export", "report"):
        result = typed(["ppxcls", verb, *(["-c"] if verb != "report" else []), "mine/Xception41"], tmp_path)
        assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", ppxcls.list_models())
def test_all_but_the_classifier_is_frozen_in_every_network(name: str) -> None:
    model = ppxcls.build_model(name, class_num=3, freeze=[NON_CLASSIFIER_PATTERN])
    trained = {key for key, parameter in model.named_parameters() if not parameter.stop_gradient}
    assert len(trained) == 2
    assert all(model.state_dict()[key].shape[-1] == 3 for key in trained)


def test_every_verb_is_listed_with_a_line() -> None:
    shown = typed(["ppxcls", "--help"], ROOT).stdout
    for name, entry in VERBS.items():
        assert f"  {name} " in shown
        assert entry.summary in shown
    result = typed(["ppxcls", "trian"], ROOT)
    assert (result.returncode, result.stderr.splitlines()[-1]) == (2, "ppxcls: there is no verb 'trian'")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere: no such folder"),
        (["empty"], "empty: no folders of classes"),
        (["one"], "one: one class; a classifier needs at least two folders"),
        (["photos", "--minutes", "0"], "expected minutes above 0, received 0"),
        (["photos", "--minutes", "nan"], "expected minutes above 0, received nan"),
        (["photos", "--output", "photos/birds/run"], "photos/birds/run is inside the folder of photographs"),
        (["photos", "--device", "gpux"], "expected one of cpu"),
        (
            ["photos", "--weights", "mine.pdparams"],
            "mine.pdparams: not a file of weights, but an empty file",
        ),
        (["https://example.org/photos"], "URL"),
    ],
)
def test_what_can_not_be_trained_on_is_one_line(words: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "mine.pdparams").touch()
    photographs(tmp_path / "photos")
    photographs(tmp_path / "both")
    (tmp_path / "one").mkdir()
    (tmp_path / "both/birds").rename(tmp_path / "one/birds")
    result = typed(["ppxcls", "fit", *words], tmp_path)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_a_finished_fit_is_not_repeated(place: Path) -> None:
    run = place / "output/photos/Xception41"
    before = (run / "latest.json").read_bytes()
    words = shlex.split(VERBS["fit"].examples[0])[:-1]
    result = typed([*words, "0.05"], place)
    assert result.returncode == 0, result.stderr
    assert "output/photos/Xception41 is complete; give another --output to train again" in result.stdout
    result = typed([*words, "0.06"], place)
    assert result.returncode == 1
    assert "--minutes was 0.05, and is now 0.06; repeat the earlier command" in result.stderr
    assert (run / "latest.json").read_bytes() == before


def test_the_yaml_of_an_earlier_version_is_not_overwritten(tmp_path: Path) -> None:
    photographs(tmp_path / "photos", 3)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/train.yaml").write_text("base: photographs\n", encoding="utf-8")
    result = typed(["ppxcls", "fit", "photos", "--output", "out"], tmp_path)
    assert result.returncode == 1
    assert "out/train.yaml already exists: resume with 'ppxcls train -c out/train.yaml" in result.stderr


def test_the_network_is_that_of_the_weights(tmp_path: Path) -> None:
    assert network_of(None) == "Xception41"
    weights = {"stem.0.conv.weight": np.zeros(1), "blocks.20.stack.conv2.norm.weight": np.zeros(1)}
    (tmp_path / "model.pdparams").write_bytes(pickle.dumps(weights, 4))
    assert network_of(str(tmp_path / "model.pdparams")) == "xception65p"
    with pytest.raises(ValueError, match="none.pth: no such file"):
        network_of(str(tmp_path / "none.pth"))


def test_more_time_gives_more_pixels_and_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppxcls.fitting.settings._seconds_per_step", lambda *_: 0.1)
    lists = ppxcls.make_lists(photographs(tmp_path / "photos", 300, side=320), tmp_path / "lists")
    assert lists
    found = [
        choose(
            tmp_path / "photos",
            tmp_path / "lists/train_list.txt",
            class_num=2,
            network="Xception41",
            weights=None,
            minutes=minutes,
            device="cpu",
        )
        for minutes in (0.05, 5, 1000)
    ]
    sizes = [settings.size for settings in found]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (71, 299)
    assert found[-1].epochs == 60
    assert found[0].epochs == 5
    for settings in found:
        (line,) = [line for line in settings.reasons if line.startswith("minutes on this machine: ")]
        words = re.findall(r"(\d+) px ([\d.e+]+) min", line)
        assert [size for size, _ in words] == ["71", "96", "128", "192", "299"]
        minutes = [float(text) for _, text in words]
        assert minutes == sorted(minutes)
        assert {71: 0, 96: 1, 128: 2, 192: 3, 299: 4}[sizes[1]] == sum(m <= 5 for m in minutes) - 1


@pytest.mark.parametrize("minutes", [0.05, 1000])
def test_weights_keep_their_statistics_and_get_large_images(
    minutes: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also without stages, as with --find-lr. The photographs are small, and the weights are for 299 px."""
    monkeypatch.setattr("ppxcls.fitting.settings._seconds_per_step", lambda *_: 0.1)
    photographs(tmp_path / "photos", 30, side=60)
    ppxcls.make_lists(tmp_path / "photos", tmp_path / "lists")
    save_weights(ppxcls.build_model("Xception41", class_num=2), tmp_path / "weights.pdparams")
    settings = choose(
        tmp_path / "photos",
        tmp_path / "lists/train_list.txt",
        class_num=2,
        network="Xception41",
        weights=str(tmp_path / "weights.pdparams"),
        minutes=minutes,
        device="cpu",
    )
    assert settings.freezes_norms
    assert settings.size == (299 if minutes > 1 else 128)
    assert "(the weights are for 299)" in settings.reasons[1]
    content = yaml.safe_load(train_yaml(settings, tmp_path / "photos", tmp_path))
    assert content["Arch"]["freeze_norm"] is True
