"""One drawn picture with everything that is true of it."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from PIL import Image

from keepfit_clip.drawing import cfp, ffa, oct
from keepfit_clip.drawing.content import describe
from keepfit_clip.errors import CategoryError, ConfigError
from keepfit_clip.knowledge.conditions import MODALITIES

__all__ = ["CONDITIONS", "KINDS", "DrawnRetina", "chosen_kinds", "draw_number", "draw_retina"]

_PAINTERS = {
    "CFP": (cfp.CONDITIONS, cfp.draw_cfp, "Color fundus photograph"),
    "FFA": (ffa.CONDITIONS, ffa.draw_ffa, "Fluorescein angiogram"),
    "OCT": (oct.CONDITIONS, oct.draw_oct, "OCT B-scan"),
}
KINDS = tuple((modality, condition) for modality in MODALITIES for condition in _PAINTERS[modality][0])
CONDITIONS = tuple(dict.fromkeys(condition for _, condition in KINDS))

# Lesions that are categories of the knowledge file.
_LESION_CATEGORIES = {
    "microaneurysms": "microaneurysms",
    "hemorrhages": "retinal hemorrhages",
    "flame hemorrhages": "retinal hemorrhages",
    "hard exudates": "hard exudates",
    "cotton-wool spots": "cotton-wool spots",
    "drusen": "drusen",
}
_SIZES = (32, 4096)


@dataclass(frozen=True)
class DrawnRetina:
    """A picture and its exact content.

    Args:
        image: RGB, (size, size).
        modality: CFP, FFA or OCT.
        condition: canonical name.
        severity: mild, moderate, ...; "" where the condition has no grades.
        eye: left or right.
        place: "in the superonasal quadrant", "temporal to the fovea", ...; "" where no lesion has a place of its own.
        lesions: kind -> how many, of both conditions where there are two.
        caption: one sentence that says all of this, and the same of a second condition.
        categories: the conditions, then what the knowledge file knows of the lesions.
        masks: kind of lesion -> (size, size) bool. Lesions that are counted never touch in a picture of at least 128
            pixels; in smaller ones they may.
    """

    image: Image.Image
    modality: str
    condition: str
    severity: str
    eye: str
    place: str
    lesions: dict[str, int]
    caption: str
    categories: tuple[str, ...]
    masks: dict[str, np.ndarray]


def draw_retina(
    modality: str,
    condition: str,
    rng: np.random.Generator | int | list[int] = 0,
    size: int = 128,
    eye: str | None = None,
    also: str | None = None,
) -> DrawnRetina:
    """Draws a picture.

    Args:
        modality: CFP, FFA or OCT.
        condition: one of those in KINDS for the modality.
        rng: a generator, a seed or several; the same one gives the same picture.
        size: width and height, pixels.
        eye: left or right; drawn by default.
        also: a second condition of the same eye; on CFP only.

    Raises:
        ConfigError: an unknown modality or eye, or a size below 32 or above 4096 pixels.
        CategoryError: a condition that cannot be drawn in this modality, or two that exclude each other.
    """
    if modality not in _PAINTERS:
        raise ConfigError(f"the modality is {modality!r}; it can be {', '.join(MODALITIES)}")
    conditions, painter, noun = _PAINTERS[modality]
    if condition not in conditions:
        raise CategoryError(f"{condition!r} cannot be drawn as {modality}; choose from: {', '.join(conditions)}")
    if not _SIZES[0] <= size <= _SIZES[1]:
        raise ConfigError(f"the size is {size} pixels; it must be between {_SIZES[0]} and {_SIZES[1]}")
    if eye not in ("left", "right", None):
        raise ConfigError(f"the eye is {eye!r}; it can be left or right")
    if also is not None and (modality != "CFP" or also not in conditions or {condition, also} & {"normal"}):
        raise CategoryError(f"{also!r} cannot be drawn with {condition!r} as {modality}: give two conditions of CFP")
    if also == condition:
        raise CategoryError(f"{also!r} was given twice: give two different conditions")
    rng = np.random.default_rng(rng)
    eye = eye or str(rng.choice(["left", "right"]))
    pixels, content = painter(condition, rng, size) if also is None else cfp.draw_cfp(condition, rng, size, also)
    lesions, masks = dict(content.lesions), dict(content.masks)
    if content.also:
        lesions = dict(Counter(lesions) + Counter(content.also.lesions))
        masks |= {name: mask | masks.get(name, False) for name, mask in content.also.masks.items()}
    if eye == "left":  # painters draw right eyes
        pixels, masks = pixels[:, ::-1], {name: mask[:, ::-1] for name, mask in masks.items()}
    image = Image.fromarray(np.clip(pixels * 255 + 0.5, 0, 255).astype(np.uint8)).convert("RGB")
    signs = (_LESION_CATEGORIES[name] for name in lesions if name in _LESION_CATEGORIES)
    categories = (condition, *([also] if also else []), *signs)
    return DrawnRetina(
        image=image,
        modality=modality,
        condition=condition,
        severity=str(content.severity),
        eye=eye,
        place=content.place,
        lesions=lesions,
        caption=f"{noun} of the {eye} eye: {describe(content)}.",
        categories=tuple(dict.fromkeys(categories)),
        masks=masks,
    )


def chosen_kinds(modality: str | None = None, conditions: list[str] | None = None) -> tuple[tuple[str, str], ...]:
    """The pairs of KINDS that a choice leaves.

    Args:
        modality: CFP, FFA, OCT, or None for all.
        conditions: canonical names, or None for all.

    Raises:
        ConfigError: an unknown modality.
        CategoryError: no condition, or one that cannot be drawn, or not in this modality.
    """
    if modality is not None and modality not in _PAINTERS:
        raise ConfigError(f"the modality is {modality!r}; it can be {', '.join(MODALITIES)}")
    possible = [kind for kind in KINDS if modality in (None, kind[0])]
    names = list(dict.fromkeys(condition for _, condition in possible))
    if conditions is not None and not conditions:
        raise CategoryError(f"no condition given; choose from: {', '.join(names)}")
    for condition in conditions or ():
        if condition not in names:
            where = f" as {modality}" if modality else ""
            raise CategoryError(f"{condition!r} cannot be drawn{where}; choose from: {', '.join(names)}")
    return tuple(kind for kind in possible if conditions is None or kind[1] in conditions)


def draw_number(number: int, seed: int, size: int = 128, kinds: tuple[tuple[str, str], ...] = KINDS) -> DrawnRetina:
    """Picture `number` of an endless series: the kinds in turn, everything else drawn from seed and number.

    Raises:
        ConfigError: a size below 32 or above 4096 pixels.
    """
    modality, condition = kinds[number % len(kinds)]
    return draw_retina(modality, condition, np.random.default_rng([seed, number]), size)
