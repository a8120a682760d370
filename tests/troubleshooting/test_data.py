"""Rows of the section "Data" of ``docs/troubleshooting.md``."""

from __future__ import annotations

import re

import paddle

import ppxcls
from tests.conftest import write_images
from tests.troubleshooting.desk import Desk, case


@case("listed files are missing, no such list file")
def test_missing_files(desk: Desk) -> None:
    file = desk.config()
    name = "DataLoader.Train.dataset.cls_label_path"
    assert "no such list file" in desk.fails("train", "-c", file, "-o", f"{name}=none.txt")
    root = "DataLoader.Train.dataset.image_root=/tmp"
    message = desk.fails("train", "-c", file, "-o", root, "-o", "Global.check_data=True")
    assert "12 of 12 listed files are missing" in message
    for number in (3, 5):
        (desk.data / f"train/000{number}.png").unlink()
    report = desk.command("check", "-c", file)
    assert report.code == 1
    assert all(f"train/000{number}.png" in report.text for number in (3, 5))
    write_images(desk.data, 12)
    desk.works("check", "-c", file)


def damage(desk: Desk, *numbers: int) -> None:
    for number in numbers:
        file = desk.data / f"train/{number:04d}.png"
        file.write_bytes(b"\x89PNG damaged")


@case("truncated JPEG, not an image, or damaged beyond decoding")
def test_damaged_image(desk: Desk) -> None:
    damage(desk, 4)
    file = desk.config()
    message = desk.fails("train", "-c", file)
    assert "train/0004.png" in message
    assert "damaged beyond decoding" in message
    # A list of 12 may have one bad sample if the share says so.
    text = desk.works("train", "-c", file, "-o", "Global.on_bad_image=skip", "-o", "Global.max_bad_share=0.1")
    assert "left out: " in text
    assert "train/0004.png" in (desk.run / "bad_samples.txt").read_text()
    write_images(desk.data, 12)
    desk.works("train", "-c", file)


@case("can't be read, more than Global.max_bad_share")
def test_many_damaged_images(desk: Desk) -> None:
    damage(desk, 1, 4, 6)
    file = desk.config(**{"Global.on_bad_image": "skip"})
    message = desk.fails("train", "-c", file, "-o", "Global.max_bad_share=0.1")
    assert "can't be read, more than Global.max_bad_share = 0.1: see " in message
    assert "train/0004.png" in desk.command("check", "-c", file).text
    desk.works("train", "-c", file, "-o", "Global.max_bad_share=0.3")


@case("the label … is outside")
def test_label_outside(desk: Desk) -> None:
    file = desk.config()
    message = desk.fails("train", "-c", file, "-o", "Arch.class_num=2")
    assert "the label 2 is outside" in message
    desk.works("train", "-c", file, "-o", "Arch.class_num=3")
    lists = [desk.data / f"{name}_list.txt" for name in ("train", "val")]
    for path in lists:  # labels that start at 1
        path.write_text(re.sub(r"(\d)$", lambda m: str(int(m[1]) + 1), path.read_text(), flags=re.M))
    assert "the label 3 is outside" in desk.fails("train", "-c", file)


@case("but the labels of … end at")
def test_unused_classes(desk: Desk) -> None:
    text = desk.works("train", "-c", desk.config(), "-o", "Arch.class_num=5")
    assert re.search(r"Arch.class_num is 5, but the labels of .* end at 2: expected 3\?", text)
    assert "end at" not in desk.works("train", "-c", desk.config(), "-o", "Arch.class_num=3")


@case("is chance for")
def test_chance(desk: Desk) -> None:
    text = "".join(f"val/0000.png {i % 3}\n" for i in range(60))
    (desk.data / "val_list.txt").write_text(text)
    ppxcls.load_config(desk.config())
    weights = desk.folder / "w.pdparams"
    paddle.save(ppxcls.build_model("SmallNetwork").state_dict(), str(weights))
    file = desk.config(**{"Global.pretrained_model": str(weights)})
    assert "top1 0.3333 is chance for 3 classes" in desk.works("eval", "-c", file)


@case("the images of a batch differ in size")
def test_sizes(desk: Desk) -> None:
    file = desk.config()
    ops = "DataLoader.Train.dataset.transform_ops"
    message = desk.fails(
        "train", "-c", file, "-o", f"{ops}=[DecodeImage, {{ResizeImage: {{resize_short: 40}}}}]"
    )
    assert "the images of a batch differ in size" in message
    for right in ("RandCropImage: {size: 40}", "ResizeImage: {resize_short: 44}}, {CropImage: {size: 40}"):
        desk.works(
            "train", "-c", file, "-o", f"{ops}=[DecodeImage, {{{right}}}, {{NormalizeImage: {{order: ''}}}}]"
        )
