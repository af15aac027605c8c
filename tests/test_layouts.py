"""Data sets as they are unpacked: every shipped layout on a small copy of it, made by hand, with the right records.

A miniature (`tests/miniatures/NAME.json`) says which files there are, and what is to be read:

    {"tables": {"labels.csv": "text" | [[rows of a workbook]] | {JSON}}, "images": ["a/1.png", ...],
     "records": [{"image": "a/1.png", "categories": [...], "eye", "patient", "split", "modality", "captions"}, ...],
     "left_out": 0}
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from keepfit_clip.cli import app
from keepfit_clip.data import SourceOptions, read_records
from keepfit_clip.data.sources import SourceNotes
from keepfit_clip.data.sources.layout import find_layouts, missing_files
from keepfit_clip.data.sources.layout_file import layout_names, read_layout
from keepfit_clip.drawing import draw_retina
from keepfit_clip.errors import TableError
from tests.pictures import CONDITIONS

MINIATURES = Path(__file__).with_name("miniatures")
ASKED = {
    "rfmid", "rfmid2", "odir5k", "brset", "mbrset", "idrid", "messidor2", "ddr", "aptos", "eyepacs", "papila",
    "drishti", "refuge", "origa", "g1020", "lag", "airogs", "fives", "jsiec1000", "deepeyenet", "ffa-ir", "mm-retinal",
    "mpos", "octdl", "octid", "oct-c8", "oct2017", "flair", "synfundus",
}  # fmt: skip


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "retina.png"
    draw_retina("CFP", "normal", 0, size=32).image.save(path)
    return path


def unpack(name, root, picture=None):
    """A data set in small below a folder, its images copies of a picture, or drawn; returns what is to be read."""
    content = json.loads((MINIATURES / f"{name}.json").read_text(encoding="utf-8"))
    for table, written in content.get("tables", {}).items():
        path = root / table
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".xlsx":
            pd.DataFrame(written).to_excel(path, header=False, index=False)
        else:
            path.write_text(written if isinstance(written, str) else json.dumps(written), encoding="utf-8")
    for number, image in enumerate(content["images"]):
        (root / image).parent.mkdir(parents=True, exist_ok=True)
        if picture is not None:
            shutil.copy(picture, root / image)
        else:
            draw_retina("CFP", CONDITIONS[number % 4], number, size=96).image.save(root / image)
    return content


def read(root, **options):
    rejected, notes = [], SourceNotes()
    records = list(read_records(root, None, rejected.append, SourceOptions(**options), notes))
    return records, rejected, notes


def as_written(record, root):
    told = {"image": record.image.relative_to(root).as_posix()}
    for key in ("categories", "eye", "patient", "split", "modality"):
        value = getattr(record, key)
        told |= {key: list(value) if isinstance(value, tuple) else value} if value else {}
    if record.captions:
        told["captions"] = record.caption_texts
    return told


def test_the_usual_sets_have_a_layout():
    assert set(layout_names()) >= ASKED


@pytest.mark.parametrize("name", layout_names())
def test_a_set_as_it_is_unpacked(name, tmp_path, picture):
    content = unpack(name, tmp_path, picture)
    records, rejected, notes = read(tmp_path, layout=name)
    found = sorted((as_written(record, tmp_path) for record in records), key=lambda told: told["image"])
    assert found == sorted(content["records"], key=lambda told: told["image"])
    assert len(rejected) == content.get("left_out", 0), [str(error) for error in rejected]
    assert "read as" in "\n".join(notes.lines())


@pytest.mark.parametrize("name", layout_names())
def test_a_set_is_told_by_looking(name, tmp_path, picture):
    unpack(name, tmp_path, picture)
    assert name in find_layouts(tmp_path)
    assert missing_files(read_layout(name), tmp_path) == []
    layout = read_layout(name)
    assert layout.source
    assert layout.licence
    assert layout.home
    assert layout.tree()


def test_no_two_sets_are_taken_for_each_other(tmp_path, picture):
    twins = {}
    for name in layout_names():
        unpack(name, tmp_path / name, picture)
        others = [found for found in find_layouts(tmp_path / name) if found != name]
        if others:
            twins[name] = others
    assert twins == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "neither JSON nor YAML"),
        ("{}", "'schema' is a required property"),
        ('{"schema": 1, "title": "x", "parts": []}', "parts: .*"),
        ('{"schema": 1, "title": "x", "parts": [{"images": [{"image": "a"}]}]}', "either a table or files"),
        ('{"schema": 1, "title": "x", "parts": [{"table": "t.csv", "images": [{"image": "{a"}]}]}', "no template"),
        (
            '{"schema": 1, "title": "x", "parts": [{"table": "t", "images": [{"image": "a", "labels": '
            '[{"column": "c", "label_map": "nope"}]}]}]}',
            "no label map 'nope'",
        ),
    ],
)
def test_broken_layouts_are_one_clear_error(tmp_path, content, message):
    path = tmp_path / "mine.json"
    path.write_text(content)
    with pytest.raises(TableError, match=message):
        read_layout(str(path))
    with pytest.raises(TableError, match=r"no such layout.*rfmid"):
        read_layout("rfmidd")


def test_a_layout_of_ones_own(tmp_path, picture):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "t.txt").write_text("0007 1 x\n0008 0 x\n0009 2 bad\n")
    for name in ("0007", "0008", "0009"):
        shutil.copy(picture, tmp_path / "set" / f"{name}.png")
    (tmp_path / "mine.yaml").write_text(
        "schema: 1\ntitle: mine\nmodality: OCT\nparts:\n- table: t.txt\n"
        "  format: {separator: ' ', columns: [id, grade, quality]}\n  drop: {quality: [bad]}\n  images:\n"
        "  - image: '{id}'\n    eye: '{grade}'\n    codes: {eye: {'1': left, '0': right}}\n"
        "    labels: [{column: grade, map: {'0': [normal], '1': [drusen, glaucoma]}}]\n"
    )
    records, rejected, notes = read(tmp_path / "set", layout=str(tmp_path / "mine.yaml"))
    assert rejected == []
    assert [(r.categories, r.eye, r.modality) for r in records] == [
        (("drusen", "glaucoma"), "left", "OCT"), (("normal",), "right", "OCT")]  # fmt: skip
    assert "1 rows left out" in "\n".join(notes.lines())


def test_what_is_missing_is_named(tmp_path, picture):
    unpack("aptos", tmp_path, picture)
    for table in tmp_path.glob("*.csv"):
        table.unlink()
    with pytest.raises(TableError, match=r"not laid out as .*it has no .*csv"):
        read(tmp_path, layout="aptos")
    assert "csv" in CliRunner().invoke(app, ["datasets", "find", str(tmp_path)]).output


def test_commands(tmp_path, picture):
    runner = CliRunner()
    listed = runner.invoke(app, ["datasets", "list"], env={"COLUMNS": "200"}).output
    assert all(name in listed for name in ASKED)
    shown = runner.invoke(app, ["datasets", "show", "odir5k"]).output
    assert "ODIR" in shown
    unpack("odir5k", tmp_path, picture)
    assert "odir5k" in runner.invoke(app, ["datasets", "find", str(tmp_path)]).output
    mine = tmp_path / "mine.json"
    mine.write_text('{"schema": 1, "title": "x", "parts": []}')
    with pytest.raises(TableError):
        runner.invoke(app, ["datasets", "check", str(mine)], catch_exceptions=False)
    out = tmp_path / "shards"
    arguments = ["shards", "build", str(tmp_path), "--out", str(out), "--kind", "public", "--layout", "odir5k"]
    result = runner.invoke(app, [*arguments, "--workers", "1", "--keep-identifiers"], catch_exceptions=False)
    assert result.exit_code == 0
    assert list(out.glob("*.tar"))


def test_the_split_that_comes_with_a_set_is_kept(tmp_path, picture):
    runner = CliRunner()
    unpack("fives", tmp_path / "set", picture)
    arguments = ["shards", "build", str(tmp_path / "set"), "--out", str(tmp_path / "shards"), "--kind", "public"]
    result = runner.invoke(app, [*arguments, "--split", "given", "--workers", "1"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    manifest = json.loads((tmp_path / "shards" / "manifest.json").read_text())
    assert sorted(manifest["parts"]) == ["test", "train"]


def test_rows_without_a_part_are_left_out_of_a_given_split(tmp_path):
    from keepfit_clip.errors import ShardError
    from tests.pictures import write_public

    table = write_public(tmp_path, 4)
    arguments = [
        "shards",
        "build",
        str(table),
        "--out",
        str(tmp_path / "shards"),
        "--kind",
        "public",
        "--split",
        "given",
    ]
    with pytest.raises(ShardError, match="says no part of a split"):
        CliRunner().invoke(app, [*arguments, "--images", str(tmp_path), "--workers", "1"], catch_exceptions=False)


def test_the_fold_of_a_given_split():
    from keepfit_clip.errors import ConfigError
    from keepfit_clip.transfer.splits import given_fold

    learnt, tested = given_fold(["train", "test", None, "val", "test"])
    assert (learnt.tolist(), tested.tolist()) == ([0, 3], [1, 4])
    with pytest.raises(ConfigError, match="the source gives train"):
        given_fold(["train", None])


def written(folder, picture, table, **part):
    """A layout of one's own and its set: a table of an id, and images of these names."""
    folder.mkdir()
    (folder / "t.csv").write_text(table)
    for line in table.splitlines()[1:]:
        shutil.copy(picture, folder / f"{line.split(',')[0]}.png")
    layout = {"schema": 1, "title": "mine", "parts": [{"table": "t.csv", "images": [{"image": "{id}", **part}]}]}
    path = folder.parent / f"{folder.name}.json"
    path.write_text(json.dumps(layout))
    return read(folder, layout=str(path))


