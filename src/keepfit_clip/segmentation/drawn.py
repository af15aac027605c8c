"""Drawn retinas with the masks of their lesions: exact, and simpler than any real one."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image

from keepfit_clip.drawing.retina import chosen_kinds, draw_number
from keepfit_clip.errors import CategoryError, ConfigError
from keepfit_clip.segmentation.masked import MaskedImage, MaskedSet

__all__ = ["DrawnOptions", "drawn_masks"]


@dataclass(frozen=True)
class DrawnOptions:
    """What is drawn.

    Args:
        count: number of pictures, the kinds in turn.
        size: width and height, pixels.
        modality: CFP, FFA or OCT.
        conditions: canonical names, or None for all of the modality.
        seed: of everything.
    """

    count: int
    size: int
    modality: str = "CFP"
    conditions: Sequence[str] | None = None
    seed: int = 0

    def __post_init__(self):
        if self.count < 2:
            raise ConfigError(f"--drawn {self.count}: at least two pictures are needed")


def drawn_masks(options: DrawnOptions, classes: Sequence[str] | None = None) -> MaskedSet:
    """Pictures of which each is a patient of its own, drawn when they are read.

    Args:
        options: what is drawn.
        classes: the lesions that count; all that some picture has by default. Where two overlap the later one stands.

    Raises:
        CategoryError: a class that no picture has, or a condition that cannot be drawn.
        ConfigError: a size or modality that cannot be drawn.
    """
    kinds = chosen_kinds(options.modality, None if options.conditions is None else list(options.conditions))
    there = list(
        dict.fromkeys(
            lesion
            for number in range(options.count)
            for lesion, mask in draw_number(number, options.seed, options.size, kinds).masks.items()
            if mask.any()
        )
    )
    unknown = [name for name in classes or () if name not in there]
    if unknown or not there:
        raise CategoryError(
            f"no drawn picture has {', '.join(unknown) or 'any lesion'}; they have: {', '.join(there) or 'none'}"
        )
    names = list(classes or there)
    images = [MaskedImage(number + 1, partial(_draw, number, options, kinds, names)) for number in range(options.count)]
    return MaskedSet(f"{options.count} drawn retinas of {options.size} pixels", names, images, copies=False)


def _draw(
    number: int, options: DrawnOptions, kinds: tuple[tuple[str, str], ...], names: Sequence[str]
) -> tuple[Image.Image, np.ndarray]:
    retina = draw_number(number, options.seed, options.size, kinds)
    mask = np.zeros((options.size, options.size), dtype=np.uint8)
    for label, name in enumerate(names, start=1):
        if name in retina.masks:
            mask[retina.masks[name]] = label
    return retina.image, mask
