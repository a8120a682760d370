"""Transforms against PaddleClas's own operators, and against their distributions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import paddle
import pytest

import ppxcls
from ppxcls.data import device
from ppxcls.data.device import ModelInput
from ppxcls.data.transforms import (
    DeviceStage,
    NormalizeImage,
    RandCropImage,
    RandFlipImage,
    build_transforms,
    split_for_device,
)
from ppxcls.system import kernels
from ppxcls.train.mixing import build_batch_transforms
from tests.conftest import SHARED, needs_shared

CASES = json.loads((SHARED / "parity/transforms.json").read_text())["cases"] if SHARED.is_dir() else []
NORMALIZE = {
    "NormalizeImage": {
        "scale": "1.0/255.0",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "order": "",
    }
}


def sample_photo(name: str) -> bytes:
    import sklearn.datasets

    return (Path(sklearn.datasets.__file__).parent / "images" / name).read_bytes()


@pytest.fixture(scope="module")
def jpeg() -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (120, 160, 3)).astype(np.uint8)
    return cv2.imencode(".png", pixels)[1].tobytes()


@needs_shared
def test_there_are_eight_cases() -> None:
    assert len(CASES) == 8


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['image']}-{c['case']}")
def test_parity_with_paddleclas(case: dict[str, Any]) -> None:
    expected = np.load(SHARED / "parity/transforms.npz")
    data = sample_photo(case["image"])
    pixels = ppxcls.build_transforms(["DecodeImage"])(data)
    assert np.array_equal(pixels[::16, ::16], expected[f"{case['image']}/DecodeImage"])
    out = ppxcls.build_transforms(["DecodeImage", *case["ops"]])(data).astype(np.float32)
    assert list(out.shape) == case["shape"]
    reference = expected[f"{case['image']}/{case['case']}"]
    assert np.abs(out[:, ::8, ::8] - reference).max() <= 1e-6 * max(1, np.abs(reference).max())
    assert out.mean(dtype=np.float64) == pytest.approx(case["mean"], rel=1e-5, abs=1e-6)
    assert out.std(dtype=np.float64) == pytest.approx(case["std"], rel=1e-5)


def test_device_stage_equals_the_host(jpeg: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    specs = ["DecodeImage", {"ResizeImage": {"size": [90, 70]}}, NORMALIZE, "ToCHWImage"]
    whole = ppxcls.build_transforms(specs)
    host, stage = split_for_device(whole)
    pixels = host(jpeg)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (70, 90, 3)
    on_device = ModelInput(stage)(pixels[None]).numpy()
    assert np.array_equal(on_device[0], whole(jpeg))
    monkeypatch.setattr(
        paddle, "get_device", lambda: "test_chip:0"
    )  # runs the other devices' code on the CPU
    assert np.array_equal(ModelInput(stage)(pixels[None]).numpy(), on_device)
    monkeypatch.undo()
    # PaddleClas's training transforms have no ToCHWImage. The network still gets [N, 3, H, W].
    host, stage = split_for_device(ppxcls.build_transforms(specs[:-1]))
    assert np.array_equal(ModelInput(stage)(host(jpeg)[None]).numpy(), on_device)


def test_normalize_that_is_not_last_stays_on_the_host(jpeg: bytes) -> None:
    chw = {"NormalizeImage": {"mean": [0, 0, 0], "std": [1, 1, 1]}}
    host, stage = split_for_device(ppxcls.build_transforms(["DecodeImage", "ToCHWImage", chw]))
    assert np.array_equal(
        ModelInput(stage)(host(jpeg)[None]).numpy()[0], host(jpeg).transpose(2, 0, 1) * np.float32(1 / 255)
    )
    host, stage = split_for_device(
        ppxcls.build_transforms(["DecodeImage", NORMALIZE, {"CropImage": {"size": 50}}])
    )
    assert host(jpeg).dtype == np.float32
    assert ModelInput(stage)(host(jpeg)[None]).shape == [1, 3, 50, 50]
    twice = ppxcls.build_transforms(["DecodeImage", NORMALIZE, NORMALIZE])
    host, stage = split_for_device(twice)
    assert np.array_equal(ModelInput(stage)(host(jpeg)[None]).numpy()[0], twice(jpeg).transpose(2, 0, 1))


def test_random_crop_law() -> None:
    """Compares with draws by an independent implementation of PaddleClas's distribution."""
    width, height, n = 500, 333, 20000
    crop = RandCropImage(size=224)
    rng = np.random.default_rng(0)
    drawn = np.array([crop.draw(width, height, rng) for _ in range(n)])
    left, top, w, h = drawn.T
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (left + w <= width).all()
    assert (top + h <= height).all()
    other = np.random.default_rng(1)
    root = np.sqrt(other.uniform(3 / 4, 4 / 3, n))
    bound = np.minimum(width / height / root**2, height / width * root**2)
    area = width * height * other.uniform(np.minimum(0.08, bound), np.minimum(1.0, bound))
    expected_w, expected_h = np.sqrt(area) * root, np.sqrt(area) / root
    for mine, theirs in ((w, expected_w), (h, expected_h), (w / h, root**2), (w * h, area)):
        quantiles = np.linspace(0.02, 0.98, 25)
        assert np.quantile(mine, quantiles) == pytest.approx(np.quantile(theirs, quantiles), rel=0.03)
    free = width - w > 20
    share = left[free] / (width - w[free])
    assert share.mean() == pytest.approx(0.5, abs=0.01)
    assert share.std() == pytest.approx(12**-0.5, abs=0.01)


