"""Builds the losses of a config, and tells them about the classes and their training images."""

from __future__ import annotations

from collections.abc import Sequence

from ppxcls.build.choices import class_num
from ppxcls.build.data import build_dataset
from ppxcls.build.start import required_section
from ppxcls.config.figures import DEFAULT_LOSSES
from ppxcls.config.sections import Config
from ppxcls.data.class_balance import class_counts
from ppxcls.data.dataset import Dataset
from ppxcls.data.label_mapping import ClassNames
from ppxcls.system.arrays import Array
from ppxcls.system.logs import logger
from ppxcls.train.class_weights import TrainingClasses, describe_weights
from ppxcls.train.losses import WeightedSum, build_loss


def classes_for_losses(
    config: Config, classes: ClassNames | None, names: Sequence[str], dataset: Dataset | None = None
) -> TrainingClasses:
    """Returns the classes of a run for its losses.

    Args:
        config: config of the run.
        classes: classes of the network; see ``build_dataset``.
        names: names of the classes if ``classes`` is None; empty if they have none.
        dataset: training data; None to read the list of ``DataLoader.Train`` when a loss needs the counts.
    """
    count = class_num(config)

    def count_images() -> Array:
        if dataset is not None:
            return class_counts(dataset, count)
        if not (config.DataLoader and config.DataLoader.Train):
            raise ValueError("the training images can't be counted, because DataLoader.Train is missing")
        return class_counts(build_dataset(config, "Train", classes, patience=0), count)

    own_names = classes.names if classes else names
    return TrainingClasses(own_names or [str(i) for i in range(count)], count_images)


def training_loss(config: Config, classes: TrainingClasses) -> WeightedSum:
    """Returns the loss of the training, and logs its class weights.

    Raises:
        ConfigError: as ``build_loss``.
    """
    section = required_section(config, "Loss")
    is_mixed = bool(required_section(config, "DataLoader.Train").dataset.get("batch_transform_ops"))
    loss = build_loss(section.Train, config.where("Loss.Train"), soft_labels=is_mixed, classes=classes)
    for name, weights in loss.class_weights.items():
        logger.info(f"{name}: {describe_weights(weights, classes.names)}")
    return loss


def evaluation_loss(config: Config, classes: TrainingClasses) -> WeightedSum:
    """Returns the loss of evaluations: that of ``Loss.Eval``, or else the cross entropy.

    It has class weights only if ``Loss.Eval`` has them.

    Raises:
        ConfigError: as ``build_loss``.
        DataError: ``Loss.Eval`` needs the training list, and it can't be used.
    """
    blocks = (config.Loss.Eval if config.Loss else None) or DEFAULT_LOSSES
    return build_loss(blocks, config.where("Loss.Eval"), soft_labels=False, classes=classes)
