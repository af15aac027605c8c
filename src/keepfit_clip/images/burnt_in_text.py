"""Looking for text that is written into a picture near its edges, such as a name or a date, and painting it over.

Letters are small components that stand out from what is around them; text is a row of them, of like height and
contrast, on one line. Nothing is read. What it misses: docs/privacy.md.
"""

from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

__all__ = ["find_text", "mask_text"]

Box = tuple[int, int, int, int]  # left, upper, right, lower

_SEARCH_SIZE = 1024  # pixels of the longest side, about, at which text is looked for; large letters at half of that
_OUTER = 0.25  # of the picture, from each edge
_STROKE = 13  # pixels; what is wider is no stroke of a letter
_CONTRAST = 40  # of 255, of a letter to what is around it
_NOISE = 3.5  # times the median of what stands out
_NEAR, _SHARE = 25, 0.45  # pixels around, and share of what stands out most there; takes letters that touch apart
_HEIGHTS = 6, 38  # of letters, pixels
_MOST_LETTERS = 400  # those that stand out most, so that a noisy picture takes no longer
_FEWEST_IN_ROW = 4
_LIKE = 1.6  # ratio of heights, or of contrasts, of neighbours
_GAP = 1.3  # heights, between letters and between words
# A logistic regression on drawn text, and on rows of vessels and layers in drawn and real pictures, rounded.
_WEIGHTS = np.array([1.3, 6.0, -8.0, 6.0, -3.0, -9.0, 11.0])
_THRESHOLD = 15.3


def find_text(image: Image.Image) -> list[Box]:
    """Boxes around rows of letters that stand, begin or end in the outer quarter of a picture; they may overlap.

    Args:
        image: RGB.
    """
    factor = max(1, round(max(image.size) / _SEARCH_SIZE))
    red, green, blue = cv2.split(np.asarray(image.reduce(factor)))
    largest = np.maximum(np.maximum(red, green), blue)
    views = [(green, cv2.MORPH_TOPHAT), (green, cv2.MORPH_BLACKHAT)]
    if not np.array_equal(green, largest):  # red and blue on black
        views.append((largest, cv2.MORPH_TOPHAT))
    boxes = []
    for grey, operation in views:
        for scale in (1, 2):
            small = grey if scale == 1 else cv2.resize(grey, _half(grey), interpolation=cv2.INTER_AREA)
            contrast = cv2.morphologyEx(small, operation, np.ones((_STROKE, _STROKE), np.uint8))
            boxes += [[side * scale * factor for side in box] for box in _text_rows(contrast)]
    return [(left, upper, min(right, image.width), min(lower, image.height)) for left, upper, right, lower in boxes]


def mask_text(image: Image.Image, boxes: list[Box]) -> Image.Image:
    """A copy with every box in the colour of its outline."""
    pixels = np.array(image)
    for left, upper, right, lower in boxes:
        box = pixels[upper:lower, left:right]
        outline = np.concatenate([box[0], box[-1], box[:, 0], box[:, -1]])
        box[:] = np.median(outline, axis=0)
    return Image.fromarray(pixels)


class _Letters(NamedTuple):
    """Components that may be letters, from left to right; each array (N,), lengths in pixels.

    Args:
        left, upper, right, lower: of their boxes.
        fill: share of the box.
        peak: how much they stand out at most.
    """

    left: np.ndarray
    upper: np.ndarray
    right: np.ndarray
    lower: np.ndarray
    fill: np.ndarray
    peak: np.ndarray

    @property
    def height(self) -> np.ndarray:
        return self.lower - self.upper

    def take(self, chosen: list[int]) -> "_Letters":
        return _Letters(*(values[chosen] for values in self))


