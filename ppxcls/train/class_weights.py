"""Weights of classes that have different numbers of training images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Literal

import numpy as np

from ppxcls.config.checks import NotNegative, Share
from ppxcls.system.arrays import Array
from ppxcls.system.paths import MAX_NAME_LENGTH, one_line
from ppxcls.train.class_choice import ClassIds

# What a config may write. A loss with a parameter of this type, or of this type or None, is weighted in the
# stages of ``fit`` too.
ClassWeight = Literal["balanced", "effective"] | Share | list[NotNegative] | dict[str, NotNegative]
_EFFECTIVE = "effective"
_DEFAULT_BETA = 0.999  # one of the values of arXiv:1901.05555


class TrainingClasses:
    """The classes of a run, and how many training images each of them has.

    A loss receives it if its class or function has a parameter ``classes``.

    Args:
        names: names of the classes in the order of their ids; the ids as text if they have no names.
        count_images: function that returns the numbers of training images, int64 [class_num]. It is called at
            the first use of ``counts``, because the training list may not exist where a model is evaluated.
    """

    def __init__(self, names: Sequence[str], count_images: Callable[[], Array]) -> None:
        self.names = list(names)
        self._count_images = count_images

    @cached_property
    def counts(self) -> Array:
        """Number of training images of each class, int64 [class_num].

        Raises:
            ConfigError, DataError, ValueError: the training images can't be counted.
        """
        return self._count_images()


def class_weights(spec: ClassWeight | None, classes: TrainingClasses | None) -> Array | None:
    """Returns the weight of each class, float64 [class_num]; None without a specification.

    Weights that follow from the counts have the mean 1 over the training images. So the learning rate keeps
    its meaning. A class without training images has the weight 1.

    Args:
        spec: ``balanced``: inverse of the number of images, as scikit-learn's ``compute_class_weight``. A
            number: exponent of this inverse; 0.5 is its square root, 1 is ``balanced``. ``effective``:
            inverse of the effective number ``(1 - beta ** n) / (1 - beta)`` (arXiv:1901.05555, equation 2)
            with a beta of 0.999, or ``{"effective": beta}`` with another one. A list: one weight for each
            class. A mapping: weights by the names of classes. Other classes have the weight 1. If a class has
            the name ``effective``, this word is its name.
        classes: classes of the run; None if they are not known.

    Raises:
        ConfigError, DataError: the training images can't be counted.
        ValueError: the classes are not known, a name is unknown or stands for several classes, the number of
            weights is not the number of classes, all weights are 0, or beta is not below 1.
    """
    if spec is None:
        return None
    if classes is None:
        raise ValueError("class_weight needs the classes of a run, and they are not known here")
    if isinstance(spec, list):
        weights = _listed_weights(spec, len(classes.names))
    elif isinstance(spec, dict) and not (set(spec) == {_EFFECTIVE} and _EFFECTIVE not in classes.names):
        weights = _named_weights(spec, classes.names)
    else:
        weights = _counted_weights(spec, classes.counts)
    if not weights.any():
        raise ValueError("class_weight: expected a weight above 0, received 0 for every class")
    return weights


def _listed_weights(values: Sequence[float], class_num: int) -> Array:
    if len(values) != class_num:
        raise ValueError(
            f"class_weight: expected {class_num:,} weights, one for each class, received {len(values):,}"
        )
    return np.array(values, np.float64)


def _named_weights(spec: Mapping[str, float], names: Sequence[str]) -> Array:
    class_ids = ClassIds(names, "class_weight", advice="write a list of weights")
    weights = np.ones(len(names))
    for name, weight in dict(spec).items():  # of an EasyDict, a class may have the name ``items``
        weights[class_ids(name)] = weight
    return weights


def _counted_weights(spec: ClassWeight, counts: Array) -> Array:
    """Returns weights by the numbers of training images. Raises ValueError."""
    has_images = counts > 0
    sizes = counts[has_images].astype(np.float64)
    if isinstance(spec, dict) or spec == _EFFECTIVE:
        beta = spec[_EFFECTIVE] if isinstance(spec, dict) else _DEFAULT_BETA
        if beta >= 1:
            raise ValueError(f"class_weight: expected a beta of effective below 1, received {beta:g}")
        # One minus a power that is almost 1 would lose its digits.
        raw_weights = 1 / -np.expm1(sizes * np.log(beta)) if beta else np.ones(len(sizes))
    else:
        assert not isinstance(spec, list)
        raw_weights = sizes ** -(1.0 if spec == "balanced" else float(spec))
    weights = np.ones(len(counts))
    weights[has_images] = raw_weights * (sizes.sum() / (sizes * raw_weights).sum())
    return weights


def logit_offsets(factor: float, counts: Array) -> Array:
    """Returns what logit adjustment adds to the logits of a training, float64 [class_num].

    It is the factor times the logarithm of each class's share of the training images (arXiv:2007.07314,
    equation 10). A class without images counts as if it had one, because the logarithm of 0 is infinite.

    Args:
        factor: factor tau; 0 adds nothing.
        counts: number of training images of each class, [class_num].
    """
    sizes = np.maximum(counts, 1).astype(np.float64)
    return factor * np.log(sizes / sizes.sum())


def describe_weights(weights: Array, names: Sequence[str]) -> str:
    """Returns the smallest and the largest weight with the names of their classes, for the log."""
    smallest, largest = int(weights.argmin()), int(weights.argmax())
    small_name, large_name = (one_line(names[i], MAX_NAME_LENGTH) for i in (smallest, largest))
    return (
        f"class weights from {weights[smallest]:.4g} ({small_name}) to {weights[largest]:.4g} ({large_name})"
    )
