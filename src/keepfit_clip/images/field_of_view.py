"""Cutting the black border off a fundus photograph."""

import numpy as np
from PIL import Image

__all__ = ["crop_field_of_view"]

_SEARCH_SIZE = 256  # pixels of the longest side at which the border is looked for
_DARK = 12  # of 255; sensor noise in the border stays below
_MIN_LIT = 0.03  # share of lit pixels that makes a row or column belong to the field of view
_MIN_SHARE = 0.3  # of each side; less is no field of view but a picture that is too dark to tell


def crop_field_of_view(image: Image.Image) -> Image.Image:
    """The smallest box around the lit field of view; the image itself where that cannot be told.

    Args:
        image: RGB.
    """
    factor = max(1, round(max(image.size) / _SEARCH_SIZE))
    red, green, blue = np.moveaxis(np.asarray(image.reduce(factor)), 2, 0)
    lit = np.maximum(np.maximum(red, green), blue) > _DARK  # (h, w); a tenth of the time of max(axis=2)
    rows = np.flatnonzero(lit.mean(axis=1) > _MIN_LIT)
    columns = np.flatnonzero(lit.mean(axis=0) > _MIN_LIT)
    if not len(rows) or not len(columns):
        return image
    box = (
        max(0, int(columns[0]) * factor - factor),
        max(0, int(rows[0]) * factor - factor),
        min(image.width, (int(columns[-1]) + 2) * factor),
        min(image.height, (int(rows[-1]) + 2) * factor),
    )
    if box[2] - box[0] < _MIN_SHARE * image.width or box[3] - box[1] < _MIN_SHARE * image.height:
        return image
    return image.crop(box)
