"""Cutting the black border off a fundus photograph."""

import numpy as np
from PIL import Image

__all__ = ["colour_box", "crop_colour", "crop_field_of_view"]

_SEARCH_SIZE = 256  # pixels of the longest side at which the border is looked for
_DARK = 12  # of 255; sensor noise in the border stays below
_MIN_LIT = 0.03  # share of lit pixels that makes a row or column belong to the field of view
_MIN_SHARE = 0.3  # of each side; less is no field of view but a picture that is too dark to tell
_MIN_COLOUR = 8.0  # of 255: mean of largest less smallest channel over what is lit


def crop_field_of_view(image: Image.Image) -> Image.Image:
    """The smallest box around the lit field of view; the image itself where that cannot be told.

    Args:
        image: RGB.
    """
    small, factor = _reduced(image)
    return _cut(image, _box(image, _largest(small), factor))


def crop_colour(image: Image.Image) -> Image.Image:
    """The field of view of a colour photograph; angiograms and OCT, which are grey, stay as they are.

    The picture alone tells what is cropped, so that training and use agree where no modality is known.

    Args:
        image: RGB.
    """
    return _cut(image, colour_box(image))


def colour_box(image: Image.Image) -> tuple[int, int, int, int] | None:
    """What `crop_colour` keeps: left, upper, right and lower edge in pixels; None where it keeps all."""
    small, factor = _reduced(image)
    largest = _largest(small)
    return _box(image, largest, factor) if _is_coloured(small, largest) else None


def _is_coloured(pixels: np.ndarray, largest: np.ndarray) -> bool:
    lit = largest > _DARK
    smallest = np.minimum(np.minimum(pixels[..., 0], pixels[..., 1]), pixels[..., 2])
    return bool(lit.any()) and float((largest - smallest)[lit].mean()) > _MIN_COLOUR


def _cut(image: Image.Image, box: tuple[int, int, int, int] | None) -> Image.Image:
    return image if box is None else image.crop(box)


def _box(image: Image.Image, largest: np.ndarray, factor: int) -> tuple[int, int, int, int] | None:
    """What lies within the border, which is looked for in an image's largest channel (h, w), reduced by a factor."""
    lit = largest > _DARK
    rows = np.flatnonzero(lit.mean(axis=1) > _MIN_LIT)
    columns = np.flatnonzero(lit.mean(axis=0) > _MIN_LIT)
    if not len(rows) or not len(columns):
        return None
    box = (
        max(0, int(columns[0]) * factor - factor),
        max(0, int(rows[0]) * factor - factor),
        min(image.width, (int(columns[-1]) + 2) * factor),
        min(image.height, (int(rows[-1]) + 2) * factor),
    )
    if box[2] - box[0] < _MIN_SHARE * image.width or box[3] - box[1] < _MIN_SHARE * image.height:
        return None
    return box


def _reduced(image: Image.Image) -> tuple[np.ndarray, int]:
    factor = max(1, round(max(image.size) / _SEARCH_SIZE))
    return np.asarray(image.reduce(factor)), factor


def _largest(pixels: np.ndarray) -> np.ndarray:
    """The largest channel (h, w); a tenth of the time of max(axis=2)."""
    return np.maximum(np.maximum(pixels[..., 0], pixels[..., 1]), pixels[..., 2])
