"""Rows of tables: CSV, workbooks, JSON, JSON lines and texts without a header; and of the names of files."""

import codecs
import csv
import io
import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, NamedTuple

import pandas as pd

from keepfit_clip.data.sources.cells import IMAGE_SUFFIXES, row_error
from keepfit_clip.data.sources.layout_file import Part
from keepfit_clip.errors import MissingExtraError, TableError, first_line
from keepfit_clip.extras import require_extra
from keepfit_clip.remote.opening import without_secrets
from keepfit_clip.remote.paths import Place, RemotePath

__all__ = ["STUDY", "Row", "matching", "read_rows", "rows_of"]

_FIELD = re.compile(r"\{(\w+)\}")
_KINDS = {".xlsx": "xlsx", ".xls": "xlsx", ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl"}  # others: csv
STUDY = "study_id"  # column of what names a study
_DELIMITERS = (",", "\t", ";", "|")
_WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")  # xlsx and ods, xls
_EMPTY_CELLS = {"keep_default_na": False, "na_values": [""]}  # "NA" is a label of some sets
_LONGEST_CELL = 1 << 24  # characters; Python's own limit of 131,072 is too short for some reports


class Row(NamedTuple):
    """A row of a table.

    Args:
        number: from 1, in its file; rows without any text count too.
        cells: by the names of their columns; the error of a row that has none.
    """

    number: int
    cells: dict[str, Any] | TableError


def rows_of(part: Part, root: Place, encoding: str = "") -> Iterator[tuple[Place, Row]]:
    """The rows of a part of a layout, each with the file that it stands in.

    Args:
        part: of the layout.
        root: the folder of the data set.
        encoding: of its texts, in place of the layout's own.

    Raises:
        TableError: there is no such file, or it cannot be read as the layout says.
        MissingExtraError: a workbook, and what reads it is not installed.
    """
    number = 0
    how = {**part.format, "encoding": encoding} if encoding else part.format
    for path, fields in matching(part.table or part.files, root):
        if part.table:
            number += 1
            for row in read_rows(path, how, part.columns | part.marks):
                if isinstance(row.cells, dict):
                    row = Row(row.number, _parsed(part, {**fields, **row.cells}))
                yield path, row
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            number += 1
            own = {"path": path.relative_to(root).as_posix(), "file": path.name, "stem": path.stem}
            yield path, Row(number, {**fields, **own})
    if not number and not part.optional:
        raise TableError(f"{root}: has no {part.table or part.files}, which the layout expects")


def matching(pattern: str, root: Place, most: int | None = None) -> Iterator[tuple[Place, dict[str, str]]]:
    """Files below a folder whose path fits a pattern, in a fixed order, and what its {NAME}s stand for.

    `{NAME}` and `*` stand for anything inside one part of a path, `**` for any folders; letters may be small or large.

    Args:
        pattern: of paths below the folder, with `/` between their parts.
        root: the folder.
        most: look at so many entries of each folder only; names without a `{NAME}` are found all the same.
    """
    yield from _walk(root, pattern.split("/"), {}, most)


def _walk(
    folder: Place, steps: list[str], fields: dict[str, str], most: int | None
) -> Iterator[tuple[Place, dict[str, str]]]:
    step, *rest = steps
    if step == "**":
        if rest:
            yield from _walk(folder, rest, fields, most)
        for entry in _entries(folder, most):
            if entry.is_dir():
                yield from _walk(_at(entry), steps, fields, most)
        return
    expression = _expression(step)
    for entry in _named(folder, step) or _entries(folder, most):
        match = expression.fullmatch(entry.name)
        if match is None:
            continue
        inner = {**fields, **match.groupdict()}
        if rest and entry.is_dir():
            yield from _walk(_at(entry), rest, inner, most)
        elif not rest and entry.is_file():
            yield _at(entry), inner


def _at(entry: "os.DirEntry | _Entry | RemotePath") -> Place:
    return entry if isinstance(entry, RemotePath) else Path(entry.path)


def _named(folder: Place, step: str) -> list:
    """The entry of a step that is a plain name, where it stands there letter by letter: no need to list the folder."""
    path = folder / step
    if isinstance(path, RemotePath):  # whose folder's listing is kept
        return [path] if step in folder.listings.of(folder.url) else []
    if "{" in step or "*" in step or not path.exists():
        return []
    return [_Entry(step, str(path))]


class _Entry(NamedTuple):
    """What is asked of an entry of a folder."""

    name: str
    path: str

    def is_dir(self) -> bool:
        return os.path.isdir(self.path)

    def is_file(self) -> bool:
        return os.path.isfile(self.path)


def _entries(folder: Place, most: int | None) -> Iterable:
    if isinstance(folder, RemotePath):
        return islice((entry for entry in folder.iterdir() if not entry.name.startswith(".")), most)
    with os.scandir(folder) as found:
        entries = [entry for entry in islice(found, most) if not entry.name.startswith(".")]
    return sorted(entries, key=lambda entry: entry.name)


def _expression(step: str) -> re.Pattern:
    parts = re.split(r"(\{\w+\}|\*)", step)
    written = [
        f"(?P<{match[1]}>.+?)" if (match := _FIELD.fullmatch(part)) else ".*" if part == "*" else re.escape(part)
        for part in parts
    ]
    return re.compile("".join(written), re.IGNORECASE)


def _parsed(part: Part, row: dict[str, Any]) -> dict[str, Any]:
    """A row with the columns that lie inside its cells; a cell of another form gives none."""
    for column, pattern in part.parse.items():
        match = _expression(pattern).fullmatch(str(row.get(column) or "").strip())
        row |= match.groupdict() if match else dict.fromkeys(_FIELD.findall(pattern))
    return row


def read_rows(path: Place, how: Mapping[str, Any], needed: Collection[str] | None = None) -> Iterator[Row]:
    """The rows of a table.

    Args:
        path: of the table.
        how: it is written: kind, separator, header, skip, columns, encoding, sheet, keys, as a layout's `format`.
        needed: the columns that matter, of which none may stand there twice; None is all.

    Raises:
        TableError: it cannot be read so.
        MissingExtraError: a workbook, and what reads it is not installed.
    """
    kind = how.get("kind") or _KINDS.get(path.suffix.lower(), "csv")
    encoding = how.get("encoding", "utf-8")
    try:
        if kind == "json":
            yield from _read_json(path, how, _with_mark(encoding))
        elif kind == "studies":
            yield from _read_studies(path, _with_mark(encoding))
        elif kind == "jsonl":
            yield from _read_lines(path, _with_mark(encoding))
        elif kind == "xlsx":
            yield from _read_workbook(path, how, needed)
        else:
            yield from _read_text(path, how, _with_mark(encoding), needed)
    except OSError as error:
        raise TableError(f"{path}: cannot be read ({without_secrets(first_line(error))})") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise TableError(f"{path}: not a JSON file ({first_line(error)})") from error
    except (UnicodeError, csv.Error) as error:
        what = "a CSV" if kind == "csv" else "text"
        message = f"{path}: not {what} in {encoding.upper()} ({first_line(error)})"
        raise TableError(message, remedy="; give --encoding, e.g. gb18030 or cp1252") from error
    except (TableError, MissingExtraError, MemoryError):
        raise
    except Exception as error:  # readers of workbooks raise many kinds
        raise TableError(f"{path}: is not written as it should be ({first_line(error)})") from error


def _with_mark(encoding: str) -> str:
    """An encoding that takes a byte order mark for what it is."""
    return "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding


def _read_json(path: Place, how: Mapping[str, Any], encoding: str) -> Iterator[Row]:
    """Records of a JSON: a list of them, objects of them by their keys, or a list of objects of one key."""
    content = json.loads(path.read_text(encoding=encoding))
    yield from (Row(number, cells) for number, cells in enumerate(_records(content, list(how.get("keys", ()))), 1))


def _records(content, keys: list[str]) -> Iterator[dict[str, Any]]:
    if isinstance(content, list):
        for item in content:
            alone = isinstance(item, dict) and len(item) == 1 and isinstance(next(iter(item.values())), dict)
            yield from _records(item, keys if alone or not isinstance(item, dict) else [])
    elif isinstance(content, dict) and keys:
        for name, value in content.items():
            yield from ({keys[0]: name, **record} for record in _records(value, keys[1:]))
    elif isinstance(content, dict) and content and all(isinstance(value, dict) for value in content.values()):
        for value in content.values():  # by keys that say nothing
            yield from _records(value, [])
    elif isinstance(content, dict):
        yield content
    else:
        raise ValueError("its records are no objects")


def _read_studies(path: Place, encoding: str) -> Iterator[Row]:
    """Studies, each with an identifier of its own or its number."""
    found = False
    for number, (identifier, study) in enumerate(_studies(json.loads(path.read_text(encoding=encoding))), start=1):
        found = True
        yield Row(number, {STUDY: identifier or f"study {number}", **study})
    if not found:
        raise TableError(f"{path}: holds no studies: a list or an object of objects with images and a report")


def _studies(content) -> Iterator[tuple[str | None, dict]]:
    """Identifier and study, in the file's order."""
    if isinstance(content, list):
        for study in content:
            if isinstance(study, dict):
                yield _identifier(study), study
    elif isinstance(content, dict):
        for name, value in content.items():
            if isinstance(value, list) or (isinstance(value, dict) and _all_objects(value)):
                yield from _studies(value)  # a split
            elif isinstance(value, dict):
                yield name, value


def _identifier(study: dict) -> str | None:
    return next((str(study[key]) for key in ("id", "study_id", "case_id", "ID") if key in study), None)


def _all_objects(value: dict) -> bool:
    return bool(value) and all(isinstance(item, dict) for item in value.values())


def _read_lines(path: Place, encoding: str) -> Iterator[Row]:
    with path.open(encoding=encoding) as file:
        for number, line in enumerate((line for line in file if line.strip()), start=1):
            try:
                cells = json.loads(line.removeprefix("\ufeff"))
                if not isinstance(cells, dict):
                    raise ValueError("not an object")
            except (ValueError, RecursionError):
                cells = row_error(path, number, "the line is not a JSON object")
            yield Row(number, cells)


def _read_workbook(path: Place, how: Mapping[str, Any], needed: Collection[str] | None) -> Iterator[Row]:
    require_extra("workbooks")
    source = io.BytesIO(path.read_bytes()) if isinstance(path, RemotePath) else path
    frame = pd.read_excel(source, sheet_name=how.get("sheet", 0), header=None, dtype=object, **_EMPTY_CELLS)
    yield from _with_header(path, frame.itertuples(index=False), how, needed)


def _read_text(path: Place, how: Mapping[str, Any], encoding: str, needed: Collection[str] | None) -> Iterator[Row]:
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_CELL))
    with path.open(newline="", encoding=encoding) as file:
        if file.buffer.peek(8).startswith(_WORKBOOKS):  # no encoding would help
            raise TableError(f"{path}: is a workbook (or another archive), not text: save its sheet as CSV")
        separator = how.get("separator")
        if separator == " ":
            rows: Any = (line.split() for line in file)
        else:
            empty, first = _first_line_with_text(file)
            named = how.get("header", 1) and not how.get("columns") and not how.get("skip")  # else it tells too little
            rows = csv.reader(
                chain(empty, [first], file), delimiter=separator or _delimiter(path, first if named else "")
            )
        yield from _with_header(path, (row for row in rows if row), how, needed)  # without empty lines


