"""Sources: every usual form of labelled pictures is read as it stands; anything else is one clear error."""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import signal
import tarfile
import tempfile
from contextlib import contextmanager, suppress

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from keepfit_clip.data import ShardOptions, SourceOptions, build_shards, list_shards, read_records, read_shards
from keepfit_clip.data.sources import SourceNotes, find_source
from keepfit_clip.errors import ConfigError, KeepFITError, TableError

os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", os.path.join(tempfile.gettempdir(), "hypothesis"))

HEADER = ",image,atributes,categories\n"


def encoded(seed=0, fmt="PNG", size=32):
    buffer = io.BytesIO()
    colours = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(colours).resize((size, size), Image.Resampling.BICUBIC).save(buffer, fmt)
    return buffer.getvalue()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(path, images=None, **options):
    """All records and the errors of the rows left out."""
    rejected = []
    return list(read_records(path, images, rejected.append, SourceOptions(**options))), rejected


def write_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_parquet(path, columns, features=None):
    table = pyarrow.table(columns)
    if features:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pyarrow.parquet.write_table(table, path)
    return path


class Hanging(BaseException):
    """Not an Exception, so that nothing takes it for a damaged file."""


@contextmanager
def within(seconds):
    """Ends what hangs."""

    def stop(*_):
        raise Hanging

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def class_label(*names):
    return {"names": list(names), "_type": "ClassLabel"}


# -- FLAIR's and KeepFIT's tables ------------------------------------------------------------------------------------


def test_flair_cells_are_read_as_the_python_lists_they_are(tmp_path):
    rows = [
        ("91_EYES/train/1.png", "[]", "['normal']"),
        ("91_EYES/2. Mild (or early)/x #1.JPG", "['clean']", "['a disease', 'mild retinopathy', 'hard exudates']"),
        ("91_EYES//a..JPG", "[]", """["best's disease", 'oct of a 40-year-old, left eye.']"""),
        ("91_EYES/b.tif", "[]", r"""["coats', seen twice", 'it said \'no\'']"""),
        ("91_EYES/c.ppm", "[]", "['     artery occlusion', '  vision : od 20/30', 'emboli ']"),
        ("91_EYES/d.jpg", "[]", "['drusen, large', 'drusen, large', 'nevus; small | flat']"),
        ("91_EYES/d.jpg", "[]", "['#2']"),
    ]
    with open(tmp_path / "flair.csv", "w", newline="") as file:
        csv.writer(file).writerows([HEADER.strip().split(","), *([7 * i, *row] for i, row in enumerate(rows))])
    path = tmp_path / "flair.csv"
    assert '"[""best\'s disease"", \'oct of' in path.read_text()
    records, rejected = read(path)
    assert not rejected
    assert [record.categories for record in records] == [
        ("normal",),
        ("a disease", "mild retinopathy", "hard exudates"),
        ("best's disease", "oct of a 40-year-old, left eye."),
        ("coats', seen twice", "it said 'no'"),
        ("artery occlusion", "vision : od 20/30", "emboli"),
        ("drusen, large", "nevus; small | flat"),
        ("#2",),
    ]
    assert [record.attributes for record in records] == [(), ("clean",), (), (), (), (), ()]
    assert [record.row for record in records] == [1, 2, 3, 4, 5, 6, 7]
    assert str(records[1].image) == "91_EYES/2. Mild (or early)/x #1.JPG"


def test_a_flair_row_without_a_label_is_left_out_and_said(tmp_path):
    path = write(tmp_path / "t.csv", HEADER + "4,a.png,['noisy'],['']\n5,b.png,[],[]\n6,c.png,[],['normal']\n")
    records, rejected = read(path)
    assert [record.row for record in records] == [3]
    assert [error.row for error in rejected] == [1, 2]
    assert all("neither a caption nor a category" in error.reason for error in rejected)


def test_a_description_in_a_list_is_one_category_however_long(tmp_path):
    text = "the fundus shows many small spots, some of them bright; the fellow eye was normal | as before. " * 20
    (record,) = read(write(tmp_path / "t.csv", HEADER + f'0,a.png,[],"{[text]!r}"\n'))[0]
    assert record.categories == (text.strip(),)


def test_a_backslash_in_a_label_is_a_backslash(tmp_path):
    (record,) = read(write(tmp_path / "t.csv", HEADER + "0,a.png,[],['grade 1\\d']\n"))[0]
    assert record.categories == ("grade 1\\d",)


# -- caption tables --------------------------------------------------------------------------------------------------

