"""Resizing with ``backend: pil`` gives Pillow's pixels, for any Pillow release, with and without numba."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image as PillowImage

from ppxcls.data import resize
from ppxcls.data.decode import Image
from ppxcls.data.resize import resizer
from ppxcls.system import kernels

METHODS = {"bilinear": PillowImage.Resampling.BILINEAR, "bicubic": PillowImage.Resampling.BICUBIC}


def pictures(largest: int, count: int = 150) -> list[tuple[Image, tuple[int, int]]]:
    """Returns images of random sizes with target sizes, some of them with an unchanged side.

    The images are noise, or black and white.
    """
    rng = np.random.default_rng(largest)
    found = []
    for k in range(count):
        height, width, new_height, new_width = (int(side) for side in rng.integers(1, largest + 1, 4))
        values = [0, 255] if k % 2 else range(256)
        image = rng.choice(np.array(values, np.uint8), (height, width, 3))
        found.append((image, (width if k % 7 == 0 else new_width, height if k % 5 == 0 else new_height)))
    return found


def by_two_calls(image: Image, size: tuple[int, int], name: str) -> Image:
    """Resizes the width first, then the height, in two calls of Pillow."""
    picture = PillowImage.fromarray(image).resize((size[0], image.shape[0]), METHODS[name])
    return np.asarray(picture.resize(size, METHODS[name]))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("largest", [4, 40, 400])
@pytest.mark.parametrize("has_numba", [True, False])
def test_the_pixels_are_pillows(
    name: str, largest: int, has_numba: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if has_numba:
        pytest.importorskip("numba")
    monkeypatch.setattr(kernels, "HAS_NUMBA", has_numba)
    function = resizer(name, "pil")
    for image, size in pictures(largest):
        received = function(image, size)
        assert received.flags.c_contiguous
        np.testing.assert_array_equal(received, by_two_calls(image, size, name))
        if size[1] >= image.shape[0]:  # in this case every Pillow release starts with the width
            np.testing.assert_array_equal(received, PillowImage.fromarray(image).resize(size, METHODS[name]))


@pytest.mark.parametrize("name", METHODS)
def test_parts_of_an_array_are_resized(name: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3)).astype(np.uint8)
    part = image[7:50, 11:70]
    np.testing.assert_array_equal(resizer(name, "pil")(part, (30, 31)), by_two_calls(part, (30, 31), name))


def test_the_kernel_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    monkeypatch.setattr(resize, "_resize_by_pillow", lambda *_: pytest.fail("by Pillow"))
    for name in METHODS:
        assert resizer(name, "pil")(np.zeros((5, 6, 3), np.uint8), (7, 8)).shape == (8, 7, 3)


@pytest.mark.parametrize("name", ["nearest", "box", "lanczos", "hamming"])
def test_other_filters_are_pillows_own(name: str) -> None:
    image = np.random.default_rng(1).integers(0, 256, (40, 30, 3)).astype(np.uint8)
    method = getattr(PillowImage.Resampling, name.upper())
    expected = PillowImage.fromarray(image)
    if name != "nearest":
        expected = expected.resize((50, 40), method)
    np.testing.assert_array_equal(resizer(name, "pil")(image, (50, 20)), expected.resize((50, 20), method))


@pytest.mark.parametrize("name", ["bicubic", "lanczos"])
def test_a_column_that_would_fill_the_memory_is_refused(name: str) -> None:
    """The width is resized first."""
    column = np.zeros((1_000_000, 1, 3), np.uint8)
    with pytest.raises(ValueError, match="1 x 1000000 pixels would become 299 x 1000000; too many"):
        resizer(name, "pil")(column, (299, 299))
    assert resizer(name, "pil")(column[:100_000], (299, 299)).shape == (299, 299, 3)
