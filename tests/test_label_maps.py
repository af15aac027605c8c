"""What the labels of data sets mean: their own maps, whole sentences, and tables that are wrong themselves."""

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from keepfit_clip.cli import app
from keepfit_clip.data import SourceOptions, read_records
from keepfit_clip.data.sources import SourceNotes
from keepfit_clip.errors import CategoryError
from keepfit_clip.knowledge.conditions import Knowledge
from keepfit_clip.knowledge.labels import label_map_names, read_label, read_label_map, repair_of
from tests.pictures import write_public

KNOWLEDGE = Knowledge.load()
ASKED = {
    "rfmid", "rfmid2", "odir", "jsiec", "brset", "mbrset", "aptos", "eyepacs", "messidor", "idrid", "ddr", "octdl",
    "oct-c8", "octid", "oct2017", "hrdc-task1", "hrdc-task2", "mmac", "refuge", "airogs",
}  # fmt: skip


def test_the_usual_sets_have_a_map():
    assert set(label_map_names()) >= ASKED


@pytest.mark.parametrize("name", label_map_names())
def test_every_meaning_is_a_canonical_category_and_documented(name):
    read = read_label_map(name)
    assert read.source
    assert read.labels
    for label, categories in read.labels.items():
        for category in categories:
            assert KNOWLEDGE.resolve(category) == category, (label, category)
    assert set(read.unverified) <= set(read.labels)


@pytest.mark.parametrize(
    ("name", "label", "categories"),
    [
        ("rfmid", "MH", ["media haze"]),
        ("octid", "MH", ["macular hole"]),
        ("rfmid", "HR", ["hemorrhagic retinopathy"]),
        ("odir", "H", ["hypertensive retinopathy"]),
        ("odir", "D", ["diabetic retinopathy"]),
        ("hrdc-task1", "hypertensive", []),
        ("jsiec", "0.0.Normal", ["normal"]),
        ("aptos", "2", ["moderate non-proliferative diabetic retinopathy"]),
        ("eyepacs", "0", ["no diabetic retinopathy"]),
        ("octdl", "NO", ["normal"]),
        ("airogs", "NRG", ["no referable glaucoma"]),
        ("mmac", "myopic maculopathy grade two", ["diffuse chorioretinal atrophy"]),
        ("refuge", "non-glaucoma", ["no glaucoma"]),
    ],
)
def test_labels_of_sets(name, label, categories):
    assert read_label(label, KNOWLEDGE, read_label_map(name)) == categories


@pytest.mark.parametrize(
    ("label", "categories"),
    [
        ("43-year-old female, macular hole.", ["macular hole"]),
        ("glaucoma, cataract", ["cataract", "glaucoma"]),
        ("macular hole with drusen, no neovascularization", ["drusen", "macular hole", "no neovascularization"]),
        ("66-year-old white female", []),
        ("flying saucer", ["flying saucer"]),
        ("", []),
    ],
)  # fmt: skip
def test_whole_sentences_stand_for_what_they_state(label, categories):
    assert sorted(read_label(label, KNOWLEDGE)) == categories


def write_table(folder, name, labels):
    with open(write_public(folder, len(labels)), newline="") as file:
        images = [row["image"] for row in csv.DictReader(file)]
    table = folder / name
    with open(table, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "categories"), *zip(images, labels, strict=True)])
    return table


def categories_of(table, **options):
    notes = SourceNotes()
    records = list(read_records(table, table.parent, options=SourceOptions(**options), notes=notes))
    return [record.categories for record in records], "\n".join(notes.lines())


def test_numbers_are_labels_where_a_map_names_them(tmp_path):
    table = write_table(tmp_path, "grades.csv", ["0", "3", "4"])
    read, _ = categories_of(table, labels="aptos")
    assert read[0] == ("no diabetic retinopathy",)
    assert read[2] == ("proliferative diabetic retinopathy",)


def test_what_says_nothing_is_counted(tmp_path):
    table = write_table(tmp_path, "hrdc.csv", ["hypertensive", "hypertensive"])
    read, told = categories_of(table, labels="hrdc-task1")
    assert read == [(), ()]
    assert "hypertensive (2)" in told


def test_known_errors_of_published_tables_are_repaired_aloud(tmp_path):
    table = write_table(tmp_path, "34_Cataract.csv", ["retinitis", "cataract"])
    read, told = categories_of(table)
    assert read == [("retinal disease",), ("cataract",)]
    assert "labels of 1 rows repaired" in told
    assert "--as-written" in told
    assert categories_of(table, as_written=True)[0] == [("retinitis",), ("cataract",)]
    assert repair_of("my_cataract.csv") is None
    davis = repair_of("31_JICHI.csv").apply(
        [
            "soft exudate",
            "varicose veins",
            "intraretinal microvascular abnormality",
            "non-perfusion area over one disc area",
        ]
    )
    assert davis == ("severe non-proliferative diabetic retinopathy",)


def test_maps_of_ones_own_and_wrong_ones(tmp_path):
    mine = tmp_path / "mine.json"
    mine.write_text(json.dumps({"labels": {"Grade X": ["glaucoma"]}}))
    assert read_label_map(str(mine)).meaning("grade x") == ("glaucoma",)
    with pytest.raises(CategoryError, match=r"no such label map.*rfmid"):
        read_label_map("rfmidd")
    for content, message in [
        ("{", "not JSON"),
        ("{}", "'labels' is a required"),
        ('{"labels": {"a": "b"}}', "labels.a"),
    ]:
        path = tmp_path / f"{len(content)}.json"
        path.write_text(content)
        with pytest.raises(CategoryError, match=message):
            read_label_map(str(path))


def test_published_labels_resolve():
    published = json.loads(Path(__file__).with_name("published_labels.json").read_text(encoding="utf-8"))
    counts, unresolved = published["labels"], {label for labels in published["unresolved"].values() for label in labels}
    maps = {label: name for name, labels in published["maps"].items() for label in labels}
    found = {}
    for label, count in counts.items():
        label_map = read_label_map(maps[label]) if label in maps else None
        if any(KNOWLEDGE.resolve(name) is None for name in read_label(label, KNOWLEDGE, label_map)):
            found[label] = count
    assert sum(found.values()) <= 0.02 * sum(counts.values()), sorted(found, key=found.get)[-30:]
    assert sorted(label for label in found if label not in unresolved) == []


def test_the_command_lists_and_shows_maps():
    listed = CliRunner().invoke(app, ["knowledge", "labels"]).output
    assert all(name in listed for name in ASKED)
    assert "media haze" in CliRunner().invoke(app, ["knowledge", "labels", "rfmid"]).output
