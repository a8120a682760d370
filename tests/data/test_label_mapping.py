"""Labels of a list as classes of a network, by name."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

import ppxcls
from ppxcls.data.dataset import ImageNetDataset
from ppxcls.data.label_mapping import ClassNames, LabelMapping, label_mapping


def mapping(list_names: str, network_names: str, *alternatives: str) -> LabelMapping | None:
    """Returns the mapping between two lists of names, separated by blanks."""
    others = tuple(tuple(text.split()) for text in alternatives)
    return label_mapping(
        ClassNames(tuple(list_names.split()), "lists/class_names.txt"),
        ClassNames(tuple(network_names.split()), "run/class_names.txt", others),
    )


def ids(list_names: str, network_names: str, *alternatives: str) -> list[int]:
    result = mapping(list_names, network_names, *alternatives)
    assert result is not None
    return result.class_ids.tolist()


def test_the_same_names_need_no_mapping() -> None:
    assert mapping("ant bee cat", "ant bee cat") is None
    decomposed = unicodedata.normalize("NFD", "élan")
    assert decomposed != "élan"
    assert mapping(f"ant {decomposed}", "ant élan") is None
    assert mapping("crane ant crane", "crane ant crane") is None, "ImageNet has two cranes"


def test_labels_follow_their_names() -> None:
    assert ids("cat ant bee", "ant bee cat") == [2, 0, 1]
    assert ids("one three zero", "one three two zero") == [0, 1, 3]
    assert ids("ant bee cat dog", "bee dog") == [-1, 0, -1, 1]
    assert ids("Cat cat", "cat Cat") == [1, 0]
    assert ids("ant crane crane", "crane ant crane") == [1, 0, 2]
    assert ids("ant crane", "crane ant crane") == [1, -1], "which crane is not known"


def test_a_run_may_show_other_names_than_its_list_has() -> None:
    assert mapping("ant bee", "Ameise Biene", "ant bee") is None
    assert ids("bee ant", "Ameise Biene", "ant bee") == [1, 0]
    assert ids("Biene Ameise", "Ameise Biene", "ant bee") == [1, 0]


def dataset(folder: Path, lines: str) -> ImageNetDataset:
    (folder / "list.txt").write_text(lines)
    return ImageNetDataset(str(folder), str(folder / "list.txt"))


def test_a_dataset_maps_its_labels_once(tmp_path: Path) -> None:
    data = dataset(tmp_path, "a 0\nb 1\nc 2\nd 2\n")
    plain_digest = data.labelled_digest()
    assert plain_digest == data.digest()
    swap = mapping("cat ant bee", "ant bee cat")
    assert swap is not None
    data.map_labels(swap)
    assert data.labels.tolist() == [2, 0, 1, 1]
    assert data.digest() == plain_digest, "the list is the same"
    assert data.labelled_digest() != plain_digest, "its labels are not"
    assert str(data.label_mapping) == (
        "mapped by name, because lists/class_names.txt differs from run/class_names.txt "
        "(3 and 3 classes): cat 0 -> 2, ant 1 -> 0, bee 2 -> 1"
    )


def test_names_without_samples_do_not_matter(tmp_path: Path) -> None:
    data = dataset(tmp_path, "a 0\nb 1\n")
    plain_digest = data.labelled_digest()
    superset = mapping("ant bee wasp", "ant bee")
    assert superset is not None
    data.map_labels(superset)
    assert data.labels.tolist() == [0, 1]
    assert data.labelled_digest() == plain_digest, "no label has changed"


def test_a_class_that_the_network_does_not_know_is_named(tmp_path: Path) -> None:
    unknown = mapping("ant Bee", "ant bee")
    assert unknown is not None
    expected = (
        r"list.txt:2: the class 'Bee' of lists/class_names.txt is none of the network's classes "
        r"\(did you mean 'bee'\?\): ant, bee \(run/class_names.txt\)"
    )
    with pytest.raises(ppxcls.DataError, match=expected):
        dataset(tmp_path, "a 0\nb 1\n").map_labels(unknown)
    swap = mapping("bee ant", "ant bee")
    assert swap is not None
    with pytest.raises(ppxcls.DataError, match=r"list.txt:1: the label 2 has no name .* has 2 names"):
        dataset(tmp_path, "a 2\nb 1\n").map_labels(swap)
