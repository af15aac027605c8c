"""A data set as it was unpacked: one of the shipped layouts that its folder fits, or the one that was asked for."""

import os
import re
import string
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from keepfit_clip.data.records import Record
from keepfit_clip.data.sources.cells import (
    IMAGE_SUFFIXES,
    RowReader,
    as_text,
    existing_image,
    listed,
    row_error,
    whole,
)
from keepfit_clip.data.sources.layout_file import ImageRule, LabelRule, Layout, Part, layout_names, read_layout
from keepfit_clip.data.sources.names import ImagesByName
from keepfit_clip.data.sources.notes import SourceNotes
from keepfit_clip.data.sources.options import SourceOptions
from keepfit_clip.data.sources.rows import matching, read_rows, rows_of
from keepfit_clip.errors import MissingExtraError, TableError
from keepfit_clip.knowledge.labels import Repair, is_number, read_label_map, repair_of
from keepfit_clip.remote.paths import Place, RemotePath

__all__ = ["find_layouts", "fits", "missing_files", "read"]

_LOOKED_AT = 500  # entries of a folder, to tell which set it is
_EMPTY = ("nan", "none", "null")  # "NA" is a label of some sets
_WORDS = ("readme", "robots", "licen", "changelog", "citation", "checksum", "md5", "sha256")
_WORD_SUFFIXES = (".md", ".pdf", ".html", ".docx", ".zip", ".rar", ".7z", ".gz", ".tar")
_TAKEN, _LEFT_OUT = 1, 2
_SPLITS = {
    **dict.fromkeys(("train", "training", "trainset", "train_set"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "eval", "evaluation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "testset", "test_set"), "test"),
}


def fits(path: Place) -> bool:
    """Whether a path is a folder that lies as a shipped layout says; as two of them is an error when it is read."""
    return path.is_dir() and bool(find_layouts(path))


def find_layouts(folder: Place) -> list[str]:
    """Names of the shipped layouts whose tables, or folders of images, a folder has, maybe one folder deeper.

    A layout of tables is told by their names and columns; one of folders of images by those that name classes.
    """
    return [name for name in layout_names() if _lies_as(read_layout(name), folder)]


def _lies_as(layout: Layout, folder: Place) -> bool:
    root = next((root for root in _roots(folder) if not _missing(layout, root)), None)
    if root is None:
        return False
    tables = [part for part in layout.parts if part.table and not part.optional]
    return all(any(_has_columns(path, part) for path in _fitting(layout, part, root)) for part in tables)


def missing_files(layout: Layout, folder: Place) -> list[str]:
    """What a folder lacks of a layout: the patterns of files that it has none of."""
    return min((_missing(layout, root) for root in _roots(folder)), key=len)


def _missing(layout: Layout, root: Place) -> list[str]:
    needed = [part for part in layout.parts if not part.optional]
    return [part.table or part.files for part in needed if not _is_there(layout, part, root)]


def _is_there(layout: Layout, part: Part, root: Place, most: int | None = _LOOKED_AT) -> bool:
    return next(_fitting(layout, part, root, most), None) is not None


def _roots(folder: Place) -> Iterator[Place]:
    """Where a set may lie: a folder, and the one inside it where it holds only another, and words about it."""
    while True:
        yield folder
        with nullcontext(folder.iterdir()) if isinstance(folder, RemotePath) else os.scandir(folder) as found:
            shown = (entry for entry in found if not entry.name.startswith((".", "__MACOSX")) and not _is_word(entry))
            inner = list(islice(shown, 2))
        if len(inner) != 1 or not inner[0].is_dir():
            return
        folder = folder / inner[0].name


def _is_word(entry: os.DirEntry | RemotePath) -> bool:
    """Whether an entry is a word about the set, or the archive that it came in, and no part of it."""
    name = entry.name.lower()
    return entry.is_file() and (name.startswith(_WORDS) or name.endswith(_WORD_SUFFIXES))


def _fitting(layout: Layout, part: Part, root: Place, most: int | None = _LOOKED_AT) -> Iterator[Place]:
    """Files of a part, among so many of each folder: tables of its name, or images whose class the layout knows."""
    rules = [rule for image in part.images for rule in image.labels]
    for path, fields in matching(part.table or part.files, root, most):
        if part.table or (path.suffix.lower() in IMAGE_SUFFIXES and all(_knows(rule, fields) for rule in rules)):
            yield path


def _has_columns(path: Place, part: Part) -> bool:
    """Whether a table has its part's columns; one that cannot be read now is told apart by its name alone."""
    try:
        first = next((row.cells for row in read_rows(path, part.format, ()) if isinstance(row.cells, dict)), None)
    except MissingExtraError:
        return True
    except TableError:
        return False
    return first is not None and part.columns <= {name.strip() for name in first if isinstance(name, str)}


def _knows(rule: LabelRule, fields: Mapping[str, str]) -> bool:
    labels = [fields[column] for column in rule.columns if column in fields]
    named = [rule.map.get(label) for label in labels]
    if rule.label_map:
        named = [
            meaning or read_label_map(rule.label_map).meaning(label)
            for label, meaning in zip(labels, named, strict=True)
        ]
    return not (rule.map or rule.label_map) or all(meaning is not None for meaning in named)


def read(
    path: Place, images: str | Place | None, options: SourceOptions, notes: SourceNotes | None = None
) -> Iterator[Record | TableError]:
    """The images of a data set, and an error for each row that cannot be used.

    Rows are numbered over all tables; an error names the table and the number in it.

    Raises:
        TableError: the folder does not lie as the layout says.
    """
    if not path.is_dir():
        raise TableError(f"{path}: no such folder; a layout is read from the folder that the set was unpacked into")
    layout = read_layout(options.layout) if options.layout else _found(path)
    notes = notes or SourceNotes()
    notes.layout = layout.title
    root = max(_roots(path), key=lambda root: sum(_is_there(layout, part, root) for part in layout.parts))
    there = [part for part in layout.parts if _is_there(layout, part, root, most=None)]
    if not there:
        lacks = ", no ".join(_missing(layout, root))
        raise TableError(f"{path}: is not laid out as {layout.title}: it has no {lacks}")
    notes.missing = [part.table or part.files for part in layout.parts if not part.optional and part not in there]
    encoding = "" if options.encoding == SourceOptions.encoding else options.encoding
    rows = ((part, *found) for part in there for found in rows_of(part, root, encoding))
    number = 0
    with closing(_LayoutReader(layout, root, options, notes)) as reader:
        for part, file, row in rows:
            number += 1
            if isinstance(row.cells, TableError):
                yield _numbered(row.cells, number)
                continue
            for item in reader.read(part, file, row.number, row.cells):
                yield _numbered(item, number) if isinstance(item, TableError) else replace(item, row=number)
        reader.done()
    if number == 0:
        raise TableError(f"{path}: laid out as {layout.title}, but it has no rows")


def _numbered(error: TableError, number: int) -> TableError:
    """The error of a row with its number over all tables; one of the whole source is raised."""
    if error.row is None:
        raise error
    error.row = number
    return error


def _found(path: Place) -> Layout:
    names = find_layouts(path)
    if len(names) == 1:
        return read_layout(names[0])
    if not names:
        raise TableError(f"{path}: lies as none of the layouts {', '.join(layout_names())}; say which with --layout")
    raise TableError(f"{path}: lies as {' and as '.join(names)}: say which with --layout")


class _LayoutReader:
    """Makes records of a layout's rows, with the reader of all tables."""

    def __init__(self, layout: Layout, root: Place, options: SourceOptions, notes: SourceNotes):
        self.layout, self.root, self.options, self.notes = layout, root, options, notes
        self._own = SourceOptions(
            group_pattern=options.group_pattern,
            images_only=options.images_only,
            lang=options.lang,
            known_labels=options.known_labels,
            frames=options.frames,
        )
        self._rows = RowReader(root, root, self._own, notes=SourceNotes())  # of the table that is read now
        self._repair: Repair | None = None
        self._filtered = {part.table or part.files for part in layout.parts if part.keep or part.drop}
        self._taken: dict[Place | str, bytearray] = {}  # of their rows, taken or left out; a byte each

    def close(self) -> None:
        """Removes what was only for the reading."""
        if "_by_name" in self.__dict__:
            self._by_name.close()

    def done(self) -> None:
        """Tells how many rows no part of the layout takes."""
        self.notes.ignored.update(self._rows.notes.ignored)
        self.notes.filtered += sum(rows.count(_LEFT_OUT) for rows in self._taken.values())

    def read(self, part: Part, file: Place, number: int, cells: Mapping[str, Any]) -> Iterator[Record | TableError]:
        """The records of a row.

        Args:
            part: of the layout.
            file: that it stands in.
            number: of the row in it.
            cells: of the row.
        """
        where = file if part.table else self.root
        if where != self._rows.where:
            self._rows = RowReader(where, self.root, self._own, notes=self._rows.notes)
            self._repair = repair_of(file) if part.table and not self.options.as_written else None
        texts = {name.strip(): _text(value) for name, value in cells.items() if name}
        lists = {n.strip(): list(map(_text, value)) for n, value in cells.items() if isinstance(value, (list, tuple))}
        row = _Row(where, number, texts, lists, self.layout)
        try:
            if not self._takes(part, file, row):
                return
        except TableError as error:
            yield error
            return
        for rule in part.images:
            try:
                yield from self._records(part, rule, row)
            except TableError as error:
                yield error

    def _takes(self, part: Part, file: Place, row: "_Row") -> bool:
        """Whether a part takes a row; parts of one table see the same rows."""
        if (part.table or part.files) not in self._filtered:
            return True
        for column in (*part.keep, *part.drop):
            row.cell(column)
        taken = _among(row.cells, part.keep, all) and not (part.drop and _among(row.cells, part.drop, any))
        known = self._taken.setdefault(file if part.table else part.files, bytearray())
        known.extend(bytes(max(0, row.number + 1 - len(known))))
        known[row.number] = _TAKEN if taken or known[row.number] == _TAKEN else _LEFT_OUT
        return taken

    def _records(self, part: Part, rule: ImageRule, row: "_Row") -> Iterator[Record]:
        names = self._images(rule, row)
        if not names:
            return  # an eye that was not photographed, or a file that another rule has
        captions = [text for template in rule.captions for text in row.texts(template) if text.strip()]
        categories = list(dict.fromkeys(name for labels in rule.labels for name in self._labelled(labels, row)))
        if self._repair is not None and (right := list(self._repair.apply(categories))) != categories:
            self.notes.repaired[self._repair.title, self._repair.why] += 1
            categories = right
        record = {
            "image": names,
            "categories": categories,
            "attributes": listed(row.filled(rule.attributes)),
            "caption": captions,
            **{key: row.filled(getattr(rule, key)) for key in ("patient", "visit", "volume", "slice", "dataset")},
            "eye": row.coded(rule, "eye"),
            "modality": row.coded(rule, "modality") or self.layout.modality or "",
        }
        split = row.coded(rule, "split").lower()
        for found in self._rows.records(row.number, record):
            yield replace(found, split=_SPLITS.get(split, split) or None)

    def _images(self, rule: ImageRule, row: "_Row") -> list[str]:
        """Paths of a rule's images below the root: several where a cell lists them."""
        columns = [column for _, column, _, _ in string.Formatter().parse(rule.image) if column]
        several = [listed(row.cell(column), "; ") for column in columns]
        if len(columns) == 1 and len(several[0]) > 1:
            names = [row.filled(rule.image, {columns[0]: one}) for one in several[0]]
        else:
            names = [row.filled(rule.image)]
        names = [name for name in names if Path(name).stem.strip() and (not columns or any(several))]
        names = [self._anywhere(name, row) if rule.anywhere else name for name in names]
        return [name for name in names if existing_image(self.root / name)] if rule.if_there else names

    def _labelled(self, rule: LabelRule, row: "_Row") -> Iterator[str]:
        label_map = read_label_map(rule.label_map) if rule.label_map else None
        for column in rule.columns:
            if rule.one_hot:  # releases of a set differ in their rarest columns
                labels = [column] if row.marks(column) else []
            else:
                labels = listed(row.cell(column), _separators(rule.separator))
            for label in filter(None, labels):
                meaning = rule.map.get(label)
                if meaning is None and label_map is not None:
                    meaning = label_map.meaning(label) if rule.one_hot else label_map.meaning_in(column, label)
                if meaning is None and (rule.map or label_map) and is_number(label):
                    raise row.error(f"the label in {column!r} is a number that the layout does not know")
                self.notes.silent.update([f"{column}: {label}"] if meaning == () else [])
                yield from (label,) if meaning is None else meaning

    def _anywhere(self, name: str, row: "_Row") -> str:
        """The path of the one file of a name, wherever it is below the root."""
        found = self._by_name.paths(name)
        suffix = Path(name).suffix.lower()
        exact = [path for path in found if path.lower().endswith(suffix)] if suffix in IMAGE_SUFFIXES else found
        if len(exact) > 1:
            raise row.error("the image's name is found more than once", f" ({name})")
        return exact[0] if exact else name

    @cached_property
    def _by_name(self) -> ImagesByName:
        return ImagesByName(self.root)


@dataclass(frozen=True)
class _Row:
    """A row of a layout.

    Args:
        where: the table, or the folder, that it stands in.
        number: of the row in it.
        cells: by the names of their columns, as texts.
        lists: the texts of those cells that hold several.
        layout: for errors.
    """

    where: Place
    number: int
    cells: Mapping[str, str]
    lists: Mapping[str, list[str]]
    layout: Layout

    def error(self, reason: str, detail: str = "") -> TableError:
        """The error of this row; only `reason` may leave the user's terminal."""
        return row_error(self.where, self.number, reason, detail)

    def cell(self, column: str) -> str:
        """What stands in a column, which must be there."""
        if column not in self.cells:
            raise self.error(f"has no column {column!r}, which the layout of {self.layout.title} expects")
        return self.cells[column]

    def marks(self, column: str) -> bool:
        """Whether a cell of a column of 0 and 1 says that it is there; releases may lack the column."""
        cell = self.cells.get(column, "")
        if cell.lower() not in ("", "0", "1", "true", "false", "yes", "no"):
            raise self.error(f"the cell of {column!r} is neither 0 nor 1", f" ({cell[:40]})")
        return cell.lower() in ("1", "true", "yes")

    def filled(self, template: str, others: Mapping[str, str] | None = None) -> str:
        """A template with the cells of its columns, or other texts, in their places."""
        written = []
        for literal, column, _, _ in string.Formatter().parse(template):
            written.append(literal)
            if column is not None:
                written.append((others or {}).get(column) or self.cell(column))
        return "".join(written)

    def texts(self, template: str) -> list[str]:
        """What a template gives: of one that is a column alone, all that a list in its cell holds."""
        listed_in_cell = self.lists.get(template[1:-1]) if template == f"{{{template[1:-1]}}}" else None
        return [self.filled(template)] if listed_in_cell is None else listed_in_cell

    def coded(self, rule: ImageRule, key: str) -> str:
        """What a rule's template gives, and what the layout says that it stands for."""
        text = self.filled(getattr(rule, key))
        return rule.codes.get(key, {}).get(text, text)


def _among(cells: Mapping[str, str], wanted: Mapping[str, tuple[str, ...]], how: Callable) -> bool:
    """Whether cells hold wanted values, whatever their case; of all columns or of any, as `how` says."""
    return how(cells[column].lower() in {value.lower() for value in values} for column, values in wanted.items())


def _separators(separator: str | None) -> str:
    """A pattern of what parts labels: the layout's own, with its full-width form."""
    if separator is None:
        return "[;|]"
    wide = {",": "\uff0c", ";": "\uff1b"}
    return "|".join(re.escape(mark) for mark in filter(None, (separator, wide.get(separator))))


def _text(value: Any) -> str:
    """A cell as text; lists with semicolons between."""
    if isinstance(value, (list, tuple)):
        return "; ".join(map(_text, value))
    text = whole(as_text(value))
    return "" if text.lower() in _EMPTY else text
