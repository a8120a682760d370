"""Transforms that make an image worse: blur, and the errors of a JPEG."""

from __future__ import annotations

from typing import Annotated

import cv2
import numpy as np

from ppxcls.config.checks import Bound, Share
from ppxcls.data.decode import Image, decode_image
from ppxcls.data.pixel_format import PixelFormat
from ppxcls.data.preparation import PreparedImages
from ppxcls.data.transforms import TRANSFORMS, Generator, Transform
from ppxcls.system.arrays import Array

Quality = Annotated[int, Bound(ge=1, le=100)]
KernelSize = Annotated[int, Bound(ge=3, le=99)]
Angle = Annotated[float, Bound(ge=0, le=180)]


@TRANSFORMS.register
class ImageCompression(Transform):
    """Encodes the image as a JPEG of random quality, and decodes it again.

    The colours have half the resolution, as in most JPEGs. The image needs 1 or 3 channels.

    Args:
        quality_lower: lowest quality.
        quality_upper: highest quality.
        prob: probability of the transform.
    """

    needs_uint8 = True
    channel_counts = (1, 3)

    def __init__(self, quality_lower: Quality = 40, quality_upper: Quality = 100, prob: Share = 0.5) -> None:
        if quality_lower > quality_upper:
            raise ValueError(
                f"expected quality_lower up to quality_upper, received {quality_lower} and {quality_upper}"
            )
        self.qualities = (quality_lower, quality_upper)
        self.prob = prob
        self._is_bgr = False

    def prepare(self, images: PreparedImages) -> PreparedImages:
        """Takes note of the order of the channels."""
        self._is_bgr = images.channels == "BGR"
        return images

    def __call__(self, image: Image, rng: Generator) -> Image:
        is_compressed = rng.random() < self.prob
        quality = int(rng.integers(*self.qualities, endpoint=True))
        if not is_compressed:
            return image
        order = -1 if self._is_bgr else 1
        return self.compressed(image[:, :, ::order], quality)[:, :, ::order]

    @staticmethod
    def compressed(image: Image, quality: int) -> Image:
        """Returns an image as a JPEG of a quality shows it.

        Args:
            image: grey or RGB image.
            quality: quality of the JPEG, from 1 to 100.

        Raises:
            ValueError: the image has a side that is too long for a JPEG.
        """
        pixels = image[:, :, ::-1] if image.shape[2] == 3 else image
        is_encoded, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
        if not is_encoded:
            raise ValueError(f"ImageCompression: {image.shape[1]}x{image.shape[0]} pixels do not fit a JPEG")
        return decode_image(data.tobytes(), PixelFormat(image.shape[2]))


@TRANSFORMS.register
class BlurImage(Transform):
    """Blurs the image with a probability, by a Gaussian or as by a movement of the camera.

    PaddleClas's transform also sets a label, whether the image was blurred. The label of the list stays here.

    Args:
        ratio: probability of the transform.
        motion_max_ksize: largest length of a movement in pixels.
        motion_max_angle: limit a of the movement's angle in degrees, which is drawn from [-a, a].
        gaussian_max_ksize: largest side of a Gaussian's kernel in pixels. Its standard deviation is OpenCV's
            for a kernel of that size.
    """

    def __init__(
        self,
        ratio: Share = 0.5,
        motion_max_ksize: KernelSize = 12,
        *,
        motion_max_angle: Angle = 45.0,
        gaussian_max_ksize: KernelSize = 12,
    ) -> None:
        self.ratio = ratio
        self.motion_max_ksize = motion_max_ksize
        self.motion_max_angle = motion_max_angle
        self.gaussian_max_ksize = gaussian_max_ksize

    def __call__(self, image: Image, rng: Generator) -> Image:
        if rng.random() >= self.ratio:
            return image
        image = np.ascontiguousarray(image)
        if rng.integers(2):
            side = 2 * int(rng.integers(1, (self.gaussian_max_ksize - 1) // 2, endpoint=True)) + 1
            return cv2.GaussianBlur(image, (side, side), 0)
        length = int(rng.integers(2, self.motion_max_ksize, endpoint=True))
        angle = rng.uniform(-self.motion_max_angle, self.motion_max_angle)
        return cv2.filter2D(image, -1, motion_kernel(length, angle))


def motion_kernel(length: int, degrees: float) -> Array:
    """Returns the weights of a movement along a line, float32 [length, length]. Their sum is 1.

    Args:
        length: length of the line in pixels.
        degrees: angle of the line, counter-clockwise from the horizontal.
    """
    line = np.zeros((length, length), np.float32)
    line[[(length - 1) // 2, length // 2]] = 1
    centre = (length - 1) / 2
    matrix = cv2.getRotationMatrix2D((centre, centre), degrees, 1.0)
    kernel = cv2.warpAffine(line, matrix, (length, length), flags=cv2.INTER_LINEAR)
    return kernel / kernel.sum()
