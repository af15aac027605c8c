"""Augmentation of retinal images: FLAIR's and KeepFIT's, drawn from a generator of our own.

Flip with probability 0.5 (only where the text names no side or place), a small rotation and zoom out with 0.25,
brightness and contrast with 0.25.
"""

import random

from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

__all__ = ["augment"]

_MAX_DEGREES = 5.0
_MIN_SCALE = 0.9
_JITTER = 0.2


def augment(image: Tensor, rng: random.Random, may_flip: bool) -> Tensor:
    """An augmented copy of an image.

    Args:
        image: (3, H, W) uint8.
        rng: decides everything.
        may_flip: whether a mirrored image still fits its text.

    Returns:
        (3, H, W) uint8.
    """
    # Every number is drawn whether used or not, so that one decision does not shift the next.
    flip, turn, jitter = rng.random(), rng.random(), rng.random()
    angle = rng.uniform(-_MAX_DEGREES, _MAX_DEGREES)
    scale = rng.uniform(_MIN_SCALE, 1.0)
    brightness, contrast = (rng.uniform(1 - _JITTER, 1 + _JITTER) for _ in range(2))
    if may_flip and flip < 0.5:
        image = F.horizontal_flip(image)
    if turn < 0.25:
        image = F.affine(
            image,
            angle=angle,
            translate=[0, 0],
            scale=scale,
            shear=[0.0, 0.0],
            interpolation=InterpolationMode.BILINEAR,
        )
    if jitter < 0.25:
        image = F.adjust_contrast(F.adjust_brightness(image, brightness), contrast)
    return image