def test_random_crop_of_a_sliver_and_fixed_scale() -> None:
    rng = np.random.default_rng(0)
    assert RandCropImage(size=8)(np.zeros((1, 3000, 3), np.uint8), rng).shape == (8, 8, 3)
    whole = RandCropImage(size=[20, 10], scale=[1, 1], ratio=[2, 2])
    assert whole.draw(40, 20, rng) == (0, 0, 40, 20)
    assert whole(np.zeros((20, 40, 3), np.uint8), rng).shape == (10, 20, 3)


@pytest.mark.parametrize(("code", "axes"), [(1, (1,)), (0, (0,)), (-1, (0, 1))])
def test_flip(code: int, axes: tuple[int, ...]) -> None:
    image = np.random.default_rng(0).integers(0, 255, (5, 6, 3)).astype(np.uint8)
    rng = np.random.default_rng(0)
    flipped = [
        not np.array_equal(out, image) for out in (RandFlipImage(code)(image, rng) for _ in range(2000))
    ]
    assert np.mean(flipped) == pytest.approx(0.5, abs=0.04)
    outs = [RandFlipImage(code)(image, rng) for _ in range(20)]
    assert any(np.array_equal(out, np.flip(image, axes)) for out in outs)


def test_same_generator_same_draws(jpeg: bytes) -> None:
    transform = ppxcls.build_transforms(["DecodeImage", {"RandCropImage": {"size": 64}}, "RandFlipImage"])
    first, second, other = (transform(jpeg, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


def test_bgr(jpeg: bytes) -> None:
    rgb = ppxcls.build_transforms(["DecodeImage"])(jpeg)
    assert np.array_equal(
        ppxcls.build_transforms([{"DecodeImage": {"to_rgb": False}}])(jpeg), rgb[:, :, ::-1]
    )


def test_resize_short_rounds_and_keeps_aspect(jpeg: bytes) -> None:
    for short in (53, 299):
        out = ppxcls.build_transforms(["DecodeImage", {"ResizeImage": {"resize_short": short}}])(jpeg)
        assert out.shape == (short, round(160 * short / 120), 3)


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([{"ResizeImage": {}}], "expected size or resize_short"),
        (
            [{"ResizeImage": {"size": 3, "interpolation": "cubic"}}],
            "expected 'nearest' or .*received 'cubic'",
        ),
        (
            [{"ResizeImage": {"size": 3, "interpolation": "area", "backend": "pil"}}],
            "expected an interpolation of pil",
        ),
        ([{"ResizeImage": {"size": 3, "backend": "PIL"}}], "backend: expected 'cv2' or 'pil'"),
        ([{"CropImage": {"size": [1, 2, 3]}}], r"expected size as one integer or \[width, height\]"),
        ([{"RandCropImage": {"size": 3, "scale": [0.9, 0.1]}}], r"expected scale as \[low, high\]"),
        (
            [{"RandCropImage": {"size": 3, "scale": [0.5, 1.5]}}],
            r"scale.1: expected a number at least 0 and at most 1",
        ),
        ([{"RandFlipImage": {"flip_code": 2}}], "expected 1 or 0 or -1, received 2"),
        (["DecodeImage", {"NormalizeImage": {}}], "order: expected '' or 'hwc' before ToCHWImage"),
        ([{"NormalizeImage": {"std": [0, 1, 1], "order": ""}}], "std.0: expected a number above 0"),
        ([{"NormalizeImage": {"scale": "1/0", "order": ""}}], "scale: expected a finite number"),
        (["ToCHWImage", "DecodeImage"], "expected DecodeImage first"),
        ([{"DecodeImage": {"channel_first": True}}], "channel_first: expected false"),
    ],
)
def test_rejected(specs: list[Any], message: str) -> None:
    with pytest.raises(ppxcls.ConfigError, match=message):
        ppxcls.build_transforms(specs)