def test_numbers_of_a_column_mean_what_that_column_means(tmp_path, picture):
    table = "id,Retinopathy grade,Risk of macular edema\na,2,3\nb,-1,0\nc,2,0\n"
    rules = [{"column": name, "label_map": "idrid"} for name in ("Retinopathy grade", "Risk of macular edema")]
    records, rejected, _ = written(tmp_path / "set", picture, table, labels=rules)
    assert [record.image.stem for record in records] == ["c"]
    assert [error.row for error in rejected] == [1, 2]
    assert all("a number that the layout does not know" in str(error) for error in rejected)


def test_columns_of_0_and_1_hold_nothing_else(tmp_path, picture):
    records, rejected, _ = written(
        tmp_path / "set",
        picture,
        "id,drusen\na,1\nb,2\nc,TRUE\nd,0\n",
        labels=[{"columns": ["drusen"], "one_hot": True}],
    )
    assert [record.image.stem for record in records] == ["a", "c"]
    assert "neither 0 nor 1" in str(rejected[0])


def test_codes_in_yaml_need_no_quotes(tmp_path, picture):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "t.csv").write_text("id,side,label\na,1,drusen\n")
    shutil.copy(picture, tmp_path / "set" / "a.png")
    (tmp_path / "mine.yaml").write_text(
        "schema: 1\ntitle: mine\nparts:\n- table: t.csv\n  images:\n  - image: '{id}'\n    eye: '{side}'\n"
        "    codes: {eye: {1: right, 2: left}}\n    labels: [{column: label}]\n"
    )
    (record,), _, _ = read(tmp_path / "set", layout=str(tmp_path / "mine.yaml"))
    assert record.eye == "right"


