"""JPEGs in segments give the pixels of the standard decoder, for any part.

Damaged data does no harm.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest

from ppxcls.data.decode import decode_image
from ppxcls.packed.jpeg import HEIGHT_AT, SegmentedImage, rewrite_jpeg
from ppxcls.packed.jpeg_codes import SEGMENT
from ppxcls.system import kernels
from tests.conftest import SHARED, needs_shared
from tests.packed.conftest import KINDS, WHOLE, jpeg, photo


def check_parts(data: bytes, parts: int, seed: int) -> None:
    """Compares the whole picture, and parts at random and in the corners, with the standard decoder."""
    made, picture = rewrite_jpeg(data), decode_image(data)
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
    """The decoder interpolates the colours of very narrow pictures differently."""
    check_parts(jpeg(photo(width, 70), subsampling=subsampling), 30, width)
    check_parts(jpeg(photo(70, width), subsampling=subsampling), 30, width)


def test_grey_and_one_coefficient() -> None:
    check_parts(jpeg(photo(333, 250)[..., 0]), 20, 0)
    check_parts(jpeg(np.full((64, 80, 3), 7, np.uint8)), 10, 0)  # each Huffman table has one symbol


@needs_shared
def test_parts_of_real_images() -> None:
    files = sorted(SHARED.glob("imagenet-sample/*/*/*.JPEG"))
    assert len(files) == 240
    sizes = []
    for seed, file in enumerate(files):
        data = file.read_bytes()
        check_parts(data, 6, seed)
        made = rewrite_jpeg(data)
        assert made is not None
        sizes.append((len(data), len(made.data)))
    before, after = np.sum(sizes, axis=0)
    assert after < 1.04 * before


def test_a_row_of_the_table_says_where_a_segment_begins_and_what_precedes_it() -> None:
    """A grey picture with one colour per block of 8 pixels: its DC is known, and only DC is coded."""
    values = np.arange(5 * 7).reshape(5, 7) * 6  # a row of 7 blocks has two segments
    made = rewrite_jpeg(jpeg(np.kron(values, np.ones((8, 8))).astype(np.uint8), quality=75))
    assert made is not None
    assert (made.grid.columns, made.grid.rows, made.grid.per_segment) == (2, 5, 4)
    table = np.frombuffer(made.data, SEGMENT, offset=made.table)
    assert len(table) == 10
    bits = int(table["bits"].sum())
    assert 8 * (made.table - made.scan) - 8 < bits <= 8 * (made.table - made.scan)
    step = made.data[made.data.index(b"\xff\xdb") + 5]
    dc = np.round((values.ravel() - 128) * 8 / step)
    before = [0, *dc]
    assert table["dc"][:, 0].tolist() == [
        before[row * 7 + column * 4] for row in range(5) for column in range(2)
    ]


def test_segments_have_32_pixels_whatever_the_width() -> None:
    made = rewrite_jpeg(jpeg(photo(500, 375), subsampling=0))
    assert made is not None
    assert (made.grid.mcus, made.grid.columns, made.grid.rows, made.grid.per_segment) == (63, 16, 47, 4)


def test_parts_of_extreme_brightness() -> None:
    """At the joins of rows, DC changes by more than anywhere in the picture."""
    rows = np.repeat(np.linspace(0, 255, 48), 8).astype(np.uint8)
    steep = np.kron(np.random.default_rng(0).choice([0, 255], (30, 30)), np.ones((8, 8))).astype(np.uint8)
    for picture in (np.repeat(rows[:, None], 200, 1), np.repeat(rows[None], 200, 0), steep):
        for quality in (5, 75, 100):
            check_parts(jpeg(np.dstack([picture, picture, 255 - picture]), quality=quality), 30, quality)
            check_parts(jpeg(picture, quality=quality), 30, quality)


def test_numbers_of_numpy_are_taken() -> None:
    made = rewrite_jpeg(jpeg(photo(100, 80)))
    assert made is not None
    image = SegmentedImage(made)
    np.testing.assert_array_equal(image.part(*np.array([40, 30, 20, 10])), image.whole()[30:40, 40:60])


@pytest.mark.parametrize("kind", WHOLE)
def test_other_kinds_stay_as_they_are(kind: str) -> None:
    assert rewrite_jpeg(jpeg(photo(100, 80), **WHOLE[kind])) is None


def test_without_numba_all_stay_as_they_are_and_parts_are_those_of_the_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = rewrite_jpeg(jpeg(photo(100, 80)))
    assert made is not None
    part = SegmentedImage(made).part(40, 30, 20, 10)
    monkeypatch.setattr(kernels, "HAS_NUMBA", False)
    assert rewrite_jpeg(jpeg(photo(100, 80))) is None
    monkeypatch.setattr(SegmentedImage, "_cut", lambda *_: pytest.fail("it was cut"))
    np.testing.assert_array_equal(SegmentedImage(made).part(40, 30, 20, 10), part)


def test_damaged_data_is_refused_or_decodes_as_the_stock_decoder_does() -> None:
    """Random bytes are changed, left out or cut off: no crash, and never other pixels."""
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
        made = rewrite_jpeg(bytes(data))
        if made is None:
            continue
        kept += 1
        try:
            expected = decode_image(bytes(data))
        except ValueError:
            continue  # the packing code compares only pictures that it can decode
        got: Any = SegmentedImage(made).whole()
        if k % 3 == 0 and got.shape == expected.shape:
            assert (got == expected).mean() > 0.5
    assert kept > 50


def test_damaged_records_are_errors_or_pictures() -> None:
    """Random bytes of the header, of the coded data and of the table are changed.

    No crash, and no access outside of the memory.
    """
    rng = np.random.default_rng(1)
    sources = [
        rewrite_jpeg(jpeg(photo(120, 90, k), **KINDS[kind]))
        for k, kind in enumerate(("444", "422", "420", "fine"))
    ]
    found = {"error": 0, "picture": 0}
    for k in range(3000):
        made = sources[k % 4]
        assert made is not None
        data = bytearray(made.data)
        begin, end = [(HEIGHT_AT, made.scan), (made.scan, made.table), (made.table, len(data))][k % 3]
        for at in rng.integers(begin, end, int(rng.integers(1, 5))):
            data[at] = int(rng.integers(256))
        left, top = int(rng.integers(100)), int(rng.integers(70))
        try:
            part = SegmentedImage(made._replace(data=bytes(data))).part(left, top, 20, 20)
            assert part.shape == (20, 20, 3)
            found["picture"] += 1
        except ValueError:
            found["error"] += 1
    assert min(found.values()) > 300
