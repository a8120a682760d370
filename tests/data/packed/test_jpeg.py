"""JPEGs in segments: the pixels of the stock decoder, whatever part is asked for, and no harm from damaged data."""

from __future__ import annotations

import re
from typing import Any

import cv2
import numpy as np
import pytest

from ppxcls.data.decode import decode_image
from ppxcls.data.packed import jpeg as module
from ppxcls.data.packed.jpeg import SegmentedImage, segmented
from tests.conftest import SHARED, needs_shared
from tests.data.packed.conftest import KINDS, WHOLE, jpeg, photo


def check_parts(data: bytes, parts: int, seed: int) -> None:
    """Compare with the stock decoder's picture: the whole, and parts at random and in the corners."""
    made, picture = segmented(data), decode_image(data)
    assert made is not None
    image = SegmentedImage(made)
    assert image.shape == picture.shape
    np.testing.assert_array_equal(image.whole(), picture)
    np.testing.assert_array_equal(decode_image(image.encoded), picture)
    assert cv2.imdecode(np.frombuffer(image.encoded, np.uint8), 1) is not None
    rng = np.random.default_rng(seed)
    height, width = picture.shape[:2]
    for k in range(parts):
        w, h = (int(rng.integers(1, side + 1)) for side in (width, height))
        left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
        if k < 4:
            left, top = (k % 2) * (width - w), (k // 2) * (height - h)
        np.testing.assert_array_equal(image.part(left, top, w, h), picture[top : top + h, left : left + w])


@pytest.mark.parametrize("kind", KINDS)
def test_parts_of_each_kind(kind: str) -> None:
    for seed, (width, height) in enumerate([(500, 375), (333, 500), (97, 61), (47 * 8, 40), (640, 33)]):
        check_parts(jpeg(photo(width, height, seed), **KINDS[kind]), 40, seed)


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("width", [1, 2, 3, 5, 8, 9, 15, 16, 17, 31, 33, 65, 66, 67, 129])
def test_parts_of_narrow_pictures(width: int, subsampling: int) -> None:
    """The decoder interpolates the colours of a few pixels otherwise than those of many."""
    check_parts(jpeg(photo(width, 70), subsampling=subsampling), 30, width)
    check_parts(jpeg(photo(70, width), subsampling=subsampling), 30, width)


def test_grey_and_one_coefficient() -> None:
    check_parts(jpeg(photo(333, 250)[..., 0]), 20, 0)
    check_parts(jpeg(np.full((64, 80, 3), 7, np.uint8)), 10, 0)  # one symbol in each table


@needs_shared
def test_parts_of_real_images() -> None:
    files = sorted(SHARED.glob("imagenet-sample/*/*/*.JPEG"))
    assert len(files) == 240
    sizes = []
    for seed, file in enumerate(files):
        data = file.read_bytes()
        check_parts(data, 6, seed)
        made = segmented(data)
        assert made is not None
        sizes.append((len(data), len(made.data) + 2 * made.lengths.size))
    before, after = np.sum(sizes, axis=0)
    assert after < 1.04 * before


def test_a_segment_begins_behind_each_marker() -> None:
    made = segmented(jpeg(photo(500, 375), subsampling=0))
    assert made is not None
    assert (made.grid.columns, made.grid.rows, made.grid.per_segment) == (21, 47, 3)
    markers = [m.end() for m in re.finditer(rb"\xff[\xd0-\xd7]", made.data)]
    begins = made.scan + np.cumsum(made.lengths.astype(np.int64))
    assert begins[:-1].tolist() == markers
    assert begins[-1] == len(made.data)


@pytest.mark.parametrize("kind", WHOLE)
def test_other_kinds_stay_as_they_are(kind: str) -> None:
    assert segmented(jpeg(photo(100, 80), **WHOLE[kind])) is None


def test_without_numba_all_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HAS_NUMBA", False)
    assert segmented(jpeg(photo(100, 80))) is None


def test_damaged_data_is_refused_or_decodes_as_the_stock_decoder_does() -> None:
    """Bytes changed, left out or cut off, at random: no crash, and never other pixels."""
    rng = np.random.default_rng(0)
    sources = [jpeg(photo(120, 90, k), **KINDS[kind]) for k, kind in enumerate(KINDS)]
    kept = 0
    for k in range(1500):
        data = bytearray(sources[k % len(sources)])
        at = int(rng.integers(2, len(data)))
        if k % 3 == 0:
            data[at] = int(rng.integers(256))
        elif k % 3 == 1:
            del data[at : at + int(rng.integers(1, 9))]
        else:
            del data[at:]
        made = segmented(bytes(data))
        if made is None:
            continue
        kept += 1
        try:
            expected = decode_image(bytes(data))
        except ValueError:
            continue  # the writer compares with what it can decode
        got: Any = SegmentedImage(made).whole()
        if k % 3 == 0 and got.shape == expected.shape:
            assert (got == expected).mean() > 0.5
    assert kept > 50
