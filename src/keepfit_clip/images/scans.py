"""What a reader of a vendor's file tells of it: its volumes, and how to come by a B-scan."""

from collections.abc import Callable
from typing import BinaryIO, NamedTuple

import numpy as np

__all__ = ["MAX_FRAMES", "BScan", "Scan", "read_at"]

MAX_FRAMES = 16384  # of a volume; more is damage


class BScan(NamedTuple):
    """A picture of a volume.

    Args:
        width, height: pixels.
        decode: gives it as (H, W) uint8, while the file is open.
    """

    width: int
    height: int
    decode: Callable[[], np.ndarray]


class Scan(NamedTuple):
    """A volume.

    Args:
        eye: left, right or None.
        spacing: millimetres between pixels, down and across, or None.
        frames: number of B-scans.
        bscan: number, from 0 -> B-scan.
    """

    eye: str | None
    spacing: tuple[float, float] | None
    frames: int
    bscan: Callable[[int], BScan]


def read_at(file: BinaryIO, place: int, count: int) -> bytes:
    """So many bytes of a file from a place on; `count` has to be within what the file can hold.

    Raises:
        ValueError: the file ends before.
    """
    file.seek(place)
    content = file.read(count)
    if len(content) < count:
        raise ValueError("it ends too early")
    return content
