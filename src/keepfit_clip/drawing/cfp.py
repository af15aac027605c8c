"""Colour fundus photographs: an orange retina, a bright disc, dark vessels, and what seven conditions do to them."""

from dataclasses import dataclass, field

import numpy as np

from keepfit_clip.drawing.canvas import Layer, blur, distance, grid, paint, scatter, smooth_noise, speckle
from keepfit_clip.drawing.content import Content
from keepfit_clip.drawing.fundus import QUADRANTS, Fundus, grow_vessels, new_fundus

__all__ = ["CONDITIONS", "draw_cfp"]

# Colour of the retina as five makes of camera show it (RGB, 0 to 1).
_CAMERAS = ((0.84, 0.43, 0.16), (0.72, 0.27, 0.12), (0.75, 0.49, 0.38), (0.52, 0.39, 0.28), (0.78, 0.34, 0.10))
_EXUDATE, _COTTON, _DRUSE = (1.0, 0.88, 0.45), (0.97, 0.93, 0.78), (0.96, 0.80, 0.46)
_BLOOD, _DOT = (0.40, 0.06, 0.04), (0.42, 0.07, 0.05)
_ATROPHY, _PIGMENT = (0.97, 0.90, 0.68), (0.17, 0.10, 0.07)


@dataclass
class _Scene:
    """One photograph while it is planned: lengths in units, everything else a share from 0 to 1."""

    rng: np.random.Generator
    fundus: Fundus
    contents: list[Content]  # one for each condition; what is planned goes into the last one
    cup: float = 0.35  # of the disc
    cup_shift: float = 0.0  # downwards, of the disc's radius
    haze: float = 0.0
    haze_blur: float = 0.0
    tessellation: float = 0.12
    crescent: float = 0.0  # width of the atrophy beside the disc, of its radius
    wedge: float = 0.0  # depth of a nerve fibre layer defect
    engorged: int | None = None  # the trunk whose vein is wide
    lesions: list[tuple[np.ndarray, tuple[float, ...]]] = field(default_factory=list)  # alpha (H, W), colour
    taken: list = field(default_factory=list)  # (position, radius) of lesions

    @property
    def size(self) -> int:
        return self.fundus.size

    @property
    def content(self) -> Content:
        return self.contents[-1]

    def masks_of(self, condition: str) -> dict[str, np.ndarray] | None:
        """Where the masks of a condition go; None if the eye does not have it."""
        return next((content.masks for content in self.contents if content.condition == condition), None)

    def add_blobs(
        self,
        name: str,
        radii: np.ndarray,
        colour: tuple[float, ...],
        quadrant: str | None,
        reach: tuple[float, float],
        ragged: float = 0.0,
        stretch: float = 1.0,
        soft: float = 0.0,
        opacity: float = 1.0,
    ) -> None:
        """Lesions of one kind at positions of their own; long ones lie along the nerve fibres."""
        spans = radii * (stretch + 0.6 * ragged)
        candidates = self.fundus.positions(self.rng, quadrant, reach, spans.max())
        positions = scatter(self.rng, candidates, spans, self.taken)
        layer = Layer(self.size)
        for position, radius in zip(positions, radii, strict=False):
            toward = np.arctan2(*(position - self.fundus.disc)[::-1])
            layer.blob(self.rng, position, radius, ragged, stretch, toward + self.rng.uniform(-0.2, 0.2))
        alpha = layer.alpha()
        self.content.mark(name, len(positions), alpha)
        self.lesions.append((blur(alpha, soft) * np.float32(opacity), colour))


def draw_cfp(
    condition: str, rng: np.random.Generator, size: int, also: str | None = None
) -> tuple[np.ndarray, Content]:
    """A right eye with a condition, or with two.

    Args:
        condition: a key of CONDITIONS.
        rng: decides everything.
        size: of the picture, pixels.
        also: another key, of a condition that the same eye has.

    Returns:
        (size, size, 3) float32 from 0 to 1, and what is to be seen on it.
    """
    conditions = [condition, also] if also else [condition]
    myopic = "pathologic myopia" in conditions
    fundus = new_fundus(rng, size, tortuosity=0.7 if myopic else 1.0, disc_scale=1.12 if myopic else 1.0)
    scene = _Scene(rng, fundus, [], cup=rng.uniform(0.22, 0.42), tessellation=rng.uniform(0.0, 0.3))
    for name in conditions:
        scene.contents.append(Content(name))
        CONDITIONS[name](scene)
    pixels = _photograph(scene)
    content, *others = scene.contents
    content.also = others[0] if others else None
    return pixels, content