CAPTIONS = [
    {"Image_ID": "one", "Label": "drusen", "cn_caption": "\u9ec4\u6591\u6c34\u80bf", "en_caption": "Soft, both eyes."},
    {"Image_ID": "two", "Label": "", "cn_caption": "", "en_caption": 'A "plus" sign.'},
    {"Image_ID": "three.v2", "Label": "scar", "cn_caption": "\u7622\u75d5", "en_caption": ""},
]  # fmt: skip


def caption_file(path):
    names = list(CAPTIONS[0])
    if path.suffix == ".jsonl":
        return write(path, "".join(json.dumps(row) + "\n" for row in CAPTIONS))
    if path.suffix == ".parquet":
        return write_parquet(path, {name: [row[name] or None for row in CAPTIONS] for name in names})
    comma = "\t" if path.suffix == ".tsv" else ","
    cells = [names] + [['"' + row[name].replace('"', '""') + '"' for name in names] for row in CAPTIONS]
    return write(path, "".join(comma.join(row) + "\n" for row in cells))


@pytest.mark.parametrize("name", ["mm.csv", "mm.tsv", "mm.jsonl", "mm.parquet"])
def test_a_bilingual_caption_table_reads_alike_in_every_format(tmp_path, name):
    for image in ("one.png", "two.JPG", "three.v2.jpeg"):
        write(tmp_path / "img" / image, b"x")
    records, rejected = read(caption_file(tmp_path / name), tmp_path / "img")
    assert not rejected
    assert [record.image.name for record in records] == ["one.png", "two.JPG", "three.v2.jpeg"]
    assert [record.categories for record in records] == [("drusen",), (), ("scar",)]
    assert [set(record.captions) for record in records] == [
        {("\u9ec4\u6591\u6c34\u80bf", "zh"), ("Soft, both eyes.", "en")},
        {('A "plus" sign.', "en")},
        {("\u7622\u75d5", "zh")},
    ]


def test_several_captions_of_an_image_are_kept_in_order(tmp_path):
    columns = write(tmp_path / "t.csv", "image,caption_1,caption_2,report\na.png,first,,last\n")
    cells = write(tmp_path / "u.csv", "image,caption\na.png,\"['first', 'last']\"\n")
    lines = write(tmp_path / "v.jsonl", '{"image": "a.png", "captions": ["first", "last"]}\n')
    for path in (columns, cells, lines):
        assert read(path)[0][0].caption_texts == ["first", "last"]


def test_the_language_is_told_by_the_column_then_by_the_user_then_by_the_writing(tmp_path):
    path = write(tmp_path / "t.csv", "image,caption,caption_en\na.png,\u9ec4\u6591,Macula\nb.png,Makula,\n")
    assert [c.lang for record in read(path)[0] for c in record.captions] == ["zh", "en", "en"]
    assert [c.lang for record in read(path, lang="de")[0] for c in record.captions] == ["de", "en", "de"]


def test_a_caption_that_begins_with_a_bracket_is_still_a_caption(tmp_path):
    path = write(tmp_path / "t.csv", 'image,caption\na.png,[OD] normal\nb.png,"[1, 2] seen"\nc.png,[5]\n')
    assert [record.caption_texts for record in read(path)[0]] == [["[OD] normal"], ["[1, 2] seen"], ["[5]"]]


# -- names, labels, columns ------------------------------------------------------------------------------------------


def test_columns_can_be_named(tmp_path):
    path = write(tmp_path / "t.csv", "Bild,Befund,Text A,Auge,Person,Herkunft\na.png,scar,A text.,OS,p1,Ulm\n")
    (record,) = read(
        path,
        image_column="Bild",
        category_columns=("Befund",),
        caption_columns=("Text A",),
        eye_column="Auge",
        patient_column="Person",
        dataset_column="Herkunft",
    )[0]
    assert (record.categories, record.caption_texts, record.eye) == (("scar",), ["A text."], "left")
    assert (record.patient, record.dataset) == ("p1", "Ulm")
    with pytest.raises(TableError, match=r"no column 'Foto'; it has Bild, Befund"):
        read(path, image_column="Foto")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", "id_code,diagnosis\na,2\nb,0\n"),
        ("t.jsonl", '{"image": "a", "label": 2}\n{"image": "b", "label": 0}\n'),
        ("u.jsonl", '{"image": "a", "categories": [2]}\n{"image": "b", "categories": [0]}\n'),
        ("t.json", '[{"id": 1, "images": ["a"], "label": 2}, {"id": 2, "images": ["b"], "label": 0}]'),
    ],
)
def test_a_numeric_label_is_an_error_that_says_how_to_name_it(tmp_path, name, content):
    path = write(tmp_path / name, content)
    records, rejected = read(path)
    assert records == []
    assert [error.row for error in rejected] == [1, 2]
    assert "--label-name 2=" in str(rejected[0])
    records, rejected = read(path, label_names={"0": "normal", "2": "moderate"})
    assert [record.categories for record in records] == [("moderate",), ("normal",)]


