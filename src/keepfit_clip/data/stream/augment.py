"""Augmentation of retinal images, drawn from a generator of our own.

mild      FLAIR's and KeepFIT's: flip with probability 0.5 (only where the text names no side or place), a small
          rotation and zoom out with 0.25, brightness and contrast with 0.25
strong    what another camera or programme would change: also zoom in, up to a field of view without its border;
          colour balance and gamma; uneven illumination; blur
"""

import random

import cv2
import numpy as np

__all__ = ["AUGMENTATIONS", "augment"]

AUGMENTATIONS = ("none", "mild", "strong")
_MAX_DEGREES = 5.0
_MIN_SCALE = 0.9
_JITTER = 0.2
_LEVELS = np.arange(256, dtype=np.float32)
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601

_STRONG_DEGREES = 15.0
_ZOOM = (0.8, 1.3)
_WITHOUT_BORDER = (1.3, 1.5)  # the square inside a circle is smaller by 1.41
_SHIFT = 0.08  # of the side
_GAMMA = (0.7, 1.4)
_GAIN = (0.85, 1.15)
_SHADE = (0.7, 1.15)
_MAX_BLUR = 1.5 / 224  # standard deviation, of the side


def augment(
    image: np.ndarray, rng: random.Random, may_flip: bool, strength: str = "mild", coloured: bool = True
) -> np.ndarray:
    """An augmented copy of an image.

    Args:
        image: (H, W, 3) uint8.
        rng: decides everything.
        may_flip: whether a mirrored image still fits its text.
        strength: one of AUGMENTATIONS.
        coloured: whether the colours say something, as in a fundus photograph; else grey stays grey.

    Returns:
        (H, W, 3) uint8.
    """
    if strength == "none":
        return image
    return _strong(image, rng, may_flip, coloured) if strength == "strong" else _mild(image, rng, may_flip)


def _mild(image: np.ndarray, rng: random.Random, may_flip: bool) -> np.ndarray:
    # Every number is drawn whether used or not, so that one decision does not shift the next.
    flip, turn, jitter = rng.random(), rng.random(), rng.random()
    angle = rng.uniform(-_MAX_DEGREES, _MAX_DEGREES)
    scale = rng.uniform(_MIN_SCALE, 1.0)
    brightness, contrast = (rng.uniform(1 - _JITTER, 1 + _JITTER) for _ in range(2))
    if may_flip and flip < 0.5:
        image = cv2.flip(image, 1)
    if turn < 0.25:
        image = _warped(image, angle, scale)
    if jitter < 0.25:
        image = _jittered(image, brightness, contrast)
    return image


def _strong(image: np.ndarray, rng: random.Random, may_flip: bool, coloured: bool) -> np.ndarray:
    flip, border, shade, blur, colour = (rng.random() for _ in range(5))
    angle = rng.uniform(-_STRONG_DEGREES, _STRONG_DEGREES)
    scale = rng.uniform(*(_WITHOUT_BORDER if border < 0.25 else _ZOOM))
    shift = (rng.uniform(-_SHIFT, _SHIFT), rng.uniform(-_SHIFT, _SHIFT))
    brightness, contrast = (rng.uniform(1 - _JITTER, 1 + _JITTER) for _ in range(2))
    gamma = rng.uniform(*_GAMMA)
    gains = np.array([rng.uniform(*_GAIN) for _ in range(3)], np.float32)
    field = np.array([rng.uniform(*_SHADE) for _ in range(9)], np.float32).reshape(3, 3)
    deviation = rng.uniform(0.2, 1.0) * _MAX_BLUR * max(image.shape[:2])
    if may_flip and flip < 0.5:
        image = cv2.flip(image, 1)
    image = _warped(image, angle, scale, shift)
    if colour < 0.8:
        image = _recoloured(_jittered(image, brightness, contrast), gamma, gains if coloured else gains[:1])
    if shade < 0.3:
        image = _shaded(image, field)
    if blur < 0.3:
        image = cv2.GaussianBlur(image, (0, 0), deviation)
    return image


def _warped(image: np.ndarray, angle: float, scale: float, shift: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
    """Turned around its centre by an angle in degrees, scaled, and shifted by shares of its width and height."""
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, scale)
    matrix[:, 2] += shift[0] * width, shift[1] * height
    # With a fourth channel, conversions included, OpenCV warps in two thirds of the time.
    padded = cv2.warpAffine(cv2.cvtColor(image, cv2.COLOR_RGB2RGBA), matrix, (width, height))
    return cv2.cvtColor(padded, cv2.COLOR_RGBA2RGB)


def _jittered(image: np.ndarray, brightness: float, contrast: float) -> np.ndarray:
    """Each level times `brightness`, then spread by `contrast` around the image's mean brightness."""
    levels = np.minimum(_LEVELS * brightness, 255)
    mean = cv2.mean(image)[:3] @ _LUMA * brightness
    levels = np.clip(levels * contrast + mean * (1 - contrast), 0, 255)
    return cv2.LUT(image, levels.round().astype(np.uint8))


def _recoloured(image: np.ndarray, gamma: float, gains: np.ndarray) -> np.ndarray:
    """Levels to the power of `gamma`, times the gain of each channel or the one of all: (3,) or (1,)."""
    levels = 255 * (_LEVELS / 255) ** gamma
    table = np.clip(levels[:, None] * gains, 0, 255).round().astype(np.uint8)  # (256, 3) or (256, 1)
    return cv2.LUT(image, np.ascontiguousarray(table[:, None]) if len(gains) > 1 else table[:, 0])


def _shaded(image: np.ndarray, field: np.ndarray) -> np.ndarray:
    """Lit by a smooth field that goes through the given factors (3, 3)."""
    height, width = image.shape[:2]
    smooth = cv2.resize(field, (width, height), interpolation=cv2.INTER_CUBIC)
    return cv2.multiply(image, cv2.merge([smooth] * 3), dtype=cv2.CV_8U)
