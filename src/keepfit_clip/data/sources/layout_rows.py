"""The rows of a part of a layout: of CSV, workbooks, JSON and texts without a header, or of the names of files."""

import csv
import json
import os
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from keepfit_clip.data.sources.cells import IMAGE_SUFFIXES
from keepfit_clip.data.sources.layout_file import Part
from keepfit_clip.errors import MissingExtraError, TableError, first_line
from keepfit_clip.extras import require_extra

__all__ = ["matching", "read_table", "rows_of"]

_FIELD = re.compile(r"\{(\w+)\}")
_KINDS = {".csv": "csv", ".tsv": "csv", ".txt": "csv", ".tab": "csv", ".xlsx": "xlsx", ".xls": "xlsx", ".json": "json"}


def rows_of(part: Part, root: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The file that each row stands in, and its cells by the names of their columns.

    Raises:
        TableError: there is no such file, or it cannot be read as the layout says.
        MissingExtraError: a workbook, and what reads it is not installed.
    """
    found = False
    for path, fields in matching(part.table or part.files, root):
        if part.files:
            if path.suffix.lower() in IMAGE_SUFFIXES:
                found = True
                yield path, {**fields, "path": path.relative_to(root).as_posix(), "file": path.name, "stem": path.stem}
            continue
        found = True
        for row in read_table(path, part.format):
            yield path, _parsed(part, {**fields, **row})
    if not found and not part.optional:
        raise TableError(f"{root}: has no {part.table or part.files}, which the layout expects")


def matching(pattern: str, root: Path, most: int | None = None) -> Iterator[tuple[Path, dict[str, str]]]:
    """Files below a folder whose path fits a pattern, in a fixed order, and what its {NAME}s stand for.

    `{NAME}` and `*` stand for anything inside one part of a path, `**` for any folders; letters may be small or large.

    Args:
        pattern: of paths below the folder, with `/` between their parts.
        root: the folder.
        most: look at so many entries of each folder only; names without a `{NAME}` are found all the same.
    """
    yield from _walk(root, pattern.split("/"), {}, most)


def _walk(
    folder: Path, steps: list[str], fields: dict[str, str], most: int | None
) -> Iterator[tuple[Path, dict[str, str]]]:
    step, *rest = steps
    if step == "**":
        if rest:
            yield from _walk(folder, rest, fields, most)
        for entry in _entries(folder, most):
            if entry.is_dir():
                yield from _walk(Path(entry.path), steps, fields, most)
        return
    expression = _expression(step)
    for entry in _named(folder, step) or _entries(folder, most):
        match = expression.fullmatch(entry.name)
        if match is None:
            continue
        inner = {**fields, **match.groupdict()}
        if rest and entry.is_dir():
            yield from _walk(Path(entry.path), rest, inner, most)
        elif not rest and entry.is_file():
            yield Path(entry.path), inner


def _named(folder: Path, step: str) -> list:
    """The entry of a step that is a plain name, where it stands there letter by letter: no need to list the folder."""
    path = folder / step
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


def _entries(folder: Path, most: int | None) -> list:
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


def read_table(path: Path, how: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows of a table, by the names of their columns.

    Raises:
        TableError: it cannot be read as the layout says.
        MissingExtraError: a workbook, and what reads it is not installed.
    """
    kind = how.get("kind") or _KINDS.get(path.suffix.lower(), "csv")
    try:
        if kind == "json":
            yield from _read_json(path, how)
        elif kind == "xlsx":
            yield from _read_workbook(path, how)
        else:
            yield from _read_text(path, how)
    except OSError as error:
        raise TableError(f"{path}: cannot be read ({first_line(error)})") from error
    except (TableError, MissingExtraError, MemoryError):
        raise
    except Exception as error:  # readers of workbooks raise many kinds
        raise TableError(f"{path}: is not written as the layout says ({first_line(error)})") from error


def _read_json(path: Path, how: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Records of a JSON: a list of them, objects of them by their keys, or a list of objects of one key."""
    content = json.loads(path.read_text(encoding=how.get("encoding", "utf-8-sig")))
    yield from _records(content, list(how.get("keys", ())))


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


def _read_workbook(path: Path, how: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    require_extra("workbooks")
    frame = pd.read_excel(path, sheet_name=how.get("sheet", 0), header=None, dtype=object)
    yield from _with_header([list(row) for row in frame.itertuples(index=False)], how)


def _read_text(path: Path, how: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    with open(path, newline="", encoding=how.get("encoding", "utf-8-sig")) as file:
        separator = how.get("separator")
        if separator == " ":
            rows: Any = (line.split() for line in file)
        else:
            rows = csv.reader(file, delimiter=separator or ("\t" if path.suffix.lower() in (".tsv", ".tab") else ","))
        yield from _with_header((row for row in rows if any(str(cell).strip() for cell in row)), how)


def _with_header(rows, how: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows as dicts: their names from the header, whose rows are joined where they are several."""
    rows = iter(rows)
    for _ in range(how.get("skip", 0)):
        next(rows, None)
    header = [next(rows, []) for _ in range(how.get("header", 0 if how.get("columns") else 1))]
    names = how.get("columns") or _joined(header)
    for row in rows:
        yield dict(zip(names, row, strict=False))


def _joined(header: list[list]) -> list[str]:
    """Names of columns from the rows of a header; an empty cell of an upper row goes on with the one on its left."""
    names: list[list[str]] = []
    for number, row in enumerate(header):
        before = ""
        for column, cell in enumerate(row):
            text = "" if cell is None or (isinstance(cell, float) and cell != cell) else " ".join(str(cell).split())
            if number < len(header) - 1:
                text = before = text or before
            while len(names) <= column:
                names.append([])
            if text and text not in names[column]:
                names[column].append(text)
    return [" ".join(parts) for parts in names]
