"""Finds out whether the folders of a data set are its parts, such as ``train/`` and ``val/``, or its classes.

The structure decides, not the name alone: a part holds folders of images, and a class holds images.
"""

from __future__ import annotations

import contextlib
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ppxcls.data.errors import DataError
from ppxcls.data.image_files import ancestor_ids, identify_folder, is_hidden, is_image_name

# In English, and in the other languages of most data sets.
_WORDS_BY_PART = {
    "train": (
        *("train", "training", "trn", "trainings", "entrenamiento", "entraînement", "apprentissage"),
        *("treinamento", "treino", "addestramento", "обучение", "обучающая", "обучающий", "тренировка"),
        *("тренировочная", "тренировочный", "训练", "訓練", "学習", "トレーニング", "훈련", "학습"),
    ),
    "val": (
        *("val", "valid", "validation", "validate", "eval", "evaluation", "dev", "development", "holdout"),
        *("validación", "evaluación", "évaluation", "validierung", "validierungs", "validação", "avaliação"),
        *("validazione", "валидация", "валидационная", "валидационный", "验证", "驗證", "検証", "검증"),
    ),
    "test": (
        *("test", "testing", "tst", "prueba", "pruebas", "teste", "testes", "тест", "тестовая", "тестовый"),
        *("тестирование", "测试", "測試", "テスト", "테스트"),
    ),
}
# These stand for a part only if they are the whole name and all folders have names of parts.
_PART_BY_ABBREVIATION = {"tr": "train", "va": "val", "vl": "val", "te": "test", "ts": "test"}
_PART_WORDS = {"train": "training", "val": "evaluation", "test": "test"}
_WORD = re.compile(r"[^\W\d_]+")
_CASE_CHANGE = re.compile(r"(?<=[a-z])(?=[A-Z])")
_ACCENTS = re.compile("[\u0300-\u036f]")


def _plain(text: str) -> str:
    """Returns a text without accents. File systems differ in how they store them, and people omit them."""
    return unicodedata.normalize("NFC", _ACCENTS.sub("", unicodedata.normalize("NFD", text)))


_PART_BY_WORD = {_plain(word): part for part, words in _WORDS_BY_PART.items() for word in words}
# Words that may stand beside the word of the part, as in "training_set" and "Images of validation".
_OTHER_WORDS = tuple(
    _plain(word)
    for word in (
        *("set", "sets", "split", "part", "data", "dataset", "image", "images", "img", "imgs", "photo"),
        *("photos", "photograph", "photographs", "picture", "pictures", "pics", "sample", "samples"),
        *("folder", "dir", "class", "classes", "the", "of", "for", "out", "hold"),
        *("conjunto", "datos", "dados", "imágenes", "imagens", "fotos", "de", "del", "do", "jeu", "données"),
        *("ensemble", "d", "daten", "datensatz", "satz", "menge", "bilder", "выборка", "данные", "набор"),
        *(
            "集",
            "集合",
            "数据",
            "数据集",
            "图片",
            "图像",
            "資料",
            "データ",
            "データセット",
            "セット",
            "画像",
            "用",
        ),
        *("데이터", "데이터셋", "세트", "용"),
    )
)
_JOINED_WORDS = re.compile(
    rf"({'|'.join(sorted(_PART_BY_WORD, key=len, reverse=True))})"
    rf"(?:{'|'.join(word for word in _OTHER_WORDS if len(word) > 2 or not word.isascii())})+"
)
_MAX_SHOWN_NAMES = 3


@dataclass
class SplitFolders:
    """The parts of a data set.

    Attributes:
        paths: path of each part, relative to the data set's folder; the parts are ``train``, ``val`` and
            ``test``. It is empty if the folder is not split.
        notes: what was recognised, in lines for the user.
        other_names: folders beside the parts, which hold no images.
    """

    paths: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    other_names: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Folder:
    """A folder of the data set.

    Attributes:
        name: its name.
        has_images: True if it holds images itself.
        image_folders: names of its subfolders that hold images at any depth.
    """

    name: str
    has_images: bool
    image_folders: frozenset[str]

    @property
    def is_like_part(self) -> bool:
        """True if it holds folders of images. A few images beside several folders change nothing."""
        return len(self.image_folders) > int(self.has_images)

    @property
    def is_empty(self) -> bool:
        """True if there are no images in it, at any depth."""
        return not self.has_images and not self.image_folders


