"""The drawn retina: the same seed, the same picture, and captions, masks and tables that tell the truth."""

import csv
import re

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import center_of_mass, label

from keepfit_clip.data.shards.build import ShardOptions, build_shards
from keepfit_clip.data.sources import read_records
from keepfit_clip.drawing import CONDITIONS, KINDS, DrawOptions, draw_dataset, draw_number, draw_retina, oct
from keepfit_clip.drawing.content import LESIONS
from keepfit_clip.drawing.fundus import QUADRANTS, new_fundus
from keepfit_clip.errors import CategoryError, ConfigError, OutputError
from keepfit_clip.knowledge.conditions import Knowledge


@pytest.fixture(scope="module")
def retinas():
    """Six of each kind."""
    return [draw_number(number, seed=3) for number in range(6 * len(KINDS))]


def pixels(retina):
    return np.asarray(retina.image, dtype=np.float32) / 255


def test_at_least_ten_conditions_over_three_modalities():
    assert len(CONDITIONS) >= 10
    assert {modality for modality, _ in KINDS} == {"CFP", "FFA", "OCT"}


def test_every_category_is_canonical(retinas):
    knowledge = Knowledge.load()
    for retina in retinas:
        assert retina.categories[0] == retina.condition
        for category in retina.categories:
            assert knowledge.resolve(category) == category


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_same_seed_same_picture_and_another_seed_another_one(kind):
    first, again, other = (draw_retina(*kind, seed) for seed in (1, 1, 2))
    assert first.image.tobytes() == again.image.tobytes()
    assert first.caption == again.caption
    assert all((first.masks[name] == again.masks[name]).all() for name in first.masks)
    assert first.image.tobytes() != other.image.tobytes()


def test_a_picture_does_not_depend_on_those_drawn_before():
    draw_number(0, seed=3)
    alone = draw_number(7, seed=3)
    assert alone.image.tobytes() == [draw_number(number, seed=3) for number in range(8)][7].image.tobytes()


@pytest.mark.parametrize("size", [32, 100, 224])
def test_every_size(size):
    for number in range(len(KINDS)):
        retina = draw_number(number, 0, size)
        assert retina.image.size == (size, size)
        assert retina.image.mode == "RGB"
        assert all(mask.shape == (size, size) and mask.dtype == bool for mask in retina.masks.values())


def test_captions_count_what_the_masks_show(retinas):
    counted = 0
    for retina in retinas:
        for lesion, count in retina.lesions.items():
            assert label(retina.masks[lesion], np.ones((3, 3)))[1] == count, (retina.caption, lesion)
            assert re.search(rf"\b{count} {lesion if count > 1 else LESIONS[lesion]}\b", retina.caption)
            counted += 1
    assert counted > 50


def test_captions_name_eye_condition_severity_and_place(retinas):
    for retina in retinas:
        words = retina.caption.partition(": ")
        assert f" of the {retina.eye} eye" in words[0]
        name = "normal retina" if retina.condition == "normal" else retina.condition
        assert words[2].startswith(f"{retina.severity} {name} with ".lstrip())
        assert retina.place in retina.caption
        others = [c for c in CONDITIONS if c != retina.condition and c in retina.caption]
        assert not others


def test_lesions_lie_where_the_caption_says(monkeypatch):
    """The middle of every lesion, seen from the fovea; in a right eye the nasal side is at the right."""
    eyes = []

    def remember(*args, **kwargs):
        eyes.append(new_fundus(*args, **kwargs))
        return eyes[-1]

    monkeypatch.setattr("keepfit_clip.drawing.cfp.new_fundus", remember)
    monkeypatch.setattr("keepfit_clip.drawing.ffa.new_fundus", remember)
    checked = 0
    for number in range(12 * len(KINDS)):
        eyes.clear()
        retina = draw_number(number, seed=11)
        quadrant = next((q for q in QUADRANTS if q in retina.place), None)
        if quadrant is None:
            continue
        mask = np.any([retina.masks[lesion] for lesion in retina.lesions], axis=0)
        mask = mask if retina.eye == "right" else mask[:, ::-1]
        parts, count = label(mask, np.ones((3, 3)))
        for row, column in center_of_mass(mask, parts, range(1, count + 1)):
            x, y = (np.array([column, row]) + 0.5) / 64 - 1 - eyes[0].fovea
            assert (x > 0) == ("nasal" in quadrant), retina.caption
            assert (y > 0) == quadrant.startswith("infero"), retina.caption
            checked += 1
        columns = np.nonzero(mask)[1]
        across = ((columns + 0.5) / 64 - 1 - eyes[0].fovea[0]) * (1 if "nasal" in quadrant else -1)
        assert across.min() > -0.02, retina.caption  # no lesion reaches over into another quadrant
    assert checked > 200


