"""Reading one image safely: known formats only, a limit on pixels, one page, upright, 8-bit RGB."""

import io
import math
import os
import struct
import warnings
from contextlib import closing
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from keepfit_clip.errors import ImageError, MissingExtraError, WorkerError, first_line
from keepfit_clip.images.depth import is_blank, to_8_bit
from keepfit_clip.images.dicom import is_dicom
from keepfit_clip.images.tiff import TiffPage, read_tiff_pages
from keepfit_clip.images.volumes import holds_volume, volume_picture
from keepfit_clip.remote.opening import RemoteFile, UnreadableName, without_secrets

__all__ = ["BLANK", "MAX_IMAGE_BYTES", "FileSlice", "Frame", "as_rgb", "encode_jpeg", "fit_within", "image_bytes",
           "image_name", "in_mebibytes", "open_image"]  # fmt: skip

MAX_IMAGE_BYTES = 256 << 20  # of an encoded image

BLANK = "the picture shows nothing: it is even or nearly black"
_FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "PPM")
_ORIENTATION = 0x0112
_MULTI_FRAME = "Multi-Frame Image"  # of MPO: pictures in their own right, not a preview or a gain map of the first


class Frame(NamedTuple):
    """One picture of a file that holds several: DICOM, or an OCT vendor's own.

    Args:
        path: the file; one in object storage is read whole for each of its frames.
        number: of the frame, from 0.
    """

    path: Path | RemoteFile
    number: int


class FileSlice(NamedTuple):
    """An encoded image that is a part of a bigger file, such as a member of a tar.

    Args:
        path: the bigger file.
        offset: of the image's first byte.
        size: bytes.
    """

    path: Path
    offset: int
    size: int

    def read(self) -> bytes:
        """The image's bytes.

        Raises:
            OSError: the file cannot be read.
        """
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


def in_mebibytes(size: int) -> str:
    """A number of bytes for an error message."""
    return f"{size / (1 << 20):.0f} MiB"


def open_image(
    source: str | Path | FileSlice | Frame | RemoteFile | bytes,
    name: str = "",
    max_pixels: int | None = None,
    blank: bool = True,
) -> Image.Image:
    """Reads an image as upright 8-bit RGB, without any metadata.

    Args:
        source: path, a part of a file, a frame, a file in object storage, or the content itself. Of a file of several
            frames (DICOM, .vol, .e2e, .fda) the middle one is taken.
        name: what to call it in the error; the path by default.
        max_pixels: a limit of one's own below Pillow's; looked at before anything is decoded.
        blank: whether a picture that shows nothing is taken.

    Raises:
        ImageError: missing, empty, truncated, not an image of a known format, of several pages, or more pixels than
            Pillow's limit against decompression bombs; or it shows nothing (see `blank`).
        WorkerError: it lies in object storage, which does not answer.
    """
    name = name or image_name(source)
    if isinstance(source, (FileSlice, Frame, RemoteFile)):
        source = image_bytes(source)
    if max_pixels is None or max_pixels > Image.MAX_IMAGE_PIXELS:
        max_pixels = Image.MAX_IMAGE_PIXELS
    try:
        image = _read(source, name, max_pixels)
    except FileNotFoundError as error:
        raise ImageError(name, "the image file is missing") from error
    except IsADirectoryError as error:
        raise ImageError(name, "a folder, where an image is meant") from error
    except PermissionError as error:
        raise ImageError(name, f"the image file cannot be read ({first_line(error)})") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(name, _too_large(max_pixels)) from error
    except (MemoryError, ImageError, MissingExtraError):
        raise
    except Exception as error:  # decoders raise many kinds for damaged files
        raise ImageError(name, "the image is truncated or damaged") from error
    if not blank and is_blank(image):
        raise ImageError(name, BLANK)
    return image


def as_rgb(image: Image.Image) -> Image.Image:
    """A picture that Pillow has opened, or that was made in memory, as upright 8-bit RGB without metadata."""
    if image.mode.startswith("I") or image.mode == "F":
        return _rgb(_turned(Image.fromarray(to_8_bit(np.asarray(image))), image.getexif().get(_ORIENTATION, 1)))
    return _rgb(_upright(image.copy()))


