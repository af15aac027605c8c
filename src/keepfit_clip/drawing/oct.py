"""OCT B-scans through the fovea: bright and dark layers, and the fluid, deposits or hole that deform them.

The scan of a right eye has the nasal side, where the nerve fibre layer is thick, at the right.
"""

from dataclasses import dataclass, field

import numpy as np

from keepfit_clip.drawing.canvas import Layer, blur, grid, paint, scatter, smooth_noise, speckle
from keepfit_clip.drawing.content import Content

__all__ = ["CONDITIONS", "SIDES", "draw_oct"]

SIDES = ("nasal to the fovea", "temporal to the fovea")

# Reflectivity from the vitreous down: nerve fibres, ganglion cells, inner nuclear and outer plexiform layer, outer
# nuclear layer, ellipsoid zone, outer segments.
_LAYERS = (0.72, 0.46, 0.30, 0.50, 0.20, 0.80, 0.34)
_VITREOUS, _PIGMENT_EPITHELIUM, _CHOROID = 0.035, 0.95, 0.48
_THICKNESS = 0.28  # of a healthy retina beside the fovea


@dataclass
class _Scan:
    """One scan while it is planned. Heights are lengths in units over the columns, (size,).

    Args:
        rng, size, content: as for the other modalities.
        x: of the columns.
        fovea: x of the fovea.
        swelling: thickness that fluid within the retina adds.
        detachment: height of fluid between retina and pigment epithelium.
        drusen: height of deposits below the pigment epithelium.
        gap: half the width of a hole through the whole retina, or 0.
        cysts: centres, radii and stretch of fluid pockets, placed when the layers are known.
    """

    rng: np.random.Generator
    size: int
    content: Content
    x: np.ndarray
    fovea: float
    swelling: np.ndarray
    detachment: np.ndarray
    drusen: np.ndarray
    gap: float = 0.0
    cysts: list[tuple[float, float, float, float]] = field(default_factory=list)  # x, share of depth, radius, stretch

    def bump(self, centre: float, width: float, height: float) -> np.ndarray:
        """A smooth hill over the columns."""
        return height * np.exp(-(((self.x - centre) / width) ** 2))


def draw_oct(condition: str, rng: np.random.Generator, size: int) -> tuple[np.ndarray, Content]:
    """A horizontal scan through the fovea of a right eye with a condition.

    Args:
        condition: a key of CONDITIONS.
        rng: decides everything.
        size: of the picture, pixels.

    Returns:
        (size, size) float32 from 0 to 1, and what is to be seen on it.
    """
    x = grid(size)[0][0]
    flat = np.zeros(size, dtype=np.float32)
    scan = _Scan(rng, size, Content(condition), x, rng.uniform(-0.15, 0.15), flat, flat, flat)
    CONDITIONS[condition](scan)
    return _photograph(scan), scan.content


def _side(scan: _Scan) -> tuple[str, float]:
    """A side of the fovea, and the direction it lies in."""
    side = str(scan.rng.choice(SIDES))
    return side, 1.0 if side.startswith("nasal") else -1.0


def _normal(scan: _Scan) -> None:
    scan.content.remarks.append("a regular foveal pit")


def _macular_edema(scan: _Scan) -> None:
    rng, content = scan.rng, scan.content
    content.severity = rng.choice(["mild", "severe"])
    severe = content.severity == "severe"
    content.place, direction = _side(scan)
    centre = scan.fovea + direction * rng.uniform(0.22, 0.34)
    scan.swelling = scan.bump(centre, rng.uniform(0.25, 0.35), rng.uniform(0.16, 0.24) if severe else 0.1)
    number = rng.integers(5, 10) if severe else rng.integers(2, 5)
    candidates = np.stack([centre + rng.uniform(-0.24, 0.24, 200), rng.uniform(0.34, 0.74, 200)], axis=1)
    candidates = candidates[(candidates[:, 0] - scan.fovea) * direction > 0.05]
    radii = rng.uniform(0.026, 0.042, number)
    near = candidates * np.array([1.0, _THICKNESS + (0.2 if severe else 0.1)])  # depths as lengths
    for position, radius in zip(scatter(rng, near, radii * 1.35, [], gap=0.07), radii, strict=False):
        depth = position[1] / (_THICKNESS + (0.2 if severe else 0.1))
        scan.cysts.append((position[0], depth, radius, rng.uniform(1.0, 1.3)))


