"""Bringing pictures of more than 8 bits to 8, colour and grey by one rule, and telling pictures that show nothing.

Whole numbers keep their ratio to the largest that the picture could hold: 2^n - 1, n being the bits that the file says
its values have, or else the fewest of 8, 10, 12, 14 and 16 that hold all but the brightest 0.05 % of its values.
Floating point, negative numbers and those of more than 16 bits are stretched from the darkest to the brightest 0.05 %.
What is not finite, or as huge as the value that Heidelberg's software fills invalid places with, is black. See
docs/DATA.md.
"""

import numpy as np
from PIL import Image

__all__ = ["is_blank", "to_8_bit"]

_DEPTHS = (8, 10, 12, 14, 16)
_OUTLIERS = 0.05  # percent of the values at either end
_FILL = 1e30  # values beyond it mark invalid places
_SAMPLED = 1 << 22  # values that are looked at to find out the range
_LEVELS = 16  # of 256, that a picture spans at least
_IGNORED = 0.001  # share of the pixels at either end that do not make a picture


def to_8_bit(values: np.ndarray, bits: int | None = None, inverted: bool = False) -> np.ndarray:
    """Values of a picture as uint8, by the rule above.

    Args:
        values: (H, W) or (H, W, C), any number type.
        bits: of each value, where the file says it; not believed where the values do not fit.
        inverted: whether 0 is white.
    """
    sample = values.ravel()[:: max(1, values.size // _SAMPLED)]
    valid = np.isfinite(sample) & (np.abs(sample) < _FILL) if sample.dtype.kind == "f" else slice(None)
    sample = sample[valid]
    if not sample.size:
        return np.zeros(values.shape, np.uint8)
    darkest = float(np.percentile(sample, _OUTLIERS, method="higher"))
    brightest = float(np.percentile(sample, 100 - _OUTLIERS, method="lower"))
    low, high = darkest, max(darkest, brightest)
    if values.dtype.kind in "ui" and sample.min() >= 0 and brightest < 1 << _DEPTHS[-1]:
        low, high = 0.0, float((1 << _depth(brightest, bits)) - 1)
    return _scaled(values, low, high, inverted)


def _depth(brightest: float, bits: int | None) -> int:
    return next(n for n in (bits or 0, *_DEPTHS) if brightest < 1 << n)


def _scaled(values: np.ndarray, low: float, high: float, inverted: bool) -> np.ndarray:
    if values.dtype == np.uint16:  # a table is faster, and needs no floating-point copy of the picture
        return _scaled(np.arange(1 << 16, dtype=np.int32), low, high, inverted)[values]
    scaled = values.astype(np.float32 if values.dtype.itemsize <= 4 else np.float64)
    invalid = ~np.isfinite(scaled) | (np.abs(scaled) >= _FILL) if values.dtype.kind == "f" else None
    if invalid is not None:
        scaled[invalid] = low
    scaled -= low
    scaled *= 255.0 / (high - low) if high > low else 0.0
    np.clip(scaled.round(out=scaled), 0, 255, out=scaled)
    small = scaled.astype(np.uint8)
    if inverted:
        small = 255 - small
    if invalid is not None:
        small[invalid] = 0
    return small


def is_blank(image: Image.Image) -> bool:
    """Whether an 8-bit RGB picture shows nothing: even, or nearly black.

    In each colour there are fewer than 16 of 256 levels between the darkest and the brightest 0.1 % of its pixels.
    """
    counts = np.array(image.histogram()).reshape(3, 256).cumsum(axis=1)  # (3, 256)
    total = counts[:, -1:]
    lows, highs = ((counts > share * total).argmax(axis=1) for share in (_IGNORED, 1 - _IGNORED))
    return bool((highs - lows < _LEVELS).all())
