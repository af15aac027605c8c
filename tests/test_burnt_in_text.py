"""Text that is burnt into pictures: found at every edge, not where there is none, and gone where it is masked."""

import json

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from keepfit_clip.cli import main
from keepfit_clip.data import ShardOptions, build_shards, list_shards, read_shards
from keepfit_clip.drawing import KINDS, draw_retina
from keepfit_clip.errors import OutputError, ShardError
from keepfit_clip.images.burnt_in_text import find_text, mask_text
from tests.pictures import write_table

NAME = "Qorwen, Tilda 1961-03-05"
SIZE = 384
RETINAS = {
    modality: draw_retina(modality, "normal", 3, SIZE).image for modality in dict.fromkeys(kind[0] for kind in KINDS)
}
EDGES = {"top": (60, 8), "bottom": (90, 360), "left": (4, 180), "right": (190, 130), "corner": (2, 2)}


def written(image, place, text=NAME, colour="white"):
    """The picture with text on it, and where that is, (H, W) bool."""
    layer = Image.new("L", image.size)
    ImageDraw.Draw(layer).text(place, text, 255, ImageFont.load_default(16))
    picture = image.copy()
    picture.paste(Image.new("RGB", image.size, colour), (0, 0), layer)
    return picture, np.asarray(layer) > 0


def inside(shape, boxes):
    covered = np.zeros(shape, bool)
    for left, upper, right, lower in boxes:
        covered[upper:lower, left:right] = True
    return covered


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("modality", RETINAS)
def test_text_at_an_edge_is_found_whole(modality, edge):
    picture, shown = written(RETINAS[modality], EDGES[edge])
    boxes = find_text(picture)
    assert inside(shown.shape, boxes)[shown].all()


@pytest.mark.parametrize(("modality", "condition"), KINDS)
def test_plain_retinas_have_none(modality, condition):
    assert find_text(draw_retina(modality, condition, 5, SIZE).image) == []


@pytest.mark.parametrize("colour", ["yellow", "lime", "red", "cyan", "gray"])
def test_the_colour_of_the_text_does_not_matter(colour):
    picture, shown = written(RETINAS["OCT"], EDGES["top"], colour=colour)
    assert inside(shown.shape, find_text(picture))[shown].all()


def test_dark_text_and_text_of_a_large_picture_are_found():
    white = Image.new("RGB", (SIZE, SIZE), "white")
    assert find_text(written(white, EDGES["top"], colour="black")[0])
    picture, shown = written(RETINAS["CFP"], EDGES["bottom"])
    large = picture.resize((6 * SIZE, 6 * SIZE), Image.Resampling.BICUBIC)
    shown = np.asarray(Image.fromarray(shown).resize(large.size, Image.Resampling.NEAREST))
    assert inside(shown.shape, find_text(large))[shown].all()


def test_text_in_the_middle_is_no_devices():
    assert find_text(written(RETINAS["OCT"], (140, 150), "ABCDEFGH")[0]) == []


@pytest.mark.parametrize("modality", RETINAS)
def test_a_masked_picture_has_no_text_and_the_rest_of_it_as_it_was(modality):
    plain = RETINAS[modality]
    picture, shown = written(plain, EDGES["top"])
    boxes = find_text(picture)
    masked = mask_text(picture, boxes)
    assert find_text(masked) == []
    outside = ~inside(shown.shape, boxes)
    assert np.array_equal(np.asarray(masked)[outside], np.asarray(plain)[outside])
    assert outside[SIZE // 4 :].all()
    assert picture == written(plain, EDGES["top"])[0]


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 5000), (13, 13), (37, 1001), (641, 24)])
def test_a_picture_of_any_size_is_looked_at(size):
    for picture in (Image.new("RGB", size), Image.effect_noise(size, 90).convert("RGB")):
        assert mask_text(picture, find_text(picture)).size == size