def _central_serous(scan: _Scan) -> None:
    rng, content = scan.rng, scan.content
    large = bool(rng.integers(0, 2))
    content.place, direction = _side(scan)
    half = rng.uniform(0.36, 0.46) if large else rng.uniform(0.22, 0.3)
    centre = scan.fovea + direction * half * rng.uniform(1.0, 1.2)
    inside = np.clip(1 - ((scan.x - centre) / half) ** 2, 0, None)
    scan.detachment = (rng.uniform(0.2, 0.3) if large else rng.uniform(0.11, 0.17)) * inside**0.8
    content.remarks.append(f"a {'large' if large else 'small'} dome of subretinal fluid")


def _macular_degeneration(scan: _Scan) -> None:
    rng, content = scan.rng, scan.content
    content.severity = rng.choice(["early", "intermediate"])
    large = content.severity == "intermediate"
    number = rng.integers(3, 7)
    width = rng.uniform(0.065, 0.085, number) if large else rng.uniform(0.04, 0.055, number)
    centres = np.linspace(-0.78, 0.78, 7) + rng.uniform(-0.03, 0.03, 7)
    centres = rng.permutation(centres)[:number]
    heights = rng.uniform(0.07, 0.12, number) if large else rng.uniform(0.045, 0.06, number)
    for centre, half, height in zip(centres, width, heights, strict=True):
        inside = np.clip(1 - ((scan.x - centre) / half) ** 2, 0, None)
        scan.drusen = np.maximum(scan.drusen, height * inside**0.7)
    content.lesions["drusen"] = int(number)
    content.remarks.append(f"{'large' if large else 'small'} domes under the pigment epithelium")


def _macular_hole(scan: _Scan) -> None:
    rng, content = scan.rng, scan.content
    content.severity = rng.choice(["small", "large"])
    large = content.severity == "large"
    scan.gap = rng.uniform(0.14, 0.2) if large else rng.uniform(0.06, 0.09)
    for side in (-1, 1):
        scan.swelling = scan.swelling + scan.bump(scan.fovea + side * (scan.gap + 0.12), 0.13, rng.uniform(0.1, 0.15))
    edge = scan.gap + 0.07
    scan.cysts = [
        (scan.fovea + side * (edge + rng.uniform(0, 0.03)), rng.uniform(0.4, 0.6), rng.uniform(0.02, 0.03), 1.2)
        for side in (-1, 1)
    ]
    content.remarks.append("a full-thickness gap at the fovea")


CONDITIONS = {
    "normal": _normal,
    "macular edema": _macular_edema,
    "central serous chorioretinopathy": _central_serous,
    "age-related macular degeneration": _macular_degeneration,
    "macular hole": _macular_hole,
}


def _photograph(scan: _Scan) -> np.ndarray:
    """Surfaces first, then the layers between them, fluid, shadows, grain."""
    rng, size, x = scan.rng, scan.size, scan.x
    rows = grid(size)[1]
    membrane = rng.uniform(0.22, 0.42) + rng.uniform(-0.1, 0.1) * x - rng.uniform(0.0, 0.16) * x * x  # Bruch's
    epithelium = membrane - scan.drusen
    bottom = epithelium - 0.03 - scan.detachment  # of the neurosensory retina
    surfaces = _surfaces(scan, bottom, bottom + 0.75 * scan.drusen)
    image = np.full((size, size), _VITREOUS, dtype=np.float32)
    sharp = size / 2.2
    for surface, value in zip(surfaces, _LAYERS, strict=True):
        paint(image, (value,), np.clip((rows - surface) * sharp + 0.5, 0, 1))
    paint(image, (_VITREOUS,), np.clip((rows - bottom) * sharp + 0.5, 0, 1))  # fluid under the retina, if any
    paint(image, (_PIGMENT_EPITHELIUM,), np.clip((rows - epithelium + 0.03) * sharp + 0.5, 0, 1))
    paint(image, (0.42,), np.clip((rows - epithelium - 0.012) * sharp + 0.5, 0, 1))  # what drusen are made of
    below = rows - membrane
    depth = rng.uniform(0.16, 0.3)
    choroid = _CHOROID * np.exp(-np.clip(below, 0, None) / depth) * (1 + 0.35 * smooth_noise(rng, size, 26))
    paint(image, (choroid,), np.clip((below - 0.014) * sharp + 0.5, 0, 1))
    if scan.gap:
        _hole(scan, image, surfaces[0], bottom)
    _cysts(scan, image, surfaces[0], bottom)
    if scan.detachment.any():
        scan.content.masks["subretinal fluid"] = (rows > bottom) & (rows < epithelium - 0.03) & (scan.detachment > 0)
    if scan.drusen.any():
        scan.content.masks["drusen"] = (rows > epithelium) & (rows < membrane) & (scan.drusen > 0.01)
    shadow = 1 - sum(scan.bump(c, 0.012, 0.35) for c in rng.uniform(-1, 1, rng.integers(3, 8)))
    image *= np.where(rows > surfaces[0] + 0.05, shadow.clip(0.4, 1), 1)
    image *= rng.uniform(0.75, 1.05)
    grain = speckle(rng, image.shape, rng.uniform(0.16, 0.32))
    image *= 1 + grain
    image += np.abs(speckle(rng, image.shape, rng.uniform(0.015, 0.05)))
    return blur(image, rng.uniform(0.004, 0.011))