def _normal(scene: _Scene) -> None:
    scene.content.remarks.append("no lesion")


def _diabetic_retinopathy(scene: _Scene) -> None:
    rng, content = scene.rng, scene.content
    content.severity = rng.choice(["mild", "moderate", "severe"])
    severe = content.severity == "severe"
    quadrant = None if severe else str(rng.choice(QUADRANTS))
    content.place = "spread over all four quadrants" if severe else f"in the {quadrant} quadrant"
    around = {"quadrant": quadrant, "reach": (0.2, 0.75)}
    if content.severity != "mild":
        exudates = rng.integers(4, 9) * (2 if severe else 1)
        scene.add_blobs("hard exudates", rng.uniform(0.013, 0.026, exudates), _EXUDATE, ragged=0.35, **around)
        blots = rng.integers(3, 7) * (3 if severe else 1)
        scene.add_blobs(
            "hemorrhages", rng.uniform(0.022, 0.048, blots), _BLOOD, ragged=0.4, soft=0.008, opacity=0.85, **around
        )
    if severe:
        scene.add_blobs(
            "cotton-wool spots", rng.uniform(0.045, 0.065, rng.integers(2, 5)), _COTTON, ragged=0.25, soft=0.014,
            opacity=0.85, **around,
        )  # fmt: skip
    dots = rng.integers(7, 15) * (2 if severe else 1)
    scene.add_blobs("microaneurysms", rng.uniform(0.012, 0.017, dots), _DOT, opacity=0.9, **around)


def _branch_vein_occlusion(scene: _Scene) -> None:
    rng, content = scene.rng, scene.content
    quadrant = str(rng.choice(QUADRANTS[::2]))  # nasal branches are rarely noticed
    content.place = f"in the {quadrant} quadrant"
    scene.engorged = 0 if quadrant.startswith("supero") else 2
    around = {"quadrant": quadrant, "reach": (0.12, 0.95)}
    scene.add_blobs(
        "cotton-wool spots", rng.uniform(0.04, 0.055, rng.integers(1, 4)), _COTTON, ragged=0.25, soft=0.012,
        opacity=0.85, **around,
    )  # fmt: skip
    scene.add_blobs(
        "flame hemorrhages", rng.uniform(0.010, 0.021, rng.integers(12, 28)), _BLOOD, ragged=0.4, stretch=2.6,
        soft=0.008, opacity=0.85, **around,
    )  # fmt: skip


def _macular_degeneration(scene: _Scene) -> None:
    rng, content = scene.rng, scene.content
    content.severity = rng.choice(["early", "intermediate"])
    large = content.severity == "intermediate"
    radii = rng.uniform(*((0.028, 0.045) if large else (0.014, 0.024)), rng.integers(12, 25))
    scene.add_blobs(
        "drusen", radii, _DRUSE, None, (0.0, 0.44 if large else 0.34), ragged=0.12, soft=0.008 if large else 0.004,
        opacity=0.8,
    )  # fmt: skip
    content.remarks.append(f"{'large soft' if large else 'small hard'} deposits at the macula")


def _glaucoma(scene: _Scene) -> None:
    rng = scene.rng
    ratio = round(rng.uniform(0.7, 0.92), 1)
    scene.cup = ratio
    scene.content.severity = {0.7: "moderate", 0.8: "moderate", 0.9: "advanced"}[ratio]
    below = bool(rng.integers(0, 2))
    scene.cup_shift = 0.5 * (1 - ratio) * (1 if below else -1)
    scene.wedge = rng.uniform(0.12, 0.22) * (1 if below else -1)
    scene.content.remarks += [
        f"a cup-to-disc ratio of {ratio}",
        f"a thinned {'inferior' if below else 'superior'} rim",
    ]


def _cataract(scene: _Scene) -> None:
    rng, content = scene.rng, scene.content
    content.severity = rng.choice(["mild", "dense"])
    dense = content.severity == "dense"
    scene.haze = rng.uniform(0.55, 0.82) if dense else rng.uniform(0.32, 0.5)
    scene.haze_blur = rng.uniform(0.045, 0.08) if dense else rng.uniform(0.025, 0.04)
    content.remarks.append("a veil over the disc and vessels")


