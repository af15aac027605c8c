"""Reading one image safely: known formats only, a limit on pixels, upright, RGB."""

import io
import os
import struct
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from keepfit_clip.data.records import FileSlice
from keepfit_clip.errors import ImageError

__all__ = ["encode_jpeg", "fit_within", "image_bytes", "image_name", "open_image"]

_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_SHORT = 256, 257, 3
_FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "PPM")


def open_image(source: str | Path | FileSlice | bytes, name: str = "", max_pixels: int | None = None) -> Image.Image:
    """Reads an image as upright 8-bit RGB, without any metadata.

    Args:
        source: path, a part of a file, or the content itself.
        name: what to call it in the error; the path by default.
        max_pixels: a limit of one's own below Pillow's; looked at before anything is decoded.

    Raises:
        ImageError: missing, empty, truncated, not an image of a known format, or more pixels than Pillow's limit
            against decompression bombs.
    """
    name = name or image_name(source)
    if isinstance(source, FileSlice):
        source = image_bytes(source)
    if max_pixels is None or max_pixels > Image.MAX_IMAGE_PIXELS:
        max_pixels = Image.MAX_IMAGE_PIXELS
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)  # odd EXIF or TIFF tags; they are dropped anyway
            with Image.open(file, formats=_FORMATS) as image:
                _check_pixels(name, image.width, image.height, max_pixels)
                image.load()
                return _rgb(_upright(image))
    except FileNotFoundError as error:
        raise ImageError(name, "the image file is missing") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(name, _too_large(max_pixels)) from error
    except UnidentifiedImageError as error:
        size = len(source) if isinstance(source, bytes) else os.path.getsize(source)
        deep = _open_deep_tiff(source, name, max_pixels) if size else None
        if deep is not None:
            return deep
        reason = f"not an image ({', '.join(_FORMATS)})" if size else "the image file is empty"
        raise ImageError(name, reason) from error
    except (MemoryError, ImageError):
        raise
    except Exception as error:  # decoders raise many kinds for damaged files
        raise ImageError(name, "the image is truncated or damaged") from error


def image_bytes(image: Path | FileSlice | bytes) -> bytes:
    """The encoded image of a record.

    Raises:
        ImageError: it cannot be read.
    """
    if isinstance(image, bytes):
        return image
    try:
        return image.read() if isinstance(image, FileSlice) else image.read_bytes()
    except FileNotFoundError as error:
        raise ImageError(image_name(image), "the image file is missing") from error
    except OSError as error:
        raise ImageError(image_name(image), f"the image file cannot be read ({error.strerror})") from error


def image_name(image: str | Path | FileSlice | bytes) -> str:
    """What to call an image at the terminal."""
    if isinstance(image, FileSlice):
        return f"{image.path} at byte {image.offset}"
    return "image" if isinstance(image, bytes) else str(image)


def fit_within(image: Image.Image, size: int | None) -> Image.Image:
    """The image with its longest side at most `size` pixels; never enlarged, None keeps it."""
    if size is None or max(image.size) <= size:
        return image
    image = image.copy()
    image.thumbnail((size, size), Image.Resampling.BICUBIC, reducing_gap=None)
    return image


def encode_jpeg(image: Image.Image, quality: int = 95) -> bytes:
    """JPEG bytes of an RGB image, without EXIF or any other metadata, without chroma subsampling.

    Raises:
        ImageError: a side is longer than JPEG allows.
    """
    buffer = io.BytesIO()
    try:
        image.save(buffer, format="JPEG", quality=quality, subsampling=0, exif=b"")
    except OSError as error:
        raise ImageError("image", f"cannot be stored as JPEG at {image.width} x {image.height} pixels") from error
    return buffer.getvalue()


def _too_large(max_pixels: int) -> str:
    return f"the image has more than {max_pixels / 1e6:.0f} million pixels"


def _check_pixels(name: str, width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageError(name, _too_large(max_pixels))


def _open_deep_tiff(source: str | Path | bytes, name: str, max_pixels: int) -> Image.Image | None:
    """A TIFF of 16 bits a colour, which Pillow does not know, at 8 bits; None for anything else."""
    content = source if isinstance(source, bytes) else Path(source).read_bytes()
    size = _tiff_size(content)
    if size is None:
        return None
    _check_pixels(name, *size, max_pixels)
    import cv2

    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # damage is reported by us
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error:
        return None
    return None if pixels is None else Image.fromarray(pixels)


def _tiff_size(content: bytes) -> tuple[int, int] | None:
    """Width and height out of a TIFF's first directory (TIFF 6.0, section 2), or None; nothing is decoded."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(content[:4])
    if order is None:
        return None
    found: dict[int, int] = {}
    try:
        (place,) = struct.unpack_from(f"{order}I", content, 4)
        (count,) = struct.unpack_from(f"{order}H", content, place)
        for entry in range(count):
            tag, kind = struct.unpack_from(f"{order}HH", content, place + 2 + 12 * entry)
            if tag in (_TIFF_WIDTH, _TIFF_HEIGHT):
                value = f"{order}H" if kind == _TIFF_SHORT else f"{order}I"
                (found[tag],) = struct.unpack_from(value, content, place + 2 + 12 * entry + 8)
    except struct.error:
        return None
    return (found[_TIFF_WIDTH], found[_TIFF_HEIGHT]) if len(found) == 2 else None


def _upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF says; damaged EXIF says nothing."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # Pillow raises many kinds for damaged EXIF, which is dropped in any case
        return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":  # 16 bit: scale what is there to 8 bit
        values = np.asarray(image, dtype=np.float32)
        low, high = float(values.min()), float(values.max())
        scale = 255.0 / (high - low) if high > low else 0.0
        image = Image.fromarray(((values - low) * scale).round().astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "P"):  # a transparent border is black, like the camera's own
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    image = image.convert("RGB")
    image.info.clear()
    return image
