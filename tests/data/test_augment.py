"""Augmentations against Pillow, closed forms and their published settings."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

import ppxcls
from ppxcls.data import pixel_operations, policies
from ppxcls.data.erasing import Cutout, GridMask, HideAndSeek, RandomErasing
from ppxcls.data.policies import (
    OPERATIONS,
    AutoAugment,
    ColorJitter,
    Fill,
    RandAugment,
    TimmAutoAugment,
    TrivialAugment,
    _argument,
    apply,
)
from ppxcls.system import kernels

PICTURE = np.random.default_rng(3).integers(0, 256, (48, 64, 3), np.uint8)
FILL = Fill((128, 128, 128), Image.Resampling.NEAREST)
ALL = {
    "AutoAugment": {},
    "RandAugment": {"num_layers": 3, "magnitude": 9},
    "TrivialAugment": {},
    "TimmAutoAugment": {"config_str": "rand-m9-mstd0.5-inc1"},
    "ColorJitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
    "RandomErasing": {"EPSILON": 1.0, "mode": "pixel"},
    "Cutout": {"length": 20},
    "HideAndSeek": {},
    "GridMask": {"d1": 10, "d2": 20, "rotate": 30},
}


def draw(name: str, seed: int) -> np.ndarray:
    transform = ppxcls.build_transforms([{name: ALL[name]}])
    return transform(PICTURE, np.random.default_rng(seed))


@pytest.mark.parametrize("name", ALL)
def test_uint8_in_and_out_the_same_for_a_seed_and_another_for_another(name: str) -> None:
    before = PICTURE.copy()
    outs = [draw(name, seed) for seed in range(12)]
    assert all(out.dtype == np.uint8 and out.shape == PICTURE.shape for out in outs)
    assert all(np.array_equal(out, draw(name, seed)) for seed, out in enumerate(outs))
    assert len({out.tobytes() for out in outs}) > 4
    assert np.array_equal(PICTURE, before), "the image that came in is left as it was"


def applied(name: str, value: float) -> np.ndarray:
    return np.asarray(OPERATIONS[name](Image.fromarray(PICTURE), value, FILL))


def test_operations_against_closed_forms() -> None:
    assert np.array_equal(applied("Invert", 0), 255 - PICTURE)
    assert np.array_equal(applied("Solarize", 100), np.where(PICTURE < 100, PICTURE, 255 - PICTURE))
    assert np.array_equal(applied("Posterize", 3), PICTURE & 0b11100000)
    assert np.array_equal(applied("SolarizeAdd", 50), np.where(PICTURE < 128, PICTURE + 50, PICTURE))
    moved = applied("TranslateX", 0.25)
    assert np.array_equal(moved[:, :48], PICTURE[:, 16:])
    assert (moved[:, 48:] == 128).all()
    assert np.array_equal(applied("TranslateY", -0.25)[12:], PICTURE[:-12])
    for name in ("Color", "Contrast", "Brightness", "Sharpness"):
        assert np.array_equal(applied(name, 1.0), PICTURE)
        expected = getattr(ImageEnhance, name)(Image.fromarray(PICTURE)).enhance(0.3)
        assert np.array_equal(applied(name, 0.3), np.asarray(expected))
    assert np.array_equal(applied("Equalize", 0), np.asarray(ImageOps.equalize(Image.fromarray(PICTURE))))
    assert np.array_equal(applied("Rotate", 0), PICTURE)


def test_strengths() -> None:
    """Values at full magnitude, in RandAugment's own ranges.

    Shear 0.3, rotation 30 degrees, 4 bits, threshold 0, factor 1.9 or 0.1.
    """
    most = {"ShearX": 0.3, "Rotate": 30, "Posterize": 4, "Solarize": 256, "Color": 0.9}
    drawn = {
        name: {round(_argument(name, 1.0, most, np.random.default_rng(i)), 6) for i in range(20)}
        for name in most
    }
    assert drawn == {
        "ShearX": {0.3, -0.3},
        "Rotate": {30, -30},
        "Posterize": {4},
        "Solarize": {0},
        "Color": {1.9, 0.1},
    }
    none = {name: _argument(name, 0.0, most, np.random.default_rng(0)) for name in most}
    assert none == {"ShearX": 0, "Rotate": 0, "Posterize": 8, "Solarize": 256, "Color": 1}


def test_autoaugments_policy_is_the_published_one() -> None:
    policy = AutoAugment().policy
    assert len(policy) == 25
    assert policy[0] == [("Posterize", 0.4, 8), ("Rotate", 0.6, 9)]
    assert policy[12] == [("Equalize", 0.0, 7), ("Equalize", 0.8, 8)]
    assert policy[24] == [("Equalize", 0.8, 8), ("Equalize", 0.6, 3)]
    assert {name for pair in policy for name, _, _ in pair} <= OPERATIONS.keys()


def test_randaugment_and_trivial_draw_every_operation(monkeypatch: pytest.MonkeyPatch) -> None:

    seen: list[str] = []
    monkeypatch.setattr(
        policies, "apply", lambda image, steps, fill: seen.extend(name for name, _ in steps) or image
    )
    for transform, count in ((RandAugment(2, 5), 14), (TrivialAugment(), 14), (TimmAutoAugment(), 15)):
        seen.clear()
        for seed in range(400):
            transform(PICTURE, np.random.default_rng(seed))
        assert len(set(seen)) == count
    # Each of timm's two operations is applied with probability 1/2.
    assert len(seen) == pytest.approx(400, abs=60)


def test_erasing() -> None:
    for seed in range(30):
        out = RandomErasing(EPSILON=1.0, mean=(1, 2, 3))(PICTURE, np.random.default_rng(seed))
        changed = (out != PICTURE).any(axis=2)
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        box = out[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert (box == (1, 2, 3)).all()
        share = box.shape[0] * box.shape[1] / (48 * 64)
        assert 0.015 <= share <= 0.42
    assert np.array_equal(RandomErasing(EPSILON=0.0)(PICTURE, np.random.default_rng(0)), PICTURE)
    floats = PICTURE.astype(np.float32)
    out = RandomErasing(EPSILON=1.0, mode="rand")(floats, np.random.default_rng(0))
    assert out.dtype == np.float32
    assert len(np.unique(out[(out != floats).any(axis=2)], axis=0)) == 1


def test_cutout_hide_and_seek_grid() -> None:
    black = (Cutout(length=16)(np.full((64, 64, 3), 9, np.uint8), np.random.default_rng(5)) == 0).all(axis=2)
    assert 64 <= black.sum() <= 256
    shares = [
        (HideAndSeek()(np.ones((224, 224, 3), np.uint8), np.random.default_rng(i)) == 0).mean()
        for i in range(200)
    ]
    assert np.mean(shares) == pytest.approx(0.4, abs=0.03)  # half of the squares are hidden in 4 of 5 images
    grid = GridMask(d1=20, d2=20, rotate=1, ratio=0.5)(
        np.ones((200, 200, 3), np.uint8), np.random.default_rng(0)
    )
    assert (grid == 0).mean() == pytest.approx(0.25, abs=0.02)
    other = GridMask(d1=20, d2=20, rotate=1, ratio=0.5, mode=1)(
        np.ones((200, 200, 3), np.uint8), np.random.default_rng(0)
    )
    assert np.array_equal(grid + other, np.ones_like(grid))


def test_jitter() -> None:
    assert np.array_equal(ColorJitter()(PICTURE, np.random.default_rng(0)), PICTURE)
    grey = np.full((8, 8, 3), 100, np.uint8)
    values = {int(ColorJitter(brightness=0.5)(grey, np.random.default_rng(i))[0, 0, 0]) for i in range(300)}
    assert min(values) in range(49, 55)
    assert max(values) in range(145, 151)
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 0] = 255
    out = ColorJitter(hue=0.5)(red, np.random.default_rng(1))
    assert out.max() == 255
    assert not np.array_equal(out, red)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"RandAugment": {"magnitude": 11}},
            "magnitude: expected a number at least 0 and at most 10, received 11",
        ),
        ({"TimmAutoAugment": {"config_str": "rand-m9-x3"}}, "expected parts such as m, n, p"),
        (
            {"TimmAutoAugment": {"config_str": "augmix-m3"}},
            "expected a string such as rand-m9-mstd0.5-inc1, received 'augmix-m3'",
        ),
        ({"RandomErasing": {"EPSILON": 1.5}}, "EPSILON: expected a number at least 0 and at most 1"),
        ({"RandomErasing": {"sl": 0.5}}, "expected sl up to sh"),
        ({"RandomErasing": {"mode": "mean"}}, "mode: expected 'const' or 'rand' or 'pixel'"),
        ({"GridMask": {"d1": 9, "d2": 3}}, "expected d1 up to d2"),
        ({"ColorJitter": {"hue": 0.7}}, "hue: expected a number at least 0 and at most 0.5"),
        ({"AutoAugmentation": {}}, "did you mean 'AutoAugment'"),
    ],
)
def test_refused(spec: dict, message: str) -> None:
    with pytest.raises(ppxcls.ConfigError, match=message):
        ppxcls.build_transforms([spec])


@pytest.mark.parametrize("name", ["RandomErasing", "RandFlipImage", "RandAugment"])
def test_nothing_of_pixels_before_decoding(name: str) -> None:
    with pytest.raises(ppxcls.ConfigError, match="expected DecodeImage first"):
        ppxcls.build_transforms([{name: {}}, {"DecodeImage": {}}])


def test_what_works_on_uint8_does_not_stand_after_normalisation() -> None:
    with pytest.raises(
        ppxcls.ConfigError, match="RandAugment works on uint8: expected it before NormalizeImage"
    ):
        ppxcls.build_transforms([{"DecodeImage": {}}, {"NormalizeImage": {"order": ""}}, {"RandAugment": {}}])


VALUES = {
    "ShearX": (-0.3, 0.3),
    "ShearY": (-0.99, 0.3),
    "TranslateX": (-0.45, 0.45),
    "TranslateY": (-0.45, 0.45),
    "Rotate": (-135, 135),
    "Posterize": (0, 8),
    "Solarize": (0, 256),
    "SolarizeAdd": (0, 110),
    "Color": (0, 2),
    "Contrast": (0, 2),
    "Brightness": (0, 2),
    "Sharpness": (0, 2),
}


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_the_fast_operations_give_pillows_pixels(name: str) -> None:
    """Every operation with random arguments and interpolations.

    The images are noise, flat images, and images of a few pixels.
    """
    pytest.importorskip("numba")
    rng = np.random.default_rng(0)
    resamples = [Image.Resampling.NEAREST, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC]
    done = 0
    for number in range(90):
        height, width = (rng.integers(1, 9, 2) if number % 3 == 0 else rng.integers(20, 90, 2)).tolist()
        low, high = sorted(rng.integers(0, 256, 2).tolist())
        image = rng.integers(low, high + 1, (height, width, 3)).astype(np.uint8)
        if number % 2:  # not contiguous, like a crop
            image = np.repeat(np.repeat(image, 2, 0), 2, 1)[::2, ::2]
        value = (
            float(rng.choice([*VALUES.get(name, (0, 0)), 0, 1]))
            if number % 5 == 0
            else rng.uniform(*VALUES.get(name, (0, 1)))
        )
        fill = Fill((128, 7, 250), *(resamples[i] for i in rng.integers(3, size=2)))
        expected = np.asarray(OPERATIONS[name](Image.fromarray(image), value, fill))
        own = pixel_operations.apply_by_kernel(
            image, name, value=value, colour=fill.colour, shear=fill.shear, move=fill.move
        )
        if own is not None:
            assert np.array_equal(own, expected), (name, value, image.shape, fill.shear, fill.move)
            done += 1
        assert np.array_equal(apply(image, [(name, value)], fill), expected)
    assert done > (20 if name == "Rotate" else 55), "Pillow does it itself"


def test_shears_interpolate_and_moves_take_the_nearest_pixel_as_in_paddleclas() -> None:
    """PaddleClas shears with Pillow's BICUBIC, and shifts and rotates with its default."""
    for policy in (RandAugment(), AutoAugment()):
        assert (policy._fill.shear, policy._fill.move) == (Image.Resampling.BICUBIC, Image.Resampling.NEAREST)
        assert policy._fill.colour == (128, 128, 128)


def test_without_numba_the_policies_give_the_same_images(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    image = np.random.default_rng(1).integers(0, 256, (60, 70, 3)).astype(np.uint8)
    made = [
        policy(image, np.random.default_rng(i))
        for policy in (RandAugment(3), TimmAutoAugment())
        for i in range(20)
    ]
    monkeypatch.setattr(kernels, "HAS_NUMBA", False)
    again = [
        policy(image, np.random.default_rng(i))
        for policy in (RandAugment(3), TimmAutoAugment())
        for i in range(20)
    ]
    assert all(map(np.array_equal, made, again))
