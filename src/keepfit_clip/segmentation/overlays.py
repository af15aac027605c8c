"""Pictures of what was found: an image as it is, under its true mask, and under each answer, side by side."""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from keepfit_clip.images.reading import fit_within
from keepfit_clip.segmentation.protocol import Segmentation

__all__ = ["COLOURS", "write_overlays"]

_SIDE = 512  # pixels of a panel's longest side, at most
_STRENGTH = 0.6
# Of classes 1, 2, ..., far from a retina's own colours first; the names stand in results.md.
COLOURS = {
    "cyan": (0, 255, 255),
    "green": (0, 220, 60),
    "blue": (60, 90, 255),
    "magenta": (255, 0, 220),
    "white": (255, 255, 255),
    "lime": (190, 255, 0),
    "violet": (150, 80, 255),
    "grey": (128, 128, 128),
    "pink": (255, 160, 200),
    "black": (0, 0, 0),
}


def write_overlays(folder: Path, result: Segmentation) -> None:
    """Writes a PNG for each image that is shown: picture, truth, and the answer of each tower, numbered from 1."""
    folder.mkdir()
    prepared = result.prepared
    for number, row in enumerate(sorted(result.outcomes[0].shown), start=1):
        picture, truth = prepared.images[row].read()
        masks = [np.zeros_like(truth), truth, *(outcome.shown[row] for outcome in result.outcomes)]
        picture = fit_within(picture, _SIDE)
        panels = [_overlaid(picture, mask) for mask in masks]
        Image.fromarray(np.concatenate(panels, axis=1)).save(folder / f"{number:04d}.png")


def _overlaid(picture: Image.Image, mask: np.ndarray) -> np.ndarray:
    """(h, w, 3) uint8 of a picture (h, w) and a mask of any size."""
    pixels = np.asarray(picture).astype(np.float32)
    mask = cv2.resize(mask, picture.size, interpolation=cv2.INTER_NEAREST)
    table = np.array([(0, 0, 0), *COLOURS.values()], dtype=np.float32)
    numbers = np.where(mask > 0, (mask.astype(int) - 1) % len(COLOURS) + 1, 0)
    strength = _STRENGTH * (mask > 0)[..., None]
    return (pixels * (1 - strength) + table[numbers] * strength + 0.5).astype(np.uint8)
