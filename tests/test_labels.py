"""Numbers of labels, columns found by their names, and what a command says of both."""

import csv
import json

import pytest
from typer.testing import CliRunner

from keepfit_clip.cli import app
from keepfit_clip.data import SourceOptions, read_records
from keepfit_clip.data.downstream import ClassFile, read_class_file, read_downstream
from keepfit_clip.data.sources import SourceNotes
from keepfit_clip.errors import CategoryError, ConfigError, TableError
from tests.pictures import CONDITIONS, write_public

GRADES = {"no diabetic retinopathy": ["0"], "mild nonproliferative diabetic retinopathy": ["1"],
          "moderate nonproliferative diabetic retinopathy": ["2"]}  # fmt: skip


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Twelve pictures, three of each of four conditions, and their names in order."""
    folder = tmp_path_factory.mktemp("drawn")
    with open(write_public(folder, 12), newline="") as file:
        return folder, [row["image"] for row in csv.DictReader(file)]


def write_rows(path, header, rows):
    with open(path, "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def read(path, **options):
    rejected, notes = [], SourceNotes()
    records = list(read_records(path, None, rejected.append, SourceOptions(**options), notes))
    return records, rejected, notes


# -- numbers -----------------------------------------------------------------------------------------------------------


def test_a_class_file_names_the_grades_of_a_table(drawn, tmp_path):
    folder, images = drawn
    (tmp_path / "grades.json").write_text(json.dumps({"title": "grades", "ordinal": True, "classes": GRADES}))
    spec = read_class_file(tmp_path / "grades.json")
    whole = write_rows(tmp_path / "train.csv", ["image", "diagnosis"], [[n, i % 3] for i, n in enumerate(images)])
    found = read_downstream(whole, folder, spec)
    assert found.labels.tolist() == [i % 3 for i in range(12)]
    # as pandas writes a column in which a row has none
    rows = [[n, "" if i == 5 else f"{i % 3}.0", f"{i % 2}.0"] for i, n in enumerate(images)]
    floats = write_rows(tmp_path / "floats.csv", ["image", "grade", "edema"], rows)
    found = read_downstream(floats, folder, spec, options=SourceOptions(category_columns=("grade",)))
    assert found.labels.tolist() == [i % 3 for i in range(12) if i != 5]
    assert [left_out.row for left_out in found.left_out] == [6]


def test_a_number_that_nothing_names_is_refused_with_a_way_that_works(tmp_path):
    path = write_rows(tmp_path / "t.csv", ["image", "label"], [["a", "1.0"]])
    (error,) = read(path)[1]
    assert "--label-name 1=..." in str(error)
    assert read(path, label_names={"1": "glaucoma"})[0][0].categories == ("glaucoma",)


def test_names_are_given_to_the_numbers_of_one_column(tmp_path):
    header = ["Image name", "Retinopathy grade", "Risk of macular edema ", "", ""]
    path = write_rows(tmp_path / "t.csv", header, [["a", 1, 0, "", ""], ["b", 2, 2, "", ""], ["c", 0, 1, "", ""]])
    columns = {"category_columns": ("Retinopathy grade", "Risk of macular edema")}
    names = {
        "Retinopathy grade:0": "no DR", "Retinopathy grade:1": "mild NPDR", "Retinopathy grade:2": "moderate NPDR",
        "Risk of macular edema:0": "no macular edema", "risk of macular edema:1": "low risk",
        "Risk of macular edema:2": "high risk",
    }  # fmt: skip
    records, rejected, _ = read(path, label_names=names, **columns)
    assert not rejected
    assert [record.categories for record in records] == [
        ("mild NPDR", "no macular edema"), ("moderate NPDR", "high risk"), ("no DR", "low risk"),
    ]  # fmt: skip
    (first, *_) = read(path, **columns)[1]
    assert "--label-name 'Retinopathy grade:1=...'" in str(first)


def test_one_name_for_the_numbers_of_two_columns_is_an_error(tmp_path):
    path = write_rows(tmp_path / "t.csv", ["image", "grade", "edema"], [["a", 1, 0], ["b", 0, 1]])
    with pytest.raises(TableError, match=r"'grade' and 'edema' both hold numbers.*'edema:0=\.\.\.'"):
        list(read_records(path, options=SourceOptions(
            category_columns=("grade", "edema"), label_names={"0": "normal", "1": "mild NPDR"}
        )))  # fmt: skip


def test_halves_of_characters_are_counted(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"image": "a.png", "caption": "drusen \\ud83d"}\n{"image": "b.png", "caption": "drusen"}\n')
    records, rejected, notes = read(path)
    assert [record.captions[0].text for record in records] == ["drusen ?", "drusen"]
    assert not rejected
    assert "1 texts hold halves of characters" in notes.lines()[-1]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["0=normal", "0=glaucoma"], "stands there twice"),
        (["normal"], "not of the form NAME=VALUE"),
        (["0="], "not of the form NAME=VALUE"),
    ],
)
def test_names_that_cannot_be_are_refused_by_every_command(exported, drawn, tmp_path, names, message):
    table = write_rows(tmp_path / "t.csv", ["image", "label"], [["a", 0]])
    flags = [part for name in names for part in ("--label-name", name)]
    for command in ("evaluate", "transfer", "evaluate-retrieval", "evaluate-captions"):
        result = CliRunner().invoke(
            app, [command, str(table), "--images", str(drawn[0]), "--model", str(exported), *flags]
        )
        assert isinstance(result.exception, ConfigError), result.output
        assert message in str(result.exception)


# -- columns that were guessed -----------------------------------------------------------------------------------------


def test_a_guessed_column_that_makes_no_sense_costs_no_row_and_is_told_once(tmp_path):
    rows = [["a", "1", "1", "normal", "MRI"], ["b", "1", "2", "glaucoma", "CFP"], ["c", "2", "1", "normal", "CFP"]]
    path = write_rows(tmp_path / "labels.csv", ["image_id", "patient_id", "exam_eye", "diagnosis", "modality"], rows)
    records, rejected, notes = read(path)
    assert not rejected
    assert [(record.eye, record.modality, record.patient) for record in records] == [
        (None, None, "1"), (None, "CFP", "1"), (None, "CFP", "2"),
    ]  # fmt: skip
    taken, eye, modality = sorted(notes.lines(), key=lambda line: (not line.startswith("columns"), "modality" in line))
    assert "image from 'image_id', category from 'diagnosis'" in taken
    assert "patient from 'patient_id'" in taken
    assert "'exam_eye' was taken for the eye, and 3 of its cells make no sense" in eye
    assert "'modality' was taken for the modality, and 1 of its cells" in modality


def test_what_the_line_about_a_guessed_column_advises_works(tmp_path):
    path = write_rows(tmp_path / "t.csv", ["image", "exam_eye", "label"], [["a", 1, "normal"], ["b", 2, "normal"]])
    records, _, notes = read(path, label_names={"exam_eye:1": "right", "exam_eye:2": "left"})
    assert [record.eye for record in records] == ["right", "left"]
    assert not notes.ignored
    _, _, notes = read(path, eye_column="none")
    assert not notes.ignored
    assert "eye" not in notes.columns


def test_a_column_that_somebody_named_has_to_make_sense(tmp_path):
    path = write_rows(tmp_path / "t.csv", ["image", "exam_eye", "label"], [["a", 1, "normal"], ["b", "OD", "normal"]])
    records, rejected, _ = read(path, eye_column="exam_eye")
    assert [record.eye for record in records] == ["right"]
    assert "the eye is none of left, right" in str(rejected[0])


@pytest.mark.parametrize("name", ["group", "study", "study_id"])
def test_a_group_or_a_study_is_no_patient(tmp_path, name):
    path = write_rows(
        tmp_path / "t.csv", ["image", "label", name], [["a", "normal", "train"], ["b", "normal", "train"]]
    )
    assert {record.patient for record in read(path)[0]} == {None}
    assert {record.patient for record in read(path, patient_column=name)[0]} == {"train"}


def test_the_images_of_a_study_of_several_still_belong_together(tmp_path):
    studies = [{"id": n, "images": [f"{n}a", f"{n}b"], "report": "Normal."} for n in ("x", "y")]
    (tmp_path / "t.json").write_text(json.dumps(studies))
    assert [record.patient for record in read(tmp_path / "t.json")[0]] == ["x", "x", "y", "y"]


@pytest.mark.parametrize("column", ["patient", "eye", "modality", "dataset", "attribute"])
def test_each_column_that_may_be_missing_can_be_switched_off(tmp_path, column):
    path = write_rows(tmp_path / "t.csv", ["image", "label", "patient", "eye", "modality", "dataset", "attributes"],
                      [["a", "normal", "p", "left", "CFP", "d", "clean"]])  # fmt: skip
    (told,), (off,) = read(path)[0], read(path, **{f"{column}_column": "none"})[0]
    field = "attributes" if column == "attribute" else column
    assert getattr(told, field)
    assert not getattr(off, field)


# -- commands ----------------------------------------------------------------------------------------------------------


def evaluate(*words):
    return CliRunner().invoke(app, ["evaluate", *map(str, words)])


def test_evaluate_tells_its_columns_and_what_the_scores_are_over(exported, drawn, tmp_path):
    folder, images = drawn
    rows = [[n, CONDITIONS[i % 4], 1 + i % 2] for i, n in enumerate(images)]
    table = write_rows(tmp_path / "t.csv", ["image", "diagnosis", "laterality"], rows)
    result = evaluate(
        table, "--images", folder, "--model", exported, "--modality", "CFP", "--json", tmp_path / "o.json"
    )
    assert result.exit_code == 0, result.output
    told = " ".join(result.output.split())
    assert "columns: image from 'image', category from 'diagnosis', eye from 'laterality'" in told
    assert "12 of its cells make no sense" in told
    assert "over 12 images" in told
    assert "kappa" not in told
    content = json.loads((tmp_path / "o.json").read_text())
    assert content["kappa"] is None
    assert len(content["classes_scored"]) == 4


def test_kappa_is_of_grades(exported, drawn, tmp_path):
    folder, images = drawn
    (tmp_path / "grades.json").write_text(json.dumps({"ordinal": True, "classes": GRADES}))
    table = write_rows(tmp_path / "t.csv", ["image", "grade"], [[n, i % 3] for i, n in enumerate(images)])
    result = evaluate(table, "--images", folder, "--model", exported, "--classes", tmp_path / "grades.json",
                      "--category-column", "grade", "--modality", "CFP")  # fmt: skip
    assert "quadratic kappa" in result.output, result.output


def test_a_class_without_images_is_an_error_unless_it_is_allowed(exported, drawn):
    folder, _ = drawn
    words = [folder / "public.csv", "--images", folder, "--model", exported, "--modality", "CFP",
             "--classes", ",".join((*CONDITIONS, "macular hole"))]  # fmt: skip
    refused = evaluate(*words)
    assert isinstance(refused.exception, CategoryError)
    assert "macular hole" in str(refused.exception)
    assert "--allow-missing-classes" in str(refused.exception)
    allowed = evaluate(*words, "--allow-missing-classes")
    assert allowed.exit_code == 0, allowed.output
    assert "ACA of 4 of 5 classes" in " ".join(allowed.output.split())
    assert "no image of macular hole" in " ".join(allowed.output.split())


def test_shards_hold_their_images_themselves(exported, shards, tmp_path):
    result = evaluate(shards / "public", "--model", exported)
    assert result.exit_code == 0, result.output
    assert "over 24 images" in " ".join(result.output.split())
    refused = evaluate(shards / "public", "--model", exported, "--images", tmp_path)
    assert "leave --images out" in str(refused.exception)


def test_a_table_wants_the_folder_of_its_images(exported, drawn, tmp_path):
    folder, images = drawn
    table = folder / "public.csv"
    assert "with --images" in str(evaluate(table, "--model", exported).exception)
    is_file = evaluate(table, "--model", exported, "--images", folder / images[0]).exception
    assert "is a file; give the folder" in str(is_file)
    assert "no such folder" in str(evaluate(table, "--model", exported, "--images", tmp_path / "nowhere").exception)


# -- what is no source -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("labels.xls", b"PK\x03\x04rest", "is a workbook: save its sheet as CSV"),
        ("labels.xlsx", b"PK\x03\x04rest", "is not written as it should be"),
        ("eye.png", b"x", "is one image"),
        ("notes.pdf", b"%PDF", "say what it is with --source"),
        ("images/a.png", b"x", "give the table that labels them"),
        ("empty/readme.md", b"x", "holds neither images nor shards"),
    ],
)
def test_what_is_no_source_is_told_as_what_it_is(tmp_path, name, content, message):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    with pytest.raises(TableError, match=message):
        read(path.parent if path.parent != tmp_path else path)


def test_a_workbook_under_the_name_of_a_table_is_not_told_to_try_another_encoding(tmp_path):
    (tmp_path / "labels.csv").write_bytes(b"PK\x03\x04\x14\0\x06\0\xff\xfe")
    with pytest.raises(TableError, match="is a workbook") as caught:
        read(tmp_path / "labels.csv")
    assert "--encoding" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        "[1, 2]",
        '{"classes": {"a": 3, "b": []}}',
        '{"classes": [1, 2]}',
        '{"title": 3, "classes": ["a", "b"]}',
        "[" * 99999,
    ],
)
def test_a_class_file_that_is_none_is_one_clear_error(tmp_path, content):
    (tmp_path / "classes.json").write_text(content)
    with pytest.raises(CategoryError, match=r"classes\.json: "):
        read_class_file(tmp_path / "classes.json")


def test_a_class_file_made_by_hand_needs_no_labels():
    assert ClassFile("t", {"a": (), "b": ()}).classes == {"a": (), "b": ()}