def test_a_code_can_be_named_too_and_other_labels_stay(tmp_path):
    path = write(tmp_path / "t.csv", HEADER + "0,a.png,[],['1c']\n1,b.png,[],\"['1c', 'scar']\"\n")
    records, _ = read(path, label_names={"1c": "drusen"})
    assert [record.categories for record in records] == [("drusen",), ("drusen", "scar")]


@pytest.mark.parametrize(
    ("pattern", "groups"),
    [
        (r"^\d+", ["17", "17", "4"]),
        (r"^(\d+)_(left|right)", ["17", "17", "4"]),  # the first group says who it is
        (r"(left|right)", ["left", "right", "left"]),
    ],
)
def test_the_group_pattern_takes_the_patient_from_the_file_name(tmp_path, pattern, groups):
    path = write(tmp_path / "t.csv", "image,caption\nx/17_left.png,a\n17_right.png,b\n4_left.png,c\n")
    assert [record.patient for record in read(path, group_pattern=pattern)[0]] == groups


def test_a_patient_column_goes_before_the_group_pattern(tmp_path):
    path = write(tmp_path / "t.csv", "image,caption,patient\n17_left.png,a,p1\n17_right.png,b,\nx.png,c,\n")
    records, rejected = read(path, group_pattern=r"^\d+")
    assert [record.patient for record in records] == ["p1", "17"]
    assert [error.row for error in rejected] == [3]
    assert "x.png" not in rejected[0].reason


def test_bad_options_are_said_before_anything_is_read():
    with pytest.raises(ConfigError, match="not a regular expression"):
        SourceOptions(group_pattern="(")
    with pytest.raises(ConfigError, match="not an encoding"):
        SourceOptions(encoding="utf-99")


# -- which source it is ----------------------------------------------------------------------------------------------


def test_sources_are_told_apart(tmp_path):
    for name in ("t.csv", "t.tsv", "t.TXT", "t.jsonl", "t.json"):
        write(tmp_path / name, "x")
    write(tmp_path / "classes" / "normal" / "a.png", b"x")
    write_tar(tmp_path / "tars" / "0.tar", {"a.txt": b"x"})
    write_parquet(tmp_path / "t.parquet", {"image": ["a"]})
    (tmp_path / "parquets").mkdir()
    write_parquet(tmp_path / "parquets" / "t.parquet", {"image": ["a"]})
    found = {path.name: find_source(path) for path in tmp_path.iterdir()}
    assert found == {
        "t.csv": "table",
        "t.tsv": "table",
        "t.TXT": "table",
        "t.jsonl": "jsonl",
        "t.json": "studies",
        "classes": "folder",
        "tars": "shards",
        "t.parquet": "parquet",
        "parquets": "parquet",
    }


def test_a_source_can_be_forced(tmp_path):
    path = write(tmp_path / "labels.dat", "image,caption\na.png,b\n")
    with pytest.raises(TableError, match=r"labels\.dat: does not look like any source .*--source"):
        read(path)
    assert len(read(path, source="table")[0]) == 1
    path = write(tmp_path / "lines.txt", '{"image": "a.png", "caption": "b"}\n')
    assert len(read(path, source="jsonl")[0]) == 1
    with pytest.raises(TableError, match="'excel' is not known; it can be auto, table"):
        read(path, source="excel")
    with pytest.raises(TableError, match="cannot be read"):
        read(tmp_path / "nowhere.csv")


@pytest.mark.parametrize("source", ["table", "jsonl", "studies", "parquet", "shards", "folder"])
@pytest.mark.parametrize("kind", ["file", "folder", "missing"])
def test_a_source_forced_on_the_wrong_thing_is_one_error(tmp_path, source, kind):
    path = tmp_path / "thing"
    if kind == "file":
        write(path, b"\x00\x01 neither this\nnor that")
    elif kind == "folder":
        path.mkdir()
    with pytest.raises(KeepFITError) as caught:
        list(read_records(path, options=SourceOptions(source=source)))
    assert "thing" in str(caught.value)


# -- folders of classes ----------------------------------------------------------------------------------------------


def test_the_folders_of_an_image_folder_are_its_classes(tmp_path):
    for name in ("diabetic_retinopathy/p1/a.png", "diabetic_retinopathy/b.JPG", "normal/c.tif", "loose.png"):
        write(tmp_path / name, b"x")
    for name in ("normal/notes.txt", "normal/.hidden.png", ".cache/x/d.png"):
        write(tmp_path / name, b"x")
    records, rejected = read(tmp_path)
    assert {(record.image.name, record.categories) for record in records} == {
        ("a.png", ("diabetic retinopathy",)),
        ("b.JPG", ("diabetic retinopathy",)),
        ("c.tif", ("normal",)),
    }
    (error,) = rejected
    assert "loose" not in error.reason


