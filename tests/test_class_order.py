"""A list and a run agree on their classes by name, in every verb that brings them together."""

from __future__ import annotations

import csv
import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

import ppxcls
from ppxcls.checkpoints.files import read_manifest
from ppxcls.deploy.build_export import _quantisation_data
from tests.conftest import run_tool

NAMES = ("ant", "bee", "cat")


@pytest.fixture
def lists(tmp_path: Path, images: Path) -> Path:
    """A folder with the session's images, their lists and names."""
    folder = tmp_path / "lists"
    shutil.copytree(images, folder)
    write_names(folder, *NAMES)
    return folder


@pytest.fixture
def run(small: Callable[..., Path], lists: Path, tmp_path: Path) -> Path:
    """The folder of a run on these lists."""
    return trained(small(**places(lists)), tmp_path)


def trained(file: Path, tmp_path: Path, *overrides: str) -> Path:
    ppxcls.build_trainer(ppxcls.load_config(file, list(overrides))).fit()
    return tmp_path / "output/SmallNetwork"


def places(folder: Path) -> dict[str, Any]:
    keys = {"image_root": str(folder)}
    return {
        f"DataLoader.{mode}.dataset.{key}": value
        for mode, name in (("Train", "train"), ("Eval", "val"))
        for key, value in {**keys, "cls_label_path": str(folder / f"{name}_list.txt")}.items()
    }


def write_names(folder: Path, *names: str) -> None:
    (folder / "class_names.txt").write_text("".join(f"{i} {name}\n" for i, name in enumerate(names)))


def relabelled(folder: Path, target: Path, *names: str) -> Path:
    """Copies a folder of lists, with the classes in another order, and perhaps more of them."""
    shutil.copytree(folder, target)
    write_names(target, *names)
    for file in target.glob("*_list.txt"):
        rows = [line.rsplit(" ", 1) for line in file.read_text().splitlines()]
        file.write_text("".join(f"{path} {names.index(NAMES[int(label)])}\n" for path, label in rows))
    return target


def eval_of(folder: Path) -> list[str]:
    return [f"{key}={value}" for key, value in places(folder).items() if ".Eval." in key]


def predictions(file: Path) -> list[tuple[str, str, str]]:
    with open(file, newline="") as stream:
        return [
            (Path(row["file"]).name, row["label_name"], row["predicted_name"])
            for row in csv.DictReader(stream)
        ]


def test_an_evaluation_maps_labels_by_name(
    run: Path, lists: Path, tmp_path: Path, new_warnings: Callable[[], list[str]]
) -> None:
    own_results = ppxcls.evaluate(ppxcls.load_config(run))
    files = {name: (run / name).read_bytes() for name in ("eval.json", "predictions.csv")}
    new_warnings()
    for number, names in enumerate((("cat", "ant", "bee"), ("ant", "aphid", "bee", "cat"))):
        other = relabelled(lists, tmp_path / f"other{number}", *names)
        results = ppxcls.evaluate(ppxcls.load_config(run, eval_of(other)))
        assert results == pytest.approx(own_results, rel=1e-6)
        assert predictions(run / "predictions_other.csv") == predictions(run / "predictions.csv")
        (line,) = [text for text in new_warnings() if "mapped by name" in text]
        assert line.startswith(f"{other}/val_list.txt: labels are mapped by name, because {other}")
        assert json.loads((run / "eval_other.json").read_text())["num_samples"] == 7
    assert {name: (run / name).read_bytes() for name in files} == files


def test_a_list_without_a_class_keeps_the_meaning_of_the_others(run: Path, lists: Path) -> None:
    """The list lacks ``bee``, so ``cat`` is number 1 in it."""
    write_names(lists, "ant", "cat")
    rows = [line.rsplit(" ", 1) for line in (lists / "val_list.txt").read_text().splitlines()]
    kept_rows = [(path, "1" if label == "2" else label) for path, label in rows if label != "1"]
    (lists / "val_list.txt").write_text("".join(f"{path} {label}\n" for path, label in kept_rows))
    ppxcls.evaluate(ppxcls.load_config(run))
    labels = [name for _, name, _ in predictions(run / "predictions_other.csv")]
    assert labels == ["ant" if label == "0" else "cat" for _, label in kept_rows]


