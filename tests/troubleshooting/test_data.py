"""Rows of the section "Data" of ``docs/troubleshooting.md``."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
from PIL import Image

import ppxcls
from ppxcls.data import decode
from ppxcls.data.decode import can_read_heic
from ppxcls.fitting.lock import only_fit_in
from tests.conftest import ROOT, SMALL_NETWORK, write_images
from tests.troubleshooting.desk import Desk, case


def write_classes(folder: Path, *names: str) -> Path:
    """Writes four different images for each class into folders of these names."""
    for seed, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        values = np.random.default_rng(seed).integers(0, 256, (4, 40, 40, 3), np.uint8)
        for i, image in enumerate(values):
            Image.fromarray(image).save(folder / name / f"{i}.png")
    return folder


def class_names(folder: str) -> list[str]:
    """Returns the names that ``ppxcls lists`` has written to a folder."""
    return [line.split(" ", 1)[1] for line in Path(folder, "class_names.txt").read_text().splitlines()]


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


@case("paths that do not exist from the current folder were found elsewhere")
def test_paths_of_another_folder(desk: Desk) -> None:
    file = Path(desk.config())
    file.write_text(file.read_text().replace(str(desk.data), "data"))
    (desk.folder / "elsewhere").mkdir()
    desk.monkeypatch.chdir("elsewhere")
    text = desk.works("check", "-c", file)
    assert "paths that do not exist from the current folder were found elsewhere:" in text
    for key, path in (("image_root", desk.data), ("cls_label_path", desk.data / "train_list.txt")):
        assert f"DataLoader.Train.dataset.{key}: {path}" in text
    desk.monkeypatch.chdir(desk.folder)
    assert "found elsewhere" not in desk.works("check", "-c", file)
    assert "### Paths" in (ROOT / "docs/runs.md").read_text(encoding="utf-8")


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
    text = desk.works("train", "-c", file, "-o", "Global.on_bad_image=skip")  # one of each list may be bad
    assert "left out: " in text
    assert "train/0004.png" in (desk.run / "bad_samples.txt").read_text()
    write_images(desk.data, 12)
    desk.works("train", "-c", file)


@case("not an image, but …")
def test_no_image(desk: Desk) -> None:
    contents = {
        "an HTML page, such as an error page of a download": b"<!DOCTYPE html>\n<html><head>",
        "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 123\n",
        "a gzip archive": b"\x1f\x8b\x08" + bytes(50),
        "a PDF document": b"%PDF-1.7\n",
        "an AVI video": b"RIFF\0\0\0\0AVI LIST" + bytes(50),
    }
    file = desk.config()
    for number, content in enumerate(contents.values()):
        (desk.data / f"train/{number:04d}.png").write_bytes(content)
    report = desk.command("check", "-c", file)
    assert report.code == 1
    for number, kind in enumerate(contents):
        assert f"train/{number:04d}.png: not an image, but {kind}" in report.text
    assert "not an image, but " in desk.fails("train", "-c", file)
    write_images(desk.data, 12)
    desk.works("check", "-c", file)


@case("a HEIC image, which needs pillow-heif")
def test_heic(desk: Desk) -> None:
    photos = write_classes(desk.folder / "photos", "ant", "bee")
    (photos / "ant/phone.heic").write_bytes(b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf" + bytes(400))
    shutil.copy(photos / "ant/phone.heic", desk.data / "train/0003.png")
    with desk.monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pillow_heif", None)
        can_read_heic.cache_clear()
        try:
            message = desk.fails("train", "-c", desk.config())
            text = desk.works("lists", photos, "-o", "lists")
        finally:
            can_read_heic.cache_clear()
    assert "train/0003.png" in message
    assert message.endswith(": a HEIC image, which needs pillow-heif: pip install 'ppxcls[heif]'")
    assert "skipped: 1 HEIC images, which need pillow-heif" in text
    write_images(desk.data, 12)  # a photograph that is converted
    desk.works("check", "-c", desk.config())
    if can_read_heic():
        import pillow_heif

        picture = Image.open(desk.data / "train/0003.png")
        pillow_heif.from_pillow(picture).save(photos / "ant/phone.heic")
        shutil.copy(photos / "ant/phone.heic", desk.data / "train/0003.png")
        desk.works("check", "-c", desk.config())
        assert "HEIC" not in desk.works("lists", photos, "-o", "lists")


@case("images, such as an animation or pages, and the first one is used")
def test_animation(desk: Desk) -> None:
    desk.monkeypatch.setattr(decode, "_several_search", decode._Search())  # it is said once in a process
    pictures = [Image.new("RGB", (80, 80), color) for color in ("red", "green", "blue")]
    pictures[0].save(desk.data / "train/0003.png", "GIF", save_all=True, append_images=pictures[1:])
    text = desk.works("train", "-c", desk.config())
    assert "a file has 3 images, such as an animation or pages, and the first one is used" in text
    assert "train/0003.png: 3 images; the first one is used" in desk.works("check", "-c", desk.config())


@case("received both: … with folders of images, as parts have them")
def test_parts_and_classes(desk: Desk) -> None:
    photos = write_classes(desk.folder / "photos", "train/ant", "train/bee", "cat")
    message = desk.fails("lists", photos, "-o", "lists")
    assert "received both: train/ with folders of images, as parts have them, and also cat/" in message
    (photos / "train").rename(photos / "insects")
    desk.works("lists", photos, "-o", "lists")
    assert class_names("lists") == ["cat", "insects"]
    (photos / "insects").rename(photos / "train")
    (photos / "cat").rename(photos / "train/cat")
    desk.works("lists", photos, "-o", "lists")
    assert class_names("lists") == ["ant", "bee", "cat"]


@case("no training part such as train/")
def test_no_training_part(desk: Desk) -> None:
    photos = write_classes(desk.folder / "photos", "val/ant", "val/bee", "test/ant", "test/bee")
    assert "no training part such as train/" in desk.fails("lists", photos, "-o", "lists")
    desk.works("lists", photos / "val", "-o", "lists")
    assert class_names("lists") == ["ant", "bee"]
    write_classes(photos, "train/ant", "train/bee", "train/cat")
    desk.works("lists", photos, "-o", "lists")
    assert class_names("lists") == ["ant", "bee", "cat"]


@case("look alike")
def test_similar_names(desk: Desk) -> None:
    photos = write_classes(desk.folder / "photos", "Cat", "cat", "dog")
    text = desk.works("lists", photos, "-o", "lists")
    assert "the names of the classes 0 and 1 look alike: 'Cat' and 'cat'" in text
    for file in (photos / "Cat").iterdir():
        file.rename(photos / "cat" / f"second_{file.name}")
    (photos / "Cat").rmdir()
    assert "look alike" not in desk.works("lists", photos, "-o", "lists")
    assert class_names("lists") == ["cat", "dog"]


@case("belongs to another fit")
def test_another_fit(desk: Desk) -> None:
    desk.monkeypatch.setattr("ppxcls.fitting.settings._seconds_per_step", lambda *_: 1.0)
    write_classes(desk.folder / "photos", "ant", "bee")
    words = ["fit", "photos", "--minutes", "0.01"]
    for override in (f"Global.plugins=[{SMALL_NETWORK}]", "Arch={name: SmallNetwork, class_num: 2}"):
        words += ["-o", override]
    first = [*words, "-o", "Global.epochs=1"]
    second = [*words, "-o", "Global.epochs=2"]
    desk.works(*first)
    message = desk.fails(*second)
    assert "output/photos belongs to another fit: -o was [" in message
    assert "'Global.epochs=1'], and is now [" in message
    desk.works(*first)
    desk.works(*second, "--output", "output/second")


@case("another fit is running there")
def test_two_fits_in_one_folder(desk: Desk) -> None:
    pytest.importorskip("fcntl")
    desk.monkeypatch.setattr("ppxcls.fitting.settings._seconds_per_step", lambda *_: 1.0)
    write_classes(desk.folder / "photos", "ant", "bee")
    words = ["fit", "photos", "--minutes", "0.01", "-o", "Global.epochs=1"]
    for override in (f"Global.plugins=[{SMALL_NETWORK}]", "Arch={name: SmallNetwork, class_num: 2}"):
        words += ["-o", override]
    with only_fit_in(desk.folder / "output/photos"):
        assert "output/photos: another fit is running there" in desk.fails(*words)
        desk.works(*words, "--output", "output/second")
    desk.works(*words)


@case("it was moved from …, so the files that moved with it are used")
def test_a_renamed_output_folder(desk: Desk) -> None:
    output, renamed = desk.folder / "output", desk.folder / "renamed"
    shutil.copytree(desk.data, output / "data")
    file = Path(desk.config())
    (output / "train.yaml").write_text(file.read_text().replace(str(desk.data), str(output / "data")))
    desk.works("train", "-c", output / "train.yaml")
    output.rename(renamed)
    shutil.copytree(renamed / "data", output / "data")
    (output / "data/val_list.txt").write_text("val/0000.png 2\n")
    text = desk.works("eval", "-c", renamed / "SmallNetwork")
    assert f"it was moved from {output}" in text
    assert "samples: 7" in text
    name = "DataLoader.Eval.dataset.cls_label_path"
    other_list = f"{name}={output}/data/val_list.txt"
    assert "samples: 1" in desk.works("eval", "-c", renamed / "SmallNetwork", "-o", other_list)


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


@case("mapped by name, because")
def test_other_numbers_of_classes(desk: Desk) -> None:
    file = named_run(desk)
    desk.works("eval", "-c", desk.run)
    results = json.loads((desk.run / "eval.json").read_text())
    other = relabelled(desk, "cat", "ant", "bee")
    text = desk.works("eval", "-c", desk.run, *lists_of(other, "Eval"))
    assert "labels are mapped by name, because " in text
    other_results = json.loads((desk.run / "eval_other.json").read_text())
    for name in ("top1", "loss"):
        assert other_results[name] == pytest.approx(results[name], rel=1e-6)
    words = [*lists_of(other, "Train"), *lists_of(other, "Eval"), "-o", "Global.output_dir=second"]
    text = desk.works("train", "-c", file, *words, "-o", f"Global.pretrained_model={desk.run}/latest")
    assert f"the classifier of {desk.run}/latest is mapped by name, because " in text


@case("is none of the network's classes")
def test_class_of_no_network(desk: Desk) -> None:
    named_run(desk)
    other = relabelled(desk, "ant", "bee", "cat")
    (other / "class_names.txt").write_text("0 ant\n1 bee\n2 lynx\n")
    words = ["eval", "-c", desk.run, *lists_of(other, "Eval")]
    assert "the class 'lynx' of " in (message := desk.fails(*words))
    assert "is none of the network's classes" in message
    lines = (other / "val_list.txt").read_text().splitlines()
    (other / "val_list.txt").write_text("".join(f"{line}\n" for line in lines if not line.endswith(" 2")))
    desk.works(*words)
    (other / "val_list.txt").write_text("".join(f"{line}\n" for line in lines))
    shutil.copy(other / "class_names.txt", desk.run / "class_names.txt")
    assert "lynx" in desk.works(*words)


@case("has no name in")
def test_class_without_a_name(desk: Desk) -> None:
    named_run(desk)
    write_classes(desk.folder / "photos", "ant", "bee", "cat")
    desk.works("lists", "photos", "-o", "lists")
    names = desk.folder / "lists/class_names.txt"
    names.write_text("0 ant\n1 bee\n")
    place = "DataLoader.Eval.dataset"
    words = ["-o", f"{place}.image_root=photos", "-o", f"{place}.cls_label_path=lists/val_list.txt"]
    message = desk.fails("eval", "-c", desk.run, *words)
    assert "the label 2 has no name in lists/class_names.txt, which has 2 names" in message
    desk.works("lists", "photos", "-o", "lists")
    desk.works("eval", "-c", desk.run, *words)


def named_run(desk: Desk) -> str:
    """Trains on lists with the classes ``ant``, ``bee`` and ``cat``. Returns the YAML."""
    (desk.data / "class_names.txt").write_text("0 ant\n1 bee\n2 cat\n")
    file = desk.config()
    desk.works("train", "-c", file)
    return file


def relabelled(desk: Desk, *names: str) -> Path:
    """Copies the images and lists of ``named_run``, with its classes in another order."""
    folder = desk.folder / "other"
    shutil.copytree(desk.data, folder)
    (folder / "class_names.txt").write_text("".join(f"{i} {name}\n" for i, name in enumerate(names)))
    for file in folder.glob("*_list.txt"):
        rows = [line.rsplit(" ", 1) for line in file.read_text().splitlines()]
        labels = {str(i): names.index(name) for i, name in enumerate(("ant", "bee", "cat"))}
        file.write_text("".join(f"{path} {labels[label]}\n" for path, label in rows))
    return folder


def lists_of(folder: Path, mode: str) -> list[str]:
    """Returns the overrides for the list of a folder as training or evaluation list."""
    name = {"Train": "train", "Eval": "val"}[mode]
    place = f"DataLoader.{mode}.dataset"
    return ["-o", f"{place}.image_root={folder}", "-o", f"{place}.cls_label_path={folder}/{name}_list.txt"]


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
