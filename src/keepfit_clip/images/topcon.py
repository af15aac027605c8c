"""Topcon's own files: .fda, a row of named chunks, of which one holds the B-scans.

They are JPEG 2000 (read by Pillow), or plain numbers of 16 bits, which become 8 by the rule of
`keepfit_clip.images.depth`. The layout follows uocte's description of it, as oct-converter's reader does; that one is
not used, for it does not run with numpy 2.3 and later, and brings a second copy of OpenCV.
"""

import io
import struct
from typing import BinaryIO

import numpy as np
from PIL import Image

from keepfit_clip.images.depth import to_8_bit
from keepfit_clip.images.scans import MAX_FRAMES, BScan, Scan, read_at

__all__ = ["FDA_MAGIC", "fda_scans"]

FDA_MAGIC = (b"FOCT",)

_HEADER_SIZE = 15
_CODED, _PLAIN = b"@IMG_JPEG", (b"@IMG_MOT_COMP_03", b"@IMG_SCAN_03")
_CODED_HEAD = struct.Struct("<9x3I4x")  # width, height, B-scans
_PLAIN_HEAD = struct.Struct("<x4I5x")  # width, height, bits, B-scans
_CAPTURE = (b"@CAPTURE_INFO_02", b"@CAPTURE_INFO")  # begins with the eye
_EYES = {0: "right", 1: "left"}
_SCALES = {b"@PARAM_SCAN_04": "<12x3d", b"@PARAM_SCAN_02": "<21x3d"}  # mm across and between, micrometres down
_MOST_CHUNKS = 4096
_FORMATS = ("JPEG2000", "JPEG")


def fda_scans(file: BinaryIO, size: int) -> list[Scan]:
    """The one volume of an .fda file; none where it holds other pictures only.

    Args:
        file: at any place.
        size: of the file in bytes.

    Raises:
        ValueError: it is damaged.
    """
    chunks = _chunks(file, size)
    eye = next((_EYES.get(read_at(file, chunks[name][0], 1)[0]) for name in _CAPTURE if name in chunks), None)
    if _CODED in chunks:
        at, length = chunks[_CODED]
        width, height, count = _CODED_HEAD.unpack(read_at(file, at, _CODED_HEAD.size))
        places = _places(file, at + _CODED_HEAD.size, at + length, count)

        def coded(number: int) -> BScan:
            return BScan(width, height, lambda: _decoded(read_at(file, *places[number]), width, height))

        return [Scan(eye, _spacing(file, chunks, width), count, coded)]
    name = next((name for name in _PLAIN if name in chunks), None)
    if name is None:
        return []
    at, length = chunks[name]
    width, height, bits, count = _PLAIN_HEAD.unpack(read_at(file, at, _PLAIN_HEAD.size))
    if bits != 16 or _PLAIN_HEAD.size + 2 * width * height * count > length:
        raise ValueError("its B-scans are larger than their place")

    def plain(number: int) -> BScan:
        start = at + _PLAIN_HEAD.size + 2 * width * height * number
        return BScan(width, height, lambda: _numbers(read_at(file, start, 2 * width * height), width, height))

    return [Scan(eye, _spacing(file, chunks, width), count, plain)]


def _chunks(file: BinaryIO, size: int) -> dict[bytes, tuple[int, int]]:
    """Name -> place and size of each chunk; of several of one name the first. An empty name ends the file."""
    chunks: dict[bytes, tuple[int, int]] = {}
    at = _HEADER_SIZE
    for _ in range(_MOST_CHUNKS):
        (length,) = read_at(file, at, 1)
        if not length:
            return chunks
        name, extent = struct.unpack(f"<{length}sI", read_at(file, at + 1, length + 4))
        at += 1 + length + 4
        if at + extent > size:
            raise ValueError("a chunk is larger than the file")
        chunks.setdefault(name, (at, extent))
        at += extent
    raise ValueError("it has too many chunks")


def _places(file: BinaryIO, at: int, end: int, count: int) -> list[tuple[int, int]]:
    """Place and size of each coded B-scan."""
    places = []
    for _ in range(min(count, MAX_FRAMES + 1)):
        (length,) = struct.unpack("<I", read_at(file, at, 4))
        if at + 4 + length > end:
            raise ValueError("a B-scan is larger than its chunk")
        places.append((at + 4, length))
        at += 4 + length
    return places


def _spacing(file: BinaryIO, chunks: dict[bytes, tuple[int, int]], width: int) -> tuple[float, float] | None:
    for name, layout in _SCALES.items():
        if name in chunks and chunks[name][1] >= struct.calcsize(layout):
            across, _, down = struct.unpack(layout, read_at(file, chunks[name][0], struct.calcsize(layout)))
            return (down / 1000, across / width) if width else None
    return None


def _decoded(content: bytes, width: int, height: int) -> np.ndarray:
    with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
        if image.size != (width, height):
            raise ValueError("a B-scan is not of the size that the file says")
        values = np.asarray(image if image.mode in ("L", "I;16", "I") else image.convert("L"))
    return values if values.dtype == np.uint8 else to_8_bit(values)


def _numbers(content: bytes, width: int, height: int) -> np.ndarray:
    return to_8_bit(np.frombuffer(content, "<u2").reshape(height, width))