def _pathologic_myopia(scene: _Scene) -> None:
    rng, content, fundus = scene.rng, scene.content, scene.fundus
    scene.tessellation = rng.uniform(0.55, 0.9)
    scene.crescent = rng.uniform(0.5, 0.95)
    content.remarks.append("a temporal crescent of peripapillary atrophy")
    number = int(rng.integers(0, 4))
    if not number:
        return
    quadrant = str(rng.choice(QUADRANTS))
    radii = rng.uniform(0.05, 0.095, number)
    spans = radii * 1.6
    positions = scatter(rng, fundus.positions(rng, quadrant, (0.12, 0.7), spans.max()), spans, scene.taken)
    if not positions:
        return
    content.place = f"in the {quadrant} quadrant"
    layer = Layer(scene.size)
    for position, radius in zip(positions, radii, strict=False):
        layer.blob(rng, position, radius, 0.35, rng.uniform(1.0, 1.3), rng.uniform(0, 3.1))
    alpha = layer.alpha()
    content.mark("patches of chorioretinal atrophy", len(positions), alpha)
    clumps = np.clip(0.5 + smooth_noise(rng, scene.size, 16), 0, 1)  # pigment gathers along parts of the rim
    scene.lesions += [(0.8 * blur(alpha, 0.03) * clumps, _PIGMENT), (0.9 * blur(alpha, 0.009), _ATROPHY)]


CONDITIONS = {
    "normal": _normal,
    "diabetic retinopathy": _diabetic_retinopathy,
    "branch retinal vein occlusion": _branch_vein_occlusion,
    "age-related macular degeneration": _macular_degeneration,
    "glaucoma": _glaucoma,
    "cataract": _cataract,
    "pathologic myopia": _pathologic_myopia,
}


def _photograph(scene: _Scene) -> np.ndarray:
    """From back to front: choroid, macula, disc, vessels, lesions; then lens, camera and noise."""
    rng, size, fundus = scene.rng, scene.size, scene.fundus
    base = np.array(_CAMERAS[rng.integers(len(_CAMERAS))], dtype=np.float32) * rng.uniform(0.85, 1.1)
    base = base * rng.uniform(0.94, 1.06, 3).astype(np.float32)
    texture = 0.05 * smooth_noise(rng, size, 7) + 0.025 * smooth_noise(rng, size, 40)
    image = base * (1 + texture[..., None] * np.array([0.7, 1.0, 1.0], dtype=np.float32))
    _choroid(scene, image)
    _macula(scene, image)
    _nerve_fibres(scene, image)
    _disc(scene, image)
    # Drusen and atrophy lie under the vessels; at this scale the same holds for the rest.
    for alpha, colour in scene.lesions:
        paint(image, np.array(colour) * (0.55 + 0.5 * base[0]), alpha)
    thickness = rng.uniform(0.9, 1.15)
    vessels = grow_vessels(fundus, vein=0.62, artery=0.42, thickness=thickness)
    if scene.engorged is not None:
        vessels = np.maximum(vessels, 0.75 * grow_vessels(fundus, 1, 1, thickness * 1.7, trunk=scene.engorged))
    vessels *= 1 - 0.45 * (distance(size, fundus.disc) < fundus.disc_radius)  # the disc shines through
    image *= 1 - vessels[..., None] * np.array([0.42, 0.88, 0.85], dtype=np.float32)
    return _through_the_camera(scene, image, base)


def _choroid(scene: _Scene, image: np.ndarray) -> None:
    """Bright ribbons of choroidal vessels between dark pigment, seen through a thin pigment layer."""
    rng, size = scene.rng, scene.size
    ribbons = np.zeros((size, size), dtype=np.float32)
    for cells, share in ((16, 1.0), (26, 0.7)):
        hills = smooth_noise(rng, size, cells, stretch=2.2, degrees=rng.uniform(-40, 40))
        ribbons += share * (0.45 - np.minimum(np.abs(hills), 0.85))
    ribbons *= distance(size, scene.fundus.fovea).clip(0.12, 0.5) * 2
    image *= 1 + (0.6 * scene.tessellation * ribbons)[..., None] * np.array([0.75, 1.0, 0.7], dtype=np.float32)


