"""A heat map for the page: its colours apart from the picture, so that a slider can fade them, and what they mean."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from keepfit_clip.explain.maps import colour_ramp, heat_ends, heat_layer

__all__ = ["HeatMap", "bar_colours"]

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
        return heat_ends(self.heat)

    def colours(self) -> Image.Image:
        """The heat as colours, RGBA (H, W): clear where it is cool, and denser the hotter it is."""
        return heat_layer(self.heat)


def bar_colours() -> list[str]:
    """CSS colours of the bar beside a map, from its lower end to its upper one."""
    return [f"rgb{colour}" for colour in colour_ramp(_STOPS)]
