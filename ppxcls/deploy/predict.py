"""Predicts the classes of any number of files. Threads read them in batches."""

from __future__ import annotations

import csv
import glob
import json
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np

from ppxcls.data.errors import DataError
from ppxcls.data.prefetch import prefetched
from ppxcls.data.read_file import IMAGE_EXTENSIONS, read_file
from ppxcls.data.transforms import Compose
from ppxcls.deploy.runners import Array, Runner
from ppxcls.system.environment import usable_cores

Format = Literal["paddleclas", "csv", "jsonl"]


@dataclass
class Prediction:
    """The best classes of one file, or the reason why there are none."""

    file: str
    class_ids: list[int]
    scores: list[float]
    error: str = ""


def find_images(path: str) -> list[str]:
    """The files of a path, sorted. The path is a file, a folder (all images below it), or a pattern.

    Raises:
        DataError: there are none.
    """
    if Path(path).is_dir():
        found = [str(f) for f in Path(path).rglob("*") if f.suffix.lower() in IMAGE_EXTENSIONS and f.is_file()]
    else:
        found = [path] if Path(path).is_file() else [f for f in glob.glob(path, recursive=True) if Path(f).is_file()]
    if not found:
        raise DataError(f"{path}: no such image, folder of images or pattern")
    return sorted(found)


def predict(
    files: Sequence[str], transform: Compose, runner: Runner, batch_size: int, topk: int, softmax: bool
) -> Iterator[Prediction]:
    """Yield predictions in the order of the files. Unreadable files have an error. A few batches are in memory at a time.

    Args:
        files: paths of images.
        transform: the host's transforms; the runner does the rest.
        runner: gives logits or probabilities.
        batch_size: images per batch.
        topk: number of classes in a prediction.
        softmax: whether the runner gives logits.
    """

    def load(file: str) -> tuple[str, Array | str]:
        try:
            return file, transform(read_file(file), np.random.default_rng(0))
        except OSError as error:
            return file, error.strerror or str(error)
        except (ValueError, MemoryError) as error:
            return file, " ".join(str(error).split()) or "too large for the memory"

    batches = [files[i : i + batch_size] for i in range(0, len(files), batch_size)]
    with ThreadPoolExecutor(usable_cores()) as pool:
        for futures in prefetched(batches, lambda batch: [pool.submit(load, file) for file in batch]):
            yield from _predicted([future.result() for future in futures], runner, topk, softmax)


def _predicted(loaded: list[tuple[str, Array | str]], runner: Runner, topk: int, softmax: bool) -> Iterator[Prediction]:
    images = [image for _, image in loaded if not isinstance(image, str)]
    rows = iter(runner(np.stack(images)) if images else ())
    for file, image in loaded:
        if isinstance(image, str):
            yield Prediction(file, [], [], image)
            continue
        scores: Array = next(rows).astype(np.float64)
        if softmax:
            scores = np.exp(scores - scores.max())
            scores /= scores.sum()
        best = np.argsort(-scores, kind="stable")[:topk]
        yield Prediction(file, best.tolist(), scores[best].round(5).tolist())


def class_names(file: str | Path | None) -> dict[int, str]:
    """Class names by id, from a file of ``id name`` lines; empty for None.

    Raises:
        DataError: a line has another form.
    """
    if file is None:
        return {}
    names = {}
    for number, line in enumerate(Path(file).read_text(encoding="utf-8").splitlines(), 1):
        index, _, name = line.strip().partition(" ")
        if line.strip():
            if not index.isdigit():
                raise DataError(f"{file}:{number}: expected 'id name', received {line[:80]!r}")
            names[int(index)] = name
    return names


class Writer:
    """Writes predictions as they come.

    Args:
        kind: ``paddleclas``, one list of dictionaries per batch as PaddleClas prints it; ``csv``; ``jsonl``, one object per line.
        names: class names by id.
        stream: to write to.
    """

    def __init__(self, kind: Format, names: dict[int, str], stream: TextIO = sys.stdout) -> None:
        self._kind, self._names, self._stream = kind, names, stream
        self._csv = csv.writer(stream, lineterminator="\n")
        if kind == "csv":
            self._csv.writerow(["file_name", "rank", "class_id", "label_name", "score"])

    def write(self, predictions: Sequence[Prediction]) -> None:
        """Write predictions that have no error."""
        rows = [self._row(p) for p in predictions]
        if self._kind == "paddleclas" and rows:
            print(rows, file=self._stream)
        elif self._kind == "jsonl":
            for row in rows:
                print(json.dumps(row, ensure_ascii=False), file=self._stream)
        elif self._kind == "csv":
            for p in predictions:
                for rank, (index, score) in enumerate(zip(p.class_ids, p.scores, strict=True), 1):
                    self._csv.writerow([p.file, rank, index, self._names.get(index, ""), score])

    def _row(self, prediction: Prediction) -> dict[str, Any]:
        labels = {"label_names": [self._names.get(i, "") for i in prediction.class_ids]} if self._names else {}
        return {"class_ids": prediction.class_ids, "scores": prediction.scores, "file_name": prediction.file, **labels}


def side_file(folder: Path) -> dict[str, Any]:
    """The side file that ``export_model`` wrote.

    Raises:
        DataError: it is missing, or not such a file.
    """
    file = folder / "inference_config.json"
    try:
        with open(file, encoding="utf-8") as stream:
            side: dict[str, Any] = json.load(stream)
        return {key: side[key] for key in ("transforms", "class_names", "output", "preprocessing in the graph")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: not what export_model.py writes: {type(error).__name__}: {error}") from None
