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

from keepfit_clip.images.reading import open_image
from keepfit_clip.model.preprocess import letterbox

__all__ = ["FastLetterbox", "Letterbox", "make_letterbox"]

_JPEG = b"\xff\xd8\xff"
_HEAD = 4096  # bytes in which EXIF stands, and the list of several pictures, if they do
_LARGEST = 1 << 27  # pixels; larger ones are left to Pillow, which refuses bombs


class Letterbox(Protocol):
    """What brings an encoded image to a tower's input size."""

    def __call__(self, content: bytes, name: str = "") -> np.ndarray:
        """Pixels (H, W, 3) uint8; ImageError where the image cannot be decoded."""


def make_letterbox(preprocess_cfg: dict, exact: bool = False) -> Letterbox:
    """The fast letterbox, or open_clip's transform for a tower that wants another way of resizing.

    Args:
        preprocess_cfg: values of the tower, see `keepfit_clip.model.preprocess`.
        exact: open_clip's transform in any case, for figures that are to be compared.
    """
    size, fill = preprocess_cfg["size"], preprocess_cfg["fill_color"]
    if preprocess_cfg["resize_mode"] == "longest" and not exact:
        return FastLetterbox(size if isinstance(size, int) else tuple(size), fill)
    return _Exact(letterbox(preprocess_cfg))


class FastLetterbox:
    """Fits an image into a size, its centre in the middle of a border.

    Args:
        size: of the result, one number or (height, width), pixels.
        fill: value of the border, one number or one for each colour.
    """

    def __init__(self, size: int | tuple[int, int], fill: int | tuple[int, ...] = 0):
        self.height, self.width = (size, size) if isinstance(size, int) else size
        self.fill = fill

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
            return simplejpeg.decode_jpeg(
                content, "RGB", min_height=min(height, fitted_height), min_width=min(width, fitted_width)
            )
        except ValueError:  # damaged, or of a kind that Pillow may know
            return None

    def _fitted(self, height: int, width: int) -> tuple[int, int]:
        ratio = max(height / self.height, width / self.width)
        return max(1, round(height / ratio)), max(1, round(width / ratio))

    def _fit(self, pixels: np.ndarray) -> np.ndarray:
        height, width = self._fitted(*pixels.shape[:2])
        if pixels.shape[:2] != (height, width):
            shrinks = height < pixels.shape[0]
            pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
        if (height, width) == (self.height, self.width):
            return pixels
        boxed = np.empty((self.height, self.width, 3), dtype=np.uint8)
        boxed[:] = self.fill
        top, left = (self.height - height) // 2, (self.width - width) // 2
        boxed[top : top + height, left : left + width] = pixels
        return boxed


class _Exact:
    def __init__(self, transform: Callable[[Image.Image], Image.Image]):
        self.transform = transform

    def __call__(self, content: bytes, name: str = "") -> np.ndarray:
        return np.asarray(self.transform(open_image(content, name)))
