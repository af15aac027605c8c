"""Building: the same bytes however it is done or stopped, patients never parted, nothing private in any byte."""

import io
import json
import re
import struct
import subprocess
import sys
import zlib
from functools import cache

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from keepfit_clip.cli import main
from keepfit_clip.data import ShardOptions, SourceOptions, build_shards, list_shards, read_shards
from keepfit_clip.data.identifiers.privacy import find_identifiers, redact
from keepfit_clip.data.shards.dry_run import try_build
from keepfit_clip.drawing import draw_retina
from keepfit_clip.errors import ImageError, KeepFITError, OutputError, ShardError
from keepfit_clip.images.field_of_view import crop_field_of_view
from keepfit_clip.images.metadata import without_metadata
from keepfit_clip.knowledge import Knowledge
from tests.pictures import write_table


def picture(seed=0, size=64, patches=20):
    """A picture unlike that of any other seed."""
    colours = np.random.default_rng(seed).integers(0, 255, (patches, patches, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((size, size), Image.Resampling.BICUBIC)


@cache
def retina(seed):
    return draw_retina("CFP", "normal", seed, 192).image


def encoded(image, fmt="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


def labelled(folder, contents, name="table.csv", **columns):
    """Images (name -> bytes) and a table that labels each with its name; more columns as functions of the name."""
    for image, content in contents.items():
        path = folder / image
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    rows = [
        {"image": image, "categories": repr([f"shows {image}"])} | {key: of(image) for key, of in columns.items()}
        for image in contents
    ]
    return write_table(folder / name, rows)


def build(table, out, kind="public", source_options=None, **options):
    told = {name: options.pop(name) for name in ("workers", "on_step", "restart") if name in options}
    return build_shards(table, table.parent, out, ShardOptions(kind, **options), source_options=source_options, **told)


def shown(folder):
    """Names of the images in a folder of shards -> sample."""
    samples = read_shards(list_shards(folder))
    return {sample.description.categories[0].removeprefix("shows "): sample for sample in samples}


def tree(folder):
    """Every file of a folder and its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


@pytest.fixture
def table(tmp_path):
    """Twelve pictures of six patients, one row twice, and one whose picture is missing."""
    path = labelled(
        tmp_path,
        {f"{i}.png": encoded(picture(i, 32)) for i in range(12)},
        patient=lambda name: f"p{int(name[:-4]) // 2}",
    )
    with open(path, "a", newline="") as file:
        file.write("0.png,['shows 0.png'],p0\nnone.png,['x'],p9\n")
    return path


class Stopped(Exception):
    pass


def stop_at(call):
    """An `on_step` that stops the build at its so-manieth call."""
    calls = iter(range(call))

    def on_step(*_):
        if next(calls, None) is None:
            raise Stopped

    return on_step


# -- the same bytes --------------------------------------------------------------------------------------------------


def test_a_dry_run_says_about_how_large_the_shards_will_be_and_leaves_nothing(tmp_path, table):
    options = ShardOptions(kind="public", modality="CFP")
    outlook = try_build(table, table.parent, options, Knowledge.load(), SourceOptions())
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    report = build_shards(table, table.parent, tmp_path / "real", options)
    size = sum(shard.stat().st_size for shard in (tmp_path / "real").glob("*.tar"))
    assert outlook.images + len(outlook.left_out) == report.samples + len(report.left_out)
    assert outlook.size == pytest.approx(size, rel=0.3)
    assert outlook.seconds > 0


def test_one_worker_or_two_make_the_same_bytes(tmp_path, table):
    options = {"samples_per_shard": 2, "split": {"train": 0.7, "val": 0.3}}
    build(table, tmp_path / "one", workers=1, **options)
    build(table, tmp_path / "two", workers=2, **options)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert len(list((tmp_path / "one").glob("*/*.tar"))) >= 5


def test_a_build_stopped_anywhere_ends_in_the_same_bytes(tmp_path, table):
    options = {"samples_per_shard": 5, "split": {"train": 0.5, "val": 0.5}}
    build(table, tmp_path / "whole", **options)
    for call in range(1, 99):
        try:
            build(table, tmp_path / "out", on_step=stop_at(call), **options)
        except Stopped:
            assert not (tmp_path / "out").exists()
            build(table, tmp_path / "out", **options)
        else:
            break
        assert tree(tmp_path / "out") == tree(tmp_path / "whole"), call
        (tmp_path / "out").rename(tmp_path / f"out{call}")
    assert call > 12
    assert not list(tmp_path.glob(".*"))


def test_a_build_stopped_with_two_workers_goes_on_with_one_and_keeps_what_was_done(tmp_path, table):
    options = {"samples_per_shard": 3}
    build(table, tmp_path / "whole", **options)
    shards = tmp_path / ".out.building" / "shards"

    def on_step(step, done, total):
        if step == "writing shards" and done:
            raise Stopped

    with pytest.raises(Stopped):
        build(table, tmp_path / "out", workers=2, on_step=on_step, **options)
    before = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in shards.glob("*.tar")}
    assert before
    build(table, tmp_path / "out", **options)
    after = {
        name: ((tmp_path / "out" / name).stat().st_ino, (tmp_path / "out" / name).stat().st_mtime_ns) for name in before
    }
    assert after == before
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


KILLING = """
import json, os, signal, sys
from pathlib import Path
from keepfit_clip.data.shards.build import ShardOptions, build_shards
import keepfit_clip.data.shards.writer

table, stride = Path(sys.argv[1]), int(sys.argv[2])
options = ShardOptions("public", samples_per_shard=4)

def run(out, die_at):
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    count = 0
    def hook(event, _):
        nonlocal count
        if event.partition(".")[0] in ("open", "os", "shutil", "sqlite3"):
            count += 1
            if count == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    try:
        build_shards(table, table.parent, out, options)
    except BaseException as error:
        Path(str(out) + ".error").write_text(f"{type(error).__name__}: {error}")
        os._exit(3)
    os._exit(0)

def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

def problem(out):
    left = [p.name for p in out.parent.glob(f".{out.name}.*")]
    error = Path(str(out) + ".error")
    said = error.read_text() if error.exists() else ""
    if not out.exists():
        return said or "no output"
    differing = sorted(name for name, _ in set(tree(out).items()) ^ set(whole.items()))
    return f"{differing} differ" if differing else f"{left} left behind" if left else ""

places = table.parent / "killed"
places.mkdir()
run(places / "whole", 0)
whole = tree(places / "whole")
problems, die_at, code = {}, 2, None
while code != 0:
    out = places / f"at{die_at}"
    code = run(out, die_at)
    if code == -signal.SIGKILL:
        run(out, 0)
    problems[die_at] = problem(out)
    die_at += stride
out = places / "often"
for die_at in range(14, 400, 5):
    if run(out, die_at) != -signal.SIGKILL:
        break
problems["often"] = problem(out)
print(json.dumps(problems))
"""


@pytest.mark.parametrize("stride", ["17", pytest.param("1", marks=pytest.mark.long)])
def test_a_build_killed_at_any_time_ends_in_the_same_bytes(tmp_path, table, stride):
    done = subprocess.run(
        [sys.executable, "-c", KILLING, str(table), stride], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    problems = json.loads(done.stdout)
    assert (len(problems) - 1) * int(stride) > 84  # steps at which it was killed, beside those of "often"
    assert {at: problem for at, problem in problems.items() if problem} == {}


def test_a_stopped_build_is_not_mixed_with_other_options_but_can_be_thrown_away(tmp_path, table):
    with pytest.raises(Stopped):
        build(table, tmp_path / "out", on_step=stop_at(3))
    with pytest.raises(OutputError, match=r"another set of options.*--restart"):
        build(table, tmp_path / "out", size=16)
    with pytest.raises(OutputError, match=r"--restart"):
        build(table, tmp_path / "out", source_options=SourceOptions(patient_column="patient"))
    build(table, tmp_path / "out", size=16, restart=True)
    build(table, tmp_path / "fresh", size=16)
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")
    assert not list(tmp_path.glob(".*"))


def test_two_builds_of_one_output_do_not_meet(tmp_path, table):
    refused = []

    def on_step(*_):
        with pytest.raises(OutputError, match="another build is writing it") as caught:
            build(table, tmp_path / "out")
        refused.append(caught)

    build(table, tmp_path / "out", on_step=on_step)
    build(table, tmp_path / "alone")
    assert refused
    assert tree(tmp_path / "out") == tree(tmp_path / "alone")


# -- images ----------------------------------------------------------------------------------------------------------


def exif(orientation=1):
    tags = Image.Exif()
    tags[0x0112], tags[0x013B], tags[0x9003], tags[0x010E] = orientation, "Dr Who", "1999:12:31 10:00:00", "Jane"
    return tags


def test_every_usual_image_is_taken_and_every_bad_one_is_a_rejected_row(tmp_path):
    flat, noise = Image.new("RGB", (40, 30), (200, 100, 50)), picture(1)
    deep = np.full((30, 40, 3), (50 * 257, 100 * 257, 200 * 257), np.uint16)
    palette = flat.convert("P", palette=Image.Palette.ADAPTIVE)
    good = {
        "a.jpg": encoded(flat, "JPEG"),
        "b.png": encoded(flat),
        "c.tif": encoded(flat, "TIFF"),
        "d.webp": encoded(flat, "WEBP"),
        "e.bmp": encoded(flat, "BMP"),
        "f.jpg": encoded(flat.convert("CMYK"), "JPEG"),
        "g.jpg": encoded(flat.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif(6)),
        "h.tif": cv2.imencode(".tif", deep)[1].tobytes(),
        "i.png": encoded(palette, transparency=255),
        "j.png": cv2.imencode(".png", deep)[1].tobytes(),
        "k.tif": encoded(flat, "TIFF", compression="tiff_lzw"),
    }
    grey = {
        "l.png": encoded(Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50)),
        "m.png": encoded(flat.convert("L")),
        "n.jpg": encoded(flat.convert("L"), "JPEG"),
        "o.tif": encoded(Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50), "TIFF"),
    }
    see_through = Image.new("RGBA", (40, 30), (255, 255, 255, 0))
    bad = {
        f"cut.{fmt}": (content := encoded(noise, fmt))[: len(content) // 2]
        for fmt in ("JPEG", "PNG", "TIFF", "WEBP", "BMP")
    }
    bad |= {"empty.jpg": b"", "text.png": b"no picture", "short.webp": b"RIFF", "half.tif": b"II*\0"}
    table = labelled(tmp_path, {**good, **grey, "p.png": encoded(see_through), **bad})
    report = build(table, tmp_path / "out", keep_blank=True)
    samples = shown(tmp_path / "out")
    assert set(samples) == {*good, *grey, "p.png"}
    assert [left_out.row for left_out in sorted(report.left_out)] == list(range(17, 17 + len(bad)))
    assert len({left_out.row for left_out in report.left_out}) == len(report.left_out)
    for name in good:
        image = samples[name].image()
        assert image.size == (40, 30), name
        assert np.abs(np.asarray(image, int) - (200, 100, 50)).max() < 12, name
    for name in grey:
        pixels = np.asarray(samples[name].image(), int)
        assert np.ptp(pixels, axis=2).max() == 0, name
    assert np.asarray(samples["p.png"].image()).max() < 8


def test_a_palette_with_a_transparent_colour_is_black_there(tmp_path):
    image = Image.new("P", (40, 30), 0)
    image.putpalette([255, 255, 255, 200, 100, 50])
    image.paste(1, (20, 0, 40, 30))
    build(labelled(tmp_path, {"a.png": encoded(image, transparency=0)}), tmp_path / "out")
    pixels = np.asarray(shown(tmp_path / "out")["a.png"].image(), int)
    assert pixels[:, :16].max() < 12
    assert np.abs(pixels[:, 24:] - (200, 100, 50)).max() < 12


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
def test_an_original_damaged_in_any_byte_is_a_picture_or_an_image_error(fmt):
    options = {"exif": exif(6)} if fmt in ("JPEG", "PNG", "WEBP") else {}
    whole = encoded(picture(0, 8), fmt, **options)
    for at in range(min(len(whole), 400)):
        for value in (0, 16, whole[at] ^ 1, whole[at] ^ 128):
            damaged = whole[:at] + bytes([value]) + whole[at + 1 :]
            try:
                _, content = without_metadata(damaged)
            except ImageError as error:
                assert error.reason  # noqa: PT017
            else:
                Image.open(io.BytesIO(content)).load()


# -- splits and copies -----------------------------------------------------------------------------------------------

SPLIT = {"train": 0.8, "val": 0.2}


def parts(folder, split=SPLIT):
    """Part -> names of the images in it."""
    return {part: set(shown(folder / part)) for part in split}


def number(name):
    return int(re.search(r"\d+", name)[0])


def test_a_patient_is_never_in_two_parts_and_the_shares_are_about_right(tmp_path):
    table = labelled(
        tmp_path,
        {f"{i}.png": encoded(picture(i, 24)) for i in range(60)},
        patient=lambda name: f"p{number(name) // 3}" if number(name) < 45 else "",
    )
    split = {"train": 0.6, "val": 0.2, "test": 0.2}
    report = build(table, tmp_path / "out", split=split)
    found = parts(tmp_path / "out", split)
    assert report.samples == sum(map(len, found.values())) == 60
    for part, share in split.items():
        assert abs(len(found[part]) / 60 - share) < 0.1
    patients = [{number(name) // 3 for name in names if number(name) < 45} for names in found.values()]
    assert sum(map(len, patients)) == len(set.union(*patients)) == 15
    assert manifest(tmp_path / "out")["parts"] == list(split)


def test_the_group_pattern_keeps_both_eyes_of_a_patient_together(tmp_path):
    names = [f"{i:03}_{eye}.png" for i in range(20) for eye in ("left", "right")]
    table = labelled(tmp_path, {name: encoded(picture(seed, 24)) for seed, name in enumerate(names)})
    build(table, tmp_path / "out", split=SPLIT, source_options=SourceOptions(group_pattern=r"^\d+"))
    train, val = ({number(name) for name in names} for names in parts(tmp_path / "out").values())
    assert not train & val
    assert len(train) + len(val) == 20


@pytest.mark.parametrize("patients", range(1, 8))
def test_few_patients_fill_both_parts_or_are_one_clear_error(tmp_path, patients):
    table = labelled(
        tmp_path,
        {f"{i}.png": encoded(picture(i, 24)) for i in range(14)},
        patient=lambda name: f"p{number(name) % patients}",
    )
    try:
        build(table, tmp_path / "out", split={"train": 0.9, "val": 0.1})
    except ShardError as error:
        assert "too few patients" in str(error)  # noqa: PT017
        assert [path.name for path in tmp_path.iterdir() if path.suffix != ".png"] == ["table.csv"]
    else:
        train, val = ({number(name) % patients for name in names} for names in parts(tmp_path / "out").values())
        assert train
        assert val
        assert not train & val


def copies(count):
    """Of each picture: itself, the same bytes, one made smaller, one badly recompressed."""
    contents = {}
    for i in range(count):
        image = retina(i)
        contents[f"{i}_original.png"] = contents[f"{i}_same.png"] = encoded(image)
        contents[f"{i}_small.jpg"] = encoded(image.resize((96, 96)), "JPEG")
        contents[f"{i}_worse.jpg"] = encoded(image, "JPEG", quality=30)
    return contents


def test_copies_and_near_copies_of_an_image_stay_in_one_part(tmp_path):
    table = labelled(tmp_path, copies(10), patient=lambda name: f"patient of {name}")
    build(table, tmp_path / "out", split=SPLIT)
    train, val = ({number(name) for name in names} for names in parts(tmp_path / "out").values())
    assert not train & val
    assert (len(train), len(val)) == (8, 2)


def test_of_near_duplicates_the_first_stays_where_they_are_dropped(tmp_path):
    report = build(labelled(tmp_path, copies(4)), tmp_path / "out", near_duplicates="drop")
    assert set(shown(tmp_path / "out")) == {f"{i}_original.png" for i in range(4)}
    rejected = manifest(tmp_path / "out")["rejected"]
    assert [entry["row"] for entry in rejected] == [row for row in range(1, 17) if row % 4 != 1]
    assert "row 13" in rejected[-1]["reason"]
    assert len(report.left_out) == 12


def test_near_duplicates_are_left_alone_by_default(tmp_path):
    assert build(labelled(tmp_path, copies(2)), tmp_path / "out").samples == 8


def other_set(folder, form):
    """Pictures 0 and 1, recompressed, as shards, a folder of images or a table."""
    contents = {f"Jane_{i}.jpg": encoded(retina(i).resize((150, 150)), "JPEG", quality=40) for i in range(2)}
    table = labelled(folder, contents)
    if form == "shards":
        build(table, folder / "shards", size=128)
        return folder / "shards"
    return folder if form == "folder" else table


@pytest.mark.parametrize("form", ["shards", "folder", "table"])
def test_images_of_an_excluded_set_are_dropped_also_when_recompressed(tmp_path, form):
    other = other_set(tmp_path / "Jane", form)
    table = labelled(tmp_path, {f"{i}.png": encoded(retina(i)) for i in range(5)})
    build(table, tmp_path / "out", exclude=(str(other),))
    assert set(shown(tmp_path / "out")) == {"2.png", "3.png", "4.png"}
    rejected = manifest(tmp_path / "out")["rejected"]
    assert [entry["row"] for entry in rejected] == [1, 2]
    assert all("excluded" in entry["reason"] for entry in rejected)
    assert b"Jane" not in b"".join(tree(tmp_path / "out").values())


@pytest.mark.parametrize("labels", [("['scar']", "['']"), ("0", "1")], ids=["no label", "numbers"])
def test_an_excluded_table_counts_by_its_images_whatever_its_labels(tmp_path, labels):
    table = labelled(tmp_path, {f"{i}.png": encoded(picture(i)) for i in range(4)})
    rows = [{"image": f"{i}.png", "categories": label} for i, label in enumerate(labels)]
    build(table, tmp_path / "out", exclude=(str(write_table(tmp_path / "held_out.csv", rows)),))
    assert set(shown(tmp_path / "out")) == {"2.png", "3.png"}


def test_an_excluded_set_that_cannot_be_read_is_one_error(tmp_path):
    table = labelled(tmp_path, {f"{i}.png": encoded(picture(i)) for i in range(3)})
    (tmp_path / "empty").mkdir()
    for other in ("nowhere", "empty"):
        with pytest.raises(KeepFITError, match=other):
            build(table, tmp_path / "out", exclude=(str(tmp_path / other),))
    assert not (tmp_path / "out").exists()


def test_a_broken_file_in_an_excluded_set_does_not_hide_the_others(tmp_path):
    table = labelled(tmp_path, {f"{i}.png": encoded(picture(i)) for i in range(3)})
    labelled(tmp_path / "other", {"a.png": b"", "b.png": b"text", "z.png": encoded(picture(2))})
    (tmp_path / "other" / "link.png").symlink_to(tmp_path / "nowhere.png")
    build(table, tmp_path / "out", exclude=(str(tmp_path / "other"),))
    assert set(shown(tmp_path / "out")) == {"0.png", "1.png"}


# -- privacy ---------------------------------------------------------------------------------------------------------

SECRETS = (b"Jane", b"Doe", b"1961", b"Dr Who", b"1999", b"Private Profile", b"holiday", b"keeper")
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a>Jane Doe</a></x:xmpmeta>'


def profile():
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes().replace(b"sRGB", b"Jane")


def segment(marker, content):
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def telling_images():
    """Pictures of every format with all the metadata it can carry."""
    image, text = picture(0, 48), PngImagePlugin.PngInfo()
    text.add_text("Patient", "Jane Doe")
    text.add_itxt("Author", "Dr Who")
    text.add_itxt("XML:com.adobe.xmp", XMP.decode())
    everything = {"exif": exif(), "icc_profile": profile()}
    jpeg = encoded(image, "JPEG", comment=b"Jane Doe", xmp=XMP, **everything)
    segments = b"".join(segment(marker, b"Jane Doe 1961") for marker in range(0xE0, 0xF0))
    png = encoded(image, pnginfo=text, **everything)
    extra = chunk(b"juNk", b"Jane Doe") + chunk(b"tIME", struct.pack(">HBBBBB", 1961, 3, 5, 1, 1, 1))
    return {
        "a.jpg": jpeg + b"Jane Doe behind the end",
        "b.jpg": jpeg[:2] + segments + segment(0xFE, b"Jane Doe") + jpeg[2:],
        "c.jpg": encoded(image, "JPEG", exif=exif(6), progressive=True, comment=b"Jane Doe"),
        "d.png": png + b"Jane Doe behind the end",
        "e.png": png[:-12] + extra + png[-12:],
        "f.webp": encoded(image, "WEBP", xmp=XMP, **everything) + b"Jane Doe behind the end",
        "g.webp": encoded(image.convert("RGBA"), "WEBP", xmp=XMP, lossless=True, **everything),
        "h.tif": encoded(image, "TIFF", description="Jane Doe", artist="Dr Who", icc_profile=profile()),
        "i.bmp": encoded(image, "BMP") + b"Jane Doe behind the end",
    }


@pytest.mark.parametrize("originals", [False, True])
@pytest.mark.parametrize("kind", ["public", "elite"])
def test_nothing_private_reaches_any_byte(tmp_path, originals, kind):
    folder = tmp_path / "Jane_Doe"
    contents = {f"holiday/Jane_Doe_1961-03-05_{name}": content for name, content in telling_images().items()}
    contents["holiday/Jane_Doe_broken.jpg"] = b"Jane Doe"
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    rows = [
        {
            "image": name,
            "caption": f"Drusen {i}.",
            "label": f"sign {i}",
            "patient": "keeper-1961",
            "visited": "1999-12-31",
        }
        for i, name in enumerate(contents)
    ]
    rows.append({**rows[0], "image": "holiday/Jane_Doe_gone.jpg"})
    rows.append({**rows[0], "caption": "Seen by Dr Who on 1999-12-31.", "label": "sign 99"})
    table = write_table(folder / "Jane_Doe.csv", rows)
    split = {"train": 0.5, "val": 0.5}
    by_name = SourceOptions(patient_column="image")
    build(table, tmp_path / "out", kind, by_name, originals=originals, split=split, near_duplicates="ignore")
    files = tree(tmp_path / "out")
    found = {(name, secret) for name, content in files.items() for secret in SECRETS if secret in content}
    assert not found
    assert len(shown(tmp_path / "out" / "train")) + len(shown(tmp_path / "out" / "val")) >= 9
    assert not list(tmp_path.glob(".out*"))


def originals():
    image = picture(0, 48)
    alpha = image.convert("RGBA")
    alpha.putalpha(picture(1, 48).convert("L"))
    palette = image.convert("P", palette=Image.Palette.ADAPTIVE)
    return {
        "a.jpg": encoded(image, "JPEG", exif=exif(), comment=b"Jane"),
        "b.jpg": encoded(image, "JPEG", progressive=True, quality=60),
        "c.jpg": encoded(image.convert("L"), "JPEG"),
        "d.jpg": encoded(image.convert("CMYK"), "JPEG"),
        "e.jpg": encoded(image, "JPEG", subsampling=0, restart_marker_blocks=2),
        "f.png": encoded(image, exif=exif()),
        "g.png": encoded(palette, transparency=3),
        "h.png": encoded(Image.fromarray(np.arange(2304, dtype=np.uint16).reshape(48, 48) * 28)),
        "i.png": encoded(alpha),
        "j.png": encoded(image.convert("1")),
        "k.webp": encoded(image, "WEBP", quality=50, exif=exif()),
        "l.webp": encoded(alpha, "WEBP", lossless=True, icc_profile=profile()),
        "m.webp": encoded(alpha, "WEBP", quality=70, xmp=XMP),
    }


def test_originals_keep_their_pixels_bit_for_bit(tmp_path):
    contents = originals()
    build(labelled(tmp_path, contents), tmp_path / "out", originals=True)
    samples = shown(tmp_path / "out")
    assert set(samples) == set(contents)
    for name, content in contents.items():
        before, after = (Image.open(io.BytesIO(data)) for data in (content, samples[name].image_bytes))
        assert (before.format, before.mode, before.size) == (after.format, after.mode, after.size), name
        assert np.array_equal(np.asarray(before.convert("RGBA")), np.asarray(after.convert("RGBA"))), name
        assert np.array_equal(np.asarray(before), np.asarray(after)), name
        assert len(samples[name].image_bytes) <= len(content)


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("turn", range(2, 9))
def test_an_original_on_its_side_comes_out_upright(fmt, turn):
    turns = [
        None,
        None,
        "FLIP_LEFT_RIGHT",
        "ROTATE_180",
        "FLIP_TOP_BOTTOM",
        "TRANSPOSE",
        "ROTATE_90",
        "TRANSVERSE",
        "ROTATE_270",
    ]
    upright = picture(0, 48, patches=4).crop((0, 0, 48, 24))
    lying = upright.transpose(Image.Transpose[turns[turn]])
    suffix, content = without_metadata(encoded(lying, fmt, exif=exif(turn), quality=95))
    image = Image.open(io.BytesIO(content))
    assert not image.getexif()
    assert suffix in ("jpg", "png", "webp")
    assert image.size == (48, 24)
    assert np.abs(np.asarray(image.convert("RGB"), int) - np.asarray(upright, int)).mean() < 8


NAMING = [
    ("Seen by Dr. Smith, drusen.", "Smith"),
    ("Mrs Jane Doe has drusen.", "Doe"),
    ("Patient: John A. Smith, drusen.", "Smith"),
    ("Reported by: J. Smith. Drusen.", "Smith"),
    ("Dr. McDonald found drusen.", "Donald"),
    ("Dr. O'Brien found drusen.", "Brien"),
    ("Dr. Smith-Jones found drusen.", "Jones"),
    ("Dr. M\u00fcller found drusen.", "ller"),
    ("Dr. SMITH found drusen.", "SMITH"),
    ("Prof. van der Berg found drusen.", "Berg"),
    ("Drusen, 2019-03-05.", "2019-03-05"),
    ("Drusen on 5 March 2019.", "March 2019"),
    ("Drusen since Mar 5, 2019.", "2019"),
    ("Drusen, 05/03/2019.", "05/03/2019"),
    ("DOB 5.3.61, drusen.", "5.3.61"),
    ("MRN: 00123456, drusen.", "00123456"),
    ("Patient ID A-10422: drusen.", "10422"),
    ("Drusen. Record no. 4711-22.", "4711-22"),
    ("Drusen. jane.doe@example.org", "example.org"),
    ("\u59d3\u540d\uff1a\u5f20\u4e09\uff0c\u9ec4\u6591", "\u5f20\u4e09"),
    ("\u9ec4\u6591\uff0c2019\u5e743\u67085\u65e5", "2019"),
    ("\u4f4f\u9662\u53f7\uff1a00123\uff0c\u9ec4\u6591", "00123"),
]


@pytest.mark.parametrize(("caption", "secret"), NAMING)
def test_names_dates_and_numbers_are_found_and_blacked_out(caption, secret):
    assert find_identifiers(caption)
    assert secret not in redact(caption)
    assert "[redacted]" in redact(caption)


@pytest.mark.parametrize(
    "caption",
    [
        "Visual acuity 20/40, fellow eye 6/12 and counting fingers at 30 cm.",
        "24-2 field with a superior arcuate defect, mean deviation -3.45 dB.",
        "Coats disease; Best's disease, Stargardt disease or von Hippel-Lindau.",
        "Central thickness 300 microns, cup-to-disc ratio 0.7, IOP 18 mmHg.",
        "Stage 3 of 4, zone 1, 9 years after laser, late phase at 11.52 min.",
        "Moderate DR. Macular edema is present.",
        "Severe non proliferative DR, Drusen and DME.",
        "History of MS. Optic neuritis in the left eye.",
        "Infant born at 26 weeks, stage 3 ROP with plus disease.",
        "A 54-year-old man, AREDS category 3, 512 x 128 cube, 6 x 6 mm.",
        "Same person as Figure 3-7A and B. Type 2 MacTel.",
        "The patient has Vogt-Koyanagi-Harada disease.",
        "Fluorescein angiography performed by Optos showed leakage.",
        "\u9ec4\u6591\u6c34\u80bf\uff0c\u89c6\u529b0.5\uff0c3\u5e74\u524d\u624b\u672f\u3002",
    ],
)
def test_ordinary_medical_captions_are_left_alone(caption):
    assert find_identifiers(caption) == []
    assert redact(caption) == caption


def test_captions_that_name_somebody_are_refused_redacted_or_kept_as_asked(tmp_path):
    captions = ["Drusen.", "Seen by Dr. Smith on 2019-03-05.", "Subject QX-7 has a scar."]
    rows = [{"image": f"{i}.png", "caption": text, "patient": "QX-7"} for i, text in enumerate(captions)]
    for i in range(3):
        picture(i).save(tmp_path / f"{i}.png")
    table = write_table(tmp_path / "t.csv", rows)

    def texts(folder):
        samples = read_shards(list_shards(folder))
        return sorted(caption.text for sample in samples for caption in sample.description.captions)

    report = build(table, tmp_path / "refused", "elite")
    assert texts(tmp_path / "refused") == ["Drusen."]
    assert sorted(left_out.row for left_out in report.left_out) == [2, 3]
    assert b"Smith" not in b"".join(tree(tmp_path / "refused").values())
    report = build(table, tmp_path / "redacted", "elite", identifiers="redact")
    assert (report.samples, report.redacted) == (3, 2)
    assert texts(tmp_path / "redacted") == [
        "Drusen.",
        "Seen by [redacted] on [redacted].",
        "Subject [redacted] has a scar.",
    ]
    content = b"".join(tree(tmp_path / "redacted").values())
    assert not any(secret in content for secret in (b"Smith", b"2019", b"QX-7"))
    build(table, tmp_path / "kept", "elite", identifiers="keep")
    assert texts(tmp_path / "kept") == sorted(captions)


@pytest.mark.parametrize("kind", ["public", "elite"])
def test_a_description_used_as_a_category_is_looked_at_like_a_caption(tmp_path, kind):
    picture(0).save(tmp_path / "0.png")
    picture(1).save(tmp_path / "1.png")
    rows = [
        {"image": "0.png", "caption": "Drusen.", "categories": "['scar']"},
        {"image": "1.png", "caption": "Drusen.", "categories": "['scar', 'seen by Dr. Smith on 2019-03-05.']"},
    ]
    table = write_table(tmp_path / "t.csv", rows)
    report = build(table, tmp_path / "out", kind)
    content = b"".join(tree(tmp_path / "out").values())
    assert b"Smith" not in content
    assert b"2019-03-05" not in content
    assert [left_out.row for left_out in report.left_out] in ([2], [])


# -- field of view ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "place"), [((640, 400), (200, 60)), ((256, 700), (0, 300)), ((1500, 1500), (10, 20))])
def test_the_black_border_of_a_fundus_photograph_is_cut_off(size, place):
    side = 800 if min(size) > 1000 else 256
    retina = draw_retina("CFP", "normal", 0, side).image
    canvas = Image.new("RGB", size)
    canvas.paste(retina, place)
    noisy = np.asarray(canvas, int) + np.random.default_rng(0).integers(0, 6, (*size[::-1], 3))
    for image in (canvas, Image.fromarray(noisy.clip(0, 255).astype(np.uint8))):
        cropped = crop_field_of_view(image)
        lit = np.asarray(retina).max(axis=2) > 40
        rows, columns = np.flatnonzero(lit.any(axis=1)), np.flatnonzero(lit.any(axis=0))
        height, width = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
        assert abs(cropped.width - width) <= 0.06 * side
        assert abs(cropped.height - height) <= 0.06 * side
        assert np.asarray(cropped.reduce(4)).mean() > 0.9 * np.asarray(retina.reduce(4)).mean()


@pytest.mark.parametrize(
    "image",
    [
        Image.new("RGB", (300, 200)),
        Image.new("RGB", (300, 200), (255, 255, 255)),
        picture(0, 300),
        Image.new("RGB", (1, 1)),
        Image.new("RGB", (400, 3), (99, 9, 9)),
        Image.fromarray(np.random.default_rng(0).integers(0, 10, (200, 300, 3), dtype=np.uint8)),
    ],
    ids=["black", "white", "full frame", "one pixel", "thin", "dark noise"],
)
def test_a_picture_without_a_border_stays_as_it_is(image):
    assert np.array_equal(np.asarray(crop_field_of_view(image)), np.asarray(image))


def test_only_fundus_photographs_are_cropped(tmp_path):
    canvas = Image.new("RGB", (200, 128))
    canvas.paste(draw_retina("CFP", "normal", 0, 128).image, (36, 0))
    contents = {"a.png": encoded(canvas), "b.png": encoded(canvas)}
    table = labelled(tmp_path, contents, modality=lambda name: {"a": "CFP", "b": "OCT"}[name[0]])
    build(table, tmp_path / "out", crop=True)
    samples = shown(tmp_path / "out")
    assert samples["a.png"].image().width < 140
    assert samples["b.png"].image().size == (200, 128)


# -- the command -----------------------------------------------------------------------------------------------------


def command(monkeypatch, capsys, *words):
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr(sys, "argv", ["keepfit-clip", "shards", "build", *map(str, words)])
    with pytest.raises(SystemExit) as caught:
        main()
    return caught.value.code or 0, capsys.readouterr()


def test_the_command_builds_and_says_what_was_left_out(tmp_path, monkeypatch, capsys):
    for i in range(6):
        picture(i).save(tmp_path / f"{i}_x.png")
    rows = [{"id_code": f"{i}_x", "diagnosis": i % 2} for i in range(6)] + [{"id_code": "Jane", "diagnosis": 0}]
    table = write_table(tmp_path / "t.csv", rows)
    code, printed = command(
        monkeypatch, capsys, table, "--images", tmp_path, "--out", tmp_path / "out", "--kind", "public", "--workers", 1,
        "--label-name", "0=normal", "--label-name", "1=diabetic retinopathy", "--group-pattern", r"^\d",
        "--split", "train=0.5,val=0.5", "--modality", "cfp", "--size", 32,
    )  # fmt: skip
    assert code == 0
    assert "6 samples in 2 shards" in printed.out
    assert "1 rows left out" in printed.err
    assert manifest(tmp_path / "out")["categories"] == {"normal": 3, "diabetic retinopathy": 3}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--split", "train=half,val=0.5"], "'train=half' is not of the form NAME=VALUE"),
        (["--split", "train=0.5,val=0.6"], "must add up to 1"),
        (["--label-name", "0"], "'0' is not of the form NAME=VALUE"),
        (["--group-pattern", "("], "not a regular expression"),
        (["--redact", "--keep-identifiers"], "exclude each other"),
        (["--originals", "--size", "32"], "neither sized nor cropped"),
        (["--source", "excel"], "'excel' is not known"),
        (["--image-column", "Foto"], "no column 'Foto'"),
        (["--exclude", "nowhere"], "nowhere"),
    ],
)
def test_a_wrong_option_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, capsys, words, message):
    table = labelled(tmp_path, {"a.png": encoded(picture())})
    usual = ("--images", tmp_path, "--out", tmp_path / "out", "--kind", "public", "--workers", 1)
    code, printed = command(monkeypatch, capsys, table, *usual, *words)
    assert code == 1
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert len(printed.err.strip().splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "table.csv"}


def test_a_row_whose_labels_contradict_each_other_teaches_nothing(tmp_path):
    labels = {
        "a.png": "['normal', 'diabetic retinopathy']",
        "b.png": "['no glaucoma', 'glaucoma']",
        "c.png": "['normal', 'no glaucoma', 'tessellated fundus']",
        "d.png": "['diabetic retinopathy', 'no glaucoma']",
        "e.png": "['no diabetic retinopathy', 'proliferative diabetic retinopathy']",
        "f.png": "['no diabetic retinopathy', 'diabetic macular edema']",
        "g.png": "['no macular edema', 'diabetic macular edema']",
        "h.png": "['normal macula', 'diabetic macular edema']",
        "i.png": "['normal macula', 'glaucoma']",
        "j.png": "['normal optic disc', 'abnormal optic disc']",
    }
    contents = {name: encoded(picture(number)) for number, name in enumerate(labels)}
    table = labelled(tmp_path, contents, categories=labels.__getitem__)
    report = build(table, tmp_path / "out")
    assert report.samples == 4
    reasons = [(row["row"], row["reason"]) for row in manifest(tmp_path / "out")["rejected"]]
    assert reasons == [
        (1, "its labels say normal and diabetic retinopathy at once"),
        (2, "its labels say glaucoma and no glaucoma at once"),
        (5, "its labels say proliferative diabetic retinopathy and no diabetic retinopathy at once"),
        (7, "its labels say diabetic macular edema and no macular edema at once"),
        (8, "its labels say normal macula and diabetic macular edema at once"),
        (10, "its labels say normal optic disc and abnormal optic disc at once"),
    ]


@pytest.mark.parametrize(
    ("modality", "side", "size"),
    [("OCT", None, (160, 64)), ("CFP", None, (64, 26)), ("OCT", "longest", (64, 26)), ("CFP", "shortest", (160, 64))],
)
def test_wide_scans_keep_their_height(tmp_path, modality, side, size):
    table = labelled(tmp_path, {"a.png": encoded(picture().resize((200, 80)))})
    build(table, tmp_path / "out", modality=modality, size=64, side=side)
    assert Image.open(io.BytesIO(shown(tmp_path / "out")["a.png"].image_bytes)).size == size