def find_split(folder: Path) -> SplitFolders:
    """Finds the parts of a data set.

    Args:
        folder: folder of the data set.

    Returns:
        The parts. They are empty if the folders are classes.

    Raises:
        DataError: the folders can be neither parts nor classes, or they could be both.
    """
    names = class_folders(folder)
    part_by_name = _parts_by_name(names)
    if not part_by_name:
        return SplitFolders(notes=same_structure_notes(folder, names))
    folders = {name: _look_into(folder, name) for name in names}
    named_parts = [folders[name] for name in part_by_name]
    other_folders = [folders[name] for name in names if name not in part_by_name]
    parts = [part for part in named_parts if part.is_like_part]
    other_classes = [entry for entry in other_folders if not entry.is_empty]
    if not parts:
        return _classes_like_parts(folder, named_parts, other_classes)
    if other_classes:
        return _parts_beside_classes(folder, parts, other_classes)
    split = SplitFolders(other_names=[entry.name for entry in other_folders])
    for part in named_parts:
        _add_part(folder, split, part, part_by_name[part.name])
    if "train" not in split.paths:
        raise DataError(
            f"{folder}: {_list_of(split.paths.values())} holds folders of classes, "
            "but there is no training part such as train/; give one of these folders, or add train/"
        )
    parts_text = ", ".join(f"{path}/ is the {_PART_WORDS[part]} part" for part, path in split.paths.items())
    split.notes.insert(0, f"{parts_text}, because it holds folders of images")
    return split


def part_of_name(name: str) -> str | None:
    """Returns the part that a folder's name stands for: ``train``, ``val`` or ``test``; None for none."""
    return _part_and_rest(name)[0]


def part_of_word(word: str) -> str | None:
    """Returns the part that a word of a table stands for, also if it is an abbreviation such as ``tr``."""
    return part_of_name(word) or _PART_BY_ABBREVIATION.get(word.strip().lower())


def class_folders(folder: Path) -> list[str]:
    """Returns the names of the folders in a folder, sorted, without hidden ones.

    A link to a folder that contains it is not a class.
    """
    ancestors = ancestor_ids(folder)
    folders = [entry for entry in os.scandir(folder) if not is_hidden(entry.name) and os.path.isdir(entry)]
    return sorted(entry.name for entry in folders if identify_folder(entry) not in ancestors)


def check_nested_parts(root: Path, classes: Sequence[str]) -> None:
    """Raises DataError if a folder of a class contains parts such as ``train/`` and ``val/``."""
    nested_by_class: dict[str, str] = {}
    for name in classes:
        part_names = [nested for nested in class_folders(root / name) if part_of_name(nested)]
        training_names = [nested for nested in part_names if part_of_name(nested) == "train"]
        if training_names or len(part_names) > 1:
            nested_by_class[name] = [*training_names, *part_names][0]
    if not nested_by_class:
        return
    name, nested = next(iter(nested_by_class.items()))
    if len(nested_by_class) > 1:
        raise DataError(
            f"{root}: {len(nested_by_class):,} folders of classes contain parts, such as {name}/{nested}/; "
            f"expected the parts above the classes, such as {nested}/{name}/"
        )
    raise DataError(f"{root / name}: the folder of a class contains {nested}/; give it if it is the data set")


def same_structure_notes(folder: Path, names: Sequence[str]) -> list[str]:
    """Returns a note if the folders have about the same subfolders of images, as parts would have them.

    At least half of each folder's subfolders are also in the folder with the most, and no folder has images
    of its own.
    """
    children_by_name: dict[str, frozenset[str]] = {}
    for name in names:
        entry = _look_into(folder, name)
        if entry.has_images or not entry.image_folders:
            return []
        children_by_name[name] = entry.image_folders
    most_children = max(children_by_name.values(), key=len, default=frozenset())
    if len(names) < 2 or len(most_children) < 2:
        return []
    if any(2 * len(children & most_children) < len(children) for children in children_by_name.values()):
        return []
    about = "" if set(children_by_name.values()) == {most_children} else "about "
    return [
        f"each class has {about}the same folders, {_list_of(sorted(most_children))}: if {_list_of(names)} "
        "are parts of the data set, call them train/, val/ and test/"
    ]


def _part_and_rest(name: str) -> tuple[str | None, str]:
    """Returns the part of a name, and the other words of it."""
    words = [word.lower() for word in _WORD.findall(_CASE_CHANGE.sub(" ", _plain(name)))]
    joined_words = [_JOINED_WORDS.fullmatch(word) for word in words]
    words = [match[1] if match else word for word, match in zip(words, joined_words, strict=True)]
    if "hold" in words and "out" in words:
        words = [*(word for word in words if word not in ("hold", "out")), "holdout"]
    part_words = [word for word in words if word in _PART_BY_WORD]
    rest = " ".join(word for word in words if word not in _PART_BY_WORD and word not in _OTHER_WORDS)
    return (_PART_BY_WORD[part_words[0]], rest) if len(part_words) == 1 else (None, "")


