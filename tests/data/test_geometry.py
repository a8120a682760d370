"""Letterbox, padding, rotation, blur and JPEG noise against OpenCV, Pillow, numpy and closed forms."""

from __future__ import annotations

import io
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image as PillowImage

import ppxcls
from ppxcls.data.degradation import BlurImage, ImageCompression, motion_kernel
from ppxcls.data.transforms import prepared_images
from ppxcls.data.vision_transforms import RandomRotation

PICTURE = np.random.default_rng(3).integers(0, 256, (48, 64, 3), np.uint8)
SMOOTH = cv2.GaussianBlur(PICTURE, (9, 9), 0)
KINDS = [PICTURE, PICTURE[..., :1], np.dstack([PICTURE, PICTURE[..., :1]]), PICTURE.astype(np.uint16) * 257]
RANDOM = {
    "RandomRotation": {"degrees": 30, "prob": 0.5, "interpolation": "bilinear", "fill": 7},
    "RandomGrayscale": {"p": 0.5},
    "ImageCompression": {"prob": 0.5},
    "BlurImage": {"ratio": 0.5},
}


def applied(name: str, image: np.ndarray = PICTURE, seed: int = 0, **arguments: Any) -> np.ndarray:
    return ppxcls.build_transforms([{name: arguments}])(image, np.random.default_rng(seed))


@pytest.mark.parametrize("name", RANDOM)
def test_draws_come_from_the_generator_and_uint8_stays(name: str) -> None:
    before = PICTURE.copy()
    outs = [applied(name, seed=seed, **RANDOM[name]) for seed in range(40)]
    assert all(out.dtype == np.uint8 and out.shape == PICTURE.shape for out in outs)
    assert all(np.array_equal(out, applied(name, seed=seed, **RANDOM[name])) for seed, out in enumerate(outs))
    unchanged_count = sum(np.array_equal(out, PICTURE) for out in outs)
    assert 8 <= unchanged_count <= 32
    assert np.array_equal(PICTURE, before)


@pytest.mark.parametrize("image", KINDS, ids=lambda image: f"{image.dtype}-{image.shape[2]}")
@pytest.mark.parametrize("name", ["RandomRotation", "BlurImage", "Pad", "Padv2", "ResizeImage", "CenterCrop"])
def test_any_channels_and_16_bits(name: str, image: np.ndarray) -> None:
    """What a transform does to a channel does not depend on the other channels, nor on the bits."""
    arguments: dict[str, Any] = {
        "RandomRotation": {"degrees": 40, "prob": 1.0},
        "BlurImage": {"ratio": 1.0},
        "Pad": {"padding": [3, 4, 5, 6], "padding_mode": "reflect"},
        "Padv2": {"size_divisor": 50, "fill_value": 0},
        "ResizeImage": {"size": [40, 60], "keep_ratio": True},
        "CenterCrop": {"size": [20, 31]},
    }[name]
    scale = 257 if image.dtype == np.uint16 else 1
    for seed in range(4):
        out, reference = (applied(name, picture, seed, **arguments) for picture in (image, PICTURE))
        assert out.dtype == image.dtype
        assert out.shape == (*reference.shape[:2], image.shape[2])
        difference = np.abs(out[..., 0].astype(int) - scale * reference[..., 0].astype(int)).max()
        assert difference <= (scale if scale > 1 else 0)  # rounding of the bytes


@pytest.mark.parametrize(
    ("size", "inner"), [([40, 60], (40, 30)), ([100, 40], (53, 40)), ([64, 48], (64, 48))]
)
def test_letterbox(size: list[int], inner: tuple[int, int]) -> None:
    out = applied("ResizeImage", size=size, keep_ratio=True, fill_value=[1, 2, 3])
    expected = np.full((size[1], size[0], 3), (1, 2, 3), np.uint8)
    left, top = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    expected[top : top + inner[1], left : left + inner[0]] = cv2.resize(PICTURE, inner)
    assert np.array_equal(out, expected)


def test_letterbox_of_a_sliver() -> None:
    assert applied("ResizeImage", np.zeros((1, 3000, 3), np.uint8), size=64, keep_ratio=True).shape == (
        64,
        64,
        3,
    )


