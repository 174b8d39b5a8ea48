"""Image files to 8-bit RGB, as every part of the codebase sees them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from datasets.base import FORMATS, MAX_PIXELS

UPRIGHT = {  # what undoes each EXIF orientation but 1
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def header_size(path: str) -> tuple[int, int] | None:
    """(height, width) after the EXIF rotation, or None: decoding then says what is wrong."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            return (width, height) if _orientation(image) >= 5 else (height, width)
    except Exception:  # noqa: BLE001 - what Pillow's decoders raise varies
        return None


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation 1..8; 1 where there is none or it cannot be read."""
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # asking further would decode the whole image
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:  # noqa: BLE001 - a broken EXIF block says nothing about the picture
        return 1
    return orientation if orientation in range(1, 9) else 1


def decode(path: str | Path) -> Image.Image:
    """An 8-bit RGB image, rotated as its EXIF says; alpha is dropped, 16-bit grey scaled by 1/256.

    Raises ValueError for more than MAX_PIXELS pixels, an animation or floating-point pixels, and
    whatever Pillow raises for a file it cannot decode to its end.
    """
    with Image.open(path, formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width}x{image.height} pixels, more than {MAX_PIXELS}")
        if getattr(image, "is_animated", False) and image.format != "MPO":
            raise ValueError("an animation, not a single image")
        if image.mode == "F":
            raise ValueError("floating-point pixels")
        orientation = _orientation(image)
        if image.mode.startswith("I"):  # Pillow's own conversion would clip at 255
            deep = np.asarray(image).astype(np.int64) >> 8
            rgb = Image.fromarray(deep.clip(0, 255).astype(np.uint8)).convert("RGB")
        elif image.mode == "P" and "transparency" in image.info:
            rgb = image.convert("RGBA").convert("RGB")
        else:
            rgb = image.convert("RGB")
        return rgb.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else rgb