def _parts_by_name(names: Sequence[str]) -> dict[str, str]:
    """Returns the parts of the names that stand for parts.

    Other words than usual ones count only if they are in two names, as in ``seg_train`` and ``seg_test``.
    """
    parts_and_rests = {name: _part_and_rest(name) for name in names}
    rests = [rest for part, rest in parts_and_rests.values() if part]
    part_by_name = {
        name: part
        for name, (part, rest) in parts_and_rests.items()
        if part and (not rest or rests.count(rest) > 1)
    }
    short_names = [name for name in names if name.lower() in _PART_BY_ABBREVIATION]
    with_short_names = part_by_name | {name: _PART_BY_ABBREVIATION[name.lower()] for name in short_names}
    is_complete = len(with_short_names) == len(names) and "train" in with_short_names.values()
    return with_short_names if is_complete else part_by_name


def _look_into(folder: Path, name: str) -> _Folder:
    has_images = any(
        is_image_name(entry.name) and os.path.isfile(entry) for entry in os.scandir(folder / name)
    )
    image_folders = [
        child for child in class_folders(folder / name) if _has_images_below(folder / name / child)
    ]
    return _Folder(name, has_images, frozenset(image_folders))


def _has_images_below(folder: Path) -> bool:
    """True if a folder holds an image at any depth. The search ends at the first image."""
    pending_folders = [str(folder)]
    visited_ids = set(ancestor_ids(folder.parent))
    while pending_folders:
        path = pending_folders.pop()
        folder_id = identify_folder(path)
        if folder_id in visited_ids:
            continue
        visited_ids.add(folder_id)
        with contextlib.suppress(OSError):  # the lists count folders that can't be read
            for entry in os.scandir(path):
                if is_hidden(entry.name):
                    continue
                if os.path.isdir(entry):
                    pending_folders.append(entry.path)
                elif is_image_name(entry.name) and os.path.isfile(entry):
                    return True
    return False


def _add_part(folder: Path, split: SplitFolders, part_folder: _Folder, part: str) -> None:
    if part_folder.is_empty and part != "train":
        split.notes.append(f"{part_folder.name}/ holds no images, and is left out")
        return
    if part == "test" and not part_folder.is_like_part:
        split.notes.append(
            f"{part_folder.name}/ holds images without folders of classes, so it is not listed"
        )
        return
    if not part_folder.is_like_part:
        contrast = "the other parts" if part == "train" else "the training part"
        raise DataError(f"{folder / part_folder.name}: no folders of classes, unlike {contrast}")
    if part in split.paths:
        raise DataError(f"{folder}: {split.paths[part]} and {part_folder.name} are both the {part} part")
    split.paths[part] = _innermost(folder, part_folder)


def _innermost(folder: Path, part_folder: _Folder) -> str:
    """Returns the path of a part. An archive of ``train/`` is often unpacked to ``train/train/``."""
    path = part_folder.name
    while len(part_folder.image_folders) == 1 and not part_folder.has_images:
        (child_name,) = part_folder.image_folders
        child = _look_into(folder / path, child_name)
        if not child.is_like_part or part_of_name(child_name) != part_of_name(part_folder.name):
            break
        path, part_folder = f"{path}/{child_name}", child
    return path


def _classes_like_parts(
    folder: Path, named_parts: Sequence[_Folder], other_classes: Sequence[_Folder]
) -> SplitFolders:
    """Returns no parts, with a note, for folders with names of parts that hold images themselves."""
    names = [part.name for part in named_parts]
    if not other_classes:
        raise DataError(
            f"{folder / names[0]}: no folders of classes; "
            f"expected them in {_list_of(names)}, because a part of a data set holds folders of images"
        )
    words = "are classes" if len(names) > 1 else "is a class"
    example = other_classes[0].name
    note = f"{_list_of(names)} {words} and no part of the data set, because it holds images, like {example}/"
    return SplitFolders(notes=[note])


def _parts_beside_classes(folder: Path, parts: Sequence[_Folder], classes: Sequence[_Folder]) -> SplitFolders:
    """Raises DataError, because the folders could be parts or classes."""
    shown_parts = _list_of(part.name for part in parts)
    shown_classes = _list_of(entry.name for entry in classes)
    raise DataError(
        f"{folder}: expected train/, val/ and test/ or folders of classes, received both: "
        f"{shown_parts} with folders of images, as parts have them, and also {shown_classes}; "
        f"move {shown_classes} away, or rename {shown_parts} if these are classes"
    )


def _list_of(names: Iterable[str]) -> str:
    shown_names = [f"{name}/" for name in names]
    excerpt = shown_names[:_MAX_SHOWN_NAMES]
    more = [f"{len(shown_names) - len(excerpt)} more"] if len(shown_names) > len(excerpt) else []
    *first, last = [*excerpt, *more]
    return f"{', '.join(first)} and {last}" if first else last
