"""Grey, RGBA and 16-bit images, from the file to the network's input."""

from __future__ import annotations

import io
from typing import Any

import cv2
import numpy as np
import paddle
import pytest
from PIL import Image as PillowImage
from PIL import ImageOps

import ppxcls
from ppxcls.data import device
from ppxcls.data.decode import decode_image
from ppxcls.data.device import ModelInput
from ppxcls.data.pixel_format import PixelFormat
from ppxcls.data.transforms import Compose, DecodeImage, prepared_images, split_for_device
from ppxcls.data.visible_channels import visible_channels
from ppxcls.system import kernels

RNG = np.random.default_rng(5)
RGBA = RNG.integers(0, 256, (20, 30, 4), np.uint8)
RGBA_16 = RNG.integers(0, 65536, (20, 30, 4), np.uint16)
FORMATS = [PixelFormat(channels, bits) for channels in (1, 3, 4) for bits in (8, 16)]


def encoded(image: np.ndarray, extension: str) -> bytes:
    """Returns an image file; of four channels the first three are swapped, as OpenCV stores them."""
    order = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[image.shape[2]]
    return cv2.imencode(extension, image[:, :, order])[1].tobytes()


@pytest.mark.parametrize("extension", [".png", ".tiff", ".jpg"])
@pytest.mark.parametrize("flag", [cv2.IMREAD_GRAYSCALE, cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH])
def test_grey_pixels_are_opencvs(extension: str, flag: int) -> None:
    bits = 16 if flag & cv2.IMREAD_ANYDEPTH else 8
    image = RGBA[:, :, :3] if extension == ".jpg" or bits == 8 else RGBA_16[:, :, :3]
    data = encoded(image, extension)
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    if bits == 16 and expected.dtype == np.uint8:
        expected = expected.astype(np.uint16) * 257
    received = decode_image(data, PixelFormat(1, bits))
    assert np.array_equal(received[:, :, 0], expected)
    assert received.flags.c_contiguous


@pytest.mark.parametrize("extension", [".png", ".tiff"])
def test_16_bits_are_kept(extension: str) -> None:
    data = encoded(RGBA_16[:, :, :3], extension)
    assert np.array_equal(decode_image(data, PixelFormat(3, 16)), RGBA_16[:, :, :3])
    assert np.array_equal(decode_image(data), cv2.imdecode(np.frombuffer(data, np.uint8), 1)[:, :, ::-1])
    four = decode_image(encoded(RGBA_16, extension), PixelFormat(4, 16))
    assert np.array_equal(four, RGBA_16)
    assert np.array_equal(decode_image(encoded(RGBA_16, extension), PixelFormat(4)), RGBA_16 >> 8)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_a_fourth_channel_is_kept_as_stored_and_upright(kind: str, orientation: int) -> None:
    picture, stream = PillowImage.fromarray(RGBA), io.BytesIO()
    exif = picture.getexif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    picture.save(stream, kind, exif=exif, **options)
    expected = np.asarray(ImageOps.exif_transpose(picture))
    assert np.array_equal(decode_image(stream.getvalue(), PixelFormat(4)), expected)


def test_files_without_a_fourth_channel_are_opaque() -> None:
    for data in (
        encoded(RGBA[:, :, :3], ".png"),
        encoded(RGBA[:, :, :3], ".jpg"),
        encoded(RGBA[:, :, :1], ".png"),
    ):
        image = decode_image(data, PixelFormat(4))
        assert np.array_equal(image[:, :, :3], decode_image(data))
        assert (image[:, :, 3] == 255).all()
        assert (decode_image(data, PixelFormat(4, 16))[:, :, 3] == 65535).all()
    gif = io.BytesIO()
    PillowImage.fromarray(RGBA[:, :, :3]).save(gif, "GIF")
    assert decode_image(gif.getvalue(), PixelFormat(1)).shape == (20, 30, 1)


def test_real_numbers_have_no_16_bits() -> None:
    data = cv2.imencode(".tiff", RNG.random((8, 8), np.float32))[1].tobytes()
    with pytest.raises(ValueError, match="expected values of 8 or 16 bits, received float32; use bits: 8"):
        decode_image(data, PixelFormat(1, 16))


