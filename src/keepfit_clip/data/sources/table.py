"""CSV and TSV tables: FLAIR's and KeepFIT's (image, atributes, categories), MM-Retinal's (Image_ID, Label, cn_caption,
en_caption), and any other with a column of images and one of categories or captions.
"""

import codecs
import csv
from collections.abc import Iterator
from pathlib import Path

from keepfit_clip.data.records import Record
from keepfit_clip.data.sources.cells import RowReader, image_root, row_error
from keepfit_clip.data.sources.notes import SourceNotes
from keepfit_clip.data.sources.options import SourceOptions
from keepfit_clip.errors import TableError, first_line

__all__ = ["fits", "read"]

_DELIMITERS = (",", "\t", ";", "|")
_WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")  # xlsx and ods, xls
_LONGEST_CELL = 1 << 24  # characters; Python's own limit of 131,072 is too short for some reports


def fits(path: Path) -> bool:
    """Whether a path looks like such a table."""
    return path.suffix.lower() in (".csv", ".tsv", ".txt", ".tab")


def read(
    path: Path, images: str | Path | None, options: SourceOptions, notes: SourceNotes | None = None
) -> Iterator[Record | TableError]:
    """The records of a table, and an error for each row that cannot be used.

    Raises:
        TableError: the table as a whole cannot be read.
    """
    reader = RowReader(path, image_root(images), options, notes=notes)
    _refuse_workbook(path)
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_CELL))
    number = 0
    try:
        encoding = "utf-8-sig" if codecs.lookup(options.encoding).name == "utf-8" else options.encoding
        with open(path, newline="", encoding=encoding) as file:
            header = next((line for line in file if line.strip()), "")
            file.seek(0)
            rows = csv.reader(file, delimiter=_delimiter(path, header), strict=False)
            names = [name.strip() for name in next((row for row in rows if any(map(str.strip, row))), [])]
            _check_header(path, names, reader)
            for cells in rows:
                if not cells:  # an empty line
                    continue
                number += 1
                if len(cells) != len(names):
                    yield row_error(path, number, "the row has another number of cells than the header")
                    continue
                yield from reader.read(number, dict(zip(names, cells, strict=True)))
    except OSError as error:
        raise TableError(f"{path}: cannot be read ({first_line(error)})") from error
    except (UnicodeError, csv.Error) as error:
        message = f"{path}: not a CSV in {options.encoding.upper()} ({error})"
        raise TableError(message, remedy="; give --encoding, e.g. gb18030 or cp1252") from error
    if number == 0:
        raise TableError(f"{path}: has a header but no rows")


def _refuse_workbook(path: Path) -> None:
    """A workbook under any name is told as what it is: no encoding would help."""
    try:
        with open(path, "rb") as file:
            head = file.read(8)
    except OSError:  # told by what opens it next
        return
    if head.startswith(_WORKBOOKS):
        raise TableError(f"{path}: is a workbook (or another archive), not text: save its sheet as CSV")


def _delimiter(path: Path, header: str) -> str:
    if path.suffix.lower() in (".tsv", ".tab"):
        return "\t"
    return max(_DELIMITERS, key=header.count)  # the first of equals: the comma


def _check_header(path: Path, names: list[str], reader: RowReader) -> None:
    if not any(names):
        raise TableError(f"{path}: is empty")
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise TableError(f"{path}: has the column {twice[0]!r} twice")
    reader.check(names)
