"""What a file of several pictures says of them."""

from dataclasses import dataclass

__all__ = ["VolumeFacts"]


@dataclass(frozen=True)
class VolumeFacts:
    """What a file says of a picture or volume, without anything that tells of a person, a place or a time.

    Args:
        frames: how many pictures it holds.
        eye: left, right or None.
        modality: CFP, FFA, OCT or None.
        spacing: millimetres between pixels, down and across, or None.
        width, height: pixels.
        first: number of its first frame in the file.
    """

    frames: int
    eye: str | None
    modality: str | None
    spacing: tuple[float, float] | None
    width: int
    height: int
    first: int = 0