def test_folders_that_are_parts_or_hold_nothing_are_refused(tmp_path):
    write(tmp_path / "data" / "train" / "normal" / "a.png", b"x")
    write(tmp_path / "data" / "test" / "normal" / "b.png", b"x")
    with pytest.raises(TableError, match=r"look like splits \(test, train\)"):
        read(tmp_path / "data")
    assert len(read(tmp_path / "data" / "train")[0]) == 1
    (tmp_path / "empty" / "normal").mkdir(parents=True)
    with pytest.raises(TableError, match="holds no images"):
        read(tmp_path / "empty")


def test_numbered_class_folders_need_names(tmp_path):
    write(tmp_path / "0" / "a.png", b"x")
    write(tmp_path / "1" / "b.png", b"x")
    assert "--label-name 0=" in str(read(tmp_path)[1][0])
    records, _ = read(tmp_path, label_names={"0": "normal", "1": "cataract"})
    assert [record.categories for record in records] == [("normal",), ("cataract",)]


# -- studies ---------------------------------------------------------------------------------------------------------

STUDIES = {
    "train": {
        "case_1": {"Image_path": ["1/a.png", "1/b.png"], "En_Report": "Leakage.", "Chinese_Report": "\u6e17\u6f0f"},
        "case_2": {"Image_path": ["2/a.png"], "En_Report": "Normal.", "Chinese_Report": ""},
    },
    "test": {"case_3": {"Image_path": ["3/a.png", "3/b.png"], "En_Report": "", "Chinese_Report": ""}},
}


def test_every_image_of_a_study_has_its_reports_and_its_group(tmp_path):
    records, rejected = read(write(tmp_path / "ffa.json", json.dumps(STUDIES)))
    assert [str(record.image) for record in records] == ["1/a.png", "1/b.png", "2/a.png"]
    assert set(records[1].captions) == {("Leakage.", "en"), ("\u6e17\u6f0f", "zh")}
    assert records[0].patient == records[1].patient != records[2].patient
    assert None not in {record.patient for record in records}
    assert [error.row for error in rejected] == [3]


@pytest.mark.parametrize("named", [True, False])
def test_a_list_of_studies_groups_their_images_too(tmp_path, named):
    studies = [{"images": [f"{i}a.png", f"{i}b.png"], "report": "A report."} for i in range(2)]
    if named:
        studies = [{"id": f"s{i}", **study} for i, study in enumerate(studies)]
    records, _ = read(write(tmp_path / "s.json", json.dumps(studies)))
    groups = [record.patient for record in records]
    assert groups[0] == groups[1] is not None
    assert groups[2] == groups[3] is not None
    assert groups[0] != groups[2]


def test_a_missing_image_of_a_study_is_one_rejected_row(tmp_path):
    for name in ("1/a.png", "2/a.png"):
        write(tmp_path / name, b"x")
    records, rejected = read(write(tmp_path / "ffa.json", json.dumps(STUDIES)), tmp_path)
    assert "2/a.png" in [str(record.image.relative_to(tmp_path)) for record in records]
    assert [error.row for error in rejected] == [1, 3]


@pytest.mark.parametrize(
    "content", ["", "[", "[]", "{}", "3", '"x"', '{"train": {}}', "[1, 2]", "[" * 100_000, b"\xff\xfe\x00", "null"]
)
def test_a_json_without_studies_is_one_error(tmp_path, content):
    with pytest.raises(TableError, match=r"s\.json"):
        list(read_records(write(tmp_path / "s.json", content)))


# -- Parquet ---------------------------------------------------------------------------------------------------------


def test_parquet_names_files_or_holds_them(tmp_path):
    write(tmp_path / "a.png", b"x")
    (record,) = read(write_parquet(tmp_path / "t.parquet", {"image": ["a.png"], "label": ["scar"]}), tmp_path)[0]
    assert record.image == tmp_path / "a.png"
    for number, cell in enumerate(
        [{"bytes": b"pixels", "path": "a.png"}, {"bytes": b"pixels", "path": None}, b"pixels"]
    ):
        path = write_parquet(tmp_path / f"{number}.parquet", {"image": [cell], "label": ["scar"]})
        (record,) = read(path)[0]
        assert (record.image, record.categories) == (b"pixels", ("scar",))


def test_class_names_of_hugging_face_stand_for_their_numbers(tmp_path):
    features = {"image": {"_type": "Image"}, "label": class_label("normal", "glaucoma")}
    path = write_parquet(tmp_path / "t.parquet", {"image": ["a", "b"], "label": [1, 0]}, features)
    assert [record.categories for record in read(path)[0]] == [("glaucoma",), ("normal",)]