def test_a_folder_that_two_layouts_fit_is_an_error(tmp_path, picture):
    unpack("aptos", tmp_path, picture)
    unpack("eyepacs", tmp_path, picture)
    with pytest.raises(TableError, match=r"lies as .* and as .*--layout"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"images": [{"image": "{}"}]}, "no template"),
        ({"images": [{"image": "{a:>9}"}]}, "no template"),
        ({"images": [{"image": "a", "modality": "{m"}]}, "no template"),
        ({"images": [{"image": "a"}], "table": "../t.csv"}, "leads out"),
        ({"images": [{"image": "a"}], "table": "{a}{a}.csv"}, "twice"),
        ({"images": [{"image": "a"}], "format": {"encoding": "klingon"}}, "no encoding"),
        ({"images": [{"image": "a"}], "format": {"separator": ";;"}}, "not one character"),
        ({"images": [{"image": "a"}], "format": {"skip": 10**30}}, "maximum"),
    ],
)
def test_layouts_that_could_not_be_read_are_told_at_once(tmp_path, part, message):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"schema": 1, "title": "x", "parts": [{"table": "t.csv", **part}]}))
    with pytest.raises(TableError, match=message):
        read_layout(str(path))


def test_a_table_of_a_usual_name_is_no_set_by_its_name_alone(tmp_path, picture):
    unpack("aptos", tmp_path, picture)
    assert find_layouts(tmp_path) == ["aptos"]
    (tmp_path / "train.csv").write_text("image,category\na.png,glaucoma\n", encoding="utf-8")
    assert "aptos" not in find_layouts(tmp_path)
    assert missing_files(read_layout("aptos"), tmp_path) == []  # who asks for it is told of the column in its row