def test_lists_made_anew_with_a_renamed_class(run: Path, lists: Path) -> None:
    ppxcls.evaluate(ppxcls.load_config(run))
    files = {
        name: (run / name).read_bytes()
        for name in ("eval.json", "predictions.csv", "report.html")
        if (run / name).exists()
    }
    write_names(lists, "ant", "Biene", "cat")
    expected = (
        rf"val_list.txt:2: the class 'Biene' of {re.escape(str(lists))}/class_names.txt is none of the "
    )
    for verb in (ppxcls.evaluate, ppxcls.check_data):
        with pytest.raises(
            ppxcls.DataError, match="the class 'Biene' of .* is none of the network's classes"
        ):
            verb(ppxcls.load_config(run))
    with pytest.raises(ppxcls.DataError, match=expected):
        ppxcls.evaluate(ppxcls.load_config(run))
    resumed = ppxcls.load_config(run, ["Global.checkpoints=auto", "Global.epochs=2"])
    with pytest.raises(ppxcls.DataError, match="the class 'Biene' of "):
        ppxcls.build_trainer(resumed)
    assert {name: (run / name).read_bytes() for name in files} == files
    write_names(run, "ant", "Biene", "cat")  # the way out that the message names
    results = ppxcls.evaluate(ppxcls.load_config(run))
    assert results["num_samples"] == 7
    assert {label for _, label, _ in predictions(run / "predictions.csv")} == {"ant", "Biene", "cat"}


def test_another_list_in_place_of_the_runs_own_is_not_its_own(run: Path, lists: Path) -> None:
    """The same classes, but another list under the same path: the run's files stay as they are."""
    ppxcls.evaluate(ppxcls.load_config(run))
    before = (run / "eval.json").read_bytes(), (run / "predictions.csv").read_bytes()
    text = (lists / "val_list.txt").read_text()
    (lists / "val_list.txt").write_text("".join(text.splitlines(keepends=True)[:3]))
    result = run_tool("eval", "-c", run)
    assert result.returncode == 0, result.stderr
    own = f"(written to {run}/eval_other.json, because it is not the run's own evaluation: another list)"
    assert own in result.stdout
    assert before == ((run / "eval.json").read_bytes(), (run / "predictions.csv").read_bytes())
    assert json.loads((run / "eval_other.json").read_text())["num_samples"] == 3
    (lists / "val_list.txt").write_text(text)
    (run / "eval.json").unlink()
    ppxcls.evaluate(ppxcls.load_config(run))
    assert json.loads((run / "eval.json").read_text())["num_samples"] == 7


def test_training_and_evaluation_lists_with_other_orders(
    small: Callable[..., Path], lists: Path, tmp_path: Path
) -> None:
    other = relabelled(lists, tmp_path / "other", "cat", "bee", "ant")
    config = ppxcls.load_config(small(**places(lists)), eval_of(other))
    trainer = ppxcls.build_trainer(config)
    assert trainer.evaluation
    expected = ppxcls.build_trainer(ppxcls.load_config(small(**places(lists)))).evaluation
    assert expected
    labels = trainer.evaluation.loader.dataset.labels
    assert np.array_equal(labels, expected.loader.dataset.labels)
    assert trainer.run.facts.class_names == list(NAMES)
    write_names(other, "cat", "bee", "wasp")
    with pytest.raises(ppxcls.DataError, match=r"other/val_list.txt:1: the class 'wasp' of "):
        ppxcls.build_trainer(config)


