"""Views of an image at test time: its mirror image, and five crops. Their predictions are averaged.

The views lie below each other in one image. So loaders, normalisation and layout need not know of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ppxcls.data.decode import Image
from ppxcls.data.errors import DataError
from ppxcls.data.transforms import CentreCrop, Compose, Generator, NormalizeImage, ToCHWImage, Transform

FLIP, CROPS = "flip", "crops"
_KINDS = (FLIP, CROPS)
_CROP_COUNT = 5


@dataclass(frozen=True)
class Views:
    """Kinds of views.

    Attributes:
        has_crops: True for five crops instead of the centre alone.
        has_flip: True for the mirror image of each of them too.
    """

    has_crops: bool
    has_flip: bool

    @property
    def count(self) -> int:
        """Number of views of an image."""
        return (_CROP_COUNT if self.has_crops else 1) * (1 + self.has_flip)

    @property
    def kinds(self) -> str:
        """The kinds as text, such as ``flip,crops``."""
        return ",".join(kind for kind, is_used in ((FLIP, self.has_flip), (CROPS, self.has_crops)) if is_used)

    def __str__(self) -> str:
        return f"{self.kinds}, the mean of {self.count} views"


def parse_views(kinds: str | Sequence[str]) -> Views:
    """Returns the views that a user asks for.

    Args:
        kinds: ``flip``, ``crops`` or both, separated by commas or in a list.

    Raises:
        DataError: another word, or none.
    """
    words = kinds.split(",") if isinstance(kinds, str) else list(kinds)
    names = {str(word).strip() for word in words}
    if not names or names - set(_KINDS):
        raise DataError(f"tta: expected flip, crops or flip,crops, received {kinds!r}")
    return Views(has_crops=CROPS in names, has_flip=FLIP in names)


class ViewStack(Transform):
    """Makes the views of an image, and puts them below each other.

    The crops are the centre and the four corners, in this order: centre, upper left, upper right, lower left,
    lower right. Each has the size of the plain crop. The mirror image of a view follows it.

    Args:
        views: kinds of views.
        crop: the plain crop, a CropImage or CenterCrop; None if there are no crops.
        later_transforms: transforms of each view.

    Attributes:
        height_axis: axis of the height in a batch of the results.
    """

    def __init__(self, views: Views, crop: CentreCrop | None, later_transforms: Sequence[Transform]) -> None:
        self._views = views
        self._crop = crop
        self._later_transforms = Compose(later_transforms)
        is_chw = any(isinstance(transform, ToCHWImage) for transform in later_transforms)
        self.height_axis = 2 if is_chw else 1

    def __call__(self, image: Image, rng: Generator) -> Image:
        """Returns the views of [H, W, 3], each as the later transforms return it, joined along their height.

        Raises:
            ValueError: the image is smaller than the crop, or does not fit a transform.
        """
        parts = self._crops(image, rng) if self._crop else [image]
        if self._views.has_flip:
            parts = [view for part in parts for view in (part, np.ascontiguousarray(part[:, ::-1]))]
        results = [self._later_transforms(part, rng) for part in parts]
        return np.concatenate(results, axis=self.height_axis - 1)

    def _crops(self, image: Image, rng: Generator) -> list[Image]:
        assert self._crop
        centre = self._crop(image, rng)
        height, width = image.shape[:2]
        crop_height, crop_width = centre.shape[:2]
        corners = [
            image[top : top + crop_height, left : left + crop_width]
            for top in (0, height - crop_height)
            for left in (0, width - crop_width)
        ]
        return [centre, *corners]


def with_views(compose: Compose, views: Views) -> tuple[Compose, int]:
    """Returns transforms that make all views of an image, and the axis of the height in a batch of them.

    Crops take the place of the CropImage or CenterCrop. The mirror image is that of the image after it, or
    without it, of the image before NormalizeImage and ToCHWImage.

    Args:
        compose: transforms of an evaluation that run on the host.
        views: kinds of views.

    Raises:
        DataError: there are crops, but not one CropImage or CenterCrop.
    """
    transforms = compose.transforms
    places = [i for i, transform in enumerate(transforms) if isinstance(transform, CentreCrop)]
    if views.has_crops and len(places) != 1:
        raise DataError(
            f"tta: crops need one CropImage or CenterCrop in DataLoader.Eval, received {len(places)}"
        )
    if views.has_crops:
        (place,) = places
        crop = transforms[place]
        assert isinstance(crop, CentreCrop)
        stack = ViewStack(views, crop, transforms[place + 1 :])
    else:
        place = places[-1] + 1 if places else _place_of_normalisation(transforms)
        stack = ViewStack(views, None, transforms[place:])
    return Compose([*transforms[:place], stack]), stack.height_axis


def _place_of_normalisation(transforms: Sequence[Transform]) -> int:
    """Returns the index of the first NormalizeImage or ToCHWImage, or the number of transforms."""
    for i, transform in enumerate(transforms):
        if isinstance(transform, NormalizeImage | ToCHWImage):
            return i
    return len(transforms)