def _read(source: str | Path | bytes, name: str, max_pixels: int) -> Image.Image:
    """The image; raises what the decoders do."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        warnings.simplefilter("ignore", UserWarning)  # odd EXIF or TIFF tags; they are dropped anyway
        try:
            file = io.BytesIO(source) if isinstance(source, bytes) else source
            with Image.open(file, formats=_FORMATS) as image:
                _check_pixels(name, image.width, image.height, max_pixels)
                page = _only_page(image, source, name)
                deep, orientation = _has_deep_colours(image), image.getexif().get(_ORIENTATION, 1)
                image.load()  # also where its pixels are not used: it knows a file that is cut off
                if deep:
                    return _rgb(_turned(_deep_colours(source, name, page), orientation))
                return _rgb(_upright(_at_8_bit(image, source, page)))
        except UnidentifiedImageError as error:
            if holds_volume(source):
                return _rgb(volume_picture(source, name, max_pixels))
            return _rgb(_unknown_to_pillow(source, name, max_pixels, error))


def image_bytes(image: Path | FileSlice | Frame | RemoteFile | bytes) -> bytes:
    """The encoded image of a record; a frame of a file of several as PNG.

    Raises:
        ImageError: it cannot be read, or is larger than `MAX_IMAGE_BYTES`.
        WorkerError: it lies in object storage, which does not answer.
    """
    if isinstance(image, bytes):
        return image
    if isinstance(image, RemoteFile):
        return _remote_bytes(image)
    try:
        if isinstance(image, Frame):
            return _frame_bytes(image)
        size = image.size if isinstance(image, FileSlice) else os.path.getsize(image)
        if size > MAX_IMAGE_BYTES:
            raise ImageError(image_name(image), f"the image file has more than {in_mebibytes(MAX_IMAGE_BYTES)}")
        return image.read() if isinstance(image, FileSlice) else image.read_bytes()
    except FileNotFoundError as error:
        raise ImageError(image_name(image), "the image file is missing") from error
    except IsADirectoryError as error:
        raise ImageError(image_name(image), "a folder, where an image is meant") from error
    except OSError as error:
        raise ImageError(image_name(image), f"the image file cannot be read ({first_line(error)})") from error


def _remote_bytes(image: RemoteFile) -> bytes:
    try:
        content = b"" if image.size > MAX_IMAGE_BYTES else image.read(MAX_IMAGE_BYTES)
    except FileNotFoundError as error:
        raise ImageError(image.url, "the image file is missing") from error
    except UnreadableName as error:
        raise ImageError(image.url, "the name of the image file cannot be read") from error
    except OSError as error:  # a key that ran out, or a network that is gone, says nothing against the image
        why = without_secrets(first_line(error))
        raise WorkerError(f"{image.url}: cannot be read ({why}); what was finished is kept") from error
    if max(image.size, len(content)) > MAX_IMAGE_BYTES:
        raise ImageError(image.url, f"the image file has more than {in_mebibytes(MAX_IMAGE_BYTES)}")
    return content


def _frame_bytes(image: Frame) -> bytes:
    whole = isinstance(image.path, RemoteFile) or is_dicom(image.path)  # of a vendor's file here one B-scan is read
    source = image_bytes(image.path) if whole else image.path
    buffer = io.BytesIO()
    volume_picture(source, image_name(image), Image.MAX_IMAGE_PIXELS, image.number).save(buffer, format="PNG")
    return buffer.getvalue()


def image_name(image: str | Path | FileSlice | Frame | RemoteFile | bytes) -> str:
    """What to call an image at the terminal."""
    if isinstance(image, Frame):
        return f"{image.path}, frame {image.number}"
    if isinstance(image, FileSlice):
        return f"{image.path} at byte {image.offset}"
    return "image" if isinstance(image, bytes) else str(image)


def fit_within(image: Image.Image, size: int | None, side: str = "longest") -> Image.Image:
    """The image with its longest, or shortest, side at most `size` pixels; never enlarged, None keeps it."""
    now = max(image.size) if side == "longest" else min(image.size)
    if size is None or now <= size:
        return image
    image = image.copy()
    longest = size if side == "longest" else math.ceil(max(image.size) * size / now)
    image.thumbnail((longest, longest), Image.Resampling.BICUBIC, reducing_gap=None)
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


def _opened(source: str | Path | bytes) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")


def _only_page(image: Image.Image, source: str | Path | bytes, name: str) -> TiffPage | None:
    """What a TIFF says of its page, None for other formats.

    Raises:
        ImageError: the file has several pages, and nobody can tell which of them is meant.
    """
    pages, count = [], 1
    if image.format == "TIFF":
        with closing(_opened(source)) as file:
            pages = read_tiff_pages(file)
        count = len(pages)
    elif image.format == "MPO":
        kinds = [entry["Attribute"]["MPType"] for entry in image.mpinfo.get(0xB002, ())]
        count = sum(str(kind).startswith(_MULTI_FRAME) for kind in kinds)
    else:
        count = getattr(image, "n_frames", 1)
    _check_pages(name, count)
    return pages[0] if pages else None


def _check_pages(name: str, count: int) -> None:
    if count > 1:
        raise ImageError(name, f"the file has {count} pages; store each as a file of its own")


def _has_deep_colours(image: Image.Image) -> bool:
    """Whether Pillow would cut colours of 16 bits to their upper half, which is black for a camera of 12 bits."""
    if image.mode not in ("RGB", "RGBA") or not image.tile:
        return False
    if image.format == "TIFF":
        return max(image.tag_v2.get(258, (8,))) > 8
    return image.format == "PNG" and str(image.tile[0].args).endswith(";16B")


def _deep_colours(source: str | Path | bytes, name: str, page: TiffPage | None) -> Image.Image:
    """The picture of such a file at 8 bits."""
    pixels = _decode_unchanged(source)
    if pixels is None:
        raise ImageError(name, "its colours have more than 8 bits, stored in a way that cannot be read")
    return Image.fromarray(_colours_at_8_bit(pixels, _bits(source, page)))


def _unknown_to_pillow(source: str | Path | bytes, name: str, max_pixels: int, error: Exception) -> Image.Image:
    """A TIFF of a kind that Pillow does not know, such as floating-point colours, at 8 bits.

    Raises:
        ImageError: it is anything else.
    """
    with closing(_opened(source)) as file:
        pages = read_tiff_pages(file)
        file.seek(0, io.SEEK_END)
        size = file.tell()
    if pages:
        _check_pixels(name, pages[0].width, pages[0].height, max_pixels)
        _check_pages(name, len(pages))
        pixels = _decode_unchanged(source)
        if pixels is not None:
            return Image.fromarray(_colours_at_8_bit(pixels, _bits(source, pages[0])))
    reason = f"not an image ({', '.join(_FORMATS)}, DICOM)" if size else "the image file is empty"
    raise ImageError(name, reason) from error


def _decode_unchanged(source: str | Path | bytes) -> np.ndarray | None:
    """OpenCV's decoding, (H, W), (H, W, 3) in RGB or (H, W, 4) in RGBA of any number type; None where it fails."""
    import cv2

    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # damage is reported by us
    content = source if isinstance(source, bytes) else image_bytes(Path(source))
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    if pixels is None or pixels.ndim == 2:
        return pixels
    return np.ascontiguousarray(pixels[..., [2, 1, 0, 3][: pixels.shape[2]]])