@pytest.mark.parametrize("pixel_format", FORMATS)
@pytest.mark.parametrize("has_numba", [True, False])
def test_the_device_gets_the_numbers_of_the_formula(
    pixel_format: PixelFormat, has_numba: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a file through resize, crop and flip to [N, C, H, W], on the CPU and as on other devices."""
    monkeypatch.setattr(kernels, "HAS_NUMBA", has_numba and kernels.HAS_NUMBA)
    channels, largest = pixel_format.channels, pixel_format.largest_value
    mean, std = [0.1 * (i + 1) for i in range(channels)], [0.2 + 0.1 * i for i in range(channels)]
    ops = [
        {"DecodeImage": {"channels": channels, "bits": pixel_format.bits}},
        {"ResizeImage": {"size": [26, 18]}},
        {"CropImage": {"size": 16}},
        {"RandFlipImage": {}},
        {"NormalizeImage": {"scale": f"1.0/{largest}.0", "mean": mean, "std": std, "order": ""}},
        "ToCHWImage",
    ]
    compose = ppxcls.build_transforms(ops)
    host, stage = split_for_device(compose)
    data = encoded(RGBA_16, ".png")
    pixels = host(data, np.random.default_rng(1))
    assert pixels.shape == (16, 16, channels)
    assert pixels.dtype == pixel_format.dtype
    resized = cv2.resize(decode_image(data, pixel_format), (26, 18)).reshape(18, 26, -1)[1:17, 5:21]
    flipped = resized[:, ::-1] if np.random.default_rng(1).integers(2) else resized
    assert np.array_equal(pixels, flipped)
    expected = ((flipped / largest - np.array(mean)) / np.array(std)).transpose(2, 0, 1)
    assert np.abs(compose(data, np.random.default_rng(1)) - expected).max() < 1e-5
    assert np.abs(ModelInput(stage)(pixels[None]).numpy()[0] - expected).max() < 1e-5
    monkeypatch.setattr(paddle, "get_device", lambda: "test_chip:0")
    assert np.abs(ModelInput(stage)(pixels[None]).numpy()[0] - expected).max() < 1e-5


def test_five_channels_of_a_user_s_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    image = RNG.integers(0, 256, (20, 30, 5), np.uint8)
    normalize = {"NormalizeImage": {"mean": [0.5] * 5, "std": [0.25] * 5, "order": ""}}
    rotation = {"RandomRotation": {"degrees": [90, 90], "prob": 1.0, "fill": [1, 2, 3, 4, 5]}}
    ops = [{"ResizeImage": {"size": 16, "backend": "pil"}}, rotation, {"Padv2": {"size": 20, "pad_mode": 1}}]
    host, stage = split_for_device(ppxcls.build_transforms([*ops, normalize]))
    pixels = host(image)
    resized = np.stack(
        [np.asarray(PillowImage.fromarray(image[..., i]).resize((16, 16), 3)) for i in range(5)], -1
    )
    assert np.array_equal(pixels[2:18, 2:18], np.rot90(resized))
    assert (pixels[0] == 128).all()
    expected = (pixels / 255 - 0.5) / 0.25
    assert np.abs(ModelInput(stage)(pixels[None]).numpy()[0].transpose(1, 2, 0) - expected).max() < 1e-5
    with pytest.raises(ValueError, match=r"expected images of 5 channels, as mean and std have, received"):
        ModelInput(stage)(pixels[None, :, :, :4])


@pytest.mark.parametrize(
    ("ops", "message"),
    [
        ([{"DecodeImage": {"channels": 2}}], "channels: expected 1 or 3 or 4, received 2"),
        ([{"DecodeImage": {"bits": 12}}], "bits: expected 8 or 16, received 12"),
        (
            [{"DecodeImage": {"channels": 1}}, {"ColorJitter": {"hue": 0.1}}],
            "1.ColorJitter: expected an image with 3 channels, received 1",
        ),
        (
            [{"DecodeImage": {"channels": 4}}, "RandAugment"],
            "1.RandAugment: expected an image with 3 channels, received 4",
        ),
        (
            [{"DecodeImage": {"bits": 16}}, "TrivialAugment"],
            "TrivialAugment works on 8 bits, and DecodeImage",
        ),
        (
            [{"DecodeImage": {"channels": 4}}, {"NormalizeImage": {"mean": [0, 0, 0], "order": ""}}],
            "expected mean and std of length 4, the number of channels; received 3",
        ),
        (
            [{"DecodeImage": {"channels": 4}}, {"NormalizeImage": {"order": ""}}],
            "expected mean and std of length 4, because ImageNet's have 3 numbers",
        ),
        ([{"NormalizeImage": {"mean": [0, 0], "std": [1], "order": ""}}], "mean and std of the same length"),
        (
            [{"DecodeImage": {"bits": 16}}, {"NormalizeImage": {"order": ""}}],
            "expected a scale for images of 16 bits, such as 1.0/65535.0",
        ),
        (
            [{"DecodeImage": {"bits": 16}}, {"ResizeImage": {"size": 8, "backend": "pil"}}],
            "expected the backend cv2 for images of 16 bits, received 'pil'",
        ),
        (
            [{"DecodeImage": {"channels": 1}}, {"RandomErasing": {"mean": [1, 2, 3]}}],
            "expected mean as one number, or 1; received 3",
        ),
    ],
)
def test_what_does_not_fit_is_refused_when_the_config_is_loaded(ops: list[Any], message: str) -> None:
    settings = {"Arch": {"name": "Xception41"}, "Infer": {"transforms": ops}}
    with pytest.raises(ppxcls.ConfigError, match=message) as caught:
        ppxcls.load_config(settings)
    assert "\n" not in str(caught.value)
    with pytest.raises(ppxcls.ConfigError, match=message):
        ppxcls.build_transforms(ops)


@pytest.mark.parametrize("name", ["ColorJitter", "AutoAugment", "RandomGrayscale", "ImageCompression"])
def test_an_array_with_other_channels_is_refused_before_a_kernel_sees_it(name: str) -> None:
    transforms = ppxcls.build_transforms([name])
    for image in (RGBA[..., :2], RGBA[..., 0].reshape(20, 30), RGBA):
        with pytest.raises(
            ValueError, match=f"{name}: expected an image with .*3 channels, received an image"
        ):
            transforms(image)
    if name != "RandomGrayscale":
        with pytest.raises(ValueError, match=f"{name}: expected an image uint8, received uint16"):
            transforms(RGBA_16[..., :3])


def test_grey_images_have_the_mean_of_imagenets_colours() -> None:
    ops = [{"DecodeImage": {"channels": 1}}, {"NormalizeImage": {"order": ""}}]
    mean, std = prepared_images(ops).mean, prepared_images(ops).std
    assert mean == pytest.approx([(0.485 + 0.456 + 0.406) / 3])
    assert std == pytest.approx([(0.229 + 0.224 + 0.225) / 3])


@pytest.mark.parametrize("pixel_format", FORMATS)
def test_arrays_in_any_format_become_the_format(pixel_format: PixelFormat) -> None:
    compose = Compose([DecodeImage(channels=pixel_format.channels, bits=pixel_format.bits)])
    for image in (RGBA, RGBA[..., :3], RGBA[..., :1], RGBA_16):
        received = pixel_format.converted(image)
        expected = image.astype(np.float64) / np.iinfo(image.dtype).max
        if pixel_format.channels == 1 and image.shape[2] > 1:
            expected = expected[..., :3] @ np.array([0.299, 0.587, 0.114])[:, None]
        alpha = expected[..., 3:] if image.shape[2] == 4 else np.ones((20, 30, 1))
        if pixel_format.channels > 1:
            expected = np.broadcast_to(expected[..., :3], (20, 30, 3))
        if pixel_format.channels == 4:
            expected = np.concatenate([expected, alpha], axis=2)
        assert np.abs(received / pixel_format.largest_value - expected).max() < 2 / 255
        assert np.array_equal(compose.without_decoding(received), received)
    with pytest.raises(
        ValueError, match=r"expected an image uint\d+ \[H, W, \d\], received uint8 \[20, 30, 2\]"
    ):
        compose.without_decoding(RGBA[..., :2])


def test_what_a_screen_shows() -> None:
    assert np.array_equal(visible_channels(RGBA), RGBA[..., :3])
    assert np.array_equal(visible_channels(RGBA[..., :2]), RGBA[..., :1])
    assert np.array_equal(visible_channels(RGBA_16[None]), RGBA_16[None, ..., :3] >> 8)


def test_paddle_gets_no_uint16() -> None:
    """It would read the bits of bfloat16 numbers."""
    numbers = np.array([1, 65535], np.uint16)
    assert device.device_array(numbers).tolist() == [1.0, 65535.0]
