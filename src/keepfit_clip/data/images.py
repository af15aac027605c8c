"""Reading one image safely: known formats only, a limit on pixels, upright, RGB."""

import io
import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from keepfit_clip.errors import ImageError

__all__ = ["encode_jpeg", "open_image"]

_FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP")


def open_image(source: str | Path | bytes, name: str = "") -> Image.Image:
    """Reads an image as upright 8-bit RGB, without any metadata.

    Args:
        source: path, or the file's content.
        name: what to call it in the error; the path by default.

    Raises:
        ImageError: missing, empty, truncated, not an image of a known format, or more pixels than Pillow's limit
            against decompression bombs.
    """
    name = name or (str(source) if not isinstance(source, bytes) else "image")
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)  # odd EXIF or TIFF tags; they are dropped anyway
            with Image.open(file, formats=_FORMATS) as image:
                image.load()
                return _rgb(_upright(image))
    except FileNotFoundError as error:
        raise ImageError(name, "the image file is missing") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        limit = Image.MAX_IMAGE_PIXELS / 1e6
        raise ImageError(name, f"the image has more than {limit:.0f} million pixels") from error
    except UnidentifiedImageError as error:
        empty = isinstance(file, (str, os.PathLike)) and os.path.getsize(file) == 0
        reason = "the image file is empty" if empty else f"not an image ({', '.join(_FORMATS)})"
        raise ImageError(name, reason) from error
    except MemoryError:
        raise
    except Exception as error:  # decoders raise many kinds for damaged files
        raise ImageError(name, "the image is truncated or damaged") from error


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
