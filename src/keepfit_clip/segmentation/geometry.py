"""Where a pixel of an image lies in what the image tower sees, and back: the same way for pictures and for masks.

Preprocessing crops (the black border), resizes and pads or cuts. Each of these is a shift and a scale of rows and of
columns, so a mask goes the image's way by looking up, for each pixel of the tower's input, the image's pixel at its
middle (nearest neighbour), and an answer goes back by linear interpolation.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from keepfit_clip.images.field_of_view import colour_box
from keepfit_clip.model.preprocess import fitted_size, is_padded_at_end

__all__ = ["View"]


@dataclass(frozen=True)
class _Axis:
    """Rows, or columns: `first` to `last` of `length` pixels, at `scale`, begin `start` pixels into `seen` ones."""

    length: int
    first: int
    last: int
    scale: float
    start: int
    seen: int

    def sources(self) -> tuple[np.ndarray, np.ndarray]:
        """The image's pixel for each of the tower's (seen,), and whether there is one."""
        at = (np.arange(self.seen) + 0.5 - self.start) / self.scale
        return np.clip(np.floor(at).astype(int) + self.first, 0, self.length - 1), (
            (at >= 0) & (at < self.last - self.first)
        )

    def positions(self) -> tuple[np.ndarray, np.ndarray]:
        """The tower's place (length,) for each of the image's pixels, in pixels from the first one's middle, and
        whether the tower sees it."""
        at = (np.arange(self.length) + 0.5 - self.first) * self.scale + self.start
        cropped = (np.arange(self.length) >= self.first) & (np.arange(self.length) < self.last)
        return at - 0.5, cropped & (at >= 0) & (at < self.seen)


@dataclass(frozen=True)
class View:
    """How a tower sees an image.

    Args:
        rows, columns: where they go.
    """

    rows: _Axis
    columns: _Axis

    @classmethod
    def of(cls, image: Image.Image, preprocess: dict) -> "View":
        """The view that preprocessing gives of an image.

        Args:
            image: RGB.
            preprocess: values in force: size, resize_mode and crop, see `resolve_preprocess`.
        """
        size = preprocess["size"]
        seen = (size, size) if isinstance(size, int) else tuple(size)
        box = colour_box(image) if preprocess.get("crop", False) else None
        left, top, right, bottom = box or (0, 0, *image.size)
        height, width = bottom - top, right - left
        at_end = is_padded_at_end(preprocess)
        resized = (
            fitted_size(height, width, seen, at_end)
            if preprocess["resize_mode"] == "longest"
            else _resized((height, width), seen, preprocess["resize_mode"])
        )
        rows = _axis(image.height, top, bottom, resized[0], seen[0])
        columns = _axis(image.width, left, right, resized[1], seen[1])
        return cls(*(replace(axis, start=0) if at_end else axis for axis in (rows, columns)))

    def to_input(self, mask: np.ndarray) -> np.ndarray:
        """A mask (H, W) as the tower sees it (h, w), nearest neighbour; 0 where there is no image."""
        (rows, row_there), (columns, column_there) = self.rows.sources(), self.columns.sources()
        there = row_there[:, None] & column_there[None]
        return np.where(there, mask[rows[:, None], columns[None]], 0).astype(mask.dtype)

    def to_image(self, scores: Tensor) -> np.ndarray:
        """The class of each of the image's own pixels (H, W) uint8; 0 where the tower does not see it.

        Args:
            scores: (K + 1, h, w) of the tower's input; between its pixels they are interpolated.
        """
        (rows, row_seen), (columns, column_seen) = self.rows.positions(), self.columns.positions()
        best = classes = None
        for number, plane in enumerate(scores.float().cpu()):  # one at a time: photographs are large
            values = _interpolated(_interpolated(plane, rows).T, columns).T
            if best is None:
                best, classes = values, torch.zeros(values.shape, dtype=torch.uint8)
            else:
                classes[values > best] = number
                best = torch.maximum(best, values)
        return np.where(row_seen[:, None] & column_seen[None], classes.numpy(), 0).astype(np.uint8)


def _axis(length: int, first: int, last: int, resized: int, seen: int) -> _Axis:
    """torchvision's CenterCrop and open_clip's pad to the same pixel."""
    start = (seen - resized) // 2 if seen >= resized else -round((resized - seen) / 2.0)
    return _Axis(length, first, last, resized / (last - first), start, seen)


def _resized(size: tuple[int, int], seen: tuple[int, int], mode: str) -> tuple[int, int]:
    """Height and width after open_clip's resizing, before it pads or cuts."""
    if mode == "squash":
        return seen
    if mode == "shortest" and seen[0] == seen[1]:  # torchvision's Resize to one number
        short, long = sorted(size)
        other = int(seen[0] * long / short)
        return (seen[0], other) if size[0] <= size[1] else (other, seen[0])
    ratio = min(own / wanted for own, wanted in zip(size, seen, strict=True))
    return round(size[0] / ratio), round(size[1] / ratio)


def _interpolated(plane: Tensor, positions: np.ndarray) -> Tensor:
    """Rows of (h, w) at positions (n,), linearly, those beyond the edge as the edge: (n, w)."""
    at = torch.from_numpy(np.clip(positions, 0, len(plane) - 1)).float()
    below = at.floor().long().clamp(max=max(len(plane) - 2, 0))
    above = (below + 1).clamp(max=len(plane) - 1)
    weight = (at - below)[:, None]
    return plane[below] * (1 - weight) + plane[above] * weight
