"""Facts about prepared images on which weights depend."""

from __future__ import annotations

from dataclasses import dataclass

_USUAL_CHANNELS, _USUAL_BITS = 3, 8  # which a description leaves out


@dataclass(frozen=True)
class PreparedImages:
    """The images after some transforms. A fact that no transform declares is None.

    Attributes:
        size: sides in pixels, one number or (width, height).
        short: shorter side in pixels after resizing, before a crop.
        interpolation: interpolation of the resizing.
        fill: value of the area beside an image that keeps its aspect ratio; None for no such area.
        mean: mean of the normalisation, for channels with values from 0 to 1.
        std: standard deviation of the normalisation, for channels with values from 0 to 1.
        channels: order of the channels: ``RGB``, ``BGR``, ``grey``, ``RGBA`` or ``BGRA``.
        channel_count: number of the channels.
        bits: bits of a value of a decoded image, 8 or 16.
    """

    size: int | tuple[int, int] | None = None
    short: int | None = None
    interpolation: str | None = None
    fill: float | tuple[float, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    channels: str | None = None
    channel_count: int | None = None
    bits: int | None = None

    def __str__(self) -> str:
        """A few words such as ``299 px bilinear from 320``."""
        if self.size is None and self.short is None:
            return "images as they are"
        words = []
        if isinstance(self.size, tuple):
            words.append(f"{self.size[0]} x {self.size[1]} px")
        elif self.size:
            words.append(f"{self.size} px")
        else:
            words.append(f"shorter side {self.short} px")
        if self.interpolation:
            words.append(self.interpolation)
        if self.size and self.short:
            words.append(f"from {self.short}")
        if self.fill is not None:
            words.append("letterbox")
        words += [self.channels] if self.channels and self.channel_count != _USUAL_CHANNELS else []
        words += [f"{self.bits} bits"] if self.bits not in (None, _USUAL_BITS) else []
        return " ".join(words)

    def differences(self, images: PreparedImages) -> list[str]:
        """Returns the facts in which other images differ, such as ``size: 71, and 299``."""
        names = ("size", "short", "interpolation", "fill", "mean", "std", "channels", "bits")
        pairs = [(name, getattr(self, name), getattr(images, name)) for name in names]
        return [f"{name}: {mine}, and {theirs}" for name, mine, theirs in pairs if mine != theirs]


def side_or_sides(size: tuple[int, int]) -> int | tuple[int, int]:
    """One number for a square, and (width, height) for any other size."""
    return size[0] if size[0] == size[1] else size
