"""Tells what the images of a list have to do with weights: if they trained, chose or judge them."""

from __future__ import annotations

import os
from typing import Any

from ppxcls.build.calibration import HAS_CHOSEN, HAS_NOT_CHOSEN
from ppxcls.build.choices import Weights, network_classes
from ppxcls.build.class_order import manifest_beside, mapping_to, run_id
from ppxcls.build.data import build_images
from ppxcls.build.judging import judging_config
from ppxcls.config.checks import ConfigError
from ppxcls.config.sections import Config
from ppxcls.data.dataset import Dataset, ImageNetDataset
from ppxcls.data.errors import DataError
from ppxcls.models.weights import weights_file
from ppxcls.system import distributed
from ppxcls.system.logs import logger

_JUDGE = "whose images judge the weights"


def relation_to_weights(config: Config, weights: Weights, dataset: Dataset, path: str) -> str:
    """Returns words for ``source`` that tell whether the images of a list have chosen the weights, or judge.

    The images are compared with those of the config's lists, by path or by name in the list. The manifest of
    the weights has the digests of the lists that trained and chose them. If a list of the config is not there
    or has another digest, the words say that it is not known.

    Args:
        config: config of the run.
        weights: weights to calibrate.
        dataset: images of the list.
        path: list, for messages.

    Raises:
        DataError: the weights have been trained on some of the images.
    """
    relations = _Relations(config, weights, dataset)
    count = len(dataset)
    trained_count, chosen_count = relations.count("Train"), relations.count("Eval")
    if relations.manifest.get("trained_on_eval_list"):
        trained_count = max(trained_count, chosen_count)
    if trained_count:
        raise DataError(
            f"{path}: expected images that the weights were not trained on, "
            f"received {trained_count:,} of {count:,} that they were trained on"
        )
    judging_count = relations.judging_count()
    texts = []
    if relations.unknown_verbs:
        verbs = " or ".join(relations.unknown_verbs)
        texts.append(f"of whose images it is not known whether they {verbs} the weights")
        _warn(
            f"{path}: it is not known whether its images {verbs} the weights: the config's lists are not "
            "there, or are not those of the weights"
        )
    if chosen_count or "chose" not in relations.unknown_verbs:
        texts.append(_share(chosen_count, count, HAS_CHOSEN) if chosen_count else HAS_NOT_CHOSEN)
    if judging_count:
        texts.append(_share(judging_count, count, _JUDGE))
        _warn(f"{path}: {texts[-1]}: figures of --test with this temperature will be a little too good")
    return " and ".join(texts)


class _Relations:
    """Counts the images that a list shares with the lists of a config.

    Args:
        config: config of the run.
        weights: weights to calibrate.
        dataset: images of the list.

    Attributes:
        manifest: manifest of the weights; empty without one.
        unknown_verbs: verbs for what the images may have done.
    """

    def __init__(self, config: Config, weights: Weights, dataset: Dataset) -> None:
        self._config = config
        self._weights = weights
        self._dataset = dataset
        self.manifest: dict[str, Any] = manifest_beside(weights_file(weights.path))
        self.unknown_verbs: list[str] = []

    def count(self, mode: str) -> int:
        """Returns the number of images that trained or chose the weights, as far as it is known.

        Args:
            mode: ``Train`` or ``Eval``.
        """
        digest = self.manifest.get("train_list" if mode == "Train" else "eval_list")
        if digest and digest == self._dataset.labelled_digest():
            return len(self._dataset)
        compared_images = _images(self._config, mode)
        is_recorded = compared_images is not None and self._is_recorded(mode, compared_images, digest)
        used_count = None
        if compared_images is not None and (is_recorded or self._is_of_run()):
            used_count = shared_count(self._dataset, compared_images)
        # A run without evaluations has an empty digest: no list has chosen its weights.
        is_without = mode == "Eval" and not digest and bool(self.manifest.get("train_list"))
        if not is_without and (used_count is None or not is_recorded):
            self.unknown_verbs.append("trained" if mode == "Train" else "chose")
        return used_count or 0

    def judging_count(self) -> int:
        """Returns the number of images that are images of ``DataLoader.Test``, as far as it is known."""
        if not self._config.DataLoader or self._config.DataLoader.Test is None:
            return 0
        try:
            compared_images = _images(judging_config(self._config), "Eval")
        except ConfigError:
            compared_images = None
        judging_count = None if compared_images is None else shared_count(self._dataset, compared_images)
        if judging_count is None:
            self.unknown_verbs.append("judge")
        return judging_count or 0

    def _is_of_run(self) -> bool:
        """True if the weights are of the run in the config's folder, which may have changed lists."""
        weights_id = self.manifest.get("run")
        return self._weights.is_own or (
            weights_id is not None and weights_id == run_id(self._config.run_folder)
        )

    def _is_recorded(self, mode: str, compared_images: Dataset, digest: str | None) -> bool:
        """True if a data set has the digest in the manifest, with labels of the list or of the network."""
        if not digest:
            return False
        if compared_images.digest() == digest:
            return True
        try:
            classes = network_classes(self._config, "evaluate", self._weights)
            if mapping := mapping_to(classes, self._config, mode):
                compared_images.map_labels(mapping)
        except DataError:
            return False
        return compared_images.labelled_digest() == digest


def _images(config: Config, mode: str) -> Dataset | None:
    """Returns the images of a section; None if it is missing, or its data are not there."""
    if not config.DataLoader or getattr(config.DataLoader, mode) is None:
        return None
    try:
        return build_images(config, mode)
    except (ConfigError, DataError, OSError):
        return None


def shared_count(dataset: Dataset, compared_images: Dataset) -> int | None:
    """Returns the number of images of a data set that another one has too.

    They have the same path. If one of the two has no files, as a pack, they have the same name in the list.

    Args:
        dataset: images to count.
        compared_images: images to compare them with.

    Returns:
        The number; None if one of the data sets has only numbers as names.
    """
    if not (_has_names(dataset) and _has_names(compared_images)):
        return None
    have_files = isinstance(dataset, ImageNetDataset) and isinstance(compared_images, ImageNetDataset)
    compared_names = {
        name
        for i in range(len(compared_images))
        for name in _names(compared_images, i, with_listed=not have_files)
    }
    return sum(
        not compared_names.isdisjoint(_names(dataset, i, with_listed=not have_files))
        for i in range(len(dataset))
    )


def _has_names(dataset: Dataset) -> bool:
    kind = type(dataset)
    return kind.listed is not Dataset.listed or kind.path is not Dataset.path


def _names(dataset: Dataset, index: int, *, with_listed: bool) -> tuple[str, ...]:
    path = os.path.abspath(dataset.path(index))
    has_listed = with_listed and type(dataset).listed is not Dataset.listed
    return (path, dataset.listed(index)) if has_listed else (path,)


def _share(part: int, count: int, words: str) -> str:
    """Returns words about all images of a list; with numbers if they are about a part of them."""
    return words if part == count else f"{part:,} of {words.replace('whose', f'whose {count:,}')}"


def _warn(text: str) -> None:
    if distributed.rank() == 0:
        logger.warning(text)
