"""Heidelberg Engineering's own files: .vol (HEYEX's special export) and .e2e, B-scan by B-scan.

The layouts are those that eyepy and uocte describe. Only B-scans, and what says where they lie, are read. Both formats
hold reflectivities from 0 to 1, which are shown by eyepy's rule for them: (ln(value + 0.000244) + 8.3) / 8.285, from
black to white. Places that the device filled, and values that are not finite, are black.

Neither eyepy nor OCT-Converter reads .e2e here: both take the ten bits of a number's mantissa in reverse order, which
is wrong by up to a factor of two (uocte, from which they have the format, does not).
"""

import struct
from collections.abc import Iterator
from functools import cache
from typing import BinaryIO

import numpy as np

from keepfit_clip.images.scans import MAX_FRAMES, BScan, Scan, read_at

__all__ = ["E2E_MAGIC", "VOL_MAGIC", "e2e_scans", "vol_scans"]

VOL_MAGIC = (b"HSF-OCT",)
E2E_MAGIC = (b"CMDb", b"E2EMultipleVolumeFile")

# .vol: version, width, B-scans, height, 3 scales (across, between, down), width and height of the SLO image,
# its 2 scales and field, focus, eye, (time), pattern, size of a B-scan's header
_VOL_HEADER = struct.Struct("<12s3I3d2I2dId4s8x2I")
_VOL_HEADER_SIZE, _VOL_SMALLEST_HEAD = 2048, 256
_VOL_EYES = {b"OS": "left", b"OD": "right"}

_E2E_PACKED = 64  # bytes before all else in a file of several volumes
_E2E_START, _E2E_HEAD = 36, 52  # place of the main directory; size of a directory's head
_E2E_CONTAINER = 60  # bytes of a container before what it holds
_E2E_IMAGE = struct.Struct("<5I")  # size, kind, values, height, width
_E2E_BSCAN = 0x02200201
_E2E_ENTRY = np.dtype([("at", "<u4"), ("start", "<u4"), ("size", "<u4"), ("unknown", "<u4"), ("patient", "<i4"),
                       ("study", "<i4"), ("series", "<i4"), ("slice", "<i4"), ("index", "<u4"), ("kind", "<u4"),
                       ("check", "<u4")])  # fmt: skip
_E2E_PICTURE, _E2E_LATERALITY = 0x40000000, 11
_E2E_EYES = {b"L": "left", b"R": "right"}
_E2E_EYE_AT = 14  # within what a container of laterality holds

_VOL_FILLED, _E2E_FILLED = 1e30, 1.99  # and more: the largest float32, and the largest of .e2e's own kind of number
_OFFSET, _LOWEST, _RANGE = 2.44e-4, -8.3, 8.285  # of the logarithm that is shown


def vol_scans(file: BinaryIO, size: int) -> list[Scan]:
    """The one volume of a .vol file.

    Args:
        file: at any place.
        size: of the file in bytes.

    Raises:
        ValueError: it is damaged.
    """
    fields = _VOL_HEADER.unpack(read_at(file, 0, _VOL_HEADER.size))
    _, width, count, height, across, _, down, slo_width, slo_height, _, _, _, _, eye, _, head = fields
    block = head + 4 * width * height
    start = _VOL_HEADER_SIZE + slo_width * slo_height
    if head < _VOL_SMALLEST_HEAD or start + count * block > size:
        raise ValueError("it ends before its last B-scan")

    def bscan(number: int) -> BScan:
        place = start + number * block + head
        return BScan(width, height, lambda: _of_vol(read_at(file, place, 4 * width * height), width, height))

    return [Scan(_VOL_EYES.get(eye[:2]), (down, across), count, bscan)]


def _of_vol(content: bytes, width: int, height: int) -> np.ndarray:
    return _shown(np.frombuffer(content, "<f4").reshape(height, width), _VOL_FILLED)


