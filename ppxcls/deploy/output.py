"""What ``ppxcls infer`` writes: predictions as they are computed, features, and a last line with numbers."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from ppxcls.deploy.feature_files import FeatureRows, refuse_one_file
from ppxcls.deploy.predict import Prediction, Predictor
from ppxcls.deploy.writer import Format, Writer
from ppxcls.system.atomic_files import whole_text_file
from ppxcls.system.paths import one_line


@dataclass(frozen=True)
class Output:
    """What ``ppxcls infer`` writes, and how.

    Attributes:
        kind: format of the predictions; see ``Writer``.
        file: file for the predictions; None for standard output.
        features: ``.npy`` file for the features; None for none.

    Raises:
        DataError: predictions and features would be written to one file.
    """

    kind: Format = "paddleclas"
    file: str | None = None
    features: str | None = None

    def __post_init__(self) -> None:
        if self.file is not None and self.features is not None:
            refuse_one_file(self.file, self.features)


def write_output_of(
    predictor: Predictor, files: Sequence[str], *, output: Output, topk: int, batch_size: int
) -> int:
    """Predicts files and writes what is asked, and files without a prediction to standard error.

    Args:
        predictor: predictor, with features if they are written.
        files: image files.
        output: what is written, and how.
        topk: number of classes in a prediction.
        batch_size: images per batch.

    Returns:
        Number of files that could not be predicted.

    Raises:
        OSError: a file can't be written.
    """
    counts = _Counts()
    features = FeatureRows()
    start = time.perf_counter()
    with whole_text_file(Path(output.file)) if output.file else nullcontext(sys.stdout) as stream:
        predictions = predictor.stream(files, topk, batch_size)
        writer = Writer(output.kind, stream, predictor.limits)
        with tqdm(total=len(files), unit="image", disable=None, leave=False) as bar:
            while batch := list(islice(predictions, batch_size)):
                writer.write([prediction for prediction in batch if not prediction.error])
                counts.add(batch)
                features.add(batch)
                bar.update(len(batch))
    if output.features is not None:
        features.write(Path(output.features))
    print(counts.line(time.perf_counter() - start), file=sys.stderr)
    return counts.failures


@dataclass
class _Counts:
    """Numbers of images: all, those that could not be predicted, and those that were turned away."""

    images: int = 0
    failures: int = 0
    unknown_images: int = 0

    def add(self, predictions: Sequence[Prediction]) -> None:
        """Counts predictions, and prints their errors."""
        self.images += len(predictions)
        self.failures += _print_errors(predictions)
        self.unknown_images += sum(prediction.is_known is False for prediction in predictions)

    def line(self, seconds: float) -> str:
        """Returns the last line of ``infer``."""
        count = self.images - self.failures
        notes = [f"{count} images", f"{count / seconds:.1f} images/s"]
        if self.unknown_images:
            notes.append(f"{self.unknown_images} turned away as unknown")
        if self.failures:
            notes.append(f"{self.failures} could not be predicted")
        return ", ".join(notes)


def _print_errors(predictions: Sequence[Prediction]) -> int:
    """Prints the errors and returns their number."""
    errors = [prediction for prediction in predictions if prediction.error]
    for prediction in errors:
        print(one_line(f"{prediction.file}: {prediction.error}"), file=sys.stderr)
    return len(errors)