@pytest.mark.parametrize(
    ("mode", "numpy_mode"), [("edge", "edge"), ("reflect", "reflect"), ("symmetric", "symmetric")]
)
def test_pad_is_numpys(mode: str, numpy_mode: str) -> None:
    out = applied("Pad", padding=[3, 4, 5, 6], padding_mode=mode)
    assert np.array_equal(out, np.pad(PICTURE, ((4, 6), (3, 5), (0, 0)), mode=numpy_mode))
    constant = applied("Pad", padding=[3, 4], fill=9)
    assert np.array_equal(constant, np.pad(PICTURE, ((4, 4), (3, 3), (0, 0)), constant_values=9))
    assert applied("Pad", padding=2).shape == (52, 68, 3)


@pytest.mark.parametrize(("mode", "left", "top"), [(0, 0, 0), (1, 8, 11), (2, 16, 22), (-1, 5, 6)])
def test_padv2(mode: int, left: int, top: int) -> None:
    arguments: dict[str, Any] = {"offsets": [5, 6]} if mode == -1 else {}
    out = applied("Padv2", size=[80, 70], pad_mode=mode, **arguments)
    expected = np.full((70, 80, 3), 128, np.uint8)  # 127.5, rounded
    expected[top : top + 48, left : left + 64] = PICTURE
    assert np.array_equal(out, expected)
    assert applied("Padv2", size_divisor=50).shape == (50, 100, 3)
    with pytest.raises(
        ValueError, match=r"Padv2: expected an image that fits into 60x60 pixels from \(0, 0\)"
    ):
        applied("Padv2", size=60)


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_rotation_by_right_angles_is_numpys(turns: int) -> None:
    square = PICTURE[:, :48]
    for method in ("nearest", "bilinear", "bicubic"):
        rotation = RandomRotation(90, interpolation=method)
        assert np.array_equal(rotation.rotated(square, 90 * turns), np.rot90(square, turns))
    expanded = RandomRotation(90, expand=True).rotated(PICTURE, 90 * turns)
    assert np.array_equal(expanded, np.rot90(PICTURE, turns))


@pytest.mark.parametrize("angle", [-33.3, 10, 71.5])
def test_rotation_is_pillows(angle: float) -> None:
    """Nearest pixels differ only on ties; interpolated ones by the 5 bits of OpenCV's fractions."""
    nearest = RandomRotation(90, fill=[1, 2, 3]).rotated(PICTURE, angle)
    picture = PillowImage.fromarray(PICTURE)
    assert (nearest == np.asarray(picture.rotate(angle, fillcolor=(1, 2, 3)))).mean() > 0.98
    bilinear = RandomRotation(90, interpolation="bilinear").rotated(SMOOTH, angle)[12:-12, 16:-16]
    expected = np.asarray(PillowImage.fromarray(SMOOTH).rotate(angle, PillowImage.Resampling.BILINEAR))
    assert np.abs(bilinear.astype(int) - expected[12:-12, 16:-16].astype(int)).max() <= 2
    expanded = RandomRotation(90, expand=True).rotated(PICTURE, angle)
    width, height = picture.rotate(angle, expand=True).size
    assert abs(expanded.shape[0] - height) <= 1
    assert abs(expanded.shape[1] - width) <= 1
    shifted = RandomRotation(90, center=(32.0, 24.0)).rotated(PICTURE, angle)
    assert np.array_equal(shifted, RandomRotation(90).rotated(PICTURE, angle)), "the image's own centre"


def test_angles_are_uniform() -> None:
    rotation = RandomRotation([-10, 30], prob=1.0)
    rng = np.random.default_rng(0)
    angles: list[float] = []
    rotation.rotated = lambda image, angle: angles.append(angle) or image  # type: ignore[assignment,method-assign]
    for _ in range(2000):
        rotation(PICTURE, rng)
    assert np.quantile(angles, [0.0, 0.25, 0.5, 0.75, 1.0]) == pytest.approx([-10, 0, 10, 20, 30], abs=1)


def test_grey_is_the_luminance() -> None:
    out = applied("RandomGrayscale", p=1.0)
    expected = PICTURE @ np.array([0.299, 0.587, 0.114])
    assert np.abs(out - expected[..., None]).max() <= 0.51
    assert np.array_equal(applied("RandomGrayscale", p=0.0), PICTURE)


