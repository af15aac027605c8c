"""Files that hold several pictures: DICOM, and OCT vendors' own (Heidelberg .vol and .e2e, Topcon .fda), all alike.

Nothing of a header leaves here but the eye, the modality and the distance of pixels.
"""

import io
import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from PIL import Image

from keepfit_clip.errors import ImageError
from keepfit_clip.images.dicom import DICOM_SUFFIXES, dicom_facts, dicom_picture, is_dicom
from keepfit_clip.images.facts import VolumeFacts
from keepfit_clip.images.heidelberg import E2E_MAGIC, VOL_MAGIC, e2e_scans, vol_scans
from keepfit_clip.images.scans import MAX_FRAMES, BScan, Scan
from keepfit_clip.images.topcon import FDA_MAGIC, fda_scans

__all__ = ["VOLUME_SUFFIXES", "holds_volume", "volume_facts", "volume_picture"]

VOLUME_SUFFIXES = (*DICOM_SUFFIXES, ".vol", ".e2e", ".fda")


class _Format(NamedTuple):
    name: str
    magic: tuple[bytes, ...]
    scans: Callable[[BinaryIO, int], list[Scan]]


_FORMATS = (
    _Format("Heidelberg .vol", VOL_MAGIC, vol_scans),
    _Format("Heidelberg .e2e", E2E_MAGIC, e2e_scans),
    _Format("Topcon .fda", FDA_MAGIC, fda_scans),
)


def holds_volume(source: str | Path | bytes) -> bool:
    """Whether a file, or its content, is of a kind that is read here."""
    return is_dicom(source) or _format_of(source) is not None


def volume_facts(source: str | Path | bytes, name: str = "image") -> list[VolumeFacts]:
    """What a file says of each volume in it; their pixels are not read.

    Args:
        source: path or content.
        name: what to call it in errors.

    Raises:
        ImageError: it is damaged, or holds no picture.
        MissingExtraError: what reads it is not installed.
    """
    known = _format_of(source)
    if known is None:
        if not is_dicom(source):
            raise ImageError(name, "neither DICOM nor a vendor's OCT file, whatever its ending says")
        return [dicom_facts(source, name)]
    with closing(_opened(source)) as file, _told_as_ours(known, name):
        facts, first = [], 0
        for scan in _scans(known, file, name):
            bscan = scan.bscan(0)
            facts.append(VolumeFacts(scan.frames, scan.eye, "OCT", _distances(scan), bscan.width, bscan.height, first))
            first += scan.frames
        return facts


def volume_picture(source: str | Path | bytes, name: str, max_pixels: int, frame: int | None = None) -> Image.Image:
    """A picture of a file, RGB or grey at 8 bits.

    Args:
        source: path or content; of a vendor's file at a path only the one B-scan is read.
        name: what to call it in errors.
        max_pixels: of a frame; looked at before anything is decoded.
        frame: its number in the file, from 0; None is the middle one of the largest volume.

    Raises:
        ImageError: it is damaged, too large, or coded in a way that nothing installed reads.
        MissingExtraError: what reads it is not installed.
    """
    known = _format_of(source)
    if known is None:
        return dicom_picture(source, name, max_pixels, frame)
    with closing(_opened(source)) as file, _told_as_ours(known, name):
        bscan = _chosen(_scans(known, file, name), name, frame)
        if bscan.width * bscan.height > max_pixels:
            raise ImageError(name, f"the image has more than {max_pixels / 1e6:.0f} million pixels")
        if not bscan.width * bscan.height:
            raise ImageError(name, f"the {known.name} file holds a B-scan without pixels")
        return Image.fromarray(bscan.decode())


def _format_of(source: str | Path | bytes) -> _Format | None:
    with closing(_opened(source)) as file:
        head = file.read(32)
    return next((known for known in _FORMATS if head.startswith(known.magic)), None)


def _scans(known: _Format, file: BinaryIO, name: str) -> list[Scan]:
    """The volumes of a file that hold something.

    Raises:
        ImageError: there is none.
    """
    scans = [scan for scan in known.scans(file, file.seek(0, os.SEEK_END)) if scan.frames]
    if not scans:
        raise ImageError(name, f"the {known.name} file holds no B-scan")
    if max(scan.frames for scan in scans) > MAX_FRAMES:
        raise ImageError(name, f"the {known.name} file holds more than {MAX_FRAMES} B-scans in a volume")
    return scans


def _chosen(scans: list[Scan], name: str, frame: int | None) -> BScan:
    if frame is None:
        largest = max(scans, key=lambda scan: scan.frames)
        return largest.bscan(largest.frames // 2)
    left = frame
    for scan in scans:
        if 0 <= left < scan.frames:
            return scan.bscan(left)
        left -= scan.frames
    raise ImageError(name, f"the file has {sum(scan.frames for scan in scans)} frames, none of number {frame}")


def _distances(scan: Scan) -> tuple[float, float] | None:
    fine = scan.spacing is not None and all(math.isfinite(value) and value > 0 for value in scan.spacing)
    return scan.spacing if fine else None


@contextmanager
def _told_as_ours(known: _Format, name: str) -> Iterator[None]:
    """Whatever a reader raises, as an error without a word of the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (MemoryError, OSError, ImageError) as error:
        if isinstance(error, OSError) and error.errno is None:  # a decoder's, not the file system's
            raise ImageError(name, f"the {known.name} file is truncated or damaged") from error
        raise
    except Exception as error:  # struct, NumPy and Pillow raise many kinds
        raise ImageError(name, f"the {known.name} file is truncated or damaged") from error


def _opened(source: str | Path | bytes) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")