TABLE = {"schema": 1, "title": "mine", "parts": []}
FUNDUS = [{"image": "{id}", "labels": [{"column": "label"}]}]


def layout_file(tmp_path, *parts):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({**TABLE, "parts": list(parts)}))
    return str(path)


def test_an_error_names_the_table_and_the_number_in_it_and_no_cell_slips_into_another_column(tmp_path, picture):
    root = tmp_path / "set"
    root.mkdir()
    shutil.copy(picture, root / "a.png")
    (root / "one.csv").write_text("id,label\na,drusen\n")
    (root / "two.csv").write_text("id,label\n\na,drusen,,\na,drusen,extra\na\n,\na,glaucoma\n")
    parts = ({"table": table, "images": FUNDUS} for table in ("one.csv", "two.csv"))
    records, rejected, _ = read(root, layout=layout_file(tmp_path, *parts))
    assert [(r.row, *r.categories) for r in records] == [(1, "drusen"), (2, "drusen"), (5, "glaucoma")]
    assert [error.row for error in rejected] == [3, 4]
    assert "two.csv, row 2: the row has another number of cells" in str(rejected[0])


@pytest.mark.parametrize(("header", "refused"), [("id,label,label", True), ("id,label,age,age", False)])
def test_a_column_that_matters_stands_there_once(tmp_path, picture, header, refused):
    root = tmp_path / "set"
    root.mkdir()
    shutil.copy(picture, root / "a.png")
    (root / "t.csv").write_text(f"{header}\n{','.join(['a', 'drusen', 'x', 'y'][: len(header.split(','))])}\n")
    layout = layout_file(tmp_path, {"table": "t.csv", "images": FUNDUS})
    if refused:
        with pytest.raises(TableError, match="'label' twice"):
            read(root, layout=layout)
    else:
        assert read(root, layout=layout)[0][0].categories == ("drusen",)


def test_a_set_beside_words_about_it_is_found_and_one_of_which_a_part_is_there_is_read_where_it_is_named(
    tmp_path, picture
):
    unpack("idrid", tmp_path / "down" / "IDRiD", picture)
    for name in ("README.txt", "LICENSE", "IDRiD.zip", "paper.pdf"):
        (tmp_path / "down" / name).write_text("words")
    assert find_layouts(tmp_path / "down") == ["idrid"]
    whole, _, _ = read(tmp_path / "down")
    for part in read_layout("idrid").parts:
        if "raining" in part.table:
            shutil.move(tmp_path / "down" / "IDRiD" / part.table, tmp_path / Path(part.table).name)
    assert find_layouts(tmp_path / "down") == []
    some, _, notes = read(tmp_path / "down", layout="idrid")
    assert 0 < len(some) < len(whole)
    assert any("read without" in line and "raining" in line for line in notes.lines())