@pytest.mark.parametrize("quality", [40, 75, 100])
def test_compression_is_pillows(quality: int) -> None:
    for image in (SMOOTH, SMOOTH[..., :1]):
        stream = io.BytesIO()
        picture = PillowImage.fromarray(image if image.shape[2] == 3 else image[..., 0])
        picture.save(stream, "JPEG", quality=quality, subsampling=2)
        expected = np.asarray(PillowImage.open(stream)).reshape(image.shape)
        assert np.array_equal(ImageCompression.compressed(image, quality), expected)


def test_colours_of_bgr_images_have_their_own_weights() -> None:
    stream = io.BytesIO()
    PillowImage.fromarray(SMOOTH).save(stream, "PNG")
    for op in ({"RandomGrayscale": {"p": 1.0}}, {"ImageCompression": {"prob": 1.0}}):
        rgb, bgr = (
            ppxcls.build_transforms([{"DecodeImage": {"to_rgb": to_rgb}}, op])(
                stream.getvalue(), np.random.default_rng(0)
            )
            for to_rgb in (True, False)
        )
        assert np.array_equal(bgr, rgb[..., ::-1])


def test_a_side_that_no_jpeg_can_have() -> None:
    with pytest.raises(ValueError, match="ImageCompression: 65501x1 pixels do not fit a JPEG"):
        applied("ImageCompression", np.zeros((1, 65501, 3), np.uint8), prob=1.0)


def test_qualities_are_uniform() -> None:
    transform, rng = ImageCompression(40, 60, 1.0), np.random.default_rng(0)
    qualities: list[int] = []
    transform.compressed = lambda image, quality: qualities.append(quality) or image  # type: ignore[assignment,method-assign]
    for _ in range(2000):
        transform(PICTURE, rng)
    assert set(qualities) == set(range(40, 61))


def test_blurs() -> None:
    impulse = np.zeros((41, 41, 1), np.uint8)
    impulse[20, 20] = 255
    kernels = {side: cv2.getGaussianKernel(side, 0) for side in (3, 5, 7, 9, 11)}
    gaussians = {(255 * kernel @ kernel.T).max().round() for kernel in kernels.values()}
    centres = {int(BlurImage(1.0)(impulse, np.random.default_rng(i))[20, 20].max()) for i in range(60)}
    assert any(abs(centre - value) <= 1 for centre in centres for value in gaussians)
    flat = np.full((20, 20, 3), 90, np.uint8)
    assert all(
        (np.abs(BlurImage(1.0)(flat, np.random.default_rng(i)).astype(int) - 90) <= 1).all()
        for i in range(20)
    )
    for length in (2, 3, 8, 9, 12):
        kernel = motion_kernel(length, 0.0)
        assert kernel.sum() == pytest.approx(1, abs=1e-6)
        assert kernel.sum(axis=0) == pytest.approx(np.full(length, 1 / length), abs=1e-6)
        assert motion_kernel(length, 37.0).sum() == pytest.approx(1, abs=1e-6)


def test_sizes_of_paddle_vision() -> None:
    """A number is the shorter side, and a list is [height, width]."""
    assert np.array_equal(applied("Resize", size=24), cv2.resize(PICTURE, (32, 24)))
    assert np.array_equal(applied("Resize", size=[20, 50]), cv2.resize(PICTURE, (50, 20)))
    assert applied("Resize", PICTURE[:47], size=31).shape == (31, 42, 3)  # 42.2
    crop = applied("CenterCrop", size=[21, 33])
    assert np.array_equal(crop, PICTURE[14:35, 16:49])  # 13.5 and 15.5, to the even neighbour
    with pytest.raises(ValueError, match="CenterCrop: expected at least 70x20 pixels, received 64x48"):
        applied("CenterCrop", size=[20, 70])


