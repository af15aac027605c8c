"""A heat map for the page: its colours apart from the picture, so that a slider can fade them, and what they mean."""

from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

__all__ = ["HeatMap", "bar_colours"]

_CLEAR = 10  # percent of the places, the coolest, that stay without colour
_STOPS = 12  # of the colour bar


@dataclass(frozen=True)
class HeatMap:
    """A picture and what lies over it.

    Args:
        picture: RGB, (H, W).
        heat: (H, W), any scale.
        meaning: of its numbers.
        name: whose map it is.
    """

    picture: Image.Image
    heat: np.ndarray
    meaning: str
    name: str

    @property
    def ends(self) -> tuple[float, float]:
        """The values at both ends of the colour bar: the lower one and all below it stay clear."""
        return float(np.percentile(self.heat, _CLEAR)), float(self.heat.max())

    def colours(self) -> Image.Image:
        """The heat as colours, RGBA (H, W): clear where it is cool, and denser the hotter it is."""
        low, high = self.ends
        scaled = np.clip((self.heat - low) / max(high - low, 1e-12), 0, 1)
        levels = (scaled * 255).astype(np.uint8)
        return Image.fromarray(np.dstack([_turbo(levels), levels]))


def bar_colours() -> list[str]:
    """CSS colours of the bar beside a map, from its lower end to its upper one."""
    levels = np.linspace(0, 255, _STOPS).astype(np.uint8)[None]
    return [f"rgb({r}, {g}, {b})" for r, g, b in _turbo(levels)[0].tolist()]


def _turbo(levels: np.ndarray) -> np.ndarray:
    """RGB (H, W, 3) of levels (H, W) from 0 to 255."""
    return cv2.applyColorMap(levels, cv2.COLORMAP_TURBO)[:, :, ::-1]
