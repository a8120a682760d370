"""Predicts the classes of any number of images. Threads read the images in batches."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from ppxcls.calibration.record import Calibration
from ppxcls.calibration.temperature import calibrated
from ppxcls.data.errors import DataError
from ppxcls.data.pixel_format import PixelFormat
from ppxcls.data.prefetch import prefetch
from ppxcls.data.transforms import Compose, DecodeImage
from ppxcls.data.views import parse_views, with_views
from ppxcls.deploy.answer_limits import NO_LIMITS, AnswerLimits, AnswerShares, limits_of
from ppxcls.deploy.images import NamedImage, Source, named_images
from ppxcls.deploy.runners import Runner
from ppxcls.deploy.threshold import Threshold
from ppxcls.system.arrays import Array
from ppxcls.system.atomic_files import reason_of
from ppxcls.system.environment import usable_cores
from ppxcls.train.predictions import NOT_FINITE

DEFAULT_TOPK = 5  # classes in a prediction
NO_CALIBRATION = "there is no record of a calibration"
_NO_ENERGY = "the output is probabilities, which have no energy: export the run again with --logits"
_NO_RECORD_OF_VIEWS = "the images of a calibration were predicted without other views (tta)"


@dataclass
class Prediction:
    """The best classes of one image, or the reason why it can't be predicted.

    Attributes:
        file: path of the image; ``image 0`` and so on for an image without a path.
        class_ids: ids of the best classes, the best first.
        scores: probabilities of these classes.
        label_names: names of these classes; empty if the classes have no names.
        error: reason why the image can't be predicted; empty if it can.
        is_known: False if the image is turned away, because it is unlike the known ones; None if nobody asks.
        class_set: ids of the classes in the set that contains the true class with a stated probability, the
            best first; None if nobody asks.
        class_set_names: names of these classes; empty if the classes have no names; None if nobody asks.
        features: input of the network's classifier, float32 [F]; None unless the predictor gives features.
    """

    file: str
    class_ids: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    label_names: list[str] = field(default_factory=list)
    error: str = ""
    is_known: bool | None = None
    class_set: list[int] | None = None
    class_set_names: list[str] | None = None
    features: Array | None = field(default=None, compare=False, repr=False)


class ViewRunner:
    """Runs each view of a batch, and returns the means of the probabilities, float64 [N, class_num].

    Args:
        runner: runner for images with one view.
        count: number of views below each other in an image.
        height_axis: axis of the height in a batch.
        gives_logits: True if the runner returns logits.
        temperature: divisor of logits.
    """

    def __init__(
        self, runner: Runner, count: int, *, height_axis: int, gives_logits: bool, temperature: float = 1.0
    ) -> None:
        self._runner = runner
        self._count = count
        self._height_axis = height_axis
        self._gives_logits = gives_logits
        self._temperature = temperature

    def __call__(self, images: Array) -> Array:
        """Returns the mean probabilities of a batch whose images have all views below each other."""
        outputs = [
            self._runner(np.ascontiguousarray(view))
            for view in np.split(images, self._count, axis=self._height_axis)
        ]
        if self._gives_logits:
            outputs = [calibrated(output, self._temperature) for output in outputs]
        return np.asarray(np.mean(outputs, axis=0, dtype=np.float64))


class Predictor:
    """Predicts images with a trained network or its exported files.

    A predictor that ``ppxcls.load`` returns can be pickled, for example for ``multiprocessing`` with the
    start method ``spawn``. The pickle contains the weights.

    Args:
        transform: host part of the transforms; the runner does the rest.
        runner: function from images to logits or probabilities.
        names: class names in the order of their ids; empty for no names.
        gives_logits: True if the runner returns logits.
        description: one line that describes the model.
        model: name of the network.
        feature_count: number of features before the classifier that the runner returns before the logits.
        threshold: threshold that chooses between two classes; None for the best classes.
        calibration: calibration of the scores. Logits of the runner are divided by its temperature, and
            probabilities have it already. None for scores that are not calibrated.
        no_limits: reason why there can't be limits, and how to get them, for messages.
        limits: limits of what a prediction says beside its best classes; see ``with_limits``.
    """

    def __init__(
        self,
        transform: Compose,
        runner: Runner,
        *,
        names: Sequence[str],
        gives_logits: bool,
        description: str,
        model: str = "",
        feature_count: int = 0,
        threshold: Threshold | None = None,
        calibration: Calibration | None = None,
        no_limits: str = "",
        limits: AnswerLimits = NO_LIMITS,
    ) -> None:
        self.calibration = calibration
        self.names = list(names)
        self.description = description
        self.model = model
        self.limits = limits
        self._transform = transform
        self._runner = runner
        self._gives_logits = gives_logits
        self._feature_count = feature_count
        self._threshold = threshold
        self._no_limits = no_limits

    def predict(
        self,
        images: Source | Iterable[Source],
        topk: int = DEFAULT_TOPK,
        batch_size: int = 10,
        *,
        tta: str | Sequence[str] | None = None,
    ) -> list[Prediction]:
        """Predicts the classes of images.

        Args:
            images: one image or several. An image is a path, the bytes of an image file, a file opened with
                ``"rb"``, a PIL image, or an array as ``to_pixels`` accepts it, such as uint8 [H, W, 3], RGB.
                A folder stands for all images below it, and an array [N, H, W, 3] for N images.
            topk: number of classes in a prediction.
            batch_size: images per batch.
            tta: views of each image whose probabilities are averaged: ``flip`` for its mirror image,
                ``crops`` for the four corners beside the centre, or ``flip,crops``; None for the image alone.

        Returns:
            A prediction for each image, in the same order. If an image can't be read, or if the network's
            output for it is not finite, its prediction has an ``error``.

        Raises:
            DataError: ``images`` has another type, ``topk`` or ``batch_size`` is no integer of at least 1, or
                ``tta`` has another word, or needs a crop that the transforms do not have.
        """
        return list(self.stream(images, topk, batch_size, tta=tta))

    def stream(
        self,
        images: Source | Iterable[Source],
        topk: int = DEFAULT_TOPK,
        batch_size: int = 10,
        *,
        tta: str | Sequence[str] | None = None,
    ) -> Iterator[Prediction]:
        """Yields the same predictions as ``predict``, as they are computed.

        Only a few batches are in memory at a time. From a generator, only a few batches are taken ahead. It
        must not change an image after it has yielded it.

        Raises:
            DataError: as ``predict``. A wrong image of a generator is reported when it is taken.
        """
        if tta is not None:
            return self.with_views(tta).stream(images, topk, batch_size)
        sources = named_images(images, self.pixel_format)
        return self._stream(sources, _count("topk", topk), _count("batch_size", batch_size))

    def with_views(self, tta: str | Sequence[str]) -> Predictor:
        """Returns a predictor whose probabilities are means over several views of each image.

        Args:
            tta: kinds of views, as in ``predict``.

        Raises:
            DataError: there is another word, or the transforms have no crop for ``crops``.
        """
        views = parse_views(tta)
        if self._feature_count:
            raise DataError("expected features of the image alone, without other views (tta)")
        if self.limits != NO_LIMITS:
            raise DataError(_NO_RECORD_OF_VIEWS)
        transform, height_axis = with_views(self._transform, views)
        runner = ViewRunner(
            self._runner,
            views.count,
            height_axis=height_axis,
            gives_logits=self._gives_logits,
            temperature=self._temperature,
        )
        return self._changed(
            transform=transform,
            runner=runner,
            gives_logits=False,
            no_limits=_NO_RECORD_OF_VIEWS,
            description=f"{self.description}, test-time augmentation: {views}",
        )

    def with_limits(self, unknown_share: float | None = None, coverage: float | None = None) -> Predictor:
        """Returns a predictor that turns away unknown images, or gives sets of classes.

        Example: ``ppxcls.load("output/Xception41").with_limits(unknown_share=0.05).predict(["a.jpg"])``.

        Both shares hold for images like those of the model's calibration, on the average over many
        calibrations. ``limits.description`` says what the limits are, and which images they come from. A
        share that is None is that of this predictor, such as one of ``Infer.PostProcess``.

        Args:
            unknown_share: largest share of known images that are turned away, between 0 and 1. They have
                ``is_known`` False, as other images that are unlike enough. None for no other answer.
            coverage: smallest share of known images whose ``class_set`` contains the true class, between 0
                and 1; None for no other sets.

        Raises:
            DataError: a share is out of its range, the model has no calibration, its calibration has too few
                images for the share, or the output has no energy, because it is probabilities.
        """
        shares = AnswerShares(unknown_share, coverage).or_else(self.limits.shares)
        if self.calibration is None or self._no_limits:
            raise DataError(self._no_limits or NO_CALIBRATION)
        if shares.unknown_share is not None and not self._gives_logits:
            raise DataError(_NO_ENERGY)
        return self._changed(limits=limits_of(self.calibration, shares))

    def _changed(self, **changes: Any) -> Predictor:
        """Returns a predictor with other arguments."""
        arguments: dict[str, Any] = {
            "transform": self._transform,
            "runner": self._runner,
            "names": self.names,
            "gives_logits": self._gives_logits,
            "description": self.description,
            "model": self.model,
            "feature_count": self._feature_count,
            "threshold": self._threshold,
            "calibration": self.calibration,
            "no_limits": self._no_limits,
            "limits": self.limits,
        }
        return Predictor(**(arguments | changes))

    @property
    def _temperature(self) -> float:
        return self.calibration.temperature if self.calibration else 1.0

    def _stream(self, images: Iterable[NamedImage], topk: int, batch_size: int) -> Iterator[Prediction]:
        iterator = iter(images)
        batches = iter(lambda: list(islice(iterator, batch_size)), [])
        with ThreadPoolExecutor(usable_cores()) as pool:
            for futures in prefetch(
                batches, lambda batch: [pool.submit(self._load, image) for image in batch]
            ):
                yield from self._predict_batch([future.result() for future in futures], topk)

    @property
    def pixel_format(self) -> PixelFormat:
        """Channels and bits of an image before the other transforms."""
        return self._transform.pixel_format

    @property
    def decodes_images(self) -> bool:
        """True if the transforms begin with the decoding of an image file."""
        transforms = self._transform.transforms
        return bool(transforms) and isinstance(transforms[0], DecodeImage)

    def prepare(self, image: bytes | Array) -> Array:
        """Returns an image as ``predict_prepared`` takes it.

        Args:
            image: content of an image file, or an array as ``pixel_format`` says: for most networks uint8
                [H, W, 3], RGB.

        Raises:
            ValueError: the image can't be decoded, or does not fit a transform.
        """
        rng = np.random.default_rng(0)
        if isinstance(image, np.ndarray):
            return self._transform.without_decoding(image, rng)
        return self._transform(image, rng)

    def predict_prepared(self, images: Sequence[Array], topk: int = DEFAULT_TOPK) -> list[Prediction]:
        """Predicts the classes of one batch of images.

        Args:
            images: results of ``prepare``.
            topk: number of classes in a prediction.
        """
        return list(self._predict_batch([(f"image {i}", image) for i, image in enumerate(images)], topk))

    def _load(self, image: NamedImage) -> tuple[str, Array | str]:
        """Returns the name of an image, and the transformed image or the reason why it can't be read."""
        try:
            return image.name, self.prepare(image.load())
        except OSError as error:
            return image.name, reason_of(error)
        except (ValueError, MemoryError) as error:
            return image.name, " ".join(str(error).split()) or "not enough memory"

    def _predict_batch(self, named_images: list[tuple[str, Array | str]], topk: int) -> Iterator[Prediction]:
        rows = iter(self._run_batch([image for _, image in named_images if not isinstance(image, str)]))
        for file, image in named_images:
            if isinstance(image, str):
                yield Prediction(file, error=image)
                continue
            output: Array = next(rows)
            if np.isfinite(output).all():
                yield self._prediction(file, output, topk)
            else:
                yield Prediction(file, error=NOT_FINITE)

    def _prediction(self, file: str, output: Array, topk: int) -> Prediction:
        """Returns the prediction of an image for a row of the runner's output."""
        features, values = np.split(output, [self._feature_count])
        scores: Array = values.astype(np.float64)
        if self._gives_logits:
            scores = calibrated(scores, self._temperature)
        prediction = Prediction(file)
        if self._threshold is not None:
            class_id, score, name = self._threshold.answer(scores, self.names)
            prediction.class_ids, prediction.scores = [class_id], [round(score, 5)]
            prediction.label_names = [name]
        else:
            prediction.class_ids = np.argsort(-scores, kind="stable")[:topk].tolist()
            prediction.scores = scores[prediction.class_ids].round(5).tolist()
            prediction.label_names = self._names_of(prediction.class_ids)
        prediction.is_known = self.limits.is_known(values)
        prediction.class_set = self.limits.class_set(scores)
        if prediction.class_set is not None:
            prediction.class_set_names = self._names_of(prediction.class_set)
        if self._feature_count:
            prediction.features = features.copy()
        return prediction

    def _names_of(self, class_ids: Sequence[int]) -> list[str]:
        return [self.names[i] for i in class_ids] if self.names else []

    def _run_batch(self, images: list[Array]) -> list[Array]:
        """Returns the rows of the runner's output. Images of different sizes are run one by one."""
        if len({image.shape for image in images}) > 1:
            return [self._runner(image[None])[0] for image in images]
        return list(self._runner(np.stack(images))) if images else []


def _count(name: str, value: int) -> int:
    """Returns an argument as an integer. Integers of numpy are accepted.

    Raises:
        DataError: the argument is no integer, or is below 1.
    """
    try:
        count = operator.index(value)
    except TypeError:
        count = 0
    if count < 1 or isinstance(value, bool | np.bool_):
        raise DataError(f"{name}: expected an integer of at least 1, received {value!r}")
    return count
