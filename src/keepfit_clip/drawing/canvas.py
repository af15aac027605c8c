"""Painting on arrays. Positions and lengths are in units of half the picture: x to the right and y down, -1 to 1."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

__all__ = ["Layer", "blur", "distance", "grid", "paint", "scatter", "smooth_noise", "speckle"]

_FINE = 512  # pixels across that outlines are drawn at, at least


@lru_cache(maxsize=4)
def grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates x and y of the pixel centres, each (size, size)."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1
    x, y = np.meshgrid(axis, axis)
    x.setflags(write=False)
    y.setflags(write=False)
    return x, y


def distance(size: int, centre: Sequence[float], stretch: float = 1.0) -> np.ndarray:
    """Distance of every pixel from a position, (size, size); heights count `stretch` times less."""
    x, y = grid(size)
    return np.sqrt((x - np.float32(centre[0])) ** 2 + ((y - np.float32(centre[1])) / np.float32(stretch)) ** 2)


def smooth_noise(
    rng: np.random.Generator, size: int, cells: int, stretch: float = 1.0, degrees: float = 0.0
) -> np.ndarray:
    """Smooth random hills, (size, size), of standard deviation about 0.6.

    Args:
        rng: decides.
        size: of the picture, pixels.
        cells: number of hills from top to bottom.
        stretch: how many times longer than high they are.
        degrees: how far they are turned.
    """
    rows = min(cells, size)
    columns = max(2, round(rows / stretch))
    coarse = Image.fromarray(rng.standard_normal((rows, columns), dtype=np.float32))
    if not degrees:
        return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))
    wide = round(size * 1.4)
    turned = coarse.resize((wide, wide), Image.Resampling.BICUBIC).rotate(degrees, Image.Resampling.BILINEAR)
    corner = (wide - size) // 2
    return np.asarray(turned.crop((corner, corner, corner + size, corner + size)))


def speckle(rng: np.random.Generator, shape: tuple[int, ...], strength: float) -> np.ndarray:
    """Grain of the sensor around 0."""
    return rng.standard_normal(shape, dtype=np.float32) * np.float32(strength)


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of (H, W) or (H, W, 3); sigma in units."""
    pixels = sigma * image.shape[0] / 2
    if pixels < 0.2:
        return image
    return gaussian_filter(image, (pixels, pixels, 0)[: image.ndim], truncate=3.0)


def paint(image: np.ndarray, colour: Sequence[float], alpha: np.ndarray) -> None:
    """Covers an image (H, W, 3) or (H, W) with a colour, where alpha (H, W) is 1 wholly; in place."""
    for channel, value in enumerate(colour):
        view = image[..., channel] if image.ndim == 3 else image
        view += alpha * (np.float32(value) - view)


class Layer:
    """Outlines drawn finely and brought to the picture's size, so that thin things keep their width.

    Args:
        size: of the picture, pixels.
    """

    def __init__(self, size: int):
        self.size = size
        self._factor = max(2, -(-_FINE // size))
        fine = size * self._factor
        self._half = fine / 2
        self._image = Image.new("L", (fine, fine))
        self._draw = ImageDraw.Draw(self._image)

    def _pixels(self, points: np.ndarray) -> list[float]:
        return ((points + 1) * self._half).ravel().tolist()

    def line(self, points: np.ndarray, width: float, value: float = 1.0) -> None:
        """A line through points (N, 2), at least as wide as one fine pixel."""
        self._draw.line(self._pixels(points), fill=round(255 * value), width=max(1, round(width * self._half)))

    def polygon(self, points: np.ndarray, value: float = 1.0) -> None:
        """A filled outline (N, 2)."""
        self._draw.polygon(self._pixels(points), fill=round(255 * value))

    def blob(
        self,
        rng: np.random.Generator,
        centre: Sequence[float],
        radius: float,
        ragged: float = 0.0,
        stretch: float = 1.0,
        angle: float = 0.0,
    ) -> None:
        """A filled ellipse whose outline wavers by `ragged`, `stretch` times as long as wide along `angle`."""
        turn = np.linspace(0, 2 * np.pi, 14 if ragged else 20, endpoint=False)
        reach = radius * (1 + ragged * rng.uniform(-1, 1, turn.size)) if ragged else np.full(turn.size, radius)
        along, across = reach * np.cos(turn) * stretch, reach * np.sin(turn)
        cos, sin = np.cos(angle), np.sin(angle)
        self.polygon(np.stack([centre[0] + along * cos - across * sin, centre[1] + along * sin + across * cos], axis=1))

    def alpha(self) -> np.ndarray:
        """What is covered, from 0 to 1, (size, size) float32."""
        return np.asarray(self._image.reduce(self._factor), dtype=np.float32) / 255


def scatter(
    rng: np.random.Generator, candidates: np.ndarray, radii: Sequence[float], taken: list, gap: float = 0.036
) -> list[np.ndarray]:
    """Chooses a position for each radius so that nothing touches.

    Args:
        rng: unused candidates are tried in its order.
        candidates: (N, 2) allowed positions.
        radii: of what is to be placed.
        taken: (position, radius) of what stands already; the new ones are added.
        gap: smallest space between two outlines.

    Returns:
        The positions, in the order of the radii; fewer than radii where there is no more room.
    """
    positions, queue = [], iter(candidates[rng.permutation(len(candidates))].tolist())
    for radius in radii:
        for px, py in queue:
            if all((px - qx) ** 2 + (py - qy) ** 2 > (radius + other + gap) ** 2 for (qx, qy), other in taken):
                taken.append(((px, py), radius))
                positions.append(np.array([px, py]))
                break
    return positions
