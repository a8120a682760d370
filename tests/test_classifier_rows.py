"""A training from weights with other classes takes the rows of the classifier by class name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import paddle
import pytest

import ppxcls
from ppxcls.build.class_order import imagenet_classes
from ppxcls.build.classifier_rows import carried_rows, synonym_ids
from ppxcls.data.class_names import IMAGENET_NAMES_FILE, read_class_names
from ppxcls.data.label_mapping import ClassNames
from ppxcls.system.arrays import Array

KEYS = ("fc.weight", "fc.bias")
IMAGENET = read_class_names(IMAGENET_NAMES_FILE, 1000)


def rows_of(names: list[str], source: list[str]) -> list[int] | None:
    rows = carried_rows(ClassNames(tuple(names), "list"), ClassNames(tuple(source), "weights"))
    return None if rows is None else rows.class_ids.tolist()


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        (["ant", "bee", "cat"], None),
        (["cat", "ant", "bee"], [2, 0, 1]),
        (["ant", "bee", "cat", "dog"], [0, 1, 2, -1]),
        (["aardvark", "ant", "bee", "cat"], [-1, 0, 1, 2]),
        (["ant", "cat"], [0, 2]),
        (["ant", "wasp", "cat"], [0, -1, 2]),
        (["Ant", "bees"], [-1, -1]),
    ],
)
def test_the_names_of_a_run_match_exactly(names: list[str], ids: list[int] | None) -> None:
    assert rows_of(names, ["ant", "bee", "cat"]) == ids


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("tench", 0),
        ("Tinca tinca", 0),
        ("TENCH", 0),
        ("tench, Tinca tinca", 0),
        ("man-eating shark", 2),
        ("great_white_shark", None),
        ("sharks", None),
        ("crane", None),  # a bird and a machine
        ("maillot", 638),  # the whole line of one class, and a synonym of another
    ],
)
def test_the_names_of_imagenet_have_synonyms(name: str, line: int | None) -> None:
    assert synonym_ids([name], IMAGENET).tolist() == [-1 if line is None else line]


def test_two_classes_do_not_share_a_row() -> None:
    assert synonym_ids(["tench", "Tinca tinca", "goldfish"], IMAGENET).tolist() == [-1, -1, 1]


def test_a_thousand_classes_of_weights_without_names() -> None:
    imagenet = imagenet_classes("w.pdparams")

    def rows(names: list[str]) -> list[int] | None:
        result = carried_rows(ClassNames(tuple(names), "list"), imagenet)
        return None if result is None else result.class_ids.tolist()

    first_synonyms = [line.split(",")[0] for line in IMAGENET]
    assert rows(IMAGENET) is None
    assert rows(first_synonyms) is None, "a name that is not recognised keeps its row too"
    products = [f"product {i}" for i in range(998)]
    assert rows([*products, "orange", "banana"]) is None, "two fruits do not make it ImageNet"
    reversed_ids = rows(first_synonyms[::-1])
    assert reversed_ids is not None
    assert {(i, row) for i, row in enumerate(reversed_ids) if row >= 0 and row != 999 - i} == set()
    assert sum(row >= 0 for row in reversed_ids) > 950


@pytest.fixture
def lists(tmp_path: Path, images: Path) -> Path:
    folder = tmp_path / "lists"
    shutil.copytree(images, folder)
    return folder


def with_names(lists: Path, names: list[str]) -> list[str]:
    """Writes the names of the classes of the lists, whose labels are 0 to 2. Returns overrides."""
    lines = [f"{i} {name}\n" for i, name in enumerate(names)]
    (lists / "class_names.txt").write_text("".join(lines), encoding="utf-8")
    places = [
        f"DataLoader.{mode}.dataset.{key}={lists}{file}"
        for mode, name in (("Train", "train"), ("Eval", "val"))
        for key, file in (("image_root", ""), ("cls_label_path", f"/{name}_list.txt"))
    ]
    return [*places, f"Arch.class_num={len(names)}"]


def start(file: Path, *overrides: str) -> dict[str, Array]:
    """Returns the weights that a training starts with."""
    trainer = ppxcls.build_trainer(ppxcls.load_config(file, list(overrides)))
    state = {key: tensor.numpy() for key, tensor in trainer.learner.network.state_dict().items()}
    trainer.log.close()
    trainer.close_loaders()
    trainer.run.folder.release()
    return state


def test_a_class_is_added_between_others(
    small: Callable[..., Path], lists: Path, tmp_path: Path, new_warnings: Callable[[], list[str]]
) -> None:
    file = small(EMA={"use_ema": True, "decay": 0.5})
    ppxcls.build_trainer(ppxcls.load_config(file, with_names(lists, ["ant", "bee", "cat"]))).fit()
    weights = f"Global.pretrained_model={tmp_path}/output/SmallNetwork/best_model"
    words = [f"Global.output_dir={tmp_path}/second", *with_names(lists, ["cat", "bat", "ant", "bee"])]
    average = paddle.load(f"{tmp_path}/output/SmallNetwork/best_model.pdema")
    fresh = start(file, *words)
    new_warnings()
    state = start(file, *words, weights)
    for key in KEYS:
        known = np.asarray(average[key])
        assert np.array_equal(state[key][..., [0, 2, 3]], known[..., [2, 0, 1]])
        assert np.array_equal(state[key][..., 1], fresh[key][..., 1])
    (line,) = [text for text in new_warnings() if text.startswith("the classifier ")]
    assert line.endswith(": 3 carried over (cat, ant, bee), 1 with fresh weights (bat)")
    new_head = start(file, *words, weights, "Arch.new_classifier=True")
    assert all(np.array_equal(new_head[key], fresh[key]) for key in KEYS)
    assert np.array_equal(new_head["conv.weight"], state["conv.weight"])


def test_rows_of_imagenet(small: Callable[..., Path], lists: Path, tmp_path: Path) -> None:
    file = small()
    model = ppxcls.build_model("SmallNetwork", class_num=1000)
    paddle.save(model.state_dict(), str(tmp_path / "published.pdparams"))
    words = with_names(lists, ["my own", "Goldfish", "tench"])
    state = start(file, *words, f"Global.pretrained_model={tmp_path}/published")
    fresh = start(file, *words)
    for key in KEYS:
        source = model.state_dict()[key].numpy()
        assert np.array_equal(state[key][..., 1:], source[..., [1, 0]])
        assert np.array_equal(state[key][..., 0], fresh[key][..., 0])


def test_a_new_classifier_of_a_network_by_name(small: Callable[..., Path], tmp_path: Path) -> None:
    small()
    source = ppxcls.build_model("SmallNetwork")
    paddle.save(source.state_dict(), str(tmp_path / "w.pdparams"))
    paddle.seed(7)
    fresh = ppxcls.build_model("SmallNetwork")
    for is_new, expected in ((True, fresh), (False, source)):
        paddle.seed(7)
        model = ppxcls.build_model("SmallNetwork", pretrained=f"{tmp_path}/w", new_classifier=is_new)
        assert np.array_equal(model.conv.weight.numpy(), source.conv.weight.numpy())
        assert np.array_equal(model.fc.weight.numpy(), expected.fc.weight.numpy())


def test_a_resumed_run_keeps_its_own_rows(small: Callable[..., Path], lists: Path, tmp_path: Path) -> None:
    file = small()
    ppxcls.build_trainer(ppxcls.load_config(file, with_names(lists, ["ant", "bee", "cat"]))).fit()
    words = [*with_names(lists, ["bee", "ant", "cat", "dog"]), f"Global.output_dir={tmp_path}/two"]
    words += [f"Global.pretrained_model={tmp_path}/output/SmallNetwork/latest"]
    trainer = ppxcls.build_trainer(ppxcls.load_config(file, words))
    trainer.fit()
    resumed = start(file, *words, "Global.checkpoints=auto", "Global.epochs=2")
    for key in KEYS:
        assert np.array_equal(resumed[key], trainer.learner.network.state_dict()[key].numpy())
