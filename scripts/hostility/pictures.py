"""Images of floating-point numbers with NaN or infinity, as files and as arrays."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from hostility.builders.pictures import FORMATS, encoded
from hostility.cases import Case, Outcome, call, message_problem, refusal_problem
from PIL import Image as PillowImage

import ppxcls

PROMISE = "An image with NaN or infinite pixels gets no class: it is refused in one line that names it"
_SIDE = 8
_NUMBERS = {"NaN": np.nan, "infinity": np.inf, "minus infinity": -np.inf}
_PLACES: dict[str, Any] = {"one pixel": (3, 4), "one row": (3,), "all pixels": ()}


def cases() -> Iterator[Case]:
    """Returns the cases: each number, in each place, in each form of an image."""
    yield Case("images of finite numbers are accepted", _finite, is_quick=True)
    for number_name, number in _NUMBERS.items():
        for place_name, place in _PLACES.items():
            name = f"{number_name} in {place_name}"
            pixels = _pixels(3)
            pixels[place] = number
            for kind in FORMATS:
                for channels in (1, 3):
                    data = encoded(kind, pixels[..., :channels])
                    for reader, read in _READERS.items():
                        run = functools.partial(read, f"a{kind}", data)
                        yield Case(f"{name}: {reader}, {kind}, {channels} channels", run, is_quick=True)
            for dtype in ("float16", "float32", "float64"):
                for form, make in _ARRAYS.items():
                    run = functools.partial(_array, make(pixels.astype(dtype)))
                    yield Case(f"{name}: {form}, {dtype}", run, is_quick=True)
            picture = PillowImage.fromarray(pixels[..., 0])
            yield Case(f"{name}: a PIL image", functools.partial(_array, picture), is_quick=True)


def _pixels(channels: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).random((_SIDE, _SIDE, channels)).astype(np.float32)


_ARRAYS: dict[str, Callable[[np.ndarray[Any, Any]], Any]] = {
    "an array": lambda pixels: pixels,
    "a grey array": lambda pixels: pixels[..., 0],
    "a batch": lambda pixels: pixels[None],
    "a list of arrays": lambda pixels: [pixels],
    "an array with alpha": lambda pixels: np.concatenate([pixels, pixels[..., :1]], axis=2),
    "an array in another order": np.asfortranarray,
}


@functools.cache
def _predictor() -> ppxcls.Predictor:
    """Returns a predictor whose scores are finite for any image."""
    from ppxcls.deploy.predict import Predictor

    transform = ppxcls.build_transforms([{"DecodeImage": {}}, {"ResizeImage": {"size": [4, 4]}}])
    return Predictor(
        transform,
        lambda images: np.ones((len(images), 2), np.float32),
        names=[],
        gives_logits=True,
        description="test",
    )


def _predict(images: Any) -> list[int]:
    (prediction,) = _predictor().predict(images)
    if prediction.error:
        raise ppxcls.DataError(f"{prediction.file}: {prediction.error}")
    return prediction.class_ids


def _array(images: Any, _: Path) -> tuple[Outcome, str | None]:
    outcome = call(_predict, images)
    return outcome, refusal_problem(outcome)


def _file(name: str, data: bytes, folder: Path) -> tuple[Outcome, str | None]:
    (folder / name).write_bytes(data)
    outcome = call(_predict, str(folder / name))
    return outcome, refusal_problem(outcome, name)


def _bytes(_: str, data: bytes, __: Path) -> tuple[Outcome, str | None]:
    outcome = call(_predict, data)
    return outcome, refusal_problem(outcome)


def _dataset(name: str, data: bytes, folder: Path) -> tuple[Outcome, str | None]:
    from ppxcls.data.dataset import ImageNetDataset

    (folder / name).write_bytes(data)
    (folder / "list.txt").write_text(f"{name} 0\n")
    dataset = ImageNetDataset(str(folder), str(folder / "list.txt"), transform_ops=[{"DecodeImage": {}}])
    outcome = call(dataset.load, 0)
    return outcome, refusal_problem(outcome, name)


def _decoding(_: str, data: bytes, __: Path) -> tuple[Outcome, str | None]:
    from ppxcls.data.decode import decode_image

    def decode() -> int:
        try:
            return int(decode_image(data).max())
        except ValueError as error:
            raise ppxcls.DataError(str(error)) from None

    outcome = call(decode)
    return outcome, refusal_problem(outcome)


_READERS: dict[str, Callable[..., tuple[Outcome, str | None]]] = {
    "infer": _file,
    "a body": _bytes,
    "a data set": _dataset,
    "decoding": _decoding,
}


def _finite(folder: Path) -> tuple[Outcome, str | None]:
    """The formats that this OpenCV reads are still read, and so are arrays."""
    pixels = _pixels(3)
    class_ids = [_predict(make(pixels)) for make in _ARRAYS.values()]
    (folder / "a.pfm").write_bytes(encoded(".pfm", pixels))
    class_ids.append(_predict(str(folder / "a.pfm")))
    outcome = Outcome(0, repr(class_ids), "", 0)
    return outcome, None if all(len(ids) == 2 for ids in class_ids) else message_problem("no classes")