def test_class_names_of_another_column_are_not_mixed_up(tmp_path):
    features = {"quality": class_label("good", "bad"), "label": class_label("normal", "glaucoma")}
    path = write_parquet(tmp_path / "t.parquet", {"image": ["a"], "quality": [0], "label": [1]}, features)
    assert [record.categories for record in read(path)[0]] == [("glaucoma",)]


@pytest.mark.parametrize(
    "feature",
    [
        {"feature": class_label("normal", "glaucoma", "scar"), "_type": "Sequence"},
        {"feature": class_label("normal", "glaucoma", "scar"), "_type": "List"},
        [class_label("normal", "glaucoma", "scar")],
    ],
)
def test_a_list_of_class_labels_is_named_or_refused_but_never_a_number(tmp_path, feature):
    path = write_parquet(tmp_path / "t.parquet", {"image": ["a"], "labels": [[1, 2]]}, {"labels": feature})
    records, rejected = read(path)
    assert [record.categories for record in records] in ([("glaucoma", "scar")], [])
    assert len(records) + len(rejected) == 1


def test_the_group_pattern_holds_for_embedded_images_too(tmp_path):
    cells = [{"bytes": b"1", "path": "17_left.png"}, {"bytes": b"2", "path": "17_right.png"}]
    path = write_parquet(tmp_path / "t.parquet", {"image": cells, "label": ["scar", "scar"]})
    records, rejected = read(path, group_pattern=r"^\d+")
    assert [record.patient for record in records] == ["17", "17"]
    assert not rejected