def test_the_encoding_of_a_text_can_be_said_and_a_wrong_one_is_told(tmp_path, picture):
    root = tmp_path / "set"
    root.mkdir()
    shutil.copy(picture, root / "a.png")
    (root / "t.csv").write_bytes("id;label\na;青光眼\n".encode("gb18030"))
    layout = layout_file(tmp_path, {"table": "t.csv", "images": FUNDUS})
    with pytest.raises(TableError, match="--encoding"):
        read(root, layout=layout)
    assert read(root, layout=layout, encoding="gb18030")[0][0].categories == ("青光眼",)


ROWS = [
    {"image": "a", "label": "['drusen', 'glaucoma']", "eye": "OD", "patient": 7, "caption": "A scar.", "grade": 2},
    {"image": "b.png", "label": "normal", "eye": "OS", "patient": 8, "caption": "Nothing, but a fold.", "grade": 0},
]


def test_a_drafted_layout_of_studies_keeps_all_their_images_and_reports(tmp_path, picture):
    for image in "abc":
        shutil.copy(picture, tmp_path / f"{image}.png")
    studies = [
        {"id": "s1", "images": ["a.png", "b.png"], "reports": ["A scar; old.", "Nothing else."]},
        {"id": "s2", "images": ["c.png"], "reports": ["Nothing."]},
    ]
    (tmp_path / "s.json").write_text(json.dumps({"train": studies}))
    arguments = ["datasets", "draft", str(tmp_path / "s.json"), "--images", str(tmp_path)]
    assert CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "mine.json")]).exit_code == 0
    directly = list(read_records(tmp_path / "s.json", tmp_path))
    drafted, rejected, _ = read(tmp_path, layout=str(tmp_path / "mine.json"))
    assert rejected == []
    assert [(r.image.name, r.captions, r.patient) for r in drafted] == [
        (r.image.name, r.captions, r.patient) for r in directly
    ]


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.xlsx", "t.jsonl", "folder"])
@pytest.mark.parametrize("beside", [False, True])
def test_a_drafted_layout_reads_what_was_read_without_it(tmp_path, picture, name, beside):
    pictures = tmp_path / "pictures" if beside else tmp_path
    source = tmp_path / name
    if name == "folder":
        for image in ("drusen/a.png", "normal/deeper/b.png"):
            (source / image).parent.mkdir(parents=True)
            shutil.copy(picture, source / image)
        images = None
    else:
        pictures.mkdir(exist_ok=True)
        images = pictures
        for image in "ab":
            shutil.copy(picture, pictures / f"{image}.png")
        frame = pd.DataFrame(ROWS)
        if name == "t.xlsx":
            frame.to_excel(source, index=False)
        elif name == "t.jsonl":
            frame.to_json(source, orient="records", lines=True)
        else:
            frame.to_csv(source, index=False, sep="\t" if name == "t.tsv" else ",")
    flags = ["--label-name", "grade:0=no diabetic retinopathy", "--label-name", "grade:2=moderate NPDR"]
    columns = ["--category-column", "label", "--category-column", "grade", *flags] if images else []
    arguments = ["datasets", "draft", str(source), "--out", str(tmp_path / "mine.json"), *columns]
    result = CliRunner().invoke(app, [*arguments, *(["--images", str(images)] if images else [])])
    assert result.exit_code == 0, result.output
    options = {}
    if images:
        names = {"grade:0": "no diabetic retinopathy", "grade:2": "moderate NPDR"}
        options = {"category_columns": ("label", "grade"), "label_names": names}
    directly = list(read_records(source, images, options=SourceOptions(**options)))
    root = source if images is None else tmp_path
    drafted, rejected, _ = read(root, layout=str(tmp_path / "mine.json"))
    assert (len(drafted), rejected) == (2, [])
    for one, other in zip(directly, drafted, strict=True):
        assert one.image.samefile(other.image)
        assert (one.categories, one.captions, one.eye, one.patient) == (
            other.categories,
            other.captions,
            other.eye,
            other.patient,
        )
    assert CliRunner().invoke(app, arguments).exit_code == 1  # it is there already


