"""Fluorescein angiograms: a dark grey field, bright vessels, and what leaks, pools or does not fill."""

import numpy as np

from keepfit_clip.drawing.canvas import Layer, blur, distance, grid, paint, scatter, smooth_noise, speckle
from keepfit_clip.drawing.content import Content
from keepfit_clip.drawing.fundus import QUADRANTS, Fundus, grow_vessels, new_fundus

__all__ = ["CONDITIONS", "draw_ffa"]


class _Angiogram:
    """One angiogram while it is planned: what adds light and what takes it away, each (size, size)."""

    def __init__(self, rng: np.random.Generator, fundus: Fundus, condition: str):
        self.rng = rng
        self.fundus = fundus
        self.content = Content(condition)
        self.glow = np.zeros((fundus.size, fundus.size), dtype=np.float32)
        self.unfilled = np.zeros((fundus.size, fundus.size), dtype=np.float32)

    def choose_quadrant(self) -> str:
        """A quadrant for all lesions."""
        quadrant = str(self.rng.choice(QUADRANTS))
        self.content.place = f"in the {quadrant} quadrant"
        return quadrant

    def dots(self, positions: list[np.ndarray], radii: np.ndarray, ragged: float = 0.0) -> np.ndarray:
        """Outlines at positions, from 0 to 1."""
        layer = Layer(self.fundus.size)
        for position, radius in zip(positions, radii, strict=False):
            layer.blob(self.rng, position, radius, ragged)
        return layer.alpha()


def draw_ffa(condition: str, rng: np.random.Generator, size: int) -> tuple[np.ndarray, Content]:
    """A right eye with a condition.

    Args:
        condition: a key of CONDITIONS.
        rng: decides everything.
        size: of the picture, pixels.

    Returns:
        (size, size) float32 from 0 to 1, and what is to be seen on it.
    """
    angiogram = _Angiogram(rng, new_fundus(rng, size), condition)
    CONDITIONS[condition](angiogram)
    return _photograph(angiogram), angiogram.content


def _normal(angiogram: _Angiogram) -> None:
    angiogram.content.remarks.append("no leakage")


def _non_perfusion(angiogram: _Angiogram) -> None:
    """Dark areas without capillaries, fringed by microaneurysms."""
    rng, fundus, content = angiogram.rng, angiogram.fundus, angiogram.content
    quadrant = angiogram.choose_quadrant()
    radii = rng.uniform(0.1, 0.15, rng.integers(1, 4))
    spans = radii * 1.4
    positions = scatter(rng, fundus.positions(rng, quadrant, (0.2, 0.8), spans.max()), spans, [])
    areas = angiogram.dots(positions, radii, ragged=0.4)
    content.mark("unfilled areas", len(positions), areas)
    angiogram.unfilled = blur(areas, 0.016) * (0.9 + 0.15 * smooth_noise(rng, fundus.size, 12)).clip(0, 1)
    fringe = [
        position + radius * 1.1 * np.array([np.cos(a), np.sin(a)])
        for position, radius in zip(positions, radii, strict=False)
        for a in rng.uniform(0, 6.3, rng.integers(2, 6))
    ]
    angiogram.glow += 0.8 * blur(angiogram.dots(fringe, np.full(len(fringe), 0.013)), 0.006)


def _macular_edema(angiogram: _Angiogram) -> None:
    """Leaking spots around the fovea, each with a halo of dye."""
    rng, fundus, content = angiogram.rng, angiogram.fundus, angiogram.content
    content.severity = rng.choice(["mild", "severe"])
    severe = content.severity == "severe"
    quadrant = angiogram.choose_quadrant()
    radii = rng.uniform(0.02, 0.035, rng.integers(6, 11) if severe else rng.integers(3, 6))
    positions = scatter(rng, fundus.positions(rng, quadrant, (0.05, 0.45), radii.max()), radii, [])
    spots = angiogram.dots(positions, radii)
    content.mark("focal leaks", len(positions), spots)
    halo = blur(angiogram.dots(positions, radii * 2.2, ragged=0.3), 0.045)
    angiogram.glow += 0.75 * blur(spots, 0.012) + (0.95 if severe else 0.7) * halo


def _central_serous(angiogram: _Angiogram) -> None:
    """One bright ink-blot leak inside a round pool of dye."""
    rng, fundus, content = angiogram.rng, angiogram.fundus, angiogram.content
    large = bool(rng.integers(0, 2))
    quadrant = angiogram.choose_quadrant()
    away = np.array([1 if "nasal" in quadrant else -1, 1 if quadrant.startswith("infero") else -1])
    leak = fundus.fovea + away * rng.uniform(0.08, 0.14, 2)
    centre = fundus.fovea + away * rng.uniform(0.01, 0.05, 2)
    radius = rng.uniform(0.27, 0.34) if large else rng.uniform(0.2, 0.25)
    pool = angiogram.dots([centre], np.array([radius]), ragged=0.05)
    blot = angiogram.dots([leak], rng.uniform(0.04, 0.06, 1), ragged=0.2)
    content.mark("ink-blot leaks", 1, blot)
    content.masks["pooling"] = pool > 0.3
    content.remarks.append(f"a {'large' if large else 'small'} pool of dye under the macula")
    angiogram.glow += 0.26 * blur(pool, 0.02) + 0.9 * blur(blot, 0.02)


CONDITIONS = {
    "normal": _normal,
    "capillary non-perfusion": _non_perfusion,
    "macular edema": _macular_edema,
    "central serous chorioretinopathy": _central_serous,
}


def _photograph(angiogram: _Angiogram) -> np.ndarray:
    """From back to front: choroidal flush, capillaries, disc, vessels, leaks; then camera and noise."""
    rng, fundus = angiogram.rng, angiogram.fundus
    size = fundus.size
    x, y = grid(size)
    flush = rng.uniform(0.17, 0.26)
    image = flush * (1 + 0.2 * smooth_noise(rng, size, 6))
    mesh = 0.45 - np.minimum(np.abs(smooth_noise(rng, size, 56)), 0.8)
    capillaries = mesh * rng.uniform(0.10, 0.18)
    away = distance(size, fundus.fovea)
    filled = 1 - np.exp(-((away / 0.2) ** 2))
    image = image * (0.35 + 0.65 * filled) + capillaries * filled
    paint(image, (flush * 1.9,), 0.8 * np.clip((fundus.disc_radius - distance(size, fundus.disc)) * size / 5, 0, 1))
    vessels = grow_vessels(fundus, vein=0.95, artery=0.8, thickness=rng.uniform(0.85, 1.1))
    image *= 1 - 0.82 * angiogram.unfilled
    vessels = vessels * (1 - 0.7 * angiogram.unfilled * (vessels < 0.6))  # larger vessels cross what is not perfused
    image += vessels * (rng.uniform(0.75, 0.95) - image)
    image += angiogram.glow * np.clip(1 - image, 0, 1)
    image = blur(image, rng.uniform(0.0, 0.010))
    tilt_x, tilt_y = rng.uniform(-0.15, 0.15, 2)
    image *= 1.08 - rng.uniform(0.2, 0.5) * (x * x + y * y) * 0.8 + tilt_x * x + tilt_y * y
    image += speckle(rng, image.shape, rng.uniform(0.01, 0.03))
    return image * fundus.inside()