def test_damaged_parquet_is_one_error(tmp_path):
    whole = write_parquet(tmp_path / "t.parquet", {"image": ["a"], "label": ["scar"]}).read_bytes()
    for content in (b"", b"PAR1", whole[: len(whole) // 2], b"x" * 100, whole[:40] + b"\xff" * 40 + whole[80:]):
        with pytest.raises(TableError, match=r"t\.parquet"):
            read(write(tmp_path / "t.parquet", content))


@pytest.mark.parametrize(
    "columns", [{"caption": ["scarlet"]}, {"caption": ["x"], "scarlet": ["y"]}], ids=["cell", "name"]
)
def test_parquet_with_text_that_is_no_text_is_one_of_our_errors(tmp_path, columns):
    table = pyarrow.table({"image": ["a"], **columns})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet", compression="NONE", store_schema=False)
    damaged = (tmp_path / "t.parquet").read_bytes().replace(b"scarlet", b"sc\xffrlet")
    with pytest.raises(KeepFITError, match=r"t\.parquet"):
        list(read_records(write(tmp_path / "t.parquet", damaged)))


# -- shards ----------------------------------------------------------------------------------------------------------


def test_our_shards_built_anew_keep_groups_captions_and_categories(tmp_path):
    rows = [
        {
            "image": f"{i}.png",
            "caption_en": f"Text {i}.",
            "caption_zh": "\u9ec4\u6591",
            "label": f"sign {i}",
            "patient": f"p{i // 2}",
            "eye": "left",
        }
        for i in range(6)
    ]
    for i in range(6):
        write(tmp_path / f"{i}.png", encoded(i))
    write(tmp_path / "t.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    build_shards(tmp_path / "t.jsonl", tmp_path, tmp_path / "one", ShardOptions("elite", "CFP", dataset="Ulm"))
    report = build_shards(
        tmp_path / "one", None, tmp_path / "two", ShardOptions("elite", size=16, samples_per_shard=2, originals=False)
    )
    assert (report.samples, len(report.shards)) == (6, 3)

    def what(folder):
        samples = list(read_shards(list_shards(folder)))
        said = [{k: v for k, v in sample.description.to_dict().items() if k != "group"} for sample in samples]
        groups = {}
        for sample in samples:
            groups.setdefault(sample.description.group, set()).add(sample.description.categories[0])
        return sorted(map(str, said)), sorted(map(sorted, groups.values())), {sample.image().size for sample in samples}

    first, second = what(tmp_path / "one"), what(tmp_path / "two")
    assert first[:2] == second[:2]
    assert (first[2], second[2]) == ({(32, 32)}, {(16, 16)})


def test_shards_of_another_tool_are_read(tmp_path):
    members = {
        "a.jpg": b"1", "a.txt": b"A caption.\n",
        "b.jpg": b"2", "b.cls": b"1",
        "sub/c.JPEG": b"3", "sub/c.json": b'{"caption": "Another.", "key": "c", "exif": {}}',
        "d.png": b"4", "d.txt": b"  ",
        "e.txt": b"no picture",
    }  # fmt: skip
    path = write_tar(tmp_path / "other.tar", members)
    records, rejected = read(path, label_names={"1": "glaucoma"})
    assert [(record.caption_texts, record.categories) for record in records] == [
        (["A caption."], ()),
        ([], ("glaucoma",)),
        (["Another."], ()),
    ]
    assert [record.image.read() for record in records] == [b"1", b"2", b"3"]
    assert [error.row for error in rejected] == [4, 5]
    assert "--label-name 1=" in str(read(path)[1][0])


def test_tars_of_other_things_are_one_error_each(tmp_path):
    with pytest.raises(KeepFITError, match="hold no samples"):
        read(write_tar(tmp_path / "empty.tar", {}))
    assert read(write_tar(tmp_path / "other.tar", {"a.py": b"x", "b.json": b"["}))[0] == []
    assert read(write(tmp_path / "text.tar", b"no tar at all" * 99))[0] == []


@pytest.mark.parametrize(
    "said",
    [
        {"modality": ["CFP"]},
        {"modality": "MRI"},
        {"eye": {"left": 1}},
        {"captions": "text"},
        {"captions": [{"text": None}]},
        {"captions": [{"text": "x", "lang": ["en"]}]},
        {"categories": "drusen"},
        {"categories": [3]},
        {"group": {"a": 1}},
        {"dataset": [1]},
        {"kind": 3},
        {"schema": None},
    ],
    ids=str,
)
def test_a_damaged_description_costs_its_sample_only(tmp_path, said):
    good = {"schema": 1, "kind": "public", "modality": "CFP", "categories": ["drusen"], "captions": [], "group": 0}
    members = {f"{i}.png": encoded(i) for i in range(2)}
    members |= {"0.json": json.dumps(good).encode(), "1.json": json.dumps({**good, **said}).encode()}
    path = write_tar(tmp_path / "0.tar", dict(sorted(members.items())))
    report = build_shards(path, None, tmp_path / "out", ShardOptions("public"))
    assert report.samples + len(report.left_out) == 2
    assert report.samples == len(list(read_shards(list_shards(tmp_path / "out"))))


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress], ids=["gz", "bz2", "xz"])
def test_a_compressed_shard_cut_anywhere_is_whole_or_reported(tmp_path, compress):
    said = b'{"kind": "public", "categories": ["drusen"]}'
    noise = np.random.default_rng(0).bytes(1500)
    members = {name: content for key in "abc" for name, content in ((f"{key}.jpg", noise), (f"{key}.json", said))}
    path = write_tar(tmp_path / "a.tar", members)
    whole = compress(path.read_bytes())
    silent = []
    for cut in range(len(whole)):
        problems = []
        samples = list(read_shards([str(write(path, whole[:cut]))], problems.append))
        if len(samples) < 3 and not problems:
            silent.append(cut)
    assert silent == []


@pytest.mark.parametrize("name", ["a.jpg", "a.bin"])
@pytest.mark.parametrize("size", [b"\x80\0\0\0\x10\0\0\0\0\0\0\0", b"\xff" * 10 + b"\xfe\0"], ids=["huge", "negative"])
def test_a_member_of_an_impossible_size_is_reported_at_once(tmp_path, name, size):
    content = write_tar(tmp_path / "a.tar", {name: b"x"}).read_bytes()
    write(tmp_path / "a.tar", with_checksum(content[:124] + size + content[136:], 0))
    with within(3), pytest.raises(KeepFITError, match=r"a\.tar"):
        list(read_shards([str(tmp_path / "a.tar")]))


# -- odd tables ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n\n\n", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        (b"image,caption\n", "no rows"),
        (b"image,caption", "no rows"),
        (b"image,caption\r\n\r\n\r\n", "no rows"),
        (b"image,caption,caption\na,b,c\n", "'caption' twice"),
        (b"image,label, label\na,b,c\n", "'label' twice"),
        (b"a,b\n1,2\n", "needs a column 'image'"),
        ("image,caption\na.png,\u9ec4\u6591\n".encode("gb18030"), "--encoding"),
        ("image,caption\na.png,text\n".encode("utf-16"), "--encoding"),
        (b"image,caption\na.png,\x00\xff\n", "not a CSV"),
    ],
)
def test_a_table_that_cannot_be_used_is_one_error(tmp_path, content, message):
    with pytest.raises(TableError, match=message) as caught:
        read(write(tmp_path / "odd.csv", content))
    assert "odd.csv" in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"image;caption\na.png;One, two\nb.png;Three\n",
        b"image\tcaption\na.png\tOne, two\nb.png\tThree\n",
        b"image|caption\na.png|One, two\nb.png|Three\n",
        b'\xef\xbb\xbfimage,caption\na.png,"One, two"\nb.png,Three\n',
        b'image,caption\r\na.png,"One, two"\r\nb.png,Three\r\n',
        b'image,caption\ra.png,"One, two"\rb.png,Three\r',
        b'image,caption\n\na.png,"One, two"\n\n\nb.png,Three',
        b'\n\nimage,caption\na.png,"One, two"\nb.png,Three\n',
        b' image , Caption \na.png,"One,\n two"\nb.png,  Three  \n',
    ],
    ids=["semicolons", "tabs", "bars", "bom", "crlf", "cr", "blank lines", "blank line first", "line break in a cell"],
)
def test_odd_tables_that_say_the_same_are_read_alike(tmp_path, content):
    records, rejected = read(write(tmp_path / "t.csv", content))
    assert not rejected
    assert [(str(record.image), record.caption_texts) for record in records] == [
        ("a.png", ["One, two"]),
        ("b.png", ["Three"]),
    ]