def _colours_at_8_bit(pixels: np.ndarray, bits: int | None) -> np.ndarray:
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.ndim == 3 and pixels.shape[2] == 4:  # the alpha channel is no colour
        return np.dstack([to_8_bit(pixels[..., :3], bits), to_8_bit(pixels[..., 3])])
    return to_8_bit(pixels, bits)


def _at_8_bit(image: Image.Image, source: str | Path | bytes, page: TiffPage | None) -> Image.Image:
    """A grey image of more than 8 bits at 8; any other as it is."""
    if not image.mode.startswith("I") and image.mode != "F":
        return image
    bits = 16 if image.format == "PPM" else _bits(source, page)  # Pillow has scaled what a PPM says to 16 bits
    at_8_bit = Image.fromarray(to_8_bit(np.asarray(image), bits, page is not None and page.inverted))
    return _turned(at_8_bit, image.getexif().get(_ORIENTATION, 1))


def _bits(source: str | Path | bytes, page: TiffPage | None) -> int | None:
    """The bits that each value has, where the file tells: TIFF in two places, PNG in its chunk sBIT."""
    if page is None:
        with closing(_opened(source)) as file:
            return _significant_bits(file)
    if page.bits not in (8, 16, 32, 64):  # the size of the container says nothing
        return page.bits
    bits = page.largest.bit_length() if page.largest else page.bits
    return bits + bits % 2 if 8 < bits < page.bits else None


def _significant_bits(file: BinaryIO) -> int | None:
    """The largest number in a PNG's chunk sBIT (ISO/IEC 15948, 11.3.2.4)."""
    offset = 8
    while True:
        file.seek(offset)
        head = file.read(8)
        if len(head) < 8 or head[4:] in (b"IDAT", b"IEND"):
            return None
        (length,) = struct.unpack(">I", head[:4])
        if head[4:] == b"sBIT":
            return max(file.read(min(length, 4)), default=None)
        offset += length + 12


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    """The image turned as an EXIF orientation says."""
    image.getexif()[_ORIENTATION] = orientation
    return _upright(image)


def _upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF says; damaged EXIF says nothing."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # Pillow raises many kinds for damaged EXIF, which is dropped in any case
        return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA", "P"):  # a transparent border is black, like the camera's own
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    image = image.convert("RGB")
    image.info.clear()
    return image
