"""An image with a mask of classes, wherever it comes from."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from keepfit_clip.data.records import LeftOut

__all__ = ["MaskedImage", "MaskedSet"]


@dataclass(frozen=True)
class MaskedImage:
    """An image whose pixels each belong to one class.

    Args:
        row: its number in the set, from 1.
        read: gives the RGB image and its mask, (H, W) uint8: 0 is background, 1 to K are the classes; raises ImageError
            where either cannot be used.
        group: the patient, or None. For grouping only; it must not leave the program.
    """

    row: int
    read: Callable[[], tuple[Image.Image, np.ndarray]]
    group: str | None = None


@dataclass
class MaskedSet:
    """Images with masks.

    Args:
        title: for tables.
        classes: names of classes 1 to K.
        images: of the set.
        copies: whether two of its images may be copies of one picture.
        left_out: what could not be used.
    """

    title: str
    classes: list[str]
    images: list[MaskedImage]
    copies: bool = True
    left_out: list[LeftOut] = field(default_factory=list)