def _half(grey: np.ndarray) -> tuple[int, int]:
    return max(1, grey.shape[1] // 2), max(1, grey.shape[0] // 2)


def _text_rows(contrast: np.ndarray) -> list[Box]:
    """Boxes around text in (h, w), which says how much each pixel stands out."""
    least = np.uint8(min(255, max(_CONTRAST, _NOISE * np.median(contrast[::8, ::8]))))
    strongest = cv2.dilate(contrast, np.ones((_NEAR, _NEAR), np.uint8))
    mask = (contrast > np.maximum(cv2.convertScaleAbs(strongest, alpha=_SHARE), least)).view(np.uint8)
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    parts = np.array([cv2.boundingRect(outline) for outline in outlines]).reshape(-1, 4)
    parts[:, 2:] += parts[:, :2]
    letters = _letters(parts, mask, contrast)
    rows = (letters.take(row) for row in _rows(letters) if len(row) >= _FEWEST_IN_ROW)
    return [_around(row, parts, contrast.shape) for row in rows if _is_outside(row, contrast.shape) and _is_text(row)]


def _letters(parts: np.ndarray, mask: np.ndarray, contrast: np.ndarray) -> _Letters:
    """Those of all components, boxes (N, 4), that have the size of letters."""
    width, height = parts[:, 2] - parts[:, 0], parts[:, 3] - parts[:, 1]
    sized = (height >= _HEIGHTS[0]) & (height <= _HEIGHTS[1]) & (width <= 4 * height)
    letters = []
    for left, upper, right, lower in parts[sized].tolist():
        fill = cv2.countNonZero(mask[upper:lower, left:right]) / ((lower - upper) * (right - left))
        letters.append((left, upper, right, lower, fill, int(contrast[upper:lower, left:right].max())))
    letters = sorted(letters, key=lambda letter: -letter[-1])[:_MOST_LETTERS]
    return _Letters(*np.array(sorted(letters), np.float32).reshape(-1, 6).T)


def _rows(letters: _Letters) -> list[list[int]]:
    """Numbers of letters, each of which is the nearest fit to the right of the one before."""
    if not len(letters.left):
        return []
    left, upper, right, lower, _, peak = letters
    height = letters.height
    smaller = np.minimum(height, height[:, None])
    gap = left - right[:, None]  # (N, N): from the first to the second
    fits = (left > left[:, None]) & (gap > -0.3 * smaller) & (gap < _GAP * smaller)
    fits &= np.maximum(height, height[:, None]) < _LIKE * smaller
    fits &= np.maximum(peak, peak[:, None]) < _LIKE * np.minimum(peak, peak[:, None])
    off = np.minimum(np.abs(lower - lower[:, None]), np.abs(upper - upper[:, None]))
    fits &= off < 0.2 * smaller + 1
    following = np.where(fits.any(axis=1), np.where(fits, gap, np.inf).argmin(axis=1), -1).tolist()
    rows, seen = [], set()
    for number in range(len(left)):
        row = []
        while number >= 0 and number not in seen:
            seen.add(number)
            row.append(number)
            number = following[number]
        rows.append(row)
    return rows


def _is_outside(row: _Letters, shape: tuple[int, int]) -> bool:
    """Whether a row reaches into the outer quarter of a picture."""
    middle = (row.upper.min() + row.lower.max()) / 2 / shape[0]
    ends = row.left.min() / shape[1], row.right.max() / shape[1]
    return min(middle, 1 - middle, ends[0], 1 - ends[1]) < _OUTER


def _is_text(row: _Letters) -> bool:
    height = np.median(row.height)
    off = np.minimum(np.abs(row.lower - np.median(row.lower)), np.abs(row.upper - np.median(row.upper)))
    features = (
        min(len(row.left), 8),
        np.mean(off <= 0.12 * height + 1),  # on the line
        row.peak.std() / row.peak.mean(),
        row.peak.mean() / 255,
        min(3, np.median((row.right - row.left) / row.height)),
        row.height.std() / height,
        np.median(row.fill),
    )
    return float(_WEIGHTS @ features) > _THRESHOLD


def _around(row: _Letters, parts: np.ndarray, shape: tuple[int, int]) -> Box:
    """A box around a row and what goes on with it: dots, commas, letters of another size, the next words."""
    height = float(np.median(row.height))
    left, upper, right, lower = row.left.min(), row.upper.min(), row.right.max(), row.lower.max()
    near = (parts[:, 1] > upper - 0.5 * height) & (parts[:, 3] < lower + 0.5 * height)
    near &= (parts[:, 3] - parts[:, 1] < 2 * height) & (parts[:, 2] - parts[:, 0] < 6 * height)
    parts = parts[near]
    before = None
    while before != (left, right):
        before = left, right
        reached = parts[(parts[:, 0] < right + _GAP * height) & (parts[:, 2] > left - _GAP * height)]
        left, right = min(left, reached[:, 0].min()), max(right, reached[:, 2].max())
    margin = max(2, round(0.3 * height))
    return (
        max(0, int(left) - margin),
        max(0, int(min(upper, reached[:, 1].min())) - margin),
        min(shape[1], int(right) + margin),
        min(shape[0], int(max(lower, reached[:, 3].max())) + margin),
    )
