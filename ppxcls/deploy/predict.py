"""Predicts the classes of any number of images. Threads read the images in batches."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ppxcls.data.errors import DataError
from ppxcls.data.image_files import find_image_files
from ppxcls.data.prefetch import prefetch
from ppxcls.data.read_file import read_file
from ppxcls.data.transforms import Compose
from ppxcls.deploy.runners import Runner
from ppxcls.system.arrays import Array
from ppxcls.system.atomic_files import reason_of
from ppxcls.system.environment import usable_cores
from ppxcls.system.paths import url_problem
from ppxcls.train.predictions import NOT_FINITE

Source = str | Path | Array | bytes


@dataclass
class Prediction:
    """The best classes of one image, or the reason why it can't be predicted.

    Attributes:
        file: path of the image; ``image 0`` and so on for arrays and bytes.
        class_ids: ids of the best classes, the best first.
        scores: probabilities of these classes.
        label_names: names of these classes; empty if the classes have no names.
        error: reason why the image can't be predicted; empty if it can.
    """

    file: str
    class_ids: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    label_names: list[str] = field(default_factory=list)
    error: str = ""


def find_images(path: str) -> list[str]:
    """Returns the sorted image files of a path.

    Args:
        path: file, folder (all images below it), or pattern.

    Raises:
        DataError: there are no such files.
    """
    if (problem := url_problem(path)) is not None:
        raise DataError(problem)
    if Path(path).is_dir():
        files = [os.path.join(path, file) for file in find_image_files(path).files]
    else:
        files = (
            [path]
            if Path(path).is_file()
            else [f for f in glob.glob(path, recursive=True) if Path(f).is_file()]
        )
    if not files:
        raise DataError(f"{path}: no such image, folder of images or pattern")
    return sorted(files)


class Predictor:
    """Predicts images with a trained network or its exported files.

    Args:
        transform: host part of the transforms; the runner does the rest.
        runner: function from images to logits or probabilities.
        names: class names in the order of their ids; empty for no names.
        gives_logits: True if the runner returns logits.
        description: one line that describes the model.
    """

    def __init__(
        self,
        transform: Compose,
        runner: Runner,
        *,
        names: Sequence[str],
        gives_logits: bool,
        description: str,
    ) -> None:
        self.names = list(names)
        self.description = description
        self._transform = transform
        self._runner = runner
        self._gives_logits = gives_logits

    def predict(
        self, images: Source | Sequence[Source], topk: int = 5, batch_size: int = 10
    ) -> list[Prediction]:
        """Predicts the classes of images.

        Args:
            images: one image or several; each is a path, the bytes of an image file, or an array uint8 [H, W,
                3], RGB.
            topk: number of classes in a prediction.
            batch_size: images per batch.

        Returns:
            A prediction for each image, in the same order. If an image can't be read, or if the network's
            output for it is not finite, its prediction has an ``error``.

        Raises:
            DataError: ``images`` has another type, or ``topk`` or ``batch_size`` is below 1.
        """
        sources = [images] if isinstance(images, str | Path | np.ndarray | bytes) else list(images)
        for source in sources:
            if not isinstance(source, str | Path | np.ndarray | bytes):
                raise DataError(
                    f"expected paths, bytes or arrays uint8 [H, W, 3], received {type(source).__name__}"
                )
        if topk < 1 or batch_size < 1:
            raise DataError(f"expected topk and batch_size of at least 1, received {topk} and {batch_size}")
        return list(self.stream(sources, topk, batch_size))

    def stream(self, images: Sequence[Source], topk: int = 5, batch_size: int = 10) -> Iterator[Prediction]:
        """Yields the same predictions as ``predict``, as they are computed.

        Only a few batches are in memory at a time.
        """
        numbered_images = list(enumerate(images))
        batches = [numbered_images[i : i + batch_size] for i in range(0, len(numbered_images), batch_size)]
        with ThreadPoolExecutor(usable_cores()) as pool:
            for futures in prefetch(
                batches, lambda batch: [pool.submit(self._load, *item) for item in batch]
            ):
                yield from self._predict_batch([future.result() for future in futures], topk)

    def _load(self, number: int, source: Source) -> tuple[str, Array | str]:
        """Returns the name of an image, and the transformed image or the reason why it can't be read."""
        name = f"image {number}" if isinstance(source, np.ndarray | bytes) else str(source)
        try:
            if isinstance(source, np.ndarray):
                return name, self._transform.without_decoding(source, np.random.default_rng(0))
            data = source if isinstance(source, bytes) else read_file(name)
            return name, self._transform(data, np.random.default_rng(0))
        except OSError as error:
            return name, reason_of(error)
        except (ValueError, MemoryError) as error:
            return name, " ".join(str(error).split()) or "not enough memory"

    def _predict_batch(self, named_images: list[tuple[str, Array | str]], topk: int) -> Iterator[Prediction]:
        rows = iter(self._run_batch([image for _, image in named_images if not isinstance(image, str)]))
        for file, image in named_images:
            if isinstance(image, str):
                yield Prediction(file, error=image)
                continue
            scores: Array = next(rows).astype(np.float64)
            if not np.isfinite(scores).all():
                yield Prediction(file, error=NOT_FINITE)
                continue
            if self._gives_logits:
                scores = np.exp(scores - scores.max())
                scores /= scores.sum()
            best_ids = np.argsort(-scores, kind="stable")[:topk].tolist()
            names = [self.names[i] for i in best_ids] if self.names else []
            yield Prediction(file, best_ids, scores[best_ids].round(5).tolist(), names)

    def _run_batch(self, images: list[Array]) -> list[Array]:
        """Returns the rows of the runner's output. Images of different sizes are run one by one."""
        if len({image.shape for image in images}) > 1:
            return [self._runner(image[None])[0] for image in images]
        return list(self._runner(np.stack(images))) if images else []