@pytest.mark.parametrize(
    ("ops", "text", "size"),
    [
        ([{"ResizeImage": {"size": 64, "keep_ratio": True}}], "64 px bilinear letterbox", 64),
        (
            [{"Resize": {"size": 80}}, {"CenterCrop": {"size": [64, 32]}}],
            "32 x 64 px bilinear from 80",
            (32, 64),
        ),
        ([{"Resize": {"size": [40, 64]}}, {"Pad": {"padding": [0, 12]}}], "64 px bilinear", 64),
        ([{"Resize": {"size": [40, 64]}}, {"Padv2": {"size_divisor": 32}}], "64 px bilinear", 64),
        ([{"Padv2": {"size": [40, 64]}}], "40 x 64 px", (40, 64)),
        (
            [{"Resize": {"size": 64}}, {"RandomRotation": {"degrees": 9, "expand": True}}],
            "images as they are",
            None,
        ),
        (
            [{"DecodeImage": {"channels": 4, "bits": 16}}, {"Resize": {"size": [8, 8]}}],
            "8 px bilinear RGBA 16 bits",
            8,
        ),
    ],
)
def test_the_preparation_is_known(ops: list[Any], text: str, size: Any) -> None:
    images = prepared_images(ops)
    assert (str(images), images.size) == (text, size)


def test_a_letterbox_is_another_preparation() -> None:
    box = prepared_images([{"ResizeImage": {"size": 64, "keep_ratio": True, "fill_value": 114}}])
    assert box.differences(prepared_images([{"ResizeImage": {"size": 64}}])) == ["fill: 114.0, and None"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"ResizeImage": {"resize_short": 9, "keep_ratio": True}},
            "expected size, and not resize_short, with",
        ),
        ({"Pad": {"padding": [1, 2, 3]}}, "expected padding as 1, 2 or 4 integers, received 3"),
        ({"Pad": {"padding": 5000}}, "padding: expected an integer at least 0 and at most 4096"),
        ({"Padv2": {"pad_mode": -1}}, "expected offsets with pad_mode -1"),
        ({"RandomRotation": {"degrees": [20, 10]}}, r"expected degrees as \[lowest, highest\], received"),
        ({"RandomRotation": {}}, "needs the argument degrees"),
        ({"ImageCompression": {"quality_lower": 0}}, "quality_lower: expected an integer at least 1"),
        (
            {"ImageCompression": {"quality_lower": 80, "quality_upper": 70}},
            "quality_lower up to quality_upper",
        ),
        ({"BlurImage": {"motion_max_ksize": 2}}, "motion_max_ksize: expected an integer at least 3"),
    ],
)
def test_refused(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ppxcls.ConfigError, match=message):
        ppxcls.build_transforms([spec])


@pytest.mark.parametrize(
    ("op", "key"),
    [
        ({"ResizeImage": {"size": 9, "keep_ratio": True}}, "fill_value"),
        ({"Pad": {"padding": 1}}, "fill"),
        ({"Padv2": {}}, "fill_value"),
        ({"RandomRotation": {"degrees": 9}}, "fill"),
        ({"RandomErasing": {}}, "mean"),
    ],
)
def test_a_colour_with_another_number_of_channels(op: dict[str, dict[str, Any]], key: str) -> None:
    ((name, arguments),) = op.items()
    for channels, colour in ((3, [1, 2, 3]), (1, [7]), (3, 7)):
        ops = [{"DecodeImage": {"channels": channels}}, {name: {**arguments, key: colour}}]
        ppxcls.build_transforms(ops)
    ops = ["DecodeImage", {name: {**arguments, key: [1, 2]}}]
    with pytest.raises(ppxcls.ConfigError, match=f"expected {key} as one number, or 3; received 2"):
        ppxcls.build_transforms(ops)


def test_results_have_a_limit() -> None:
    with pytest.raises(ValueError, match="too many"):
        applied("Pad", np.zeros((30000, 8000, 1), np.uint8), padding=4096)
    with pytest.raises(ValueError, match="expected one value, or 3 to fill with; received 2"):
        applied("Pad", padding=1, fill=[1, 2])


def test_five_channels_are_rotated_like_four() -> None:
    five = np.dstack([PICTURE, PICTURE[..., :2]])
    rotation = RandomRotation(90, interpolation="bilinear", fill=[1, 2, 3, 4, 5])
    out, colours = rotation.rotated(five, 33), RandomRotation(90, interpolation="bilinear", fill=[1, 2, 3])
    assert np.array_equal(out[..., :3], colours.rotated(PICTURE, 33))
    assert out[0, 0].tolist() == [1, 2, 3, 4, 5]
