"""DICOM: ophthalmic photographs (OP) and tomograms (OPT) as pictures, with nothing of their header but what they are.

Read by pydicom (extra `clinical`), compressed transfer syntaxes by its pylibjpeg wheels. Values become 8 bits by the
window that the file gives, or else by the rule of `keepfit_clip.images.depth`.
"""

import io
import logging
import warnings
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from keepfit_clip.errors import ImageError
from keepfit_clip.extras import require_extra
from keepfit_clip.images.depth import to_8_bit
from keepfit_clip.images.facts import VolumeFacts
from keepfit_clip.images.scans import MAX_FRAMES

__all__ = ["DICOM_SUFFIXES", "dicom_facts", "dicom_picture", "is_dicom"]

DICOM_SUFFIXES = (".dcm", ".dicom")
_PREAMBLE, _MAGIC = 128, b"DICM"  # PS3.10, 7.1
_SIDES = {"L": "left", "R": "right"}
_TOMOGRAMS = {"OPT", "OCT"}
_FLUORESCEIN = ("fluorescein",)
_FLUORESCEIN_CODES = {"C-B02CC", "387010007"}  # fluorescein, as SNOMED had and has it


def is_dicom(source: str | Path | bytes) -> bool:
    """Whether a file, or its content, is a DICOM file."""
    if isinstance(source, bytes):
        return source[_PREAMBLE : _PREAMBLE + 4] == _MAGIC
    with open(source, "rb") as file:
        return file.read(_PREAMBLE + 4)[_PREAMBLE:] == _MAGIC


def dicom_facts(source: str | Path | bytes, name: str = "image") -> VolumeFacts:
    """What a file says of its picture; the pixels are not read.

    Raises:
        ImageError: it is damaged, or holds no picture.
        MissingExtraError: what reads DICOM is not installed.
    """
    with closing(_opened(source)) as file:
        return _facts(_read(file, name, stop_before_pixels=True), name)


def dicom_picture(source: str | Path | bytes, name: str, max_pixels: int, frame: int | None = None) -> Image.Image:
    """A picture of a file, RGB or grey at 8 bits.

    Args:
        source: path or content.
        name: what to call it in errors.
        max_pixels: of a frame; looked at before anything is decoded.
        frame: its number, from 0; None is the middle one.

    Raises:
        ImageError: it is damaged, too large, or coded in a way that nothing installed reads.
        MissingExtraError: what reads DICOM is not installed.
    """
    with closing(_opened(source)) as file:
        dataset = _read(file, name)
        facts = _facts(dataset, name)
        if facts.width * facts.height > max_pixels:
            raise ImageError(name, f"the image has more than {max_pixels / 1e6:.0f} million pixels")
        number = facts.frames // 2 if frame is None else frame
        if not 0 <= number < facts.frames:
            raise ImageError(name, f"the file has {facts.frames} frames, none of number {number}")
        logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)  # what is damaged is told by us
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return Image.fromarray(_pixels(dataset, number))
        except MemoryError:
            raise
        except Exception as error:  # pydicom and its decoders raise many kinds
            raise ImageError(name, _why_undecoded(dataset)) from error


def _read(file, name: str, stop_before_pixels: bool = False):
    require_extra("clinical")
    import pydicom

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return pydicom.dcmread(file, stop_before_pixels=stop_before_pixels)
    except Exception as error:
        raise ImageError(name, "the DICOM file is truncated or damaged") from error


def _facts(dataset, name: str) -> VolumeFacts:
    try:
        height, width = int(dataset.Rows), int(dataset.Columns)
        frames = max(1, int(dataset.get("NumberOfFrames") or 1))
    except (AttributeError, TypeError, ValueError) as error:
        raise ImageError(name, "the DICOM file holds no picture") from error
    if frames > MAX_FRAMES:
        raise ImageError(name, f"the DICOM file says it holds more than {MAX_FRAMES} pictures")
    side = dataset.get("ImageLaterality") or dataset.get("Laterality") or _of_shared_frame(dataset)
    return VolumeFacts(frames, _SIDES.get(str(side)), _modality(dataset), _spacing(dataset), width, height)


def _of_shared_frame(dataset) -> str:
    """The side as enhanced objects have it: with the anatomy of all frames."""
    shared = dataset.get("SharedFunctionalGroupsSequence") or ()
    anatomy = [item for group in shared for item in group.get("FrameAnatomySequence") or ()]
    return next((item.get("FrameLaterality", "") for item in anatomy), "")


