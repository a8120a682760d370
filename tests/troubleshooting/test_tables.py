"""Rows about tables, groups and unbalanced classes of ``docs/troubleshooting.md``."""

from __future__ import annotations

from pathlib import Path

from tests.troubleshooting.desk import Desk, case


def write_table(desk: Desk, header: str) -> str:
    """Writes a table of the twelve training images, in two classes, with a patient for every three images."""
    rows = [f"{i:04d}.png,{('ant', 'bee')[i % 2]},p{i // 3}" for i in range(12)]
    file = desk.folder / "labels.csv"
    file.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return str(file)


@case("no column has a usual name for the")
def test_columns(desk: Desk) -> None:
    words = ("lists", write_table(desk, "bild,art,patient"), "-o", "out", "--image-root", desk.data / "train")
    assert "no column has a usual name for the" in desk.fails(*words)
    desk.works(*words, "--image", "bild", "--label", "art")


@case("have images that are missing in")
def test_root_of_a_table(desk: Desk) -> None:
    words = ("lists", write_table(desk, "image,label,patient"), "-o", "out")
    assert "have images that are missing in" in desk.fails(*words)
    desk.works(*words, "--image-root", desk.data / "train")


@case("finds no group in")
def test_expression_of_groups(desk: Desk) -> None:
    table = write_table(desk, "image,label,patient")
    words = ("lists", table, "-o", "out", "--image-root", desk.data / "train", "--group")
    message = desk.fails(*words, "0([12])$")
    assert "finds no group in" in message
    assert "0000.png" in message
    desk.works(*words, "([0-9])[.]png")


@case("group in training and evaluation")
def test_shared_group(desk: Desk) -> None:
    file = desk.config()
    images = [*(desk.data / "train").iterdir(), *(desk.data / "val").iterdir()]
    table = desk.data / "groups.csv"

    def write_groups(*groups: str) -> None:
        paths = [image.relative_to(desk.data).as_posix() for image in images]
        rows = [f"{path},{groups[path.startswith('val')]}\n" for path in paths]
        table.write_text("image,group\n" + "".join(rows), encoding="utf-8")

    write_groups("p1", "p1")
    report = desk.command("check", "-c", file)
    assert report.code == 1
    assert "group in training and evaluation" in report.text
    write_groups("p1", "p2")
    desk.works("check", "-c", file)


def write_labels(desk: Desk, labels: list[int]) -> None:
    """Writes these labels of the training images to their list."""
    lines = [f"train/{i:04d}.png {label}" for i, label in enumerate(labels)]
    (desk.data / "train_list.txt").write_text("\n".join(lines) + "\n")


@case("if small classes matter as much as large ones")
def test_unbalanced(desk: Desk) -> None:
    file = desk.config()
    write_labels(desk, [0] * 10 + [1, 2])
    text = desk.works("check", "-c", file)
    assert "if small classes matter as much as large ones" in text
    write_labels(desk, [0, 1, 2] * 4)
    assert "if small classes" not in desk.works("check", "-c", file)


@case("no class has the name, weights, one for each class")
def test_class_weights(desk: Desk) -> None:
    (desk.data / "class_names.txt").write_text("0 ant\n1 bee\n2 cat\n")
    file = desk.config()
    names = Path(desk.data / "class_names.txt")
    weight = "Loss.Train.0.CELoss.class_weight"
    words = ("train", "-c", file, "-o", f"Infer.PostProcess.class_id_map_file={names}", "-o")
    assert "no class has the name" in desk.fails(*words, f"{weight}={{dog: 2}}", code=2)
    assert "3 weights, one for each class" in desk.fails(*words, f"{weight}=[1, 2]", code=2)
    desk.works(*words, f"{weight}={{bee: 2}}")
    desk.works(*words, f"{weight}=[1, 2, 1]")
