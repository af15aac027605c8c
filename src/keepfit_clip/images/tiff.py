"""What the directories of a TIFF say (TIFF 6.0, section 2, and BigTIFF), read without decoding a picture."""

import struct
from typing import BinaryIO, NamedTuple

__all__ = ["TiffPage", "read_tiff_pages"]

_SUBFILE, _WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _LARGEST, _LARGEST_ANY = 254, 256, 257, 258, 262, 281, 341
_TAGS = (_SUBFILE, _WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _LARGEST, _LARGEST_ANY)
_KINDS = {1: "B", 3: "H", 4: "I", 11: "f", 12: "d", 16: "Q"}  # of values
_NOT_A_PAGE = 0b101  # of the subfile type: a smaller copy of a page, or its mask
_MOST_PAGES = 4096
_MOST_ENTRIES = 4096
_MOST_VALUES = 16


class TiffPage(NamedTuple):
    """One picture of a TIFF.

    Args:
        width, height: pixels.
        bits: of a value, the most of its colours.
        largest: the largest value, where the file tells of it.
        inverted: whether 0 is white.
    """

    width: int
    height: int
    bits: int
    largest: int | None
    inverted: bool


def read_tiff_pages(file: BinaryIO) -> list[TiffPage]:
    """The pages of a TIFF, at most 4096; smaller copies of a page and masks are none. Empty where it is no TIFF.

    Args:
        file: that can seek; left anywhere.
    """
    file.seek(0)
    head = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    try:
        big = {b"*\0": False, b"\0*": False, b"+\0": True, b"\0+": True}[head[2:4]]
        (offset,) = struct.unpack_from(f"{order}Q" if big else f"{order}I", head, 8 if big else 4)
    except (KeyError, struct.error):
        return []
    pages, visited = [], set()
    while offset and offset not in visited and len(visited) < _MOST_PAGES:
        visited.add(offset)
        try:
            values, offset = _directory(file, offset, order, big)
        except (struct.error, OverflowError, ValueError):  # cut off here
            break
        if _WIDTH in values and _HEIGHT in values and not values.get(_SUBFILE, [0])[0] & _NOT_A_PAGE:
            pages.append(_page(values))
    return pages


def _page(values: dict[int, list]) -> TiffPage:
    largest = values.get(_LARGEST) or values.get(_LARGEST_ANY)
    return TiffPage(
        int(values[_WIDTH][0]),
        int(values[_HEIGHT][0]),
        max(values.get(_BITS, [1])),
        int(max(largest)) if largest and 0 < max(largest) < 1 << 32 else None,
        values.get(_PHOTOMETRIC, [1])[0] == 0,
    )


def _directory(file: BinaryIO, offset: int, order: str, big: bool) -> tuple[dict[int, list], int]:
    """The values of the tags we know in the directory at an offset, and the offset of the next directory."""
    count_form, entry_form, size, inline = ("Q", "HHQ", 20, 8) if big else ("H", "HHI", 12, 4)
    (count,) = _unpack(file, offset, order + count_form)
    if count > _MOST_ENTRIES:
        raise ValueError("not a directory")
    start = offset + struct.calcsize(order + count_form)
    file.seek(start)
    entries = file.read(count * size)
    values: dict[int, list] = {}
    for at in range(0, count * size, size):
        tag, kind, length = struct.unpack_from(order + entry_form, entries, at)
        if tag not in _TAGS or kind not in _KINDS or not 0 < length <= _MOST_VALUES:
            continue
        form = f"{order}{length}{_KINDS[kind]}"
        if struct.calcsize(form) <= inline:
            values[tag] = list(struct.unpack_from(form, entries, at + size - inline))
        else:
            (where,) = struct.unpack_from(order + ("Q" if big else "I"), entries, at + size - inline)
            values[tag] = list(_unpack(file, where, form))
    (following,) = _unpack(file, start + count * size, order + ("Q" if big else "I"))
    return values, following


def _unpack(file: BinaryIO, offset: int, form: str) -> tuple:
    file.seek(offset)
    return struct.unpack(form, file.read(struct.calcsize(form)))
