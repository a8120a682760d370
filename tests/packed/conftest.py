"""Generated JPEGs of every kind that a folder may contain."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import sklearn.datasets
from PIL import Image as PillowImage

from ppxcls.data.decode import Image

KINDS = {
    "444": {"subsampling": 0},
    "422": {"subsampling": 1},
    "420": {"subsampling": 2},
    "coarse": {"quality": 20, "subsampling": 2},
    "fine": {"quality": 98, "subsampling": 0},
    "optimized": {"optimize": True},
    "restarts": {"restart_marker_blocks": 5},
    "restart rows": {"restart_marker_rows": 1, "subsampling": 0},
}
WHOLE = {"progressive": {"progressive": True}, "rgb": {"keep_rgb": True, "subsampling": 0}}


def photo(width: int, height: int, seed: int = 0) -> Image:
    """Returns a part of a real photograph with some noise, uint8 [height, width, 3]."""
    picture = sklearn.datasets.load_sample_image(("china.jpg", "flower.jpg")[seed % 2])
    part = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    noise = np.random.default_rng(seed).integers(-9, 10, part.shape)
    return np.clip(part + noise, 0, 255).astype(np.uint8)


def jpeg(image: Image, **options: Any) -> bytes:
    stream = io.BytesIO()
    PillowImage.fromarray(image).save(stream, "jpeg", **options)
    return stream.getvalue()


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 41 files and a list: each kind in several sizes, other formats, names with blanks."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "a b").mkdir()
    files: dict[str, bytes] = {}
    for number, (name, options) in enumerate({**KINDS, **WHOLE}.items()):
        for k, (width, height) in enumerate([(333, 250), (250, 333), (129, 97)]):
            files[f"a b/{name}-{k}.jpg"] = jpeg(photo(width, height, number + k), **options)
    files["grey.jpg"] = jpeg(photo(200, 150)[..., 0])
    files["lying.jpg"] = jpeg(photo(200, 150), exif=_lying())
    files["cut.jpg"] = jpeg(photo(200, 150))[:-4000]
    files["cmyk.jpg"] = _cmyk()
    files["é.png"] = cv2.imencode(".png", photo(100, 90))[1].tobytes()
    for width in (1, 2, 7, 8, 15, 17):
        files[f"narrow-{width}.jpg"] = jpeg(photo(width, 40), subsampling=2)
    lines = []
    for number, (name, data) in enumerate(files.items()):
        (folder / name).write_bytes(data)
        lines.append(f"{name} {number % 3}\n")
    (folder / "list.txt").write_text("".join(lines), encoding="utf-8")
    return folder


def _lying() -> PillowImage.Exif:
    exif = PillowImage.Exif()
    exif[0x0112] = 6
    return exif


def _cmyk() -> bytes:
    stream = io.BytesIO()
    PillowImage.fromarray(photo(100, 90)).convert("CMYK").save(stream, "jpeg")
    return stream.getvalue()