def test_the_first_version_of_brset_and_the_mirror_of_its_publisher_are_known(tmp_path, picture):
    root = tmp_path / "physionet.org" / "files" / "brazilian-ophthalmological" / "1.0.0"
    content = unpack("brset", root, picture)
    (root / "labels_brset.csv").rename(root / "labels.csv")
    (tmp_path / "physionet.org" / "robots.txt").write_text("x")
    (root / "SHA256SUMS.txt").write_text("x")
    assert find_layouts(tmp_path) == ["brset"]
    records, _, _ = read(tmp_path)
    assert len(records) == len(content["records"])


def test_a_part_beyond_the_first_files_of_a_folder_is_read_and_filters_count_what_nobody_takes(tmp_path, picture):
    root = tmp_path / "set"
    (root / "images").mkdir(parents=True)
    for number in range(520):
        (root / "images" / f"DR_{number:03}.jpg").touch()
    shutil.copy(picture, root / "images" / "N_1.png")
    parts = [
        {"files": f"images/{name}_{{n}}.{ending}", "images": [{"image": "{path}", "labels": [{"column": "n"}]}]}
        for name, ending in (("DR", "jpg"), ("N", "png"))
    ]
    parts[0]["keep"] = {"n": ["3"]}
    layout = layout_file(tmp_path, *parts)
    records, _, notes = read(root, layout=layout, images_only=True)
    assert [record.image.name for record in records] == ["N_1.png"]
    assert (notes.missing, notes.filtered) == ([], 520)


def test_rows_that_another_part_takes_are_not_told_as_left_out(tmp_path, picture):
    root = tmp_path / "set"
    root.mkdir()
    shutil.copy(picture, root / "a.png")
    (root / "t.csv").write_text("id,label,eye\na,drusen,L\na,drusen,R\n")
    filtered = {"table": "t.csv", "keep": {"eye": ["L"]}, "images": FUNDUS}
    both = layout_file(tmp_path, filtered, {"table": "t.csv", "images": FUNDUS})
    records, _, notes = read(root, layout=both)
    assert (len(records), notes.filtered) == (3, 0)


def test_a_table_without_a_header_takes_commas_whatever_its_texts_hold(tmp_path, picture):
    root = tmp_path / "set"
    root.mkdir()
    shutil.copy(picture, root / "a.png")
    (root / "t.txt").write_text("a,drusen; PED; fluid\n")
    part = {"table": "t.txt", "format": {"columns": ["id", "label"]}, "images": FUNDUS}
    ((record,), rejected, _) = read(root, layout=layout_file(tmp_path, part))
    assert (record.categories, rejected) == (("drusen", "PED", "fluid"), [])


def test_volumes_of_two_files_are_two_whatever_their_rows(tmp_path):
    from tests.test_dicom import TOMOGRAM, write

    root = tmp_path / "set"
    root.mkdir()
    ramp = np.stack([np.full((8, 8), level, np.uint8) for level in (10, 90, 200)])
    for name in "abc":
        write(root / f"{name}.dcm", ramp, sop_class=TOMOGRAM, modality="OPT")
    (root / "one.csv").write_text("id,label\na,drusen\n")
    (root / "two.csv").write_text("id,label\nb; c,drusen\n")
    parts = ({"table": table, "images": FUNDUS} for table in ("one.csv", "two.csv"))
    records, _, _ = read(root, layout=layout_file(tmp_path, *parts), frames="all")
    assert len(records) == 9
    assert len({record.volume for record in records}) == len({record.patient for record in records}) == 3
