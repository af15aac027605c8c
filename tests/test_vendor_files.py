"""OCT vendors' own files work like DICOM files, and nothing of their headers leaves the program.

The files are written here by hand, in the layouts that are published; none of a device was at hand.
"""

import csv
import io
import struct
import subprocess
import sys
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image, features
from typer.testing import CliRunner

from keepfit_clip.cli import app
from keepfit_clip.data import SourceOptions, read_records
from keepfit_clip.errors import ImageError
from keepfit_clip.images.metadata import without_metadata
from keepfit_clip.images.reading import Frame, image_bytes, open_image
from keepfit_clip.images.volumes import volume_facts

NAME, ID = b"Mustermann", b"MRN-7654321"
SECRETS = (NAME, ID, b"1961", "Mustermann".encode("utf-16-le"), b"HSF-", b"MDb", b"FOCT")
WIDTH, HEIGHT = 24, 20


def grey(values):
    """How reflectivities are shown, written out once more."""
    return np.clip((np.log(np.asarray(values, np.float64) + 2.44e-4) + 8.3) / 8.285, 0, 1) * 255


def reflectivities(count, seed=0):
    return np.random.default_rng(seed).uniform(0, 1, (count, HEIGHT, WIDTH)).astype(np.float32)


def write_vol(path, values, eye=b"OD", **changed):
    """A .vol file of reflectivities (B-scans, H, W), with an SLO image of 8 x 6 and three segmented layers."""
    count, height, width = values.shape
    head = 256 + 4 * 3 * width + 64
    said = {"count": count, "height": height, "width": width, "head": head} | changed
    header = struct.pack("<12s3I3d", b"HSF-OCT-103", said["width"], said["count"], said["height"], 0.011, 0.12, 0.0039)
    header += struct.pack("<2I2dId4sQ2I", 8, 6, 0.03, 0.03, 30, 0.5, eye, 131 * 10**15, 3, said["head"])
    header += struct.pack("<16s16sI24sdI24sd", b"2390", b"", 1961, ID + b" \xfc", 22345.0, 7, NAME, 45000.0)
    parts = [header.ljust(2048, b"\0"), bytes(range(48))]
    for bscan in values:
        own = struct.pack("<12sI4d2IfI6f", b"HSF-BS-103", head, 0, 0, 1, 0, 3, 256, 30.0, 0, *[0] * 6).ljust(256, b"\0")
        parts += [own.ljust(head, b"\0"), bscan.astype("<f4").tobytes()]
    path.write_bytes(b"".join(parts))
    return path


def e2e_numbers(values):
    """Floats from 0 to 2 as .e2e codes them: no sign, 6 bits of exponent, 10 of mantissa."""
    mantissa, exponent = np.frexp(np.maximum(values, 2.0**-60))  # mantissa in [0.5, 1)
    return ((exponent + 62) << 10 | ((mantissa * 2 - 1) * 1024).astype(int)).astype("<u2")