def table_of_two(folder):
    """A plain picture and one with a name."""
    RETINAS["CFP"].save(folder / "0.png")
    written(RETINAS["CFP"], EDGES["top"])[0].save(folder / "1.png")
    rows = [{"image": f"{number}.png", "categories": "['normal']"} for number in (0, 1)]
    return write_table(folder / "table.csv", rows)


def build(table, out, workers=1, **options):
    return build_shards(table, table.parent, out, ShardOptions("public", **options), workers=workers)


def pictures(folder):
    return [sample.image() for sample in read_shards(list_shards(folder))]


@pytest.mark.parametrize("originals", [False, True])
def test_by_default_they_are_counted_and_kept(tmp_path, originals):
    report = build(table_of_two(tmp_path), tmp_path / "out", originals=originals)
    assert (report.samples, report.burnt_in_text) == (2, [2])
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["burnt_in_text"] == [2]
    assert sorted(bool(find_text(picture)) for picture in pictures(tmp_path / "out")) == [False, True]


@pytest.mark.parametrize("size", [None, 128])
def test_masked_shards_hold_no_pixel_of_the_text(tmp_path, size):
    table = table_of_two(tmp_path)
    report = build(table, tmp_path / "out", burnt_in_text="mask", size=size)
    assert (report.samples, report.burnt_in_text) == (2, [2])
    # The top of the drawn photograph is its dark border: whatever is bright there was the text.
    tops = [np.asarray(picture)[: picture.height // 14] for picture in pictures(tmp_path / "out")]
    plain = np.asarray(RETINAS["CFP"])[: SIZE // 14].max()
    assert max(top.max() for top in tops) < plain + 40


def test_refused_rows_are_left_out_with_a_reason_that_names_nobody(tmp_path):
    report = build(table_of_two(tmp_path), tmp_path / "out", burnt_in_text="refuse")
    assert (report.samples, report.burnt_in_text) == (1, [])
    (left_out,) = report.left_out
    assert left_out.row == 2
    assert "burnt into the picture" in left_out.reason
    assert not any(word in left_out.reason for word in ("Qorwen", ".png", str(tmp_path)))


@pytest.mark.long
def test_workers_count_as_one_does(tmp_path):
    table = table_of_two(tmp_path)
    reports = [build(table, tmp_path / f"{n}", n, samples_per_shard=1, burnt_in_text="mask") for n in (1, 2)]
    assert [report.burnt_in_text for report in reports] == [[2], [2]]
    manifests = [(tmp_path / name / "manifest.json").read_bytes() for name in "12"]
    assert manifests[0] == manifests[1]


def test_a_stopped_build_goes_on_in_its_own_way_only(tmp_path, monkeypatch):
    table = table_of_two(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("keepfit_clip.data.shards.writer.find_text", stop)
        with pytest.raises(KeyboardInterrupt):
            build(table, tmp_path / "out", burnt_in_text="mask")
    with pytest.raises(OutputError, match="another set of options"):
        build(table, tmp_path / "out")
    assert build(table, tmp_path / "out", burnt_in_text="mask").burnt_in_text == [2]


def stop(picture):
    raise KeyboardInterrupt


def test_originals_cannot_be_masked_and_other_words_are_refused():
    with pytest.raises(ShardError, match="leave one of the two out"):
        ShardOptions("public", originals=True, burnt_in_text="mask")
    with pytest.raises(ShardError, match="count, mask, refuse"):
        ShardOptions("public", burnt_in_text="blur")


@pytest.mark.parametrize(
    ("words", "said"),
    [([], "--burnt-in-text mask paints it over"), (["--burnt-in-text", "mask"], "painted over in 1 pictures")],
)
def test_the_command_says_it_in_one_line(tmp_path, monkeypatch, capsys, words, said):
    table = table_of_two(tmp_path)
    arguments = ("shards", "build", table, "--images", tmp_path, "--out", tmp_path / "out", "--kind", "public")
    monkeypatch.setattr("sys.argv", ["keepfit-clip", *map(str, arguments), "--workers", "1", *words])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "manifest.json" in line)
    assert said in line
