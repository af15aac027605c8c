"""From an encoded image to a tower's input, as fast as a CPU can: for training, where the decoder is the bottleneck.

JPEGs are decoded straight to the smallest eighth of their size that still covers the target (libjpeg-turbo's scaled
decoding), then resized once. The result differs from full decoding and an antialiased resize by well under 2/255 on
average (tests/test_decoding.py); inference keeps open_clip's own transform.
"""

from collections.abc import Callable
from typing import Protocol

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from keepfit_clip.images.field_of_view import crop_colour
from keepfit_clip.images.reading import open_image
from keepfit_clip.model.preprocess import fitted_size, is_padded_at_end, to_input_size

__all__ = ["FastResizer", "Resizer", "make_resizer"]

_JPEG = b"\xff\xd8\xff"
_HEAD = 4096  # bytes in which EXIF stands, and the list of several pictures, if they do
_BEFORE_CROP = 2  # times the target: few fields of view fill less than half of a side
_LARGEST = 1 << 27  # pixels; larger ones are left to Pillow, which refuses bombs


class Resizer(Protocol):
    """What brings an encoded image to a tower's input size."""

    def __call__(self, content: bytes, name: str = "") -> np.ndarray:
        """Pixels (H, W, 3) uint8; ImageError where the image cannot be decoded."""


def make_resizer(preprocess_cfg: dict, exact: bool = False) -> Resizer:
    """A fast one for the whole image, framed or stretched; open_clip's transform where the tower sees its centre only.

    Args:
        preprocess_cfg: values of the tower, see `keepfit_clip.model.preprocess`.
        exact: open_clip's transform in any case, for figures that are to be compared.
    """
    if preprocess_cfg["resize_mode"] == "shortest" or exact:
        return _Exact(to_input_size(preprocess_cfg))
    size = preprocess_cfg["size"]
    return FastResizer(
        size if isinstance(size, int) else tuple(size),
        preprocess_cfg["fill_color"],
        preprocess_cfg["resize_mode"] == "squash",
        preprocess_cfg.get("crop", False),
        is_padded_at_end(preprocess_cfg),
    )


class FastResizer:
    """Fits an image into a size, its centre in the middle of a border or itself in the first corner, or stretched.

    Args:
        size: of the result, one number or (height, width), pixels.
        fill: value of the border, one number or one for each colour.
        squash: stretch the image to the size in place of a border.
        crop: whether the black border of colour photographs is cut off first.
        at_end: the border is at the bottom or the right alone.
    """

    def __init__(
        self,
        size: int | tuple[int, int],
        fill: int | tuple[int, ...] = 0,
        squash: bool = False,
        crop: bool = False,
        at_end: bool = False,
    ):
        self.height, self.width = (size, size) if isinstance(size, int) else size
        self.fill, self.squash, self.crop, self.at_end = fill, squash, crop, at_end

    def __call__(self, content: bytes, name: str = "") -> np.ndarray:
        """Pixels (height, width, 3) uint8 of an encoded image.

        Args:
            content: any format that `open_image` reads.
            name: what to call it in the error.

        Raises:
            ImageError: it cannot be decoded.
        """
        pixels = self._scaled_jpeg(content)
        if pixels is None:
            pixels = np.asarray(open_image(content, name))
        if self.crop:
            pixels = np.asarray(crop_colour(Image.fromarray(pixels)))
        return self._fit(pixels)

    def _scaled_jpeg(self, content: bytes) -> np.ndarray | None:
        """A plain upright JPEG at the smallest scale that covers the target; None for anything else."""
        if content[:3] != _JPEG or b"Exif\0" in content[:_HEAD] or b"MPF\0" in content[:_HEAD]:
            return None
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
            if colours in ("CMYK", "YCCK") or height * width > _LARGEST:
                return None
            fitted_height, fitted_width = self._fitted(height, width)
            if self.crop:  # of what is left of each side
                fitted_height, fitted_width = (_BEFORE_CROP * side for side in (fitted_height, fitted_width))
            return simplejpeg.decode_jpeg(
                content, "RGB", min_height=min(height, fitted_height), min_width=min(width, fitted_width)
            )
        except ValueError:  # damaged, or of a kind that Pillow may know
            return None

    def _fitted(self, height: int, width: int) -> tuple[int, int]:
        if self.squash:
            return self.height, self.width
        return fitted_size(height, width, (self.height, self.width), self.at_end)

    def _fit(self, pixels: np.ndarray) -> np.ndarray:
        height, width = self._fitted(*pixels.shape[:2])
        if pixels.shape[:2] != (height, width):
            pixels = _resized(pixels, height, width)
        if (height, width) == (self.height, self.width):
            return pixels
        boxed = np.empty((self.height, self.width, 3), dtype=np.uint8)
        boxed[:] = self.fill
        top, left = (0, 0) if self.at_end else ((self.height - height) // 2, (self.width - width) // 2)
        boxed[top : top + height, left : left + width] = pixels
        return boxed


def _resized(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Averaged along the sides that shrink, then interpolated along those that grow: INTER_AREA does not mix them."""
    shrunk = min(height, pixels.shape[0]), min(width, pixels.shape[1])
    if shrunk != pixels.shape[:2]:
        pixels = cv2.resize(pixels, shrunk[::-1], interpolation=cv2.INTER_AREA)
    if shrunk != (height, width):
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_CUBIC)
    return pixels


class _Exact:
    def __init__(self, transform: Callable[[Image.Image], Image.Image]):
        self.transform = transform

    def __call__(self, content: bytes, name: str = "") -> np.ndarray:
        return np.asarray(self.transform(open_image(content, name)))