def write_e2e(path, volumes, base=0):
    """An .e2e file of coded volumes: {(series, eye): uint16 (B-scans, H, W)}, in two directories."""
    things = [(0, -1, 9, 0, NAME.ljust(31, b"\0") + b"Erika".ljust(66, b"\0") + struct.pack("<I1s25s", 1961, b"F", ID))]
    for (series, eye), values in volumes.items():
        things.append((series, -1, 11, 0, bytes(14) + eye + bytes(12)))
        slo = np.arange(48, dtype=np.uint8).tobytes()
        things.append((series, -1, 0x40000000, 0, struct.pack("<5I", 48, 33620481, 48, 6, 8) + slo))
        for number, bscan in enumerate(values):
            height, width = bscan.shape
            head = struct.pack("<5I", bscan.nbytes, 35652097, bscan.size, height, width)
            things.append((series, 2 * number, 0x40000000, 1, head + bscan.astype("<u2").tobytes()))
    head = struct.pack("<12sI20s", b"CMDb", 100, b"")
    body, before = bytearray(head + bytes(52)), 0
    for some in (things[: len(things) // 2], things[len(things) // 2 :]):
        at = len(body)
        start, entries, containers = at + 52 + 44 * (len(some) + 1), bytes(44), b""  # the first entry is not used
        for series, number, kind, index, content in some:
            place = start + len(containers)
            ids = struct.pack("<4i2HI", 5, 6, series, number, index, 0, kind)
            entries += struct.pack("<4I", at, place, len(content), 0) + ids + bytes(4)
            containers += struct.pack("<12s5I", b"MDbData", 0, at, place, len(content), 0) + ids + bytes(4) + content
        body += struct.pack("<12sI20s4I", b"MDbDir", 100, b"", len(some) + 1, at, before, 0) + entries + containers
        before = at
    body[36:88] = struct.pack("<12sI20s4I", b"MDbMDir", 100, b"", 0, before, 0, 0)
    path.write_bytes((b"E2EMultipleVolumeFile".ljust(base, b"\0") if base else b"") + bytes(body))
    return path


def chunk(name, content):
    return bytes([len(name)]) + name + struct.pack("<I", len(content)) + content


def write_fda(path, values, eye=1, coded=True, pictures=True, **changed):
    """An .fda file of (B-scans, H, W): uint8 as JPEG 2000, uint16 plain."""
    count, height, width = values.shape
    said = {"count": count, "height": height, "width": width} | changed
    patient = ID.ljust(32, b"\0") + NAME.ljust(32, b"\0") + bytes(72) + b"\x02" + struct.pack("<3H", 1961, 3, 5)
    parts = [b"FOCTFDA", struct.pack("<2I", 2, 1000), chunk(b"@PATIENT_INFO_02", patient)]
    parts.append(chunk(b"@CAPTURE_INFO_02", struct.pack("<2BI100s6H", eye, 2, 9, NAME, 2019, 4, 3, 10, 11, 12)))
    parts.append(chunk(b"@PARAM_SCAN_04", struct.pack("<3I5d2B", 1, 2, 3, 6.0, 6.0, 2.6, 0, 0, 1, 1)))
    shape = (said["width"], said["height"])
    if pictures and coded:
        content = struct.pack("<B6I", 2, 0, 0, *shape, said["count"], 0)
        for bscan in values:
            buffer = io.BytesIO()
            Image.fromarray(bscan).save(buffer, "JPEG2000", irreversible=False, no_jp2=True)
            content += struct.pack("<I", len(buffer.getvalue())) + buffer.getvalue()
        parts.append(chunk(b"@IMG_JPEG", content))
    elif pictures:
        content = struct.pack("<B4IBI", 2, *shape, 16, said["count"], 0, values.nbytes) + values.astype("<u2").tobytes()
        parts.append(chunk(b"@IMG_MOT_COMP_03", content))
    path.write_bytes(b"".join([*parts, b"\0"]))
    return path


def eight_bits(count):
    ramp = np.add.outer(np.arange(HEIGHT), np.arange(WIDTH)).astype(np.uint8)
    return np.stack([ramp + 40 * number for number in range(count)])


def write(kind, path, count=5):
    """A file of a kind, whose B-scans grow brighter; the eye is the left one."""
    steps = np.linspace(0.02, 0.5, count)[:, None, None] * np.linspace(0.2, 1, WIDTH)
    values = np.broadcast_to(steps, (count, HEIGHT, WIDTH)).astype(np.float32)
    path = path.with_suffix("." + kind)
    if kind == "vol":
        return write_vol(path, values, b"OS")
    return write_e2e(path, {(3, b"L"): e2e_numbers(values)}) if kind == "e2e" else write_fda(path, eight_bits(count))


KINDS = pytest.mark.parametrize("kind", ["vol", "e2e", "fda"])


def pixels(image):
    return np.asarray(image)[..., 0].astype(int) if image.mode == "RGB" else np.asarray(image).astype(int)


def frame(path, number):
    return pixels(Image.open(io.BytesIO(image_bytes(Frame(path, number)))))


def test_vol(tmp_path):
    values = reflectivities(4)
    values[1, 0, :3] = np.nan, np.finfo(np.float32).max, np.inf
    values[1, 1, :3] = -1, 0, 1.5
    path = write_vol(tmp_path / "a.vol", values)
    assert frame(path, 3) == pytest.approx(grey(values[3]), abs=1)
    shown = frame(path, 1)
    assert shown[0, :3].tolist() == [0, 0, 0]
    assert shown[1, :3].tolist() == [0, 0, 255]
    assert shown[2:] == pytest.approx(grey(values[1, 2:]), abs=1)
    (facts,) = volume_facts(path)
    assert (facts.frames, facts.eye, facts.modality, facts.spacing) == (4, "right", "OCT", (0.0039, 0.011))
    assert (facts.width, facts.height) == (WIDTH, HEIGHT)
    assert np.array_equal(pixels(open_image(path)), frame(path, 2))
    assert np.array_equal(pixels(open_image(path.read_bytes())), frame(path, 2))


@pytest.mark.parametrize("base", [0, 64])
def test_e2e(tmp_path, base):
    right, left = reflectivities(3), reflectivities(4, 1)
    coded = e2e_numbers(right)
    coded[0, 0, 0] = 0xFFFF  # where there is nothing
    path = write_e2e(tmp_path / "a.e2e", {(11, b"R"): coded, (12, b"L"): e2e_numbers(left)}, base)
    assert frame(path, 0)[0, 0] == 0
    assert frame(path, 1) == pytest.approx(grey(right[1]), abs=1)
    assert frame(path, 6) == pytest.approx(grey(left[3]), abs=1)
    facts = volume_facts(path)
    assert [(f.first, f.frames, f.eye, f.modality) for f in facts] == [(0, 3, "right", "OCT"), (3, 4, "left", "OCT")]
    assert np.array_equal(pixels(open_image(path)), frame(path, 5))  # the middle of the larger


@pytest.mark.skipif(not features.check("jpg_2000"), reason="this Pillow reads no JPEG 2000")
def test_fda_of_jpeg_2000(tmp_path):
    values = eight_bits(3)
    path = write_fda(tmp_path / "a.fda", values)
    for number in range(3):
        assert np.array_equal(frame(path, number), values[number])
    (facts,) = volume_facts(path)
    assert (facts.frames, facts.eye, facts.modality) == (3, "left", "OCT")
    assert facts.spacing == pytest.approx((0.0026, 6 / WIDTH))


def test_fda_of_plain_numbers(tmp_path):
    values = np.stack([np.tile(np.linspace(0, 4095, WIDTH), (HEIGHT, 1))] * 2).astype(np.uint16)
    path = write_fda(tmp_path / "a.fda", values, eye=0, coded=False)
    assert frame(path, 1) == pytest.approx(values[1] / 4095 * 255, abs=1)
    assert volume_facts(path)[0].eye == "right"


def rows_of(tmp_path, *lines, **options):
    with open(tmp_path / "t.csv", "w", newline="") as file:
        csv.writer(file).writerows(lines)
    return list(read_records(tmp_path / "t.csv", tmp_path, options=SourceOptions(**options)))


@KINDS
def test_frames_of_a_table(tmp_path, kind):
    path = write(kind, tmp_path / "v")

    def read(frames):
        return rows_of(tmp_path, ("image", "categories"), (path.name, "normal"), frames=frames)

    (middle,) = read("middle")
    assert (middle.image, middle.eye, middle.modality, middle.slice) == (Frame(path, 2), "left", "OCT", 3)
    assert [record.image.number for record in read("all")] == [0, 1, 2, 3, 4]
    assert [record.slice for record in read("every:2")] == [1, 3, 5]
    assert len({record.volume for record in read("all")}) == len({record.patient for record in read("all")}) == 1
    bright = [frame(path, number).mean() for number in range(5)]
    assert bright == sorted(bright)


def test_both_eyes_in_one_file(tmp_path):
    values = e2e_numbers(reflectivities(3))
    path = write_e2e(tmp_path / "a.E2E", {(1, b"R"): values, (2, b"L"): values[:1]})
    both = rows_of(tmp_path, ("image", "categories"), (path.name, "normal"), frames="all")
    assert [record.image.number for record in both] == [0, 1, 2, 3]
    assert [(record.eye, record.slice) for record in both] == [("right", 1), ("right", 2), ("right", 3), ("left", 1)]
    assert len({record.volume for record in both}) == 2
    assert len({record.patient for record in both}) == 1
    (left,) = rows_of(tmp_path, ("image", "categories", "eye"), (path.name, "normal", "OS"))
    assert (left.image, left.eye) == (Frame(path, 3), "left")
    single = write_e2e(tmp_path / "b.e2e", {(1, b"R"): values[:1]})
    (record,) = rows_of(tmp_path, ("image", "categories"), (single.name, "normal"))
    assert (record.image, record.eye, record.volume) == (single, "right", None)


@KINDS
@pytest.mark.parametrize("originals", [[], ["--originals"]])
def test_nothing_of_the_header_reaches_a_shard(tmp_path, capfd, kind, originals):
    path = write(kind, tmp_path / "v")
    damaged = write(kind, tmp_path / "Mustermann").rename(tmp_path / f"d.{kind}")
    damaged.write_bytes(damaged.read_bytes()[:-200])
    with open(tmp_path / "t.csv", "w", newline="") as file:
        csv.writer(file).writerows([("image", "categories"), (path.name, "normal"), (damaged.name, "normal")])
    out = tmp_path / "shards"
    arguments = ["shards", "build", str(tmp_path / "t.csv"), "--images", str(tmp_path), "--out", str(out), *originals]
    arguments += ["--kind", "public", "--frames", "all", "--workers", "1"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    content = b"".join(file.read_bytes() for file in sorted(out.iterdir()))
    assert b'"modality": "OCT"' in content
    assert b'"eye": "left"' in content
    said = "".join([result.output, *capfd.readouterr()]).encode()
    assert not [secret for secret in SECRETS if secret in content or secret in said]
    suffix, stripped = without_metadata(path.read_bytes())
    assert suffix == "png"
    assert not [secret for secret in SECRETS if secret in stripped]


@KINDS
def test_a_file_that_is_cut_off_is_one_clear_error(tmp_path, capfd, kind):
    content = write(kind, tmp_path / "v", count=2).read_bytes()
    cut = tmp_path / f"cut.{kind}"
    lengths = {0, 1, 6, 15, 40, 88, 100, 200, 2047, 2048, *range(20, len(content), 97), len(content) - 2}
    for length in sorted(length for length in lengths if length < len(content) - 1):
        cut.write_bytes(content[:length])
        for read in (lambda: open_image(cut), lambda: image_bytes(Frame(cut, 1)), lambda: volume_facts(cut, str(cut))):
            with pytest.raises(ImageError) as error:
                read()
            assert "\n" not in str(error.value)
            assert not [secret for secret in SECRETS if secret in str(error.value).encode()]
    assert capfd.readouterr() == ("", "")


@KINDS
def test_bytes_changed_at_random_raise_our_errors_alone(tmp_path, capfd, kind):
    content = np.frombuffer(write(kind, tmp_path / "v", count=2).read_bytes(), np.uint8)
    random = np.random.default_rng(0)
    for _ in range(150):
        damaged = content.copy()
        places = random.integers(0, min(len(content), 2500), random.integers(1, 12))
        damaged[places] = random.choice([0, 1, 127, 255, random.integers(256)], len(places))
        damaged[:8] = content[:8]
        for read in (open_image, volume_facts):
            with suppress(ImageError):
                read(damaged.tobytes())
    assert capfd.readouterr() == ("", "")


def test_what_cannot_be_in_the_file_is_not_asked_for(tmp_path):
    values = reflectivities(2)
    huge = 1 << 31
    for changed in ({"count": huge}, {"width": huge}, {"height": huge}, {"head": 0}):
        with pytest.raises(ImageError, match=r"Heidelberg \.vol file is truncated or damaged"):
            open_image(write_vol(tmp_path / "a.vol", values, **changed))
    for changed in ({"count": huge}, {"width": huge}, {"height": 5}):
        for coded in (True, False):
            stored = eight_bits(2) if coded else eight_bits(2).astype(np.uint16)
            with pytest.raises(ImageError, match=r"Topcon \.fda file is truncated or damaged|million pixels"):
                open_image(write_fda(tmp_path / "a.fda", stored[:, : None if coded else 4], coded=coded, **changed))
    with pytest.raises(ImageError, match="million pixels"):
        open_image(write_vol(tmp_path / "a.vol", values), max_pixels=100)
    with pytest.raises(ImageError, match="has 2 frames, none of number 7"):
        image_bytes(Frame(write_vol(tmp_path / "a.vol", values), 7))
    many = np.zeros((20_000, 1, 1), np.float32)
    with pytest.raises(ImageError, match="more than 16384 B-scans"):
        open_image(write_vol(tmp_path / "a.vol", many))


def test_directories_that_lead_in_a_circle(tmp_path):
    path = write_e2e(tmp_path / "a.e2e", {(1, b"R"): e2e_numbers(reflectivities(2))})
    content = bytearray(path.read_bytes())
    (last,) = struct.unpack_from("<I", content, 36 + 40)
    struct.pack_into("<I", content, last + 44, last)
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"Heidelberg \.e2e file is truncated or damaged"):
        open_image(path)


def test_a_file_without_b_scans(tmp_path):
    nothing = np.zeros((0, HEIGHT, WIDTH), np.uint8)
    paths = [write_vol(tmp_path / "a.vol", nothing), write_e2e(tmp_path / "a.e2e", {}),
             write_e2e(tmp_path / "b.e2e", {(1, b"R"): nothing}), write_fda(tmp_path / "a.fda", nothing),
             write_fda(tmp_path / "b.fda", nothing, pictures=False)]  # fmt: skip
    for path in paths:
        with pytest.raises(ImageError, match="holds no B-scan"):
            open_image(path)
    (tmp_path / "a.vol").write_bytes(b"a volume of poems")
    with pytest.raises(ImageError, match="not an image"):
        open_image(tmp_path / "a.vol")


def test_no_library_is_needed(tmp_path):
    paths = [str(write(kind, tmp_path / "v")) for kind in ("vol", "e2e", "fda")]
    program = (
        "import sys; sys.modules['eyepy'] = sys.modules['oct_converter'] = sys.modules['pydicom'] = None\n"
        "from keepfit_clip.images.reading import open_image\n"
        "print([open_image(path).size for path in sys.argv[1:]])"
    )
    done = subprocess.run([sys.executable, "-c", program, *paths], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([(WIDTH, HEIGHT)] * 3)


def test_eyepy_finds_the_same_in_the_files_of_these_tests(tmp_path):
    vol_reader, e2e_reader = (pytest.importorskip(f"eyepy.io.he.{name}_reader") for name in ("vol", "e2e"))
    values = reflectivities(3)
    content = write_vol(tmp_path / "a.vol", values).read_bytes().replace(ID + b" \xfc", ID + b"  ")
    parsed = vol_reader.vol_format.parse(content)
    assert np.array_equal(np.stack([bscan.data for bscan in parsed.bscans]), values)
    assert parsed.scan_position == "OD"
    assert parsed.patient_id.startswith(ID.decode())
    path = write_e2e(tmp_path / "a.e2e", {(1, b"R"): e2e_numbers(values)})
    with e2e_reader.HeE2eReader(path) as reader:
        (series,) = [series for series in reader.series if series.id == 1]
        assert int(series.folders[11][0].data.laterality) == ord("R")
        for number in range(3):
            bscan = series.slices[2 * number].get_bscan()
            assert np.array_equal(np.frexp(bscan)[1], np.frexp(values[number])[1])  # its mantissas are in reverse order