def _first_line_with_text(file: IO[str]) -> tuple[list[str], str]:
    """The empty lines that a file begins with, and its first other one."""
    empty: list[str] = []
    for line in file:
        if line.strip():
            return empty, line
        empty.append(line)
    return empty, ""


def _delimiter(path: Place, first: str) -> str:
    if path.suffix.lower() in (".tsv", ".tab"):
        return "\t"
    return max(_DELIMITERS, key=first.count)  # the first of equals: the comma


def _with_header(path: Place, rows, how: Mapping[str, Any], needed: Collection[str] | None) -> Iterator[Row]:
    """Rows with their names from the header, whose rows are joined where they are several."""
    rows = iter(rows)
    for _ in range(how.get("skip", 0)):
        next(rows, None)
    filled = (row for row in rows if any(map(_filled, row)))
    header = list(islice(filled, how.get("header", 0 if how.get("columns") else 1)))
    names = how.get("columns") or _joined(header)
    if not any(names):
        raise TableError(f"{path}: is empty")
    twice = sorted({name for name in names if name and names.count(name) > 1 and (needed is None or name in needed)})
    if twice:
        raise TableError(f"{path}: has the column {twice[0]!r} twice")
    for number, row in enumerate(rows, start=1):
        cells = list(row)
        if not any(map(_filled, cells)):
            continue
        if not any(map(_filled, cells[len(names) :])):  # some programs end every line with separators
            cells = cells[: len(names)]
        if len(cells) == len(names):
            yield Row(number, dict(zip(names, cells, strict=True)))
        else:
            yield Row(number, row_error(path, number, "the row has another number of cells than the header"))


def _filled(cell: Any) -> bool:
    return cell is not None and cell == cell and bool(str(cell).strip())


def _joined(header: list) -> list[str]:
    """Names of columns from the rows of a header; an empty cell of an upper row goes on with the one on its left."""
    names: list[list[str]] = []
    for number, row in enumerate(header):
        before = ""
        for column, cell in enumerate(row):
            text = " ".join(str(cell).split()) if _filled(cell) else ""
            if number < len(header) - 1:
                text = before = text or before
            while len(names) <= column:
                names.append([])
            if text and text not in names[column]:
                names[column].append(text)
    return [" ".join(parts) for parts in names]