def test_severe_retinopathy_fills_all_four_quadrants():
    severe = [
        r for r in (draw_retina("CFP", "diabetic retinopathy", seed) for seed in range(12)) if r.severity == "severe"
    ]
    assert severe
    for retina in severe:
        assert "spread over all four quadrants" in retina.caption
        mask = np.any(list(retina.masks.values()), axis=0)
        assert all(part.any() for half in np.array_split(mask, 2) for part in np.array_split(half, 2, axis=1))


def test_the_disc_is_on_the_nasal_side():
    for seed in range(8):
        for eye in ("left", "right"):
            green = pixels(draw_retina("CFP", "normal", seed, eye=eye))[..., 1]
            brightest = np.unravel_index(green.argmax(), green.shape)[1]
            assert (brightest > 64) == (eye == "right")


def test_a_left_eye_is_the_mirror_image():
    left, right = (draw_retina("OCT", "macular edema", 4, eye=eye) for eye in ("left", "right"))
    assert (pixels(left)[:, ::-1] == pixels(right)).all()
    assert (left.masks["intraretinal cysts"][:, ::-1] == right.masks["intraretinal cysts"]).all()
    assert left.place == right.place


@pytest.mark.parametrize(
    ("modality", "condition", "lesion", "brighter"),
    [
        ("CFP", "diabetic retinopathy", "microaneurysms", False),
        ("CFP", "branch retinal vein occlusion", "flame hemorrhages", False),
        ("CFP", "age-related macular degeneration", "drusen", True),
        ("CFP", "pathologic myopia", "peripapillary atrophy", True),
        ("FFA", "macular edema", "focal leaks", True),
        ("FFA", "capillary non-perfusion", "unfilled areas", False),
        ("FFA", "central serous chorioretinopathy", "ink-blot leaks", True),
        ("OCT", "macular edema", "intraretinal cysts", False),
        ("OCT", "central serous chorioretinopathy", "subretinal fluid", False),
        ("OCT", "macular hole", "full-thickness gap", False),
    ],
)
def test_lesions_differ_from_what_surrounds_them(modality, condition, lesion, brighter):
    right = 0
    for seed in range(12):
        retina = draw_retina(modality, condition, seed, 192)
        mask = retina.masks[lesion]
        ring = (
            np.asarray(Image.fromarray(mask).convert("L").resize((24, 24), Image.Resampling.BOX).resize((192, 192))) > 0
        )
        ring &= ~mask
        grey = pixels(retina).mean(axis=2)
        right += (grey[mask].mean() > grey[ring].mean()) == brighter
    assert right >= 11


def test_haze_hides_the_vessels():
    sharpness = {
        condition: np.mean(
            [np.abs(np.diff(pixels(draw_retina("CFP", condition, s))[40:88, 40:88, 1])).mean() for s in range(8)]
        )
        for condition in ("normal", "cataract")
    }
    assert sharpness["cataract"] < 0.7 * sharpness["normal"]


def test_pictures_vary_in_colour_and_field(retinas):
    normal = [pixels(draw_retina("CFP", "normal", seed)) for seed in range(20)]
    colours = np.array([picture[50:70, 20:40].mean(axis=(0, 1)) for picture in normal])
    assert (colours.std(axis=0) > 0.04).all()
    assert all(picture[:3, :3].max() < 0.05 for picture in normal)  # the corners lie outside the field of view


@pytest.mark.parametrize("condition", ["macular edema", "central serous chorioretinopathy"])
def test_fluid_lies_on_the_side_the_caption_says(condition, monkeypatch):
    scans = []
    real = oct._photograph
    monkeypatch.setattr(oct, "_photograph", lambda scan: (scans.append(scan), real(scan))[1])
    for seed in range(30):
        retina = draw_retina("OCT", condition, seed, eye="right")
        mask = retina.masks["subretinal fluid" if condition.startswith("central") else "intraretinal cysts"]
        columns = (np.nonzero(mask)[1] + 0.5) / 64 - 1 - scans[-1].fovea
        beyond = (columns < 0) if retina.place.startswith("nasal") else (columns > 0)
        assert beyond.mean() < 0.01