@pytest.mark.parametrize("encoding", ["gb18030", "utf-16", "utf-8", "utf_8", "UTF-8-SIG", "big5"])
def test_other_encodings_are_read_where_they_are_named(tmp_path, encoding):
    codec = "utf-8-sig" if encoding.lower().startswith("utf_8") or encoding == "utf-8" else encoding
    path = write(tmp_path / "t.csv", "image,caption\na.png,\u9ec3\u6591\n".encode(codec))
    (record,) = read(path, encoding=encoding)[0]
    assert record.captions == (("\u9ec3\u6591", "zh"),)


def test_rows_with_other_cell_counts_or_nul_bytes_are_named_and_the_rest_is_read(tmp_path):
    path = write(tmp_path / "t.csv", b"image,caption\na.png,b\nc.png\nd.png,e,f\n\x00,g\nh.png,i\n")
    records, rejected = read(path)
    assert [record.row for record in records] == [1, 5]
    assert [error.row for error in rejected] == [2, 3, 4]


def test_a_very_long_cell_is_read_whole(tmp_path):
    text = "drusen " * 43_000
    (record,) = read(write(tmp_path / "t.csv", f"image,caption\na.png,{text}\n"))[0]
    assert record.caption_texts == [text.strip()]
    (record,) = read(write(tmp_path / "t.csv", HEADER + f'0,a.png,[],"{[text]}"\n'))[0]
    assert record.categories == (text.strip(),)


def test_odd_lines_of_json_are_named_and_the_rest_is_read(tmp_path):
    odd = ["nonsense", "[1]", "3", '{"image": "a.png"}', '{"caption": "b"}', '{"image": [], "caption": "b"}',
           '{"image": "a.png", "caption": {"a": 1}}', '{"image": "a.png", "caption": 1e999, "eye": "up"}',
           "[" * 100_000, '{"image": "a.png", "caption": "b", "patient": ' + "9" * 5000 + "}"]  # fmt: skip
    good = '{"image": "a.png", "caption": "b"}'
    path = write(tmp_path / "t.jsonl", "\ufeff" + "\r\n".join([good, "", *odd, good]))
    records, rejected = read(path)
    assert [record.row for record in records] == [1, 2 + len(odd)]
    assert [error.row for error in rejected] == list(range(2, 2 + len(odd)))


def test_a_half_of_a_unicode_pair_costs_its_row_only(tmp_path):
    write(tmp_path / "a.png", encoded(0))
    write(tmp_path / "b.png", encoded(1))
    good = '{"image": "b.png", "caption": "b"}\n'
    for number, row in enumerate(
        [
            '{"image": "a.png", "caption": "a \\ud800 b"}\n',
            '{"image": "a.png", "caption": "a", "patient": "\\ud800"}\n',
            '{"image": "a.png", "caption": "a", "categories": ["\\udfff"]}\n',
            '{"image": "a\\ud800.png", "caption": "a"}\n',
        ]
    ):
        path = write(tmp_path / f"{number}.jsonl", row + good)
        report = build_shards(path, tmp_path, tmp_path / f"out{number}", ShardOptions("elite"))
        assert report.samples + len(report.left_out) == 2


# -- anything at all -------------------------------------------------------------------------------------------------