def _macula(scene: _Scene, image: np.ndarray) -> None:
    """The darker macula and the fovea in its middle."""
    away = distance(scene.size, scene.fundus.fovea) ** 2
    depth = scene.rng.uniform(0.2, 0.36)
    shade = depth * np.exp(-away / 0.055) + 0.5 * depth * np.exp(-away / 0.006)
    image *= 1 - shade[..., None] * np.array([0.7, 1.0, 0.9], dtype=np.float32)


def _nerve_fibres(scene: _Scene, image: np.ndarray) -> None:
    """A wedge without nerve fibres, fanning out from the disc towards the temporal side."""
    if not scene.wedge:
        return
    x, y = grid(scene.size)
    from_disc = scene.fundus.disc[0] - x
    path = scene.fundus.disc[1] + np.sign(scene.wedge) * (0.08 + 0.62 * np.sqrt(np.clip(from_disc, 0, 2) * 0.5))
    width = 0.03 + 0.1 * np.clip(from_disc, 0, 1)
    inside = np.exp(-(((y - path) / width) ** 2)) * (from_disc > 0) * np.exp(-np.clip(from_disc, 0, 3) * 0.8)
    image *= 1 - abs(scene.wedge) * inside[..., None]


def _disc(scene: _Scene, image: np.ndarray) -> None:
    """Peripapillary crescent, rim and cup."""
    rng, size, fundus = scene.rng, scene.size, scene.fundus
    sharp = size / 5

    def ellipse(centre: np.ndarray, radius: float) -> np.ndarray:
        return np.clip((radius - distance(size, centre, 1.12)) * sharp + 0.5, 0, 1)

    warm = rng.uniform(0.9, 1.0)
    if scene.crescent:
        shift = np.array([-scene.crescent * fundus.disc_radius * 0.55, rng.uniform(-0.3, 0.3) * fundus.disc_radius])
        radius = fundus.disc_radius * (1 + 0.5 * scene.crescent)
        paint(image, _PIGMENT, 0.35 * ellipse(fundus.disc + shift, radius * 1.08))
        crescent = ellipse(fundus.disc + shift, radius)
        paint(image, np.array(_ATROPHY) * warm, 0.88 * crescent)
        beside = (crescent - ellipse(fundus.disc, fundus.disc_radius)) > 0.5
        scene.masks_of("pathologic myopia")["peripapillary atrophy"] = beside
    rim, cup = np.array([0.97, 0.68, 0.40]) * warm, np.array([1.0, 0.94, 0.76]) * warm
    paint(image, rim, 0.92 * ellipse(fundus.disc, fundus.disc_radius))
    centre = fundus.disc + np.array([-0.1 * (1 - scene.cup), scene.cup_shift]) * fundus.disc_radius
    inner = ellipse(centre, fundus.disc_radius * scene.cup)
    paint(image, cup, 0.9 * inner)
    glaucoma = scene.masks_of("glaucoma")
    if glaucoma is not None:
        glaucoma["optic cup"] = inner > 0.5


def _through_the_camera(scene: _Scene, image: np.ndarray, base: np.ndarray) -> np.ndarray:
    """Haze, sharpness, illumination, grain and the round field of view."""
    rng, size = scene.rng, scene.size
    x, y = grid(size)
    image = blur(image, rng.uniform(0.0, 0.011) + scene.haze_blur)
    if scene.haze:
        veil = base * 0.45 + np.array([0.62, 0.56, 0.40], dtype=np.float32) * rng.uniform(0.6, 0.9)
        cloud = np.clip(scene.haze * (1 + 0.2 * smooth_noise(rng, size, 4)), 0, 0.93)
        image += cloud[..., None] * (veil - image)
    tilt_x, tilt_y = rng.uniform(-0.14, 0.14, 2)
    light = 1.05 - rng.uniform(0.22, 0.5) * (x * x + y * y) * 0.8 + tilt_x * x + tilt_y * y
    image *= light[..., None]
    edge = rng.uniform(0.0, 0.10) * np.clip(x * x + y * y - 0.5, 0, 1)  # a bluish rim, stray light from the iris
    image += edge[..., None] * np.array([0.3, 0.7, 0.7], dtype=np.float32)
    image += speckle(rng, image.shape, rng.uniform(0.004, 0.016))
    image *= scene.fundus.inside()[..., None]
    return image