def test_image_smaller_than_the_crop(jpeg: bytes) -> None:
    with pytest.raises(ValueError, match="expected at least 200x200 pixels, received 160x120"):
        ppxcls.build_transforms(["DecodeImage", {"CropImage": {"size": 200}}])(jpeg)


def test_mixup() -> None:
    (mixup,) = build_batch_transforms([{"MixupOperator": {"alpha": 0.2}}], class_num=4)
    rng = np.random.default_rng(3)
    images = rng.normal(0, 1, (8, 3, 5, 5)).astype(np.float32)
    labels = rng.integers(0, 4, 8)
    mixed, soft = mixup(paddle.to_tensor(images), paddle.to_tensor(labels), np.random.default_rng(7))
    same = np.random.default_rng(7)
    share, partner = same.beta(0.2, 0.2), same.permutation(8)
    assert np.allclose(mixed.numpy(), share * images + (1 - share) * images[partner], atol=1e-6)
    one_hot = np.eye(4)[labels]
    assert np.allclose(soft.numpy(), share * one_hot + (1 - share) * one_hot[partner], atol=1e-6)
    again, _ = mixup(paddle.to_tensor(images), paddle.to_tensor(labels), np.random.default_rng(7))
    assert np.array_equal(again.numpy(), mixed.numpy())
    with pytest.raises(ppxcls.ConfigError, match="alpha: expected a number above 0"):
        build_batch_transforms([{"MixupOperator": {"alpha": 0}}], class_num=4)


def test_normalisation_by_table_is_the_formula() -> None:
    """Bit-identical for any memory layout."""
    rng = np.random.default_rng(0)
    scale, mean, std = np.float32(1 / 255), np.float32([0.4, 0.5, 0.6]), np.float32([0.2, 0.3, 0.1])
    normalize = NormalizeImage(scale=1 / 255, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.1), order="")
    image = rng.integers(0, 256, (40, 30, 3)).astype(np.uint8)
    for pixels in (
        image,
        image[:, ::-1],
        image[3:9, 4:5],
        image.transpose(1, 0, 2),
        image.astype(np.float32),
    ):
        found = normalize(pixels, rng)
        assert found.dtype == np.float32
        assert np.array_equal(found, (pixels.astype(np.float32) * scale - mean) / std)


@pytest.mark.parametrize("has_numba", [True, False])
@pytest.mark.parametrize("shape", [(5, 7, 9, 3), (1, 1, 1, 3), (2, 30, 20, 3)])
def test_the_hand_over_normalises_as_the_transform_does(
    shape: tuple[int, ...], has_numba: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit-identical for any memory layout."""
    if has_numba:
        pytest.importorskip("numba")
    monkeypatch.setattr(kernels, "HAS_NUMBA", has_numba)
    normalize = NormalizeImage(scale=1 / 255, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.1), order="")
    to_input = device.ModelInput(DeviceStage(normalize=normalize, chw=False))
    rng = np.random.default_rng(0)
    for images in (
        rng.integers(0, 256, shape).astype(np.uint8),
        rng.integers(0, 256, shape).astype(np.uint8)[:, :, ::-1],
    ):
        expected = np.stack([normalize(image, rng).transpose(2, 0, 1) for image in images])
        assert np.array_equal(to_input(images).numpy(), expected)


def test_the_work_of_all_transforms_is_bounded() -> None:
    assert len(build_transforms([{"ResizeImage": {"size": 999}}] * 50).transforms) == 50
    with pytest.raises(
        ppxcls.ConfigError, match="^transform_ops: expected at most 50 transforms, received 51$"
    ):
        build_transforms([{"ToCHWImage": {}}] * 51)
    assert build_transforms([{"ResizeImage": {"resize_short": 7000}}])
    for arguments in ({"size": [5000, 5001]}, {"resize_short": 5001}, {"size": 10**9}):
        message = (
            r"transform_ops.*ResizeImage: expected sizes of at most 50,000,000 pixels .* received [\d,]+$"
        )
        with pytest.raises(ppxcls.ConfigError, match=message):
            build_transforms([{"CropImage": {"size": 5000}}, {"ResizeImage": arguments}])