def _modality(dataset) -> str | None:
    told = str(dataset.get("Modality", "")).upper()
    if told in _TOMOGRAMS:
        return "OCT"
    if told != "OP":
        return None
    agents = dataset.get("ContrastBolusAgentSequence") or ()
    words = [str(dataset.get("ContrastBolusAgent", "")), *(str(agent.get("CodeMeaning", "")) for agent in agents)]
    codes = {str(agent.get("CodeValue", "")) for agent in agents}
    with_dye = codes & _FLUORESCEIN_CODES or any(dye in word.lower() for word in words for dye in _FLUORESCEIN)
    return "FFA" if with_dye else "CFP"


def _spacing(dataset) -> tuple[float, float] | None:
    groups = dataset.get("SharedFunctionalGroupsSequence") or ()
    shared = [item for group in groups for item in group.get("PixelMeasuresSequence") or ()]
    values = next((item.get("PixelSpacing") for item in (dataset, *shared) if item.get("PixelSpacing")), None)
    try:
        return None if values is None else (float(values[0]), float(values[1]))
    except (IndexError, TypeError, ValueError):
        return None


def _why_undecoded(dataset) -> str:
    """What is wrong with a file whose pixels cannot be decoded."""
    from pydicom.pixels import get_decoder

    uid = dataset.file_meta.get("TransferSyntaxUID")
    name = getattr(uid, "name", "")
    syntax = name if name and name != str(uid) else "unknown"  # what no dictionary has, a header may have made up
    if not dataset.get("PixelData"):
        return "the DICOM file holds no pixels"
    try:
        decoder = get_decoder(uid)
    except (NotImplementedError, AttributeError, ValueError):
        return f"its pixels are in a transfer syntax that pydicom does not read ({syntax})"
    if not decoder.is_available:
        return f"what decodes its transfer syntax is not installed ({syntax})"
    if not uid.is_compressed and len(dataset.PixelData) < _stored_bytes(dataset):
        return "its pixels are cut off"
    return f"its pixels cannot be decoded (transfer syntax {syntax})"


def _stored_bytes(dataset) -> int:
    """Bytes that the pixels of all frames take where they are not compressed; 0 where the header does not tell."""
    try:
        pixels = int(dataset.Rows) * int(dataset.Columns) * int(dataset.SamplesPerPixel)
        return pixels * max(1, int(dataset.get("NumberOfFrames") or 1)) * int(dataset.BitsAllocated) // 8
    except (AttributeError, TypeError, ValueError):
        return 0


def _pixels(dataset, frame: int) -> np.ndarray:
    """A frame as (H, W) or (H, W, 3) uint8."""
    from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_windowing, pixel_array

    values: Any = pixel_array(dataset, index=frame)  # YBR comes as RGB
    photometric = str(dataset.get("PhotometricInterpretation", ""))
    if photometric == "PALETTE COLOR":
        values = apply_color_lut(values, dataset)
    if values.ndim == 3:
        return to_8_bit(values, 16 if values.dtype == np.uint16 else int(dataset.BitsStored))
    values = apply_modality_lut(values, dataset)
    if _has_window(dataset) and int(dataset.BitsStored) > 8:
        low, high = _window_range(dataset)
        values = (apply_windowing(values, dataset) - low) / max(high - low, 1e-9) * 255
        values = values.clip(0, 255).round().astype(np.uint8)
        return 255 - values if photometric == "MONOCHROME1" else values
    whole = np.ascontiguousarray(values)
    if whole.dtype.kind == "f" and np.array_equal(whole, whole.round()) and whole.min() >= 0 and whole.max() < 1 << 16:
        whole = whole.astype(np.uint16)
    return to_8_bit(whole, int(dataset.BitsStored), inverted=photometric == "MONOCHROME1")


def _has_window(dataset) -> bool:
    """Whether a file gives a window that can be: some write a width of 0 for none."""
    width = dataset.get("WindowWidth")
    widths = [width] if isinstance(width, (int, float, str)) or width is None else list(width)
    return "WindowCenter" in dataset and bool(widths) and float(widths[0] or 0) >= 1


def _window_range(dataset) -> tuple[float, float]:
    """What black and white become by a window: the range of the stored values, rescaled (PS3.3, C.11.2.1.2)."""
    bits, signed = int(dataset.BitsStored), bool(dataset.PixelRepresentation)
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    slope, intercept = float(dataset.get("RescaleSlope") or 1), float(dataset.get("RescaleIntercept") or 0)
    return low * slope + intercept, high * slope + intercept


def _opened(source: str | Path | bytes):
    return io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")
