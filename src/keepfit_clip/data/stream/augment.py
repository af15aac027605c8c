"""Augmentation of retinal images: FLAIR's and KeepFIT's, drawn from a generator of our own.

Flip with probability 0.5 (only where the text names no side or place), a small rotation and zoom out with 0.25,
brightness and contrast with 0.25.
"""

import random

import cv2
import numpy as np

__all__ = ["augment"]

_MAX_DEGREES = 5.0
_MIN_SCALE = 0.9
_JITTER = 0.2
_LEVELS = np.arange(256, dtype=np.float32)


def augment(image: np.ndarray, rng: random.Random, may_flip: bool) -> np.ndarray:
    """An augmented copy of an image.

    Args:
        image: (H, W, 3) uint8.
        rng: decides everything.
        may_flip: whether a mirrored image still fits its text.

    Returns:
        (H, W, 3) uint8.
    """
    # Every number is drawn whether used or not, so that one decision does not shift the next.
    flip, turn, jitter = rng.random(), rng.random(), rng.random()
    angle = rng.uniform(-_MAX_DEGREES, _MAX_DEGREES)
    scale = rng.uniform(_MIN_SCALE, 1.0)
    brightness, contrast = (rng.uniform(1 - _JITTER, 1 + _JITTER) for _ in range(2))
    if may_flip and flip < 0.5:
        image = cv2.flip(image, 1)
    if turn < 0.25:
        height, width = image.shape[:2]
        centre = ((width - 1) / 2, (height - 1) / 2)
        # With a fourth channel, conversions included, OpenCV warps in two thirds of the time.
        padded = cv2.cvtColor(image, cv2.COLOR_RGB2RGBA)
        padded = cv2.warpAffine(padded, cv2.getRotationMatrix2D(centre, angle, scale), (width, height))
        image = cv2.cvtColor(padded, cv2.COLOR_RGBA2RGB)
    if jitter < 0.25:
        image = _jittered(image, brightness, contrast)
    return image


def _jittered(image: np.ndarray, brightness: float, contrast: float) -> np.ndarray:
    """Each level times `brightness`, then spread by `contrast` around the image's mean brightness."""
    levels = np.minimum(_LEVELS * brightness, 255)
    mean = cv2.mean(image)[:3] @ np.array([0.299, 0.587, 0.114]) * brightness  # ITU-R BT.601 luma
    levels = np.clip(levels * contrast + mean * (1 - contrast), 0, 255)
    return cv2.LUT(image, levels.round().astype(np.uint8))