def test_packed_data_is_mapped_too(run: Path, lists: Path, tmp_path: Path) -> None:
    other = relabelled(lists, tmp_path / "other", "bee", "cat", "ant")
    ppxcls.pack(other / "val_list.txt", other, output=tmp_path / "packed")
    config = ppxcls.load_config(
        run,
        [
            f"DataLoader.Eval.dataset={{name: PackedDataset, pack: {tmp_path}/packed, transform_ops: "
            "[{DecodeImage: {}}, {ResizeImage: {resize_short: 75}}, {CropImage: {size: 71}}, "
            "{NormalizeImage: {order: ''}}]}"
        ],
    )
    own_results = ppxcls.evaluate(ppxcls.load_config(run))
    assert ppxcls.evaluate(config) == pytest.approx(own_results, rel=1e-6)
    write_names(other, "bee", "ant", "cat")
    with pytest.raises(ppxcls.DataError, match=r"have different classes: 1 is 'cat' and 'ant'"):
        ppxcls.verify_pack(tmp_path / "packed", other / "val_list.txt", image_root=other)


def test_a_resumed_run_keeps_its_classes(run: Path, lists: Path) -> None:
    """Only the order in ``class_names.txt`` differs, so every label has another meaning now."""
    write_names(lists, "bee", "ant", "cat")
    resumed = ["Global.checkpoints=auto", "Global.epochs=2"]
    with pytest.raises(ppxcls.CheckpointError, match="another training list"):
        ppxcls.build_trainer(ppxcls.load_config(run, resumed))
    trainer = ppxcls.build_trainer(ppxcls.load_config(run, [*resumed, "Global.allow_changes=True"]))
    assert trainer.loader.dataset.labels[:3].tolist() == [1, 0, 2]
    assert trainer.run.class_names == list(NAMES)


def test_a_new_training_takes_the_classifier_by_name(
    run: Path, lists: Path, tmp_path: Path, new_warnings: Callable[[], list[str]]
) -> None:
    other = relabelled(lists, tmp_path / "other", "cat", "ant", "bee")
    changes = [f"{key}={value}" for key, value in places(other).items()]
    changes += [f"Global.pretrained_model={run}/best_model", f"Global.output_dir={tmp_path}/second"]
    config = ppxcls.load_config(run, changes)
    source = ppxcls.build_trainer(ppxcls.load_config(run, changes[-2:])).learner.network.state_dict()
    new_warnings()
    target = ppxcls.build_trainer(config).learner.network.state_dict()
    order = [NAMES.index(name) for name in ("cat", "ant", "bee")]
    for key in ("fc.weight", "fc.bias"):
        assert np.array_equal(target[key].numpy(), source[key].numpy()[..., order])
    assert np.array_equal(target["conv.weight"].numpy(), source["conv.weight"].numpy())
    assert any(f"the classifier of {run}/best_model is mapped by name" in text for text in new_warnings())
    write_names(other, "cat", "wasp", "bee")
    target = ppxcls.build_trainer(config).learner.network.state_dict()
    assert np.array_equal(target["fc.weight"].numpy()[:, [0, 2]], source["fc.weight"].numpy()[:, [2, 1]])
    assert not np.array_equal(target["fc.weight"].numpy()[:, 1], source["fc.weight"].numpy()[:, 0])
    counts = "2 carried over (cat, bee), 1 with fresh weights (wasp), 1 left out (ant)"
    assert any(text.endswith(counts) for text in new_warnings())


def test_names_travel_with_the_weights(run: Path, lists: Path, tmp_path: Path) -> None:
    assert read_manifest(run / "best_model")["class_names"] == list(NAMES)
    (tmp_path / "copied").mkdir()
    for file in run.glob("best_model.*"):
        shutil.copy(file, tmp_path / "copied")
    own_results = ppxcls.evaluate(ppxcls.load_config(run))
    other = relabelled(lists, tmp_path / "other", "cat", "ant", "bee")
    changes = [*eval_of(other), f"Global.output_dir={tmp_path}/second"]
    changes.append(f"Global.pretrained_model={tmp_path}/copied/best_model")
    yaml_file = tmp_path / "config.yaml"
    assert ppxcls.evaluate(ppxcls.load_config(yaml_file, changes)) == pytest.approx(own_results, rel=1e-6)
    (lists / "class_names.txt").unlink()
    weights = [f"Global.pretrained_model={tmp_path}/copied/best_model", "Global.output_dir=elsewhere"]
    assert ppxcls.load(ppxcls.load_config(yaml_file, weights)).names == list(NAMES)