def _surfaces(scan: _Scan, bottom: np.ndarray, inner_bottom: np.ndarray) -> list[np.ndarray]:
    """Upper surface of each layer of _LAYERS, (size,) each.

    Args:
        scan: the scan.
        bottom: of the retina, which the outer layers follow.
        inner_bottom: the same as the inner layers follow it; what lies below drusen hardly reaches them.
    """
    rng, x = scan.rng, scan.x
    pit = scan.bump(scan.fovea, rng.uniform(0.14, 0.2), rng.uniform(0.13, 0.16))
    if scan.gap:
        pit = pit * 0.2
    pit = pit - np.minimum(pit, scan.swelling * 0.8)  # fluid fills the pit
    nasal = np.clip(x - scan.fovea + 0.1, 0, None)
    thickness = _THICKNESS * rng.uniform(0.92, 1.1) + 0.05 * np.minimum(nasal, 0.6) + scan.swelling - pit
    fibres = 0.012 + 0.11 * np.clip(x - scan.fovea - 0.12, 0, 0.8)  # thick on the nasal side
    inner = (thickness - 0.165 - fibres).clip(0.0, None)  # what the fovea lacks
    top = inner_bottom - thickness
    ganglion = top + np.minimum(fibres, thickness * 0.4)
    nuclear = ganglion + 0.5 * inner
    plexiform = nuclear + 0.3 * inner
    outer_nuclear = np.minimum(plexiform + 0.2 * inner + 0.008, inner_bottom - 0.13)
    ellipsoid = bottom - 0.062
    segments = bottom - 0.035
    return [top, ganglion, nuclear, plexiform, np.maximum(outer_nuclear, top), ellipsoid, segments]


def _hole(scan: _Scan, image: np.ndarray, top: np.ndarray, bottom: np.ndarray) -> None:
    """Takes the retina away around the fovea; the edges are rounded, wider at half depth."""
    columns, rows = grid(scan.size)
    share = np.clip((rows - top) / np.maximum(bottom - top, 1e-3), 0, 1)
    half = scan.gap * (1 + 0.55 * (2 * share - 1) ** 2)
    inside = np.clip((half - np.abs(columns - scan.fovea)) * scan.size / 2.5 + 0.5, 0, 1)
    inside *= np.clip((bottom + 0.004 - rows) * scan.size / 2.2 + 0.5, 0, 1)
    paint(image, (_VITREOUS,), inside)
    scan.content.masks["full-thickness gap"] = (inside > 0.5) & (rows > top)


def _cysts(scan: _Scan, image: np.ndarray, top: np.ndarray, bottom: np.ndarray) -> None:
    if not scan.cysts:
        return
    layer = Layer(scan.size)
    for x, depth, radius, stretch in scan.cysts:
        column = int(np.clip((x + 1) / 2 * scan.size, 0, scan.size - 1))
        y = top[column] + depth * (bottom[column] - top[column])
        layer.blob(scan.rng, (x, y), radius, 0.08, stretch, np.pi / 2)
    alpha = layer.alpha()
    scan.content.mark("intraretinal cysts", len(scan.cysts), alpha)
    paint(image, (_VITREOUS * 1.5,), 0.95 * blur(alpha, 0.005))
