"""Pictures of more than 8 bits look as they would at 8; those that show nothing, or several, are told."""

import io
import json
import struct
import sys
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from keepfit_clip.cli import main
from keepfit_clip.data import ShardOptions, build_shards
from keepfit_clip.data.shards.inspection import check_shards
from keepfit_clip.data.stream.decoding import make_resizer
from keepfit_clip.drawing import draw_retina
from keepfit_clip.errors import ImageError, ShardError
from keepfit_clip.images.depth import is_blank, to_8_bit
from keepfit_clip.images.reading import open_image
from tests.conftest import PREPROCESS
from tests.pictures import write_table
from tests.test_building import encoded, exif, labelled, picture, shown

SIZE = (64, 96)
DRAWN = np.asarray(draw_retina("CFP", "diabetic retinopathy", [5], 96, "left").image)[:64]
ORIGINAL = np.minimum(DRAWN.astype(int) * 2, 250).astype(np.uint8)  # well exposed: its brightest places are no outliers
GREY = np.asarray(Image.fromarray(ORIGINAL).convert("L"))


def tiff(pixels):
    return cv2.imencode(".tif", pixels[..., ::-1] if pixels.ndim == 3 else pixels)[1].tobytes()


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(pixels, *more):
    """A PNG with more chunks behind its head."""
    content = cv2.imencode(".png", pixels[..., ::-1] if pixels.ndim == 3 else pixels)[1].tobytes()
    return content[:33] + b"".join(more) + content[33:]


def with_tag(content, tag, value):
    """A little-endian TIFF of one page with one more number in its directory, which moves to the end."""
    (place,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, place)
    entries = [content[place + 2 + 12 * i :][:12] for i in range(count)] + [struct.pack("<HHIHH", tag, 3, 1, value, 0)]
    entries.sort(key=lambda entry: struct.unpack_from("<H", entry))
    content += b"\0" * (len(content) % 2)
    head = content[:4] + struct.pack("<I", len(content)) + content[8:]
    return head + struct.pack("<H", count + 1) + b"".join(entries) + b"\0\0\0\0"


def read(content):
    return np.asarray(open_image(content))


def assert_like(pixels, original, by=1.5):
    expected = original if original.ndim == pixels.ndim else np.dstack([original] * 3)
    assert np.abs(pixels.astype(int) - expected).mean() < by


# -- one rule for colour and grey -------------------------------------------------------------------------------------