def test_other_names_for_the_same_classes(small: Callable[..., Path], lists: Path, tmp_path: Path) -> None:
    """A run may show names of another file. Its labels are still compared with its list's names."""
    words = tmp_path / "words.txt"
    words.write_text("0 Ameise\n1 Biene\n2 Katze\n")
    file = small(Infer={"PostProcess": {}}, **places(lists))
    run = trained(file, tmp_path, f"Infer.PostProcess.class_id_map_file={words}")
    results = ppxcls.evaluate(ppxcls.load_config(run))
    assert results["num_samples"] == 7
    assert {label for _, label, _ in predictions(run / "predictions.csv")} == {"Ameise", "Biene", "Katze"}
    other = relabelled(lists, tmp_path / "other", "cat", "ant", "bee")
    assert ppxcls.evaluate(ppxcls.load_config(run, eval_of(other))) == pytest.approx(results, rel=1e-6)


def test_lists_without_names_and_foreign_weights_are_as_before(
    run: Path, lists: Path, tmp_path: Path, new_warnings: Callable[[], list[str]]
) -> None:
    (lists / "class_names.txt").unlink()
    assert ppxcls.evaluate(ppxcls.load_config(run))["num_samples"] == 7
    write_names(lists, "x", "y", "z")
    paddle.save(ppxcls.build_model("SmallNetwork").state_dict(), str(tmp_path / "foreign.pdparams"))
    weights = [f"Global.pretrained_model={tmp_path}/foreign", "Global.output_dir=" + str(tmp_path / "second")]
    new_warnings()
    ppxcls.evaluate(ppxcls.load_config(tmp_path / "config.yaml", weights))
    assert not any("mapped by name" in text for text in new_warnings())


