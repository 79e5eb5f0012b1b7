"""Where the pixels of a picture go: sizes and places of resize and crop, rounded as torchvision and timm do."""

from __future__ import annotations

from dyce_runtime.bundle.manifest import Preprocessing
from dyce_runtime.errors import DataError

# Of a picture, as it comes and as it is resized: 4 bytes each in Pillow, 512 MB. Cameras make up to 108 million.
MOST_PIXELS = 1 << 27


def size_after_resize(width: int, height: int, spec: Preprocessing) -> tuple[int, int]:
    """(width, height). The roundings differ from one transform of torchvision's and timm's to the next."""
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
    """Raise DataError if a picture has no pixels, or too many as it comes or as it is resized."""
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
    """Where torchvision's CenterCrop starts: it rounds half to even when it cuts, down when it pads."""
    return round((length - crop) / 2) if length >= crop else -((crop - length) // 2)
