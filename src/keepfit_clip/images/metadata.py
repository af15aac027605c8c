"""Taking everything but the picture out of an encoded image, without decoding it.

JPEG (ITU-T T.81): application segments other than JFIF (APP0) and Adobe (APP14, which says how colours are coded) and
comments go. PNG (ISO/IEC 15948): only the chunks that make the picture stay. WebP (RFC 9649): EXIF, XMP and ICC go.
"""

import io
import struct
import warnings
from collections.abc import Callable

from PIL import Image

from keepfit_clip.images.reading import open_image

__all__ = ["without_metadata"]

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"gAMA", b"sRGB", b"cHRM", b"sBIT"}
_WEBP_KEPT = {b"VP8 ", b"VP8L", b"ALPH", b"VP8X"}
_WEBP_FLAGS_KEPT = 0b0001_0000  # of VP8X: alpha; not ICC, EXIF, XMP or animation
_START, _END, _SCAN = 0xD8, 0xD9, 0xDA
_ORIENTATION = 0x0112


def without_metadata(content: bytes, name: str = "image") -> tuple[str, bytes]:
    """Suffix and bytes of the same picture with no metadata.

    JPEG, PNG and WebP keep their coded pixels bit for bit, unless the picture lies on its side by its EXIF; that one
    and all other formats are stored as PNG.

    Args:
        content: an encoded image.
        name: what to call it in errors.

    Raises:
        ImageError: it cannot be read.
    """
    picture = open_image(content, name)
    try:
        strip = _way_to_strip(content)
        if strip is not None:
            return {_jpeg: "jpg", _png: "png", _webp: "webp"}[strip], strip(content)
    except Exception:  # an odd structure that a decoder forgives, of as many kinds as there are decoders
        pass
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return "png", buffer.getvalue()


def _way_to_strip(content: bytes) -> Callable[[bytes], bytes] | None:
    """What takes the metadata out of an upright picture; None where it must be stored anew."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(content)) as image:
            turned = image.getexif().get(_ORIENTATION, 1) not in (0, 1)
            strip = {"JPEG": _jpeg, "MPO": _jpeg, "PNG": _png, "WEBP": _webp}.get(image.format)
    return None if turned else strip


def _jpeg(content: bytes) -> bytes:
    kept = [content[:2]]
    at = 2
    while True:
        if content[at] != 0xFF:
            raise ValueError("no marker where one must be")
        marker = content[at + 1]
        if marker == 0xFF:  # filling
            at += 1
            continue
        if marker == _END:
            return b"".join([*kept, b"\xff\xd9"])
        (length,) = struct.unpack_from(">H", content, at + 2)
        end = at + 2 + length
        if marker == 0xFE or 0xE0 <= marker <= 0xEF:  # of these only the few bytes that say how to decode
            if content[at + 4 : at + 9] == b"JFIF\0" and marker == 0xE0:  # without its thumbnail
                kept.append(b"\xff\xe0\x00\x10" + content[at + 4 : at + 16] + b"\0\0")
            elif content[at + 4 : at + 9] == b"Adobe" and marker == 0xEE:
                kept.append(b"\xff\xee\x00\x0e" + content[at + 4 : at + 16])
        else:
            kept.append(content[at:end])
        at = end
        if marker == _SCAN:
            at = _scan_end(content, at)
            kept.append(content[end:at])


def _scan_end(content: bytes, at: int) -> int:
    """Where the next marker stands behind the coded data that begins here."""
    while True:
        at = content.index(b"\xff", at)
        if content[at + 1] == 0 or 0xD0 <= content[at + 1] <= 0xD7:  # a coded 0xFF, or a restart
            at += 2
        elif content[at + 1] == 0xFF:
            at += 1
        else:
            return at


def _png(content: bytes) -> bytes:
    kept, at = [_PNG], len(_PNG)
    while True:
        length, kind = struct.unpack_from(">I4s", content, at)
        end = at + 12 + length
        if end > len(content):
            raise ValueError("cut off")
        if kind in _PNG_KEPT:
            kept.append(content[at:end])
        if kind == b"IEND":
            return b"".join(kept)
        at = end


def _webp(content: bytes) -> bytes:
    kept, at = [], 12
    (riff_size,) = struct.unpack_from("<I", content, 4)
    while at + 8 <= min(len(content), riff_size + 8):
        kind, size = struct.unpack_from("<4sI", content, at)
        end = at + 8 + size + size % 2
        chunk = content[at:end]
        if kind == b"VP8X":
            chunk = chunk[:8] + bytes([chunk[8] & _WEBP_FLAGS_KEPT]) + chunk[9:]
        if kind in _WEBP_KEPT:
            kept.append(chunk)
        at = end
    body = b"WEBP" + b"".join(kept)
    return b"RIFF" + struct.pack("<I", len(body)) + body
