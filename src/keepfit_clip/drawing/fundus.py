"""The back of the eye as a fundus camera sees it: field of view, disc, fovea, vessels and quadrants.

Everything is drawn as a right eye, whose disc and nasal side lie at the right of the picture; a left eye is its mirror
image. Quadrants are counted from the fovea.
"""

from dataclasses import dataclass

import numpy as np

from keepfit_clip.drawing.canvas import Layer, distance

__all__ = ["QUADRANTS", "Fundus", "grow_vessels", "new_fundus"]

QUADRANTS = ("superotemporal", "superonasal", "inferotemporal", "inferonasal")

_STEPS = 18  # points of a vessel
_PIECES = 3  # parts of one width; thin vessels have one
_THIN = 0.012
_AVASCULAR = 0.14  # radius of the zone around the fovea that vessels keep out of
# Arcades and nasal trunks: heading where they leave the disc and how far they turn (degrees, up is 90), length.
_TRUNKS = ((110, 80, 1.55), (58, -34, 0.7), (-110, -80, 1.55), (-58, 34, 0.7))


@dataclass(frozen=True)
class Fundus:
    """Where things are in one right eye.

    Args:
        size: of the picture, pixels.
        field: radius of the field of view; more than 1 is cut by the frame.
        disc, fovea: positions, (2,).
        disc_radius: half the disc's height.
        vessels: lines (N, steps, 2), their widths at both ends (N, 2) and whether each is a vein (N,).
    """

    size: int
    field: float
    disc: np.ndarray
    fovea: np.ndarray
    disc_radius: float
    vessels: tuple[np.ndarray, np.ndarray, np.ndarray]

    def inside(self) -> np.ndarray:
        """The field of view, (size, size), from 0 to 1 with a soft rim."""
        rim = (self.field - distance(self.size, (0.0, 0.0))) * (self.size / 4)
        return np.clip(rim + 0.5, 0, 1)

    def positions(
        self,
        rng: np.random.Generator,
        quadrant: str | None,
        reach: tuple[float, float],
        radius: float = 0.05,
        count: int = 400,
    ) -> np.ndarray:
        """Random positions for lesions, (N, 2): wholly in a quadrant, off the disc, within the field.

        Args:
            rng: draws them.
            quadrant: one of QUADRANTS, or None for all around.
            reach: smallest and largest distance from the fovea.
            radius: of the largest lesion.
            count: how many to try.
        """
        angle = rng.uniform(0, 2 * np.pi, count)
        length = np.sqrt(rng.uniform(reach[0] ** 2, reach[1] ** 2, count))
        offset = np.stack([np.cos(angle), np.sin(angle)], axis=1) * length[:, None]
        if quadrant is not None:
            right, down = "nasal" in quadrant, quadrant.startswith("infero")
            offset = np.maximum(np.abs(offset), radius)
            offset *= np.array([1 if right else -1, 1 if down else -1])
        positions = self.fovea + offset
        off_disc = np.hypot(*(positions - self.disc).T) > self.disc_radius * 1.15 + radius
        within = (np.hypot(*positions.T) < self.field - radius - 0.04) & (np.abs(positions).max(axis=1) < 0.97 - radius)
        return positions[off_disc & within]


def new_fundus(rng: np.random.Generator, size: int, tortuosity: float = 1.0, disc_scale: float = 1.0) -> Fundus:
    """A new eye.

    Args:
        rng: decides.
        size: of the picture, pixels.
        tortuosity: how much vessels wind, 1 is usual.
        disc_scale: of the disc's radius.
    """
    fovea = np.array([rng.uniform(-0.24, -0.02), rng.uniform(-0.05, 0.09)])
    disc = fovea + np.array([rng.uniform(0.57, 0.67), rng.uniform(-0.12, -0.02)])
    radius = rng.uniform(0.115, 0.14) * disc_scale
    field = rng.choice([rng.uniform(0.93, 0.99), rng.uniform(1.04, 1.15)])
    return Fundus(size, field, disc, fovea, radius, _grow(rng, disc, fovea, tortuosity))


def grow_vessels(
    fundus: Fundus, vein: float, artery: float, thickness: float = 1.0, trunk: int | None = None
) -> np.ndarray:
    """The vessels as a layer, (size, size).

    Args:
        fundus: the eye.
        vein, artery: how much each covers, 0 to 1.
        thickness: scales every width.
        trunk: only the first vein of one arcade (0 upper, 2 lower, see _TRUNKS); None is all.
    """
    layer = Layer(fundus.size)
    lines, widths, veins = fundus.vessels
    order = np.argsort(veins, kind="stable") if trunk is None else [2 * trunk]
    for index in order:
        value = vein if veins[index] else artery
        first, last = widths[index] * thickness
        pieces = 1 if first < _THIN else _PIECES
        ends = np.linspace(0, _STEPS - 1, pieces + 1).round().astype(int)
        for piece in range(pieces):
            width = first + (last - first) * (piece + 0.5) / pieces
            layer.line(lines[index, ends[piece] : ends[piece + 1] + 1], width, value)
    return layer.alpha()


