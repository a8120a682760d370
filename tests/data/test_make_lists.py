"""Lists from folders of images: found files, skipped and counted files, and names of every kind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

import ppxcls
from ppxcls.data.image_files import IMAGE_EXTENSIONS, find_image_files
from ppxcls.data.list_index import ListIndex, list_line
from ppxcls.data.similar_names import similar_names
from ppxcls.deploy.images import find_images
from ppxcls.system.paths import printable
from tests.conftest import run_tool

JPEG = cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 256, (80, 80, 3), np.uint8))[1].tobytes()
# Blanks at the ends, a line break, a tab, Latin-1 bytes, NFC and NFD, an escape, a byte-order mark, a line
# separator, ``..``.
NAMES = [
    b" a.jpg",
    b"b .jpg",
    b"\tc.jpg",
    b"d\n.jpg",
    b"\ne.jpg",
    b"\xe9f.jpg",
    "gé.jpg".encode(),
    "ge\u0301.jpg".encode(),
    b"h\x1b[2J.jpg",
    b"\xef\xbb\xbfi.jpg",
    "j\u2028k.jpg".encode(),
    b"l..m.jpg",
    b"n.jpg ",
    b"o 3.jpg",
    b"p\r.jpg",
]


def fill(folder: Path, files: dict[str, int] | list[str], data: bytes = JPEG) -> Path:
    """Writes images. A number is the count of files in this folder."""
    names = (
        files
        if isinstance(files, list)
        else [f"{name}/{i}.jpg" for name, count in files.items() for i in range(count)]
    )
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def listed(folder: Path, name: str) -> list[tuple[str, int]]:
    index = ListIndex(folder / f"{name}_list.txt")
    return [(index.path(i), int(index.labels[i])) for i in range(len(index))]


def test_lists_are_stratified_and_depend_on_the_seed_alone(tmp_path: Path) -> None:
    data = fill(tmp_path / "pictures", {"cat": 10, "dog": 10, "élan": 10})
    made = ppxcls.make_lists(data, tmp_path / "a", val_share=0.3)
    assert list(made.lists.values()) == [21, 9, 3]
    assert [sum(label == k for _, label in listed(tmp_path / "a", "val")) for k in range(3)] == [3, 3, 3]
    assert not set(listed(tmp_path / "a", "train")) & set(listed(tmp_path / "a", "val"))
    assert (tmp_path / "a/class_names.txt").read_text(encoding="utf-8") == "0 cat\n1 dog\n2 élan\n"
    for seed, same in ((0, True), (1, False)):
        ppxcls.make_lists(data, tmp_path / "b", val_share=0.3, seed=seed)
        assert (
            (tmp_path / "b/val_list.txt").read_text() == (tmp_path / "a/val_list.txt").read_text()
        ) == same
    (data / "empty").mkdir()
    with pytest.raises(ppxcls.DataError, match="empty: no images in the folder of a class"):
        ppxcls.make_lists(data, tmp_path / "c")


def test_flat_folder_with_labels(tmp_path: Path) -> None:
    flat = fill(tmp_path / "val", ["0.jpg", "1.jpg", "2.jpg"])
    labels = tmp_path / "ground_truth.txt"
    labels.write_text("7\n0\n999\n")
    result = run_tool("lists", flat, "-o", tmp_path / "lists", "--labels", labels)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "lists/val_list.txt").read_text() == "0.jpg 7\n1.jpg 0\n2.jpg 999\n"
    labels.write_text("7\n0\n")
    result = run_tool("lists", flat, "-o", tmp_path / "lists", "--labels", labels)
    assert result.returncode == 1
    assert "2 labels for 3 images" in result.stderr


def test_what_is_skipped_is_counted_by_reason(tmp_path: Path) -> None:
    data = fill(tmp_path / "p", {"ant": 3, "bee": 3})
    fill(data, [".ipynb_checkpoints/a.jpg", "__MACOSX/b.jpg", "ant/._0.jpg", "ant/.ipynb_checkpoints/0.jpg"])
    fill(data, ["ant/notes.txt", "bee/a.heic", "bee/b.HEIC", "bee/no_extension", "readme.md"])
    (data / "ant/gone.jpg").symlink_to("nowhere.jpg")
    (data / "ant/self.jpg").symlink_to("self.jpg")
    (data / "bee/up").symlink_to("..")
    os.mkfifo(data / "bee/pipe.jpg")
    made = ppxcls.make_lists(data, tmp_path / "lists")
    assert made.lists[str(tmp_path / "lists/class_names.txt")] == 2
    assert {path for part in ("train", "val") for path, _ in listed(tmp_path / "lists", part)} == {
        f"{name}/{i}.jpg" for name in ("ant", "bee") for i in range(3)
    }
    result = run_tool("lists", data, "-o", tmp_path / "lists")
    assert result.stdout.splitlines()[-1] == (
        "skipped: 2 HEIC images, which need pillow-heif (pip install 'ppxcls[heif]'), "
        "1 beside the folders of classes, 2 broken "
        "links, 4 hidden, 1 links to a folder that contains them, "
        "2 not images (.txt, no extension), 1 not regular files"
    )


def test_linked_folders_are_followed(tmp_path: Path) -> None:
    elsewhere = fill(tmp_path / "disk", {"ant": 4, "more/deep": 2})
    data = fill(tmp_path / "p", {"bee": 4})
    (data / "ant").symlink_to(elsewhere / "ant")
    (data / "bee/more").symlink_to(elsewhere / "more")
    made = ppxcls.make_lists(data, tmp_path / "lists", val_share=0.5)
    assert list(made.lists.values()) == [5, 5, 2]
    assert ("bee/more/deep/1.jpg", 1) in listed(tmp_path / "lists", "train") + listed(
        tmp_path / "lists", "val"
    )
    assert len(find_images(str(data))) == 10


def test_every_extension_and_the_same_ones_everywhere(tmp_path: Path) -> None:
    names = [
        f"a/{i}{extension.upper() if i % 2 else extension}"
        for i, extension in enumerate(sorted(IMAGE_EXTENSIONS))
    ]
    data = fill(tmp_path / "p", names)
    made = ppxcls.make_lists(data, tmp_path / "lists", val_share=0)
    assert made.skipped == "skipped: nothing"
    assert len(listed(tmp_path / "lists", "train")) == len(IMAGE_EXTENSIONS) == len(find_images(str(data)))
    assert {".jfif", ".avif", ".gif", ".webp"} <= IMAGE_EXTENSIONS


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [("train", "val", "test"), ("Train", "valid", None), ("training", "validation", None)],
)
def test_a_folder_that_is_split_already(train: str, val: str, test: str | None, tmp_path: Path) -> None:
    parts = {f"{train}/ant": 3, f"{train}/bee": 3, f"{val}/bee": 2} | ({f"{test}/ant": 1} if test else {})
    made = ppxcls.make_lists(fill(tmp_path / "p", parts), tmp_path / "lists")
    assert listed(tmp_path / "lists", "train") == [
        (f"{train}/{n}/{i}.jpg", k) for k, n in enumerate(("ant", "bee")) for i in range(3)
    ]
    assert listed(tmp_path / "lists", "val") == [(f"{val}/bee/0.jpg", 1), (f"{val}/bee/1.jpg", 1)]
    assert (tmp_path / "lists/class_names.txt").read_text() == "0 ant\n1 bee\n"
    assert list(made.lists.values()) == ([6, 2, 1, 2] if test else [6, 2, 2])


def test_a_training_part_alone_is_split(tmp_path: Path) -> None:
    made = ppxcls.make_lists(
        fill(tmp_path / "p", {"train/ant": 5, "train/bee": 5, "test/ant": 2}), tmp_path / "lists"
    )
    assert list(made.lists.values()) == [8, 2, 2, 2]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train/ant": 2, "val/bee": 2}, "val/bee: a class that is not in the training part"),
        ({"train/ant": 2, "val": 2}, "val: no folders of classes, unlike the training part"),
        ({"train/ant": 2, "val/ant": 1, "valid/ant": 1}, "val and valid are both the val part"),
        (
            {"train/ant": 2, "val/ant": 1, "ant": 1},
            "expected train/, val/ and test/ or folders of classes, received both",
        ),
        ({"train": 2, "val": 2}, "train: no folders of classes; expected them in train/ and val/"),
        ({"train": 2, "val/ant": 2}, "train: no folders of classes, unlike the other parts"),
        ({"val/ant": 2, "test/ant": 2}, "no training part such as train/"),
        ({"train/ant": 2, "train/bee": 2, "fold2/ant": 2}, "and also fold2/"),
        ({"train/ant": 2, "val/Ant": 1}, "val/Ant: a class that is not in the training part; 'ant' looks"),
        (
            {"ant/train": 1, "ant/test": 1, "bee/train": 1, "bee/test": 1},
            "2 folders of classes contain parts, such as ant/train/; expected .* such as train/ant/",
        ),
    ],
)
def test_refused_splits(files: dict[str, int], message: str, tmp_path: Path) -> None:
    with pytest.raises(ppxcls.DataError, match=message):
        ppxcls.make_lists(fill(tmp_path / "p", files), tmp_path / "lists")


def test_what_an_earlier_call_left_is_removed(tmp_path: Path) -> None:
    ppxcls.make_lists(fill(tmp_path / "a", {"ant": 4, "bee": 4}), tmp_path / "lists")
    made = ppxcls.make_lists(fill(tmp_path / "b", {"cat": 2, "dog": 2}), tmp_path / "lists", val_share=0)
    assert not (tmp_path / "lists/val_list.txt").exists()
    assert made.notes == [f"{tmp_path}/lists/val_list.txt of an earlier call was removed"]


def test_a_link_to_the_folder_itself_is_no_class(tmp_path: Path) -> None:
    data = fill(tmp_path / "p", {"ant": 2, "bee": 2})
    (data / "current").symlink_to(".")
    (data / "above").symlink_to("..")
    made = ppxcls.make_lists(data, tmp_path / "lists", val_share=0)
    assert made.lists[str(tmp_path / "lists/class_names.txt")] == 2


def test_the_wrong_folder_is_noticed(tmp_path: Path) -> None:
    fill(tmp_path / "p", {"images/train/ant": 2, "images/val/ant": 2})
    with pytest.raises(
        ppxcls.DataError, match="p/images: the folder of a class contains train/; give it if it is"
    ):
        ppxcls.make_lists(tmp_path / "p", tmp_path / "lists")
    made = ppxcls.make_lists(fill(tmp_path / "q", {"pictures/ant": 2, "pictures/bee": 2}), tmp_path / "lists")
    assert made.notes == ["there is one class only, 'pictures': is this the folder of the classes?"]


@pytest.mark.parametrize("line", ["-1", "9999999999", "1_0", "1 0", "one", "1.0"])
def test_labels_that_are_none(line: str, tmp_path: Path) -> None:
    flat = fill(tmp_path / "val", ["0.jpg", "1.jpg"])
    (tmp_path / "labels.txt").write_text(f"0\n{line}\n")
    with pytest.raises(
        ppxcls.DataError, match=r"labels.txt:2: expected a label of up to 9 digits a line, received "
    ):
        ppxcls.make_lists(flat, tmp_path / "lists", labels=tmp_path / "labels.txt")


def test_classes_may_be_called_train(tmp_path: Path) -> None:
    made = ppxcls.make_lists(fill(tmp_path / "p", {"car": 2, "train": 2}), tmp_path / "lists", val_share=0)
    assert list(made.lists.values()) == [4, 2]
    assert made.notes == ["train/ is a class and no part of the data set, because it holds images, like car/"]
    # A training part, with such a class.
    parts = {f"{part}/{name}": 2 for part in ("Training", "Eval") for name in ("bus", "test", "train")}
    made = ppxcls.make_lists(fill(tmp_path / "q", parts), tmp_path / "lists")
    assert list(made.lists.values()) == [6, 6, 3]


@pytest.mark.parametrize(
    ("names", "lines"),
    [
        (["train", "eval"], [4, 4, 2]),
        (["TRAIN", "Dev"], [4, 4, 2]),
        (["train", "holdout"], [4, 4, 2]),
        (["Train", "hold-out"], [4, 4, 2]),
        (["training", "validation", "testing"], [4, 4, 4, 2]),
        (["training_set", "test_set"], [2, 2, 4, 2]),
        (["train_data", "valid_data"], [4, 4, 2]),
        (["Training_images", "Validation images"], [4, 4, 2]),
        (["TrainSet", "DevelopmentSet"], [4, 4, 2]),
        (["trainset", "testset"], [2, 2, 4, 2]),
        (["seg_train", "seg_test"], [2, 2, 4, 2]),
        (["train2017", "val2017"], [4, 4, 2]),
        (["1_train", "2_val", "3_test"], [4, 4, 4, 2]),
        (["train"], [2, 2, 2]),
        (["entrenamiento", "prueba"], [2, 2, 4, 2]),
        (["datos de entrenamiento", "datos de validacio\u0301n"], [4, 4, 2]),
        (["entrainement", "validation"], [4, 4, 2]),
        (["Trainingsdaten", "Validierungsdaten"], [4, 4, 2]),
        (["treino", "validacao"], [4, 4, 2]),
        (["обучающая выборка", "валидация"], [4, 4, 2]),
        (["训练集", "验证集", "测试集"], [4, 4, 4, 2]),
        (["学習用データ", "検証用データ"], [4, 4, 2]),
        (["훈련", "검증"], [4, 4, 2]),
        (["tr", "va", "te"], [4, 4, 4, 2]),
        (["train", "ts"], [2, 2, 4, 2]),
    ],
)
def test_parts_of_many_names(names: list[str], lines: list[int], tmp_path: Path) -> None:
    """No part becomes a class. Without an evaluation part, half of the training part is held out here."""
    data = fill(tmp_path / "p", {f"{name}/{child}": 2 for name in names for child in ("ant", "bee")})
    made = ppxcls.make_lists(data, tmp_path / "lists", val_share=0.5)
    assert (tmp_path / "lists/class_names.txt").read_text(encoding="utf-8") == "0 ant\n1 bee\n"
    assert list(made.lists.values()) == lines
    assert f"{names[0]}/ is the training part" in str(made)
    words = ("val", "dev", "hold", "va", "вал", "验证", "検証", "검증")
    has_evaluation = any(word in name.lower() for name in names for word in words)
    assert ("50% of the training part is held out" in str(made)) is not has_evaluation


@pytest.mark.parametrize(
    "names",
    [
        ["train_station", "test_tube"],
        ["trainer", "tester"],
        ["validator", "dev board"],
        ["testudo", "trainee"],
        ["tr", "va", "ca"],
        ["te", "va"],
    ],
)
def test_words_that_only_contain_the_name_of_a_part(names: list[str], tmp_path: Path) -> None:
    data = fill(tmp_path / "p", {f"{name}/{child}": 2 for name in names for child in ("old", "new")})
    made = ppxcls.make_lists(data, tmp_path / "lists", val_share=0)
    expected_labels = [label for label in range(len(names)) for _ in range(4)]
    assert sorted(ListIndex(tmp_path / "lists/train_list.txt").labels) == expected_labels
    assert made.lists[str(tmp_path / "lists/class_names.txt")] == len(names)


def test_what_is_beside_the_parts(tmp_path: Path) -> None:
    """Folders without images and flat test images are named. A part may lie in a folder of its name."""
    data = fill(tmp_path / "p", {"train/train/ant": 2, "train/train/bee": 2, "val/ant": 1, "test": 3})
    (data / "annotations").mkdir()
    made = ppxcls.make_lists(data, tmp_path / "lists")
    assert list(made.lists.values()) == [4, 1, 2]
    assert listed(tmp_path / "lists", "val") == [("val/ant/0.jpg", 0)]
    text = str(made)
    assert "train/train/ is the training part, val/ is the evaluation part" in text
    assert "test/ holds images without folders of classes, so it is not listed" in text
    assert "without images, and left out: annotations" in text
    assert "without images in the evaluation list: 1 classes: bee" in text


def test_folders_that_look_like_parts_by_their_structure(tmp_path: Path) -> None:
    data = fill(
        tmp_path / "p", {f"{part}/{name}": 2 for part in ("fold1", "fold2") for name in ("ant", "bee")}
    )
    made = ppxcls.make_lists(data, tmp_path / "lists")
    assert "if fold1/ and fold2/ are parts of the data set, call them train/, val/ and test/" in str(made)


@pytest.mark.parametrize(
    ("children", "is_noted"),
    [
        ({"learn": "abcd", "check": "abc", "demo": "a"}, True),
        ({"learn": "abx", "check": "bcde"}, False),
        ({"learn": "abcd", "check": "cdef"}, True),
        ({"bird": "ab", "fish": "cd"}, False),
        ({"bird": "a", "fish": "a"}, False),
    ],
)
def test_parts_that_lack_a_class(children: dict[str, str], is_noted: bool, tmp_path: Path) -> None:
    data = fill(tmp_path / "p", {f"{part}/{name}": 2 for part, names in children.items() for name in names})
    text = str(ppxcls.make_lists(data, tmp_path / "lists"))
    assert ("are parts of the data set, call them train/, val/ and test/" in text) is is_noted
    if is_noted:
        assert "each class has about the same folders, " in text


def test_flat_test_images_beside_a_training_part_in_another_language(tmp_path: Path) -> None:
    made = ppxcls.make_lists(
        fill(tmp_path / "p", {"训练集/a": 2, "训练集/b": 2, "测试集": 2}), tmp_path / "lists"
    )
    assert "测试集/ holds images without folders of classes, so it is not listed" in str(made)


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    result = run_tool("lists", tmp_path / "nowhere", "-o", tmp_path / "lists")
    assert result.returncode == 1
    assert result.stderr.strip() == f"error: {tmp_path}/nowhere: no such folder"
    (tmp_path / "file").touch()
    with pytest.raises(ppxcls.DataError, match="file:1: expected the names of the columns, received none"):
        ppxcls.make_lists(tmp_path / "file", tmp_path / "lists")


@pytest.mark.parametrize("names", ["ant\nbee eater\n", "0 ant\n1 bee eater\n", "0,ant\n1,bee eater\n"])
def test_lists_of_paddlex(names: str, tmp_path: Path) -> None:
    data = fill(tmp_path / "p", ["images/a b.jpg", "images/c.jpg", "images/d.jpg"])
    (data / "labels.txt").write_text(names)
    (data / "train.txt").write_text("images/a b.jpg 0\nimages/c.jpg 1\n")
    (data / "val.txt").write_text("images/d.jpg 1\n")
    made = ppxcls.make_lists(data, tmp_path / "lists")
    assert list(made.lists.values()) == [2, 1, 2]
    assert listed(tmp_path / "lists", "train") == [("images/a b.jpg", 0), ("images/c.jpg", 1)]
    assert (tmp_path / "lists/class_names.txt").read_text() == "0 ant\n1 bee eater\n"
    (data / "val.txt").write_text("images/d.jpg 2\n")
    with pytest.raises(ppxcls.DataError, match=r"val.txt:1: the label 2, but .*labels.txt has 2 names"):
        ppxcls.make_lists(data, tmp_path / "lists")
    (data / "val.txt").write_text("images/e.jpg 1\n")
    with pytest.raises(ppxcls.DataError, match=r"val.txt:1: no such file: .*images/e.jpg"):
        ppxcls.make_lists(data, tmp_path / "lists")
    (data / "val.txt").write_text("../outside.jpg 1\n")
    with pytest.raises(
        ppxcls.DataError, match=r"val.txt:1: expected a path inside .*, received '../outside.jpg'"
    ):
        ppxcls.make_lists(data, tmp_path / "lists")
    (data / "val.txt").unlink()
    assert "1 images that are in no list" in ppxcls.make_lists(data, tmp_path / "lists").skipped


def test_names_that_look_alike_are_pointed_out(tmp_path: Path) -> None:
    data = fill(tmp_path / "p", {"ant": 1, " ant": 1, "é": 1, "e\u0301": 1, "bee": 1})
    made = ppxcls.make_lists(data, tmp_path / "lists", val_share=0)
    assert sorted(path for path, _ in listed(tmp_path / "lists", "train")) == sorted(
        f"{p}{n}/0.jpg" for n, p in (("ant", ""), (" ant", "./"), ("é", ""), ("e\u0301", ""), ("bee", ""))
    )
    assert len(made.notes) == 2
    assert all("look alike" in note for note in made.notes)


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (["Cat", "cat"], [(0, 1)]),
        (["cat", "cat "], [(0, 1)]),
        (["caf\u00e9", "cafe\u0301"], [(0, 1)]),
        (["\uff43\uff41\uff54", "cat"], [(0, 1)]),
        (["hot_dog", "hot dog", "Hot-Dog"], [(0, 1), (0, 2)]),
        (["cat\u200b", "cat"], [(0, 1)]),
        (["c\u0430t", "cat"], [(0, 1)]),
        (["stra\u00dfe", "STRASSE"], [(0, 1)]),
        (["cat", "cats", "cat1", "ca t", "\u732b"], []),
    ],
)
def test_which_names_look_alike(names: list[str], pairs: list[tuple[int, int]]) -> None:
    assert similar_names(names) == pairs


@pytest.mark.skipif(sys.platform != "linux", reason="other disks do not hold every name")
@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_line_carries_every_name(name: bytes, tmp_path: Path) -> None:
    text = os.fsdecode(name)
    for path in (text, f"{text}/{text}"):
        (tmp_path / "list.txt").write_bytes(
            f"{list_line(path, 7)}\n{list_line(path, 8)}\r\n".encode("utf-8", "surrogateescape")
        )
        index = ListIndex(tmp_path / "list.txt")
        assert [os.path.normpath(index.path(i)) for i in range(2)] == [path, path]
        assert index.labels.tolist() == [7, 8]


@pytest.mark.skipif(sys.platform != "linux", reason="other disks do not hold every name")
def test_names_of_every_kind_through_all_tools(write_config: Callable[..., Path], tmp_path: Path) -> None:
    """Lists, check_data, training with an unreadable file, its report, and predictions.

    Each name appears in the outputs, and none is unescaped.
    """
    data = tmp_path / "p"
    for part in (b"x y ", b" z\xff"):
        for name in NAMES:
            (Path(os.fsdecode(os.fsencode(data) + b"/" + part))).mkdir(parents=True, exist_ok=True)
            (data / os.fsdecode(part) / os.fsdecode(name)).write_bytes(JPEG)
    bad = data / "x y " / os.fsdecode(b"\x1b[31m\n\xe9 bad.jpg")
    bad.write_bytes(b"<html>")
    result = run_tool("lists", data, "-o", tmp_path / "lists", "--val-share", "0")
    assert result.returncode == 0, result.stderr
    assert len(listed(tmp_path / "lists", "train")) == 2 * len(NAMES) + 1
    steps = [{"DecodeImage": {}}, {"ResizeImage": {"size": 71}}, {"NormalizeImage": {"order": ""}}]
    file = write_config(
        **{
            "Arch": {"name": "SmallNetwork", "class_num": 2},
            "Global.plugins": ["tests/fixtures/small_network.py"],
            "DataLoader.Eval": None,
            "DataLoader.Train.dataset.image_root": str(data),
            "DataLoader.Train.dataset.cls_label_path": str(tmp_path / "lists/train_list.txt"),
            "Global.on_bad_image": "skip",
            "Global.max_bad_share": 0.1,
            "Infer": {"infer_imgs": str(data), "transforms": steps},
        }
    )
    report = tmp_path / "report.json"
    checked = run_tool("check", "-c", file, "--json", report)
    assert checked.returncode == 1, checked.stderr
    found = json.loads(report.read_text(encoding="utf-8"))["found"]
    (line,) = found["not an image"]
    assert r"x y /\x1b[31m\n\xe9 bad.jpg: not an image" in line
    trained = run_tool("tools/train.py", "-c", file)
    assert trained.returncode == 0, trained.stderr
    row = (tmp_path / "output/SmallNetwork/bad_samples.txt").read_text(encoding="utf-8")
    assert row.count("\n") == 1
    assert r"\x1b[31m\n\xe9 bad.jpg" in row
    for kind in ("paddleclas", "csv", "jsonl"):
        predicted = run_tool("tools/infer.py", "-c", file, "--format", kind)
        assert predicted.returncode == 1
        assert r"\x1b[31m\n\xe9 bad.jpg: not an image" in predicted.stderr
        for text in (predicted.stdout, predicted.stderr):
            assert all(line == printable(line) for line in text.split("\n")), kind
        if kind == "jsonl":
            names = {os.fsencode(json.loads(line)["file_name"]) for line in predicted.stdout.splitlines()}
            assert names == {os.fsencode(path) for path in find_images(str(data))} - {os.fsencode(bad)}
    for result in (checked, trained):
        assert "\x1b" not in result.stdout + result.stderr


def test_a_folder_nested_deeper_than_pythons_stack(tmp_path: Path) -> None:
    here = os.getcwd()
    try:
        os.chdir(tmp_path)
        for _ in range(1200):
            os.mkdir("d")
            os.chdir("d")
        Path("a.jpg").touch()
        os.chdir(here)
        assert [name.count("/") for name in find_image_files(tmp_path).files] == [1200]
    finally:
        os.chdir(here)
        subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)  # Python's own removal recurses