def test_an_eye_may_have_two_conditions():
    retina = draw_retina("CFP", "diabetic retinopathy", 3, 192, also="glaucoma")
    assert retina.categories[:2] == ("diabetic retinopathy", "glaucoma")
    assert {"optic cup", "microaneurysms"} <= set(retina.masks)
    first, second = retina.caption.split("; ")
    assert "diabetic retinopathy with" in first
    assert "glaucoma with a cup-to-disc ratio" in second
    both = draw_retina("CFP", "branch retinal vein occlusion", 5, 192, also="diabetic retinopathy")
    assert both.lesions["cotton-wool spots"] >= 1
    assert label(both.masks["cotton-wool spots"])[1] == both.lesions["cotton-wool spots"]


@pytest.mark.parametrize(
    ("modality", "first", "second"),
    [("CFP", "normal", "glaucoma"), ("CFP", "glaucoma", "normal"), ("CFP", "glaucoma", "glaucoma"),
     ("CFP", "glaucoma", "macular hole"), ("OCT", "macular edema", "macular hole")],
)  # fmt: skip
def test_two_conditions_that_exclude_each_other_are_refused(modality, first, second):
    with pytest.raises(CategoryError, match="give two"):
        draw_retina(modality, first, also=second)


def test_bad_choices_are_named():
    with pytest.raises(ConfigError, match=r"'MRI'.*CFP, FFA, OCT"):
        draw_retina("MRI", "normal")
    with pytest.raises(CategoryError, match=r"'glaucoma' cannot be drawn as OCT; choose from: normal"):
        draw_retina("OCT", "glaucoma")
    with pytest.raises(ConfigError, match="between 32 and 4096"):
        draw_retina("CFP", "normal", size=8)
    with pytest.raises(ConfigError, match="left or right"):
        draw_retina("CFP", "normal", eye="both")
    for bad in ({"count": 0}, {"count": 1, "elite": 1.5}, {"count": 1, "seed": -1}):
        with pytest.raises(ConfigError):
            DrawOptions(**bad)


def test_dataset_on_disk(tmp_path):
    out = tmp_path / "drawn"
    draw_dataset(out, DrawOptions(count=160, size=48, elite=0.25))
    everything, elite, public = (list(read_records(out / f"{n}.csv", out)) for n in ("retina", "elite", "public"))
    assert len(everything) == 160
    assert len(elite) == pytest.approx(40, abs=4)
    assert {r.image for r in elite}.isdisjoint(r.image for r in public)
    assert len(elite) + len(public) == 160
    assert {r.categories[0] for r in elite} == set(CONDITIONS)
    assert all(r.captions and r.eye and r.modality and r.patient for r in everything)
    assert all(not r.captions and r.modality and len(r.categories) == 1 for r in public)
    for number, record in enumerate(everything):
        retina = draw_number(number, 0, 48)
        assert np.array_equal(np.asarray(Image.open(record.image)), np.asarray(retina.image))
        assert record.caption_texts == [retina.caption]
        for name, mask in retina.masks.items():
            stored = Image.open(out / "masks" / f"{number:06d}-{name.replace(' ', '-')}.png")
            assert np.array_equal(np.asarray(stored).astype(bool), mask)
    with open(out / "public.csv", newline="") as file:
        assert next(csv.reader(file))[:3] == ["image", "atributes", "categories"]


def test_dataset_feeds_the_shard_builder(tmp_path):
    out = tmp_path / "drawn"
    draw_dataset(out, DrawOptions(count=48, size=32, elite=0.5))
    for kind in ("public", "elite"):
        report = build_shards(out / f"{kind}.csv", out, tmp_path / kind, ShardOptions(kind=kind))
        assert not report.left_out
        assert not report.unresolved
        assert set(report.modalities) == {"CFP", "FFA", "OCT"}


def test_an_interrupted_drawing_leaves_nothing(tmp_path):
    def stop(numbers):
        yield from numbers[:3]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw_dataset(tmp_path / "drawn", DrawOptions(count=10), stop)
    assert not list(tmp_path.iterdir())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="holds something already"):
        draw_dataset(tmp_path / "other", DrawOptions(count=1))
    assert (tmp_path / "other" / "thesis.txt").read_text() == "mine"