fuzzed = settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), print_blob=False
)
TEXTS = st.text(max_size=40) | st.sampled_from(
    [
        "['a']",
        "[\"a'\", 'b']",
        "[''",
        "[[1]]",
        "(1,)",
        "{1}",
        "nan",
        "3",
        "a;b",
        "../x",
        "\x00",
        "/",
        "~",
        "[1if 1else 2]",
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
COLUMNS = ("image", "caption", "cn_caption", "categories", "atributes", "patient", "eye", "modality", "dataset")


def only_our_errors(path, **options):
    """Reads a source in every way; any exception that is not ours passes through and fails the test."""
    for images, on_reject in ((None, None), (path.parent, lambda _: None)):
        with suppress(KeepFITError), within(20):
            list(read_records(path, images, on_reject, SourceOptions(**options)))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@fuzzed
@given(content=st.binary(max_size=300) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_a_table_or_one_of_our_errors(place, content):
    for name in ("t.csv", "t.tsv", "t.jsonl", "t.json", "t.parquet", "t.tar"):
        only_our_errors(write(place / name, content))


@fuzzed
@given(rows=st.lists(st.lists(TEXTS, max_size=10), max_size=4), raw=st.binary(max_size=20))
def test_any_cells_below_a_good_header_are_rows_or_our_errors(place, rows, raw):
    body = "".join(",".join('"' + cell.replace('"', '""') + '"' for cell in row) + "\n" for row in rows)
    content = (",".join(COLUMNS) + "\n" + body).encode("utf-8", "replace") + raw
    only_our_errors(write(place / "t.csv", content), group_pattern=r"(\d+)|x")


@fuzzed
@given(rows=st.lists(st.dictionaries(st.sampled_from(COLUMNS) | TEXTS, VALUES, max_size=6), max_size=3))
def test_any_json_is_rows_or_our_errors(place, rows):
    only_our_errors(write(place / "t.jsonl", "".join(json.dumps(row) + "\n" for row in rows)))
    only_our_errors(write(place / "t.json", json.dumps({"train": {str(i): row for i, row in enumerate(rows)}})))
    samples = {f"{i}.json": json.dumps(row).encode() for i, row in enumerate(rows)}
    only_our_errors(write_tar(place / "t.tar", {f"{i}.jpg": b"x" for i in range(len(rows))} | samples))


@pytest.fixture(scope="module")
def tar():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for key in "abc":
            for suffix, content in (("jpg", b"x" * 600), ("json", b'{"kind": "public", "categories": ["normal"]}')):
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
    return buffer.getvalue()[: 12 * 512 + 1024]


def with_checksum(content, at):
    """The tar with the checksum of the header at `at` made right, so that a change in it is believed."""
    header = bytearray(content[at : at + 512])
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return content[:at] + bytes(header) + content[at + 512 :]


PACKED = st.sampled_from([bytes, bytes, gzip.compress, lzma.compress])
DAMAGE = st.tuples(
    st.sampled_from(["cut", "change", "insert", "header"]), st.integers(0, 7167), st.binary(min_size=1, max_size=12)
)


@settings(fuzzed, max_examples=1000)
@given(damage=st.lists(DAMAGE, min_size=1, max_size=3), packed=PACKED)
def test_a_tar_damaged_anyhow_is_samples_or_our_errors(place, tar, damage, packed):
    content = tar
    for how, at, what in damage:
        if how == "cut":
            content = content[:at]
        elif how == "insert":
            content = content[:at] + what + content[at:]
        elif how == "change":
            content = content[:at] + what + content[at + len(what) :]
        elif len(content) >= 512:
            start = at // 512 % (len(content) // 512) * 512
            field = start + (124, 156, 100, 257, 345, 0)[at % 6]  # size, kind, mode, magic, prefix, name
            content = with_checksum(content[:field] + what + content[field + len(what) :], start)
    path = write(place / "damaged.tar", packed(content))
    only_our_errors(path)
    for on_error in (None, lambda _: None):
        with suppress(KeepFITError), within(20):
            list(read_shards([str(path)], on_error))


def test_visit_and_slice_are_read_and_a_slice_is_a_number(tmp_path):
    write(tmp_path / "t.csv", "image,category,visit_id,b_scan,scan_id\na.png,glaucoma,2,7.0,v\nb.png,normal,,x,v\n")
    notes = SourceNotes()
    first, second = read_records(tmp_path / "t.csv", notes=notes)
    assert (first.visit, first.slice, first.volume) == ("2", 7, "v")
    assert (second.visit, second.slice) == (None, None)
    assert notes.ignored["slice", "b_scan"] == 1
    _, [refused] = read(tmp_path / "t.csv", slice_column="b_scan")
    assert (refused.row, refused.reason) == (2, "the slice is no whole number")


def test_a_workbook_is_read_as_the_table_it_is(tmp_path):
    frame = pd.DataFrame({"image": ["a.png", "b.png", "c.png"], "grade": [0, 2, None], "patient": [7, 7, 8]})
    frame.to_excel(tmp_path / "t.xlsx", index=False)
    names = {"0": "normal", "2": "moderate NPDR"}
    records, [left_out] = read(tmp_path / "t.xlsx", category_columns=("grade",), label_names=names)
    assert [(r.image.name, r.categories, r.patient) for r in records] == [
        ("a.png", ("normal",), "7"),
        ("b.png", ("moderate NPDR",), "7"),
    ]
    assert left_out.row == 3