def _grow(rng: np.random.Generator, disc: np.ndarray, fovea: np.ndarray, tortuosity: float):
    """Trunks, branches and twigs; each generation is grown at once."""
    trunks = np.repeat(np.array(_TRUNKS), 2, axis=0)  # vein and artery of each
    number = len(trunks)
    veins = np.tile([True, False], number // 2)
    heading = np.radians(trunks[:, 0] + rng.uniform(-9, 9, number) + np.where(veins, 7, -7) * np.sign(trunks[:, 0]))
    turn = np.radians(trunks[:, 1] * rng.uniform(0.8, 1.15, number))
    length = trunks[:, 2] * rng.uniform(0.9, 1.1, number)
    start = disc + rng.uniform(-0.02, 0.02, (number, 2))
    widths = np.where(veins, rng.uniform(0.027, 0.033), rng.uniform(0.018, 0.023))[:, None] * [1.0, 0.45]
    lines, directions = _walk(rng, start, heading, turn, length, tortuosity)
    generations = [(lines, widths, veins)]
    for count, ratio, spread, reach in ((5, 0.6, 52, 0.5), (3, 0.62, 50, 0.26)):
        lines, directions, widths, veins = _branch(
            rng, (lines, directions, widths, veins), count, ratio, spread, reach, tortuosity, fovea
        )
        generations.append((lines, widths, veins))
    return tuple(np.concatenate(parts) for parts in zip(*generations, strict=True))


def _branch(rng, parents, count: int, ratio: float, spread: float, reach: float, tortuosity: float, fovea):
    """`count` branches of every parent, to alternating sides."""
    lines, directions, widths, veins = parents
    number = len(lines)
    along = (np.arange(count) + rng.uniform(0.35, 1.0, (number, count))) / (count + 0.35)  # (P, count)
    index = np.clip((along * (_STEPS - 1)).astype(int), 1, _STEPS - 2)
    rows = np.arange(number)[:, None]
    start, heading = lines[rows, index].reshape(-1, 2), directions[rows, index].ravel()
    side = np.where((np.arange(count) + rng.integers(0, 2, (number, 1))) % 2, 1.0, -1.0).ravel()
    angle = side * np.radians(rng.uniform(0.6, 1.2, heading.size) * spread)
    back = -angle * rng.uniform(0.1, 0.7, heading.size)
    length = reach * rng.uniform(0.5, 1.3, heading.size)
    length *= np.repeat(np.hypot(*(lines[:, -1] - lines[:, 0]).T).clip(0, 1) ** 0.5, count)  # of short parents, short
    parent_width = (widths[:, :1] + (widths[:, 1:] - widths[:, :1]) * along).ravel()
    own = parent_width[:, None] * ratio * np.array([1.0, 0.5])
    grown, headings = _walk(rng, start, heading + angle, back, length, tortuosity)
    return _end_before(grown, fovea), headings, own, np.repeat(veins, count)


def _walk(rng, start, heading, turn, length, tortuosity: float) -> tuple[np.ndarray, np.ndarray]:
    """Winding lines (N, steps, 2) and their direction at each point (N, steps), radians, up is positive."""
    number = len(heading)
    time = np.linspace(0, 1, _STEPS)
    wave = np.sin(time * rng.uniform(6, 14, (number, 1)) + rng.uniform(0, 6.3, (number, 1)))
    wander = np.cumsum(rng.standard_normal((number, _STEPS)), axis=1) * 0.05
    direction = heading[:, None] + turn[:, None] * time + tortuosity * (0.2 * wave + wander)
    step = (length / (_STEPS - 1))[:, None]
    moves = np.stack([np.cos(direction) * step, -np.sin(direction) * step], axis=2)
    moves[:, 0] = 0
    return start[:, None] + np.cumsum(moves, axis=1), direction


def _end_before(lines: np.ndarray, fovea: np.ndarray) -> np.ndarray:
    """The lines, each standing still where it would enter the avascular zone."""
    entered = np.hypot(lines[..., 0] - fovea[0], lines[..., 1] - fovea[1]) < _AVASCULAR
    entered = np.logical_or.accumulate(entered, axis=1)
    last = np.maximum(np.where(entered.any(axis=1), entered.argmax(axis=1), _STEPS) - 1, 0)
    index = np.minimum(np.arange(_STEPS)[None], last[:, None])
    return np.take_along_axis(lines, index[..., None].repeat(2, axis=2), axis=1)