def e2e_scans(file: BinaryIO, size: int) -> list[Scan]:
    """The volumes of an .e2e file: one for each series of B-scans.

    Args:
        file: at any place.
        size: of the file in bytes.

    Raises:
        ValueError: it is damaged.
    """
    base = _E2E_PACKED if read_at(file, 0, 4) != E2E_MAGIC[0] else 0
    eyes: dict[tuple, str | None] = {}
    volumes: dict[tuple, dict[int, BScan]] = {}
    for entry in _entries(file, base, size):
        series = int(entry["patient"]), int(entry["study"]), int(entry["series"])
        place = base + int(entry["start"]) + _E2E_CONTAINER
        if entry["kind"] == _E2E_LATERALITY:
            eyes.setdefault(series, _E2E_EYES.get(read_at(file, place + _E2E_EYE_AT, 1)))
        else:
            bscan = _bscan_of_e2e(file, place, size)
            if bscan is not None:
                volumes.setdefault(series, {})[int(entry["slice"])] = bscan
    return [_volume(eyes.get(series), slices) for series, slices in sorted(volumes.items())]


def _entries(file: BinaryIO, base: int, size: int) -> np.ndarray:
    """The entries of pictures and of eyes, as they follow one another in the file."""
    entries = np.concatenate([np.zeros(0, _E2E_ENTRY), *_directories(file, base, size)])
    entries = entries[np.isin(entries["kind"], (_E2E_PICTURE, _E2E_LATERALITY)) & (entries["start"] > entries["at"])]
    if len(entries) > 4 * MAX_FRAMES:
        raise ValueError("it has too many pictures")
    return entries[np.argsort(entries["start"], kind="stable")]


def _directories(file: BinaryIO, base: int, size: int) -> Iterator[np.ndarray]:
    """The entries of each directory, from the last to the first; each says where the one before is."""
    seen, bytes_of_entries = set(), 0
    (at,) = struct.unpack("<40xI", read_at(file, base + _E2E_START, 44))
    while at:
        if at in seen:
            raise ValueError("its directories lead in a circle")
        seen.add(at)
        count, _, before = struct.unpack("<36x3I4x", read_at(file, base + at, _E2E_HEAD))
        bytes_of_entries += _E2E_HEAD + count * _E2E_ENTRY.itemsize
        if bytes_of_entries > size:
            raise ValueError("its directories are larger than the file")
        yield np.frombuffer(read_at(file, base + at + _E2E_HEAD, count * _E2E_ENTRY.itemsize), _E2E_ENTRY)
        at = before


def _bscan_of_e2e(file: BinaryIO, place: int, size: int) -> BScan | None:
    """The B-scan that a picture's container holds; None of another kind of picture."""
    _, kind, _, height, width = _E2E_IMAGE.unpack(read_at(file, place, _E2E_IMAGE.size))
    if kind != _E2E_BSCAN:
        return None
    start, length = place + _E2E_IMAGE.size, 2 * width * height
    if start + length > size:
        raise ValueError("it ends within a B-scan")
    return BScan(width, height, lambda: _of_e2e(read_at(file, start, length), width, height))


def _of_e2e(content: bytes, width: int, height: int) -> np.ndarray:
    return _e2e_greys()[np.frombuffer(content, "<u2").reshape(height, width)]


@cache
def _e2e_greys() -> np.ndarray:
    """The grey of each of the 65536 numbers: no sign, 6 bits of exponent, 10 of mantissa."""
    numbers = np.arange(1 << 16)
    return _shown(np.ldexp(1 + (numbers & 1023) / 1024, (numbers >> 10) - 63), _E2E_FILLED)


def _volume(eye: str | None, slices: dict[int, BScan]) -> Scan:
    bscans = [slices[number] for number in sorted(slices)]
    return Scan(eye, None, len(bscans), bscans.__getitem__)


def _shown(values: np.ndarray, filled: float) -> np.ndarray:
    """Reflectivities as grey of 8 bits; those from `filled` on are none."""
    valid = np.isfinite(values) & (values >= 0) & (values < filled)
    greys = (np.log(np.where(valid, values, 0) + _OFFSET) - _LOWEST) / _RANGE * 255
    return greys.clip(0, 255).round().astype(np.uint8)