@pytest.mark.parametrize("encode", [tiff, png])
@pytest.mark.parametrize("original", [ORIGINAL, GREY], ids=["colour", "grey"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_a_camera_of_any_depth_in_16_bits_gives_the_picture_of_8_bits(encode, original, bits):
    top = original.astype(float) / original.max()  # the brightest place tells the depth
    deep = (top * ((1 << bits) - 1)).round().astype(np.uint16)
    assert_like(read(encode(deep)), (top * 255).round())


@pytest.mark.parametrize("original", [ORIGINAL, GREY], ids=["colour", "grey"])
def test_colour_and_grey_are_brought_to_the_same_values(original):
    ramp = np.arange(64 * 96).reshape(SIZE).astype(np.uint16) % 3000
    colour, grey = read(tiff(np.dstack([ramp] * 3))), read(tiff(ramp))
    assert (colour == grey).all()


@pytest.mark.parametrize("hot", [1, 3])
def test_hot_pixels_do_not_blacken_the_rest(hot):
    deep = GREY.astype(np.uint16) * 16
    deep[:1, :hot] = 65535
    assert_like(read(png(deep)), GREY)
    bright = GREY.astype(np.float32) / 255
    bright[:1, :hot] = 1e6
    assert_like(read(tiff(bright)), GREY / GREY.max() * 255.0, by=3)


@pytest.mark.parametrize("fill", [np.nan, np.inf, -np.inf, float(np.finfo(np.float32).max), 1e36])
@pytest.mark.parametrize("original", [ORIGINAL, GREY], ids=["colour", "grey"])
def test_what_is_no_number_is_black_and_the_rest_is_seen(fill, original):
    floating = original.astype(np.float32) / 255
    floating[:, :6] = fill
    expected = original / original.max() * 255.0
    pixels = read(tiff(floating))
    assert not pixels[:, :6].any()
    assert_like(pixels[:, 6:], expected[:, 6:], by=4)


def test_the_file_says_how_many_bits_it_has():
    dark = (GREY.astype(np.uint16) * 16) // 8  # 12 bits, badly exposed: of itself it would pass for 10
    assert_like(read(png(dark)), np.minimum(GREY // 8 * 4.0, 255), by=3)
    for said in (png(dark, chunk(b"sBIT", b"\x0c")), with_tag(tiff_uncompressed(dark), 281, 4095)):
        assert_like(read(said), GREY / 8.0)
    shifted = dark << 4  # as PNG asks for
    assert_like(read(png(shifted * 8, chunk(b"sBIT", b"\x0c"))), GREY)


def tiff_uncompressed(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "TIFF")
    return buffer.getvalue()


def test_a_picture_whose_0_is_white_is_not_a_negative():
    deep = GREY.astype(np.uint16) * 257
    white = bytearray(tiff_uncompressed(65535 - deep))
    (place,) = struct.unpack_from("<I", white, 4)
    (count,) = struct.unpack_from("<H", white, place)
    entry = next(
        p for p in range(place + 2, place + 2 + 12 * count, 12) if struct.unpack_from("<H", white, p)[0] == 262
    )
    white[entry + 8 : entry + 10] = b"\0\0"
    assert_like(read(bytes(white)), GREY)


@pytest.mark.parametrize("original", [ORIGINAL, GREY], ids=["colour", "grey"])
def test_a_deep_picture_on_its_side_is_turned(original):
    lying = np.rot90(original).astype(np.uint16) * 257
    exif_chunk = chunk(b"eXIf", exif(6).tobytes().removeprefix(b"Exif\0\0"))
    assert_like(read(png(lying, exif_chunk)), original)
    if original.ndim == 2:
        assert_like(read(with_tag(tiff_uncompressed(lying), 274, 6)), original)


def test_transparent_places_of_a_deep_picture_are_black():
    deep = np.dstack([ORIGINAL.astype(np.uint16) * 257, np.full(SIZE, 65535, np.uint16)])
    deep[:, :10, 3] = 0
    content = cv2.imencode(".png", deep[..., [2, 1, 0, 3]])[1].tobytes()
    pixels = read(content)
    assert not pixels[:, :10].any()
    assert_like(pixels[:, 10:], ORIGINAL[:, 10:])


def test_negative_and_wide_numbers_are_stretched():
    wide = (GREY.astype(np.int32) * 1000 - 70000).astype(np.int32)
    low, high = int(GREY.min()), int(GREY.max())
    assert_like(to_8_bit(wide), (GREY - low) / (high - low) * 255.0, by=3)
    assert not to_8_bit(np.full((4, 4), np.nan)).any()
    assert not to_8_bit(np.full((4, 4), 1e38)).any()


@pytest.mark.parametrize("fmt", ["PNG", "TIFF", "BMP", "WEBP"])
def test_8_bits_stay_as_they_are(fmt):
    options = {"lossless": True} if fmt == "WEBP" else {}
    assert (read(encoded(Image.fromarray(ORIGINAL), fmt, **options)) == ORIGINAL).all()
    assert (read(encoded(Image.fromarray(ORIGINAL // 9), fmt, **options)) == ORIGINAL // 9).all()


@pytest.mark.parametrize("encode", [png, tiff])
def test_a_deep_file_that_is_cut_off_is_an_error(encode):
    content = encode(ORIGINAL.astype(np.uint16) * 257)
    with pytest.raises(ImageError, match=r"truncated or damaged|not an image"):
        open_image(content[: len(content) // 2])


@pytest.mark.parametrize("encode", [png, tiff])
def test_training_sees_what_inference_sees(encode):
    content = encode(ORIGINAL.astype(np.uint16) * 16)
    values = {**PREPROCESS, "size": 64}
    fast, exact = make_resizer(values)(content), make_resizer(values, exact=True)(content)
    assert np.abs(fast.astype(int) - exact).mean() < 2
    assert fast.mean() > 20


# -- several pages ----------------------------------------------------------------------------------------------------


def pages(fmt, count=5, **options):
    first, *others = (picture(i, 48) for i in range(count))
    return encoded(first, fmt, save_all=True, append_images=others, **options)


@pytest.mark.parametrize(("fmt", "count"), [("TIFF", 5), ("MPO", 2), ("PNG", 3), ("WEBP", 3)])
def test_page_one_does_not_stand_for_the_others(tmp_path, fmt, count):
    content = pages(fmt, count)
    if fmt == "MPO":
        content = as_stereo(content)
    for take in (open_image, make_resizer({**PREPROCESS, "size": 32})):
        with pytest.raises(ImageError, match=f"has {count} pages; store each as a file of its own"):
            take(content)
    table = labelled(tmp_path, {"a.png": encoded(picture(9)), "b.img": content})
    report = build_shards(table, tmp_path, tmp_path / "out", ShardOptions("public"))
    assert set(shown(tmp_path / "out")) == {"a.png"}
    assert [row.row for row in report.left_out] == [2]
    assert f"{count} pages" in report.left_out[0].reason


def as_stereo(content, kind=0x020002):
    """The same MPO whose pictures are of another kind: a stereo pair, or 0 for whatever a telephone adds."""
    start = content.index(b"MPF\0") + 4
    order = "<" if content[start : start + 2] == b"II" else ">"
    (directory,) = struct.unpack_from(f"{order}I", content, start + 4)
    changed = bytearray(content)
    (count,) = struct.unpack_from(f"{order}H", content, start + directory)
    for entry in range(start + directory + 2, start + directory + 2 + 12 * count, 12):
        if struct.unpack_from(f"{order}H", content, entry)[0] == 0xB002:
            size, place = struct.unpack_from(f"{order}II", content, entry + 4)
            for picture_entry in range(start + place, start + place + size, 16):
                struct.pack_into(f"{order}I", changed, picture_entry, kind)
    return bytes(changed)


def test_a_preview_or_gain_map_behind_a_photograph_is_no_page():
    assert open_image(as_stereo(pages("MPO", 2), kind=0)).size == (48, 48)
    assert open_image(as_stereo(pages("MPO", 2), kind=0x010001)).size == (48, 48)


def test_a_smaller_copy_in_a_tiff_is_no_page():
    content = bytearray(pages("TIFF", 2))
    (first,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, first)
    (second,) = struct.unpack_from("<I", content, first + 2 + 12 * count)
    at = second + 2  # its first tag makes room for the kind of page
    struct.pack_into("<HHII", content, at, 254, 4, 1, 1)
    with pytest.raises(ImageError, match="2 pages"):
        open_image(pages("TIFF", 2))
    struct.pack_into("<HHII", content, at, 254, 4, 1, 1)
    assert open_image(bytes(content)).size == (48, 48)


def test_a_tiff_whose_pages_go_in_circles_or_never_end_is_read_at_once():
    content = bytearray(pages("TIFF", 2))
    (first,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, first)
    struct.pack_into("<I", content, first + 2 + 12 * count, first)
    assert open_image(bytes(content)).size == (48, 48)
    one = encoded(picture(0, 16), "TIFF")
    (place,) = struct.unpack_from("<I", one, 4)
    (count,) = struct.unpack_from("<H", one, place)
    directory = one[place : place + 2 + 12 * count]
    chain, start = one + b"\0" * (len(one) % 2), len(one) + len(one) % 2
    step = len(directory) + 4
    chain += b"".join(directory + struct.pack("<I", start + step * (i + 1)) for i in range(20_000))
    chain = chain[: place + 2 + 12 * count] + struct.pack("<I", start) + chain[place + 6 + 12 * count :]
    with pytest.raises(ImageError, match="4096 pages"):
        open_image(chain)


# -- pictures that show nothing ---------------------------------------------------------------------------------------


def nothing():
    rng = np.random.default_rng(0)
    hot = np.zeros((64, 64, 3), np.uint8)
    hot[:1, :4] = 255
    return {
        "black.png": Image.new("RGB", (64, 64)),
        "grey.png": Image.new("RGB", (64, 64), (128, 128, 128)),
        "white.png": Image.new("RGB", (64, 64), (255, 255, 255)),
        "blue.png": Image.new("RGB", (64, 64), (0, 0, 200)),
        "noise.png": Image.fromarray(rng.integers(0, 9, (64, 64, 3), dtype=np.uint8)),
        "hot.png": Image.fromarray(hot),
        "shifted.png": Image.fromarray(ORIGINAL // 16),  # 12 bits whose upper half was taken
    }


def test_what_shows_nothing():
    assert all(is_blank(image) for image in nothing().values())
    for modality, condition in (("CFP", "normal"), ("FFA", "normal"), ("OCT", "normal")):
        image = draw_retina(modality, condition, [1], 128, "left").image.convert("RGB")
        assert not is_blank(image)
        assert not is_blank(image.point(lambda value: value // 4))
    one_lesion = Image.new("RGB", (64, 64), (90, 40, 20))
    one_lesion.paste((200, 40, 20), (30, 30, 34, 34))
    assert not is_blank(one_lesion)


def test_a_build_leaves_it_out_and_a_check_names_it(tmp_path):
    contents = {name: encoded(image) for name, image in nothing().items()}
    table = labelled(tmp_path, {"good.png": encoded(picture(3)), **contents})
    report = build_shards(table, tmp_path, tmp_path / "out", ShardOptions("public"))
    assert set(shown(tmp_path / "out")) == {"good.png"}
    assert len(report.left_out) == len(contents)
    assert all("even or nearly black (--keep-blank keeps it)" in reason for _, reason, _ in report.left_out)
    kept = ShardOptions("public", keep_blank=True, originals=True)
    assert build_shards(table, tmp_path, tmp_path / "kept", kept).samples == 1 + len(contents)
    assert not [p for p in check_shards(tmp_path / "kept") if "nearly black" in p.what]
    manifest = tmp_path / "kept" / "manifest.json"
    stored = json.loads(manifest.read_text())
    del stored["options"]["keep_blank"]  # as of a build that did not look
    manifest.write_text(json.dumps(stored))
    assert len([p for p in check_shards(tmp_path / "kept") if "even or nearly black" in p.what]) == len(contents)


def test_only_blank_pictures_are_one_error(tmp_path):
    table = labelled(tmp_path, {"black.png": encoded(Image.new("RGB", (64, 64)))})
    with pytest.raises(ShardError, match="even or nearly black"):
        build_shards(table, tmp_path, tmp_path / "out", ShardOptions("public"))


def command(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["keepfit-clip", *map(str, words)])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as caught:
        main()
    return caught.value.code or 0, capsys.readouterr()


def test_no_model_is_asked_about_it(tmp_path, exported, monkeypatch, capsys):
    good, black, stack = tmp_path / "good.png", tmp_path / "black.png", tmp_path / "stack.tif"
    picture(3).save(good)
    Image.new("RGB", (64, 64)).save(black)
    stack.write_bytes(pages("TIFF", 5))
    for words in (
        ("classify", "--categories", "normal,glaucoma"),
        ("caption",),
        ("explain", "--no-words", "--no-grad-cam", "--out", tmp_path / "explained"),
    ):
        code, printed = command(monkeypatch, capsys, words[0], good, black, stack, "--model", exported, *words[1:])
        assert code == 1
        assert "2 images left out" in printed.err
        assert "black.png: the picture shows nothing: it is even or nearly black" in printed.err
        assert "stack.tif: the file has 5 pages" in printed.err
    rows = [{"image": path.name, "categories": label} for path, label in ((good, "normal"), (black, "glaucoma"))]
    rows += [{"image": good.name, "categories": "glaucoma"}]
    table = write_table(tmp_path / "table.csv", rows)
    code, printed = command(
        monkeypatch, capsys, "evaluate", table, "--images", tmp_path, "--model", exported, "--classes",
        "normal,glaucoma", "--json", tmp_path / "scores.json",
    )  # fmt: skip
    assert code == 0
    assert "black.png: the picture shows nothing" in printed.err
    assert json.loads((tmp_path / "scores.json").read_text())["images"] == 2
