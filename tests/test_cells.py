"""Cells of CSV files: no spreadsheet runs what somebody wrote into a caption or a category."""

import csv
import io
import re
from pathlib import Path

import pytest

from keepfit_clip.page.cells import csv_text, safe_cell

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_what_a_spreadsheet_would_run_is_quoted(start):
    text = f"{start}cmd|'/c calc'!A1"
    (row,) = csv.reader(io.StringIO(csv_text([text], []), newline=""))
    assert row == [f"'{text}"]


@pytest.mark.parametrize("value", [-0.5, "-0.5", "+1", "-1e-3", 7, "drusen", "a=b", "", None])
def test_numbers_and_words_stay(value):
    assert safe_cell(value) == value


@pytest.mark.parametrize("value", ["-1_0", "- 1", "-1+2", "+1\n", "-\u0661"])
def test_what_only_python_takes_for_a_number_is_quoted(value):
    assert safe_cell(value) == f"'{value}"


def test_every_table_for_people_is_written_by_one_function():
    """The drawn data set's own tables are read back by the library: none of their cells is anybody else's."""
    writers = {
        path.relative_to(ROOT).as_posix()
        for folder in ("src", "training")
        for path in (ROOT / folder).rglob("*.py")
        if re.search(r"csv\.(writer|DictWriter)|\.to_csv", path.read_text(encoding="utf-8"))
    }
    own = {"src/keepfit_clip/drawing/dataset.py", "training/demo/judge.py"}
    assert writers == {"src/keepfit_clip/page/cells.py"} | own
