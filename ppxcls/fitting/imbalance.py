"""Unbalanced classes in ``fit``: a warning, and the loss of the stages that no YAML trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ppxcls.build.choices import class_names_for
from ppxcls.config.checks import NotNegative
from ppxcls.config.sections import Config
from ppxcls.data.class_balance import imbalance_note
from ppxcls.data.list_index import ListIndex
from ppxcls.fitting.photographs import TRAIN_LIST, Photographs
from ppxcls.system.arrays import Array
from ppxcls.system.logs import logger
from ppxcls.train.class_weights import ClassWeight, TrainingClasses
from ppxcls.train.losses import LOSSES, CELoss

_KEYS = ("class_weight", "logit_adjustment", "ClassBalancedSampler")  # what users write against it


@dataclass(frozen=True)
class ClassCorrection:
    """A correction of the mean cross-entropy for unbalanced classes.

    Attributes:
        weights: factor of each class's part of the loss, [class_num].
        offsets: terms that are added to the logits for the loss alone, [class_num].
    """

    weights: Array
    offsets: Array


def warn_if_unbalanced(photographs: Photographs, overrides: Sequence[str]) -> None:
    """Warns if a class has many times the photographs of another one, unless an override corrects this."""
    if any(key in text for key in _KEYS for text in overrides):
        return
    counts = np.bincount(ListIndex(photographs.lists / TRAIN_LIST).labels, minlength=len(photographs.names))
    if note := imbalance_note(counts, photographs.names, "Loss.Train.0.CELoss.class_weight"):
        logger.warning(note)


def stage_loss(config: Config, lists: Path) -> CELoss:
    """Returns the cross-entropy of the stages that no YAML trains.

    It has the class weights and the logit adjustment of the first loss of ``Loss.Train`` that has one of
    them.

    Args:
        config: config of the training of all layers.
        lists: folder of the lists.
    """
    names = class_names_for(config, "train")
    labels = ListIndex(lists / TRAIN_LIST).labels
    classes = TrainingClasses(names, lambda: np.bincount(labels, minlength=len(names)))
    for block in config.Loss.Train if config.Loss else []:
        # A loss of a plugin may use the same words for something else.
        keys = [
            key
            for key, hint in LOSSES.schema(block.name).items()
            if (key, hint) in (("class_weight", ClassWeight | None), ("logit_adjustment", NotNegative))
        ]
        arguments = {key: block.arguments[key] for key in keys if block.arguments.get(key)}
        if arguments:
            return CELoss(**arguments, classes=classes)
    return CELoss()


def correction_of(loss: CELoss, class_num: int) -> ClassCorrection:
    """Returns the class weights and the logit adjustment of a loss."""
    weights = np.ones(class_num) if loss.class_weights is None else loss.class_weights
    offsets = np.zeros(class_num) if loss.logit_offsets is None else loss.logit_offsets
    return ClassCorrection(weights, offsets)