def test_calibration_images_are_of_the_networks_classes(run: Path, lists: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    config = ppxcls.load_config(run)
    blocks = config.DataLoader.Eval.dataset.transform_ops
    classes = ppxcls.build.choices.network_classes(config, "export", None)
    other = relabelled(lists, tmp_path / "other", "cat", "ant", "bee")

    def calibration() -> Any:
        file = str(other / "val_list.txt")
        return _quantisation_data(config, file, blocks=blocks, formats=["onnx"], classes=classes)[0]

    assert calibration().labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    write_names(other, "cat", "ant", "wasp")
    with pytest.raises(ppxcls.DataError, match="the class 'wasp' of "):
        calibration()


def test_a_run_without_evaluations_knows_its_list_by_its_first_result(
    small: Callable[..., Path], lists: Path, tmp_path: Path
) -> None:
    run = trained(small(**places(lists)), tmp_path, "Global.eval_during_train=False")
    assert read_manifest(run / "latest")["eval_list"] == ""
    ppxcls.evaluate(ppxcls.load_config(run))
    first = (run / "eval.json").read_bytes()
    assert not (run / "eval_other.json").exists()
    text = (lists / "val_list.txt").read_text()
    (lists / "val_list.txt").write_text("".join(text.splitlines(keepends=True)[:3]))
    ppxcls.evaluate(ppxcls.load_config(run))
    assert (run / "eval.json").read_bytes() == first
    assert json.loads((run / "eval_other.json").read_text())["num_samples"] == 3


def test_an_export_takes_the_images_of_a_list_with_more_classes(
    run: Path, lists: Path, tmp_path: Path, new_warnings: Callable[[], list[str]]
) -> None:
    other = relabelled(lists, tmp_path / "other", "ant", "aphid", "bee", "cat")
    overrides = [*eval_of(other), f"Global.save_inference_dir={tmp_path}/inference"]
    assert list(ppxcls.export(ppxcls.load_config(run, overrides), ["paddle"])) == ["paddle"]
    assert not [text for text in new_warnings() if "no real images" in text]


def test_weights_in_the_folder_of_another_run_keep_their_names(
    run: Path, small: Callable[..., Path], lists: Path, tmp_path: Path
) -> None:
    own_results = ppxcls.evaluate(ppxcls.load_config(run))
    other = relabelled(lists, tmp_path / "other", "cat", "ant", "bee")
    second = trained(small(**places(other)), tmp_path, f"Global.output_dir={tmp_path}/second")
    second = tmp_path / "second/SmallNetwork"
    for extension in ("pdparams", "json"):
        shutil.copy(run / f"best_model.{extension}", second / f"copied.{extension}")
    config = ppxcls.load_config(second, [f"Global.pretrained_model={second}/copied"])
    assert ppxcls.load(config).names == list(NAMES)
    assert ppxcls.evaluate(config) == pytest.approx(own_results, rel=1e-6)
    write_names(second, "other", "classes", "here")
    assert ppxcls.load(config).names == list(NAMES)
    assert ppxcls.load(ppxcls.load_config(second)).names == ["other", "classes", "here"]


def test_the_names_of_another_list_in_a_runs_folder(run: Path) -> None:
    """The same names in another order are no renaming, so the checkpoint's own names count."""
    own_results = ppxcls.evaluate(ppxcls.load_config(run))
    write_names(run, "bee", "ant", "cat")
    assert ppxcls.load(run).names == list(NAMES)
    assert ppxcls.evaluate(ppxcls.load_config(run)) == pytest.approx(own_results, rel=1e-6)


@pytest.mark.parametrize(
    ("file_name", "content", "is_mapped"),
    [
        ("class_names.txt", "cat\nant\nbee\n", True),
        ("labels.txt", "cat\nant\nbee\n", True),
        ("class_names.txt", "id,name\n0,cat\n1,ant\n2,bee\n", False),
        ("class_names.txt", "1 cat\n2 ant\n3 bee\n", False),
        ("class_names.txt", "", False),
        ("classes.json", "{}", False),
    ],
)
def test_files_of_names_of_other_programs(
    run: Path,
    lists: Path,
    tmp_path: Path,
    new_warnings: Callable[[], list[str]],
    file_name: str,
    content: str,
    is_mapped: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    other = relabelled(lists, tmp_path / "other", "cat", "ant", "bee")
    (other / "class_names.txt").unlink()
    (other / file_name).write_text(content)
    own_results = ppxcls.evaluate(ppxcls.load_config(run))
    new_warnings()
    with caplog.at_level(logging.INFO):
        results = ppxcls.evaluate(ppxcls.load_config(run, eval_of(other)))
    text = caplog.text
    if is_mapped:
        assert results == pytest.approx(own_results, rel=1e-6)
        assert "labels are mapped by name" in text
    else:
        assert results["loss"] != pytest.approx(own_results["loss"], rel=1e-3)
        assert "labels are used by number" in text


def test_an_evaluation_with_other_names_is_not_the_runs_own(run: Path, tmp_path: Path) -> None:
    ppxcls.evaluate(ppxcls.load_config(run))
    before = (run / "eval.json").read_bytes(), (run / "predictions.csv").read_bytes()
    (tmp_path / "map.txt").write_text("0 A\n1 B\n2 C\n")
    ppxcls.evaluate(ppxcls.load_config(run, [f"Infer.PostProcess.class_id_map_file={tmp_path}/map.txt"]))
    assert before == ((run / "eval.json").read_bytes(), (run / "predictions.csv").read_bytes())
    assert {name for _, name, _ in predictions(run / "predictions_other.csv")} == {"A", "B", "C"}
