"""Compute the sizes and offsets of resize and crop, with the rounding of torchvision and timm."""

from __future__ import annotations

from dyce_runtime.bundle.manifest import Preprocessing
from dyce_runtime.errors import DataError

# The most pixels of an image, before and after resizing: with 4 bytes per pixel in Pillow, 512 MiB. Cameras make up to
# 108 million.
MOST_PIXELS = 1 << 27


def size_after_resize(width: int, height: int, spec: Preprocessing) -> tuple[int, int]:
    """Return (width, height) after resizing, rounded as the respective transform of torchvision or timm does."""
    if not isinstance(spec.resize, tuple):
        shorter = min(width, height)
        # torchvision truncates the longer edge; the order of operations matters for the last bit.
        return int(spec.resize * width / shorter), int(spec.resize * height / shorter)
    target_height, target_width = spec.resize
    if spec.fit == "stretch":
        return target_width, target_height
    ratios = height / target_height, width / target_width
    ratio = max(ratios) if spec.fit == "contain" else min(ratios)
    return max(1, round(width / ratio)), max(1, round(height / ratio))


def check_size(width: int, height: int, spec: Preprocessing, name: str) -> None:
    """Raise DataError if an image has no pixels, or too many before or after resizing."""
    if width * height == 0:
        raise DataError(f"{name} has no pixels: its size is {width} x {height}")
    if width * height > MOST_PIXELS:
        raise DataError(
            f"{name} has {width} x {height} pixels; expected at most {MOST_PIXELS:,} in all",
            hint="make it smaller before",
        )
    wide, high = size_after_resize(width, height, spec)
    if wide * high > MOST_PIXELS:
        raise DataError(
            f"{name} has {width} x {height} pixels, resized for this model {wide} x {high}; expected at most "
            f"{MOST_PIXELS:,} in all",
            hint="cut it into pictures of a usual shape before",
        )


def crop_start(length: int, crop: int) -> int:
    """Return the offset of torchvision's CenterCrop, which is negative for padding.

    Half a pixel is rounded to even for cropping, and to the smaller padding before the image for padding.
    """
    return round((length - crop) / 2) if length >= crop else -((crop - length) // 2)
