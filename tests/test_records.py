"""Tables: both formats are read, every kind of bad row or file is one clear error with its row."""

import pytest

from keepfit_clip.data import read_records
from keepfit_clip.errors import TableError


@pytest.fixture
def root(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.png").write_bytes(b"x")
    return tmp_path


def table(root, text):
    path = root / "table.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_flair_table(root):
    path = table(
        root, ",image,atributes,categories\n0,a.png,['noisy'],\"['glaucoma', 'no DR']\"\n1,sub/b.png,[],['DR']\n"
    )
    first, second = read_records(path, images=root)
    assert (first.row, first.categories, first.attributes) == (1, ("glaucoma", "no DR"), ("noisy",))
    assert second.image == root / "sub" / "b.png"
    assert second.captions == ()


def test_caption_table_with_every_optional_column(root):
    path = table(
        root, "\ufeffimage,caption,categories,modality,patient,eye\na.png,\"Edema, present.\",['DME'],oct,7,OD\n"
    )
    (record,) = read_records(path, images=root)
    assert record.captions == (("Edema, present.", "en"),)
    assert (record.modality, record.patient, record.eye) == ("OCT", "7", "right")


def test_table_alone_needs_no_images(tmp_path):
    (record,) = read_records(table(tmp_path, "image,caption\nnowhere.png,text\n"))
    assert str(record.image) == "nowhere.png"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("image,caption\n", "no rows"),
        ("picture,caption\na.png,b\n", "needs a column 'image'"),
        ("image,grade\na.png,b\n", "'categories' or 'caption'"),
        ("image,caption,image\na.png,b,c\n", "column 'image' twice"),
    ],
)
def test_unusable_tables(root, text, message):
    with pytest.raises(TableError, match=message) as caught:
        list(read_records(table(root, text), images=root))
    assert "table.csv" in str(caught.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a.png,3", "is a number .*--label-name 3="),
        ("a.png,\"['a', nan]\"", "not a Python list"),
        ("a.png,[1]", "not a Python list"),
        ("a.png,[{[]}]", "not a Python list"),
        ("a.png,[]", "neither a caption nor a category"),
        ("missing.png,['DR']", "file is missing"),
        ("../a.png,['DR']", "leaves the image folder"),
        ("sub/../../a.png,['DR']", "leaves the image folder"),
        ("/etc/passwd,['DR']", "leaves the image folder"),
        (",['DR']", "cell of 'image' is empty"),
        ("a.png", "another number of cells"),
        ("a.png,['DR'],3", "another number of cells"),
    ],
)
def test_a_bad_row_is_named(root, row, message):
    path = table(root, f"image,categories\na.png,['DR']\n{row}\nsub/b.png,['DR']\n")
    with pytest.raises(TableError, match=message) as caught:
        list(read_records(path, images=root))
    assert "table.csv, row 2" in str(caught.value)
    assert caught.value.row == 2
    rejected = []
    assert [r.row for r in read_records(path, images=root, on_reject=rejected.append)] == [1, 3]
    assert [e.row for e in rejected] == [2]
    assert "png" not in rejected[0].reason
    assert "passwd" not in rejected[0].reason


def test_an_absolute_path_inside_the_root_is_fine(root):
    path = table(root, f"image,categories\n{root / 'a.png'},['DR']\n")
    assert next(read_records(path, images=root)).image == root / "a.png"


def test_missing_table_and_missing_root(tmp_path):
    with pytest.raises(TableError, match=r"none\.csv: cannot be read"):
        list(read_records(tmp_path / "none.csv"))
    with pytest.raises(TableError, match="no such folder of images"):
        list(read_records(table(tmp_path, "image,caption\na,b\n"), images=tmp_path / "nowhere"))


def test_a_binary_file_is_no_table(root):
    path = root / "table.csv"
    path.write_bytes(b"\x89PNG\r\n\x00\xff\xfe")
    with pytest.raises(TableError, match="not a CSV"):
        list(read_records(path))
