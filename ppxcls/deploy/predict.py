"""Predicts the classes of any number of images. Threads read them in batches."""

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
from ppxcls.data.prefetch import prefetched
from ppxcls.data.read_file import read_file
from ppxcls.data.transforms import Compose
from ppxcls.deploy.runners import Array, Runner
from ppxcls.system.environment import usable_cores
from ppxcls.system.paths import url_problem
from ppxcls.system.whole_files import reason_of

Source = str | Path | Array | bytes


@dataclass
class Prediction:
    """The best classes of one image, or the reason why there are none.

    Attributes:
        file: path of the image; ``image 0`` and so on for arrays and bytes.
        class_ids: the best classes, the best first.
        scores: their probabilities.
        label_names: their names; empty if the classes have no names.
        error: why the image can't be predicted; empty if it can.
    """

    file: str
    class_ids: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    label_names: list[str] = field(default_factory=list)
    error: str = ""


def find_images(path: str) -> list[str]:
    """The files of a path, sorted. The path is a file, a folder (all images below it), or a pattern.

    Raises:
        DataError: there are none.
    """
    if (problem := url_problem(path)) is not None:
        raise DataError(problem)
    if Path(path).is_dir():
        found = [os.path.join(path, file) for file in find_image_files(path).files]
    else:
        found = (
            [path]
            if Path(path).is_file()
            else [f for f in glob.glob(path, recursive=True) if Path(f).is_file()]
        )
    if not found:
        raise DataError(f"{path}: no such image, folder of images or pattern")
    return sorted(found)


class Predictor:
    """A trained network, or its exported files, ready to predict.

    Args:
        transform: the host's transforms; the runner does the rest.
        runner: gives logits or probabilities.
        names: of the classes, in the order of their ids; empty for no names.
        gives_logits: whether the runner gives logits.
        description: one line about what predicts.
    """

    def __init__(
        self, transform: Compose, runner: Runner, names: Sequence[str], gives_logits: bool, description: str
    ) -> None:
        self.names = list(names)
        self.description = description
        self._transform, self._runner, self._gives_logits = transform, runner, gives_logits

    def predict(
        self, images: Source | Sequence[Source], topk: int = 5, batch_size: int = 10
    ) -> list[Prediction]:
        """Predict images.

        Args:
            images: one or several; each a path, the bytes of an image file, or an array uint8 [H, W, 3], RGB.
            topk: number of classes in a prediction.
            batch_size: images per batch.

        Returns:
            A prediction for each image, in their order. One that can't be read has an ``error``.

        Raises:
            DataError: ``images`` is something else, or a number is below 1.
        """
        several = [images] if isinstance(images, str | Path | np.ndarray | bytes) else list(images)
        for source in several:
            if not isinstance(source, str | Path | np.ndarray | bytes):
                raise DataError(
                    f"expected paths, bytes or arrays uint8 [H, W, 3], received {type(source).__name__}"
                )
        if topk < 1 or batch_size < 1:
            raise DataError(f"expected topk and batch_size of at least 1, received {topk} and {batch_size}")
        return list(self.stream(several, topk, batch_size))

    def stream(self, images: Sequence[Source], topk: int = 5, batch_size: int = 10) -> Iterator[Prediction]:
        """The same, as they come. A few batches are in memory at a time."""
        numbered = list(enumerate(images))
        batches = [numbered[i : i + batch_size] for i in range(0, len(numbered), batch_size)]
        with ThreadPoolExecutor(usable_cores()) as pool:
            for futures in prefetched(
                batches, lambda batch: [pool.submit(self._load, *item) for item in batch]
            ):
                yield from self._predicted([future.result() for future in futures], topk)

    def _load(self, number: int, source: Source) -> tuple[str, Array | str]:
        """The name of an image, and the transformed image or the reason why there is none."""
        name = f"image {number}" if isinstance(source, np.ndarray | bytes) else str(source)
        try:
            if isinstance(source, np.ndarray):
                return name, self._transform.without_decoding(source, np.random.default_rng(0))
            data = source if isinstance(source, bytes) else read_file(name)
            return name, self._transform(data, np.random.default_rng(0))
        except OSError as error:
            return name, reason_of(error)
        except (ValueError, MemoryError) as error:
            return name, " ".join(str(error).split()) or "too large for the memory"

    def _predicted(self, loaded: list[tuple[str, Array | str]], topk: int) -> Iterator[Prediction]:
        rows = iter(self._run([image for _, image in loaded if not isinstance(image, str)]))
        for file, image in loaded:
            if isinstance(image, str):
                yield Prediction(file, error=image)
                continue
            scores: Array = next(rows).astype(np.float64)
            if self._gives_logits:
                scores = np.exp(scores - scores.max())
                scores /= scores.sum()
            best = np.argsort(-scores, kind="stable")[:topk].tolist()
            names = [self.names[i] for i in best] if self.names else []
            yield Prediction(file, best, scores[best].round(5).tolist(), names)

    def _run(self, images: list[Array]) -> list[Array]:
        """The rows of the runner's output. Images of different sizes are run one by one."""
        if len({image.shape for image in images}) > 1:
            return [self._runner(image[None])[0] for image in images]
        return list(self._runner(np.stack(images))) if images else []
