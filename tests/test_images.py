"""Images: every usual format becomes upright RGB; bad ones end in one clear error."""

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from keepfit_clip.errors import ImageError
from keepfit_clip.images.reading import MAX_IMAGE_BYTES, FileSlice, encode_jpeg, image_bytes, open_image


def encoded(image, fmt, **options):
    buffer = io.BytesIO()
    image.save(buffer, format=fmt, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "CMYK", "1", "I;16"])
def test_modes_become_rgb(mode):
    if mode == "I;16":
        image = Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100)
    else:
        image = Image.new("RGB", (30, 20), (200, 100, 50)).convert(mode)
    read = open_image(encoded(image, "TIFF" if mode == "CMYK" else "PNG"))
    assert (read.mode, read.size) == ("RGB", (30, 20))
    if mode == "I;16":
        assert np.asarray(read)[0, 0, 0] == 0
        assert np.asarray(read)[-1, -1, 0] == round(599 * 100 / 65535 * 255)


def test_exif_rotation_is_applied_and_no_metadata_stays():
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    exif[0x013B] = "Jane Doe"
    data = encoded(Image.new("RGB", (40, 20)), "JPEG", exif=exif, comment=b"Jane Doe")
    assert b"Jane Doe" in data
    image = open_image(data)
    assert image.size == (20, 40)
    assert b"Jane Doe" not in encode_jpeg(image)
    assert not Image.open(io.BytesIO(encode_jpeg(image))).getexif()


def bomb():
    """A PNG that claims to be 40000 x 40000 pixels."""
    header = struct.pack(">IIBBBBB", 40000, 40000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"no picture at all", "not an image"),
        (encoded(Image.effect_noise((64, 64), 50), "JPEG")[:900], "truncated"),
        (encoded(Image.effect_noise((64, 64), 50), "PNG")[:900], "truncated"),
        (bomb(), "million pixels"),
    ],
    ids=["empty", "text", "cut jpeg", "cut png", "bomb"],
)
def test_bad_images(tmp_path, content, message):
    path = tmp_path / "Jane_Doe.png"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=message) as caught:
        open_image(path)
    assert "Jane_Doe.png" in str(caught.value)
    assert "Jane" not in caught.value.reason


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(ImageError, match="missing"):
        open_image(tmp_path / "none.png")
    for read in (open_image, image_bytes):
        with pytest.raises(ImageError, match="a folder, where an image is meant"):
            read(tmp_path)


def test_a_huge_file_is_refused_before_it_is_read(tmp_path):
    with open(tmp_path / "huge.tif", "wb") as file:
        file.truncate(MAX_IMAGE_BYTES + 1)  # takes no room on the disk
    with pytest.raises(ImageError, match="more than 256 MiB"):
        image_bytes(tmp_path / "huge.tif")
    with pytest.raises(ImageError, match="more than 256 MiB"):
        open_image(FileSlice(tmp_path / "huge.tif", 0, MAX_IMAGE_BYTES + 1))


def test_damaged_exif_does_not_cost_the_image():
    data = bytearray(encoded(Image.new("RGB", (40, 20), (9, 99, 199)), "JPEG", exif=_exif()))
    start = data.index(b"Exif")
    rng = np.random.default_rng(0)
    for _ in range(200):
        fuzzed = bytearray(data)
        for position in rng.integers(start + 6, start + 60, 4):
            fuzzed[position] = rng.integers(256)
        with contextlib.suppress(ImageError):  # the damage reached the picture; any other exception fails the test
            assert open_image(bytes(fuzzed)).mode == "RGB"


def _exif():
    exif = Image.Exif()
    exif[0x0112], exif[0x011A], exif[0x013B] = 6, 72.0, "Jane Doe"
    return exif


def test_an_image_too_wide_for_jpeg_is_one_clear_error():
    with pytest.raises(ImageError, match="cannot be stored as JPEG"):
        encode_jpeg(Image.new("RGB", (65600, 1)))
