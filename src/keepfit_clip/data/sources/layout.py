"""A data set as it was unpacked: one of the shipped layouts that its folder fits, or the one that was asked for."""

import ast
import json
import os
import re
import string
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from keepfit_clip.data.records import Record
from keepfit_clip.data.sources.cells import IMAGE_SUFFIXES, RowReader, existing_image, row_error
from keepfit_clip.data.sources.layout_file import ImageRule, LabelRule, Layout, Part, layout_names, read_layout
from keepfit_clip.data.sources.layout_rows import matching, read_table, rows_of
from keepfit_clip.data.sources.notes import SourceNotes
from keepfit_clip.data.sources.options import SourceOptions
from keepfit_clip.errors import MissingExtraError, TableError
from keepfit_clip.knowledge.labels import Repair, read_label_map, repair_of

__all__ = ["find_layouts", "fits", "missing_files", "read"]

_LOOKED_AT = 500  # entries of a folder, to tell which set it is
_EMPTY = ("", "nan", "none", "null")
_SPLITS = {
    **dict.fromkeys(("train", "training", "trainset", "train_set"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "eval", "evaluation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "testset", "test_set"), "test"),
}


def fits(path: Path) -> bool:
    """Whether a path is a folder that lies as a shipped layout says; as two of them is an error when it is read."""
    return path.is_dir() and bool(find_layouts(path))


def find_layouts(folder: Path) -> list[str]:
    """Names of the shipped layouts whose tables, or folders of images, a folder has, maybe one folder deeper.

    A layout of tables is told by their names and columns; one of folders of images by those that name classes.
    """
    return [name for name in layout_names() if _lies_as(read_layout(name), folder)]


def _lies_as(layout: Layout, folder: Path) -> bool:
    root = next((root for root in _roots(folder) if not _missing(layout, root)), None)
    if root is None:
        return False
    tables = [part for part in layout.parts if part.table and not part.optional]
    return all(
        any(_has_columns(path, part, layout.columns(part)) for path in _fitting(layout, part, root)) for part in tables
    )


def missing_files(layout: Layout, folder: Path) -> list[str]:
    """What a folder lacks of a layout: the patterns of files that it has none of."""
    return min((_missing(layout, root) for root in _roots(folder)), key=len)


def _missing(layout: Layout, root: Path) -> list[str]:
    needed = [part for part in layout.parts if not part.optional]
    return [part.table or part.files for part in needed if next(_fitting(layout, part, root), None) is None]


def _roots(folder: Path) -> Iterator[Path]:
    """Where a set may lie: a folder, and those inside it where unpacking made one that holds only another."""
    while True:
        yield folder
        with os.scandir(folder) as found:
            shown = (entry for entry in found if not entry.name.startswith((".", "__MACOSX")))
            inner = list(islice(shown, 2))
        if len(inner) != 1 or not inner[0].is_dir():
            return
        folder = Path(inner[0].path)


def _fitting(layout: Layout, part: Part, root: Path) -> Iterator[Path]:
    """Files of a part: tables of its name, or images whose class the layout knows."""
    rules = [rule for image in part.images for rule in image.labels]
    for path, fields in matching(part.table or part.files, root, most=_LOOKED_AT):
        if part.table or (path.suffix.lower() in IMAGE_SUFFIXES and all(_knows(rule, fields) for rule in rules)):
            yield path


def _has_columns(path: Path, part: Part, columns: set[str]) -> bool:
    """Whether a table has the columns; one that cannot be read now is told apart by its name alone."""
    try:
        first = next(read_table(path, part.format), None)
    except MissingExtraError:
        return True
    except TableError:
        return False
    return first is not None and columns <= {name.strip() for name in first if isinstance(name, str)}


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
    path: Path, images: str | Path | None, options: SourceOptions, notes: SourceNotes | None = None
) -> Iterator[Record | TableError]:
    """The images of a data set, and an error for each row that cannot be used.

    Raises:
        TableError: the folder does not lie as the layout says.
    """
    if not path.is_dir():
        raise TableError(f"{path}: no such folder; a layout is read from the folder that the set was unpacked into")
    layout = read_layout(options.layout) if options.layout else _found(path)
    notes = notes or SourceNotes()
    notes.layout = layout.title
    missing = missing_files(layout, path)
    if missing:
        raise TableError(f"{path}: is not laid out as {layout.title}: it has no {', no '.join(missing)}")
    path = next(root for root in _roots(path) if not _missing(layout, root))
    reader = _LayoutReader(layout, path, options, notes)
    number = 0
    for part in layout.parts:
        for position, (file, row) in enumerate(rows_of(part, path)):
            number += 1
            repair = None if options.as_written or not part.table else repair_of(file)
            yield from reader.read(part, number, row, repair, position)
    reader.done()
    if number == 0:
        raise TableError(f"{path}: laid out as {layout.title}, but it has no rows")


def _found(path: Path) -> Layout:
    names = find_layouts(path)
    if len(names) == 1:
        return read_layout(names[0])
    if not names:
        raise TableError(f"{path}: lies as none of the layouts {', '.join(layout_names())}; say which with --layout")
    raise TableError(f"{path}: lies as {' and as '.join(names)}: say which with --layout")


class _LayoutReader:
    """Makes records of a layout's rows, with the reader of all tables."""

    def __init__(self, layout: Layout, root: Path, options: SourceOptions, notes: SourceNotes):
        self.layout, self.root, self.options, self.notes = layout, root, options, notes
        own = SourceOptions(
            group_pattern=options.group_pattern,
            images_only=options.images_only,
            lang=options.lang,
            known_labels=options.known_labels,
            frames=options.frames,
        )
        self.rows = RowReader(root, root, own, notes=SourceNotes())
        self._kept: set[tuple[str, int]] = set()
        self._left_out: set[tuple[str, int]] = set()

    def done(self) -> None:
        """Tells how many rows no part of the layout takes."""
        self.notes.filtered += len(self._left_out - self._kept)
        self.notes.ignored.update(self.rows.notes.ignored)

    def read(
        self, part: Part, number: int, row: Mapping[str, Any], repair: Repair | None = None, position: int = 0
    ) -> Iterator[Record | TableError]:
        """The records of a row.

        Args:
            part: of the layout.
            number: of the row, over all parts.
            row: its cells.
            repair: of the table, where it is known to be wrong.
            position: of the row in its part: parts of one table see the same rows.
        """
        cells = {name.strip(): _text(value) for name, value in row.items() if isinstance(name, str)}
        for column in (*part.keep, *part.drop):
            if column not in cells:
                yield row_error(self.root, number, f"has no column {column!r}, which the layout expects")
                return
        row_of_table = (part.table or part.files, position)
        if not _among(cells, part.keep, all) or (part.drop and _among(cells, part.drop, any)):
            self._left_out.add(row_of_table)
            return
        self._kept.add(row_of_table)
        for rule in part.images:
            try:
                yield from self._records(rule, number, cells, repair)
            except TableError as error:
                yield error

    def _records(
        self, rule: ImageRule, number: int, cells: Mapping[str, str], repair: Repair | None
    ) -> Iterator[Record]:
        names = self._images(rule, cells, number)
        if not names:
            return  # an eye that was not photographed, or a file that another rule has
        texts = {key: self._coded(rule, key, cells, number) for key in ("eye", "split", "modality")}
        captions = [text for template in rule.captions if (text := self._filled(template, cells, number).strip())]
        categories = self._categories(rule, cells, number)
        if repair is not None and (right := list(repair.apply(categories))) != categories:
            self.notes.repaired[repair.title, repair.why] += 1
            categories = right
        record = {
            "image": names,
            "categories": categories,
            "attributes": _listed(self._filled(rule.attributes, cells, number), "[;|]"),
            "caption": captions,
            **{key: self._filled(getattr(rule, key), cells, number) for key in ("patient", "visit", "volume", "slice")},
            "eye": texts["eye"],
            "modality": texts["modality"] or self.layout.modality or "",
        }
        split = _SPLITS.get(texts["split"].lower(), texts["split"].lower()) or None
        yield from (replace(found, split=split) for found in self.rows.records(number, record))

    def _images(self, rule: ImageRule, cells: Mapping[str, str], number: int) -> list[str]:
        """Paths of a rule's images below the root: several where a cell lists them."""
        columns = [column for _, column, _, _ in string.Formatter().parse(rule.image) if column]
        several = [_listed(self._cell(column, cells, number), "; ") for column in columns]
        if len(columns) == 1 and len(several[0]) > 1:
            names = [self._filled(rule.image, {**cells, columns[0]: one}, number) for one in several[0]]
        else:
            names = [self._filled(rule.image, cells, number)]
        names = [name for name in names if Path(name).stem.strip() and (not columns or any(several))]
        names = [self._anywhere(name, number) if rule.anywhere else name for name in names]
        return [name for name in names if existing_image(self.root / name)] if rule.if_there else names

    def _filled(self, template: str, cells: Mapping[str, str], number: int) -> str:
        """A template with the cells of its columns in their places."""
        written = []
        for literal, column, _, _ in string.Formatter().parse(template):
            written.append(literal)
            if column is not None:
                written.append(self._cell(column, cells, number))
        return "".join(written)

    def _cell(self, column: str, cells: Mapping[str, str], number: int) -> str:
        if column not in cells:
            raise row_error(
                self.root, number, f"has no column {column!r}, which the layout of {self.layout.title} expects"
            )
        return cells[column]

    def _coded(self, rule: ImageRule, key: str, cells: Mapping[str, str], number: int) -> str:
        text = self._filled(getattr(rule, key), cells, number)
        return rule.codes.get(key, {}).get(text, text)

    def _categories(self, rule: ImageRule, cells: Mapping[str, str], number: int) -> list[str]:
        return list(dict.fromkeys(name for labels in rule.labels for name in self._labelled(labels, cells, number)))

    def _labelled(self, rule: LabelRule, cells: Mapping[str, str], number: int) -> Iterator[str]:
        label_map = read_label_map(rule.label_map) if rule.label_map else None
        for column in rule.columns:
            if rule.one_hot:  # releases of a set differ in their rarest columns
                labels = [column] if self._is_marked(column, cells.get(column, ""), number) else []
            else:
                labels = _listed(self._cell(column, cells, number), _separators(rule.separator))
            for label in filter(None, labels):
                meaning = rule.map.get(label)
                if meaning is None and label_map is not None:
                    meaning = label_map.meaning(label) if rule.one_hot else label_map.meaning_in(column, label)
                if meaning is None and (rule.map or label_map) and re.fullmatch(r"[-+]?\d+(\.\d+)?", label):
                    raise row_error(
                        self.root, number, f"the label in {column!r} is a number that the layout does not know"
                    )
                self.notes.silent.update([f"{column}: {label}"] if meaning == () else [])
                yield from (label,) if meaning is None else meaning

    def _is_marked(self, column: str, cell: str, number: int) -> bool:
        """Whether a cell of a column of 0 and 1 says that it is there."""
        small = cell.lower()
        if small not in ("", "0", "1", "true", "false", "yes", "no"):
            raise row_error(self.root, number, f"the cell of {column!r} is neither 0 nor 1", f" ({cell[:40]})")
        return small in ("1", "true", "yes")

    def _anywhere(self, name: str, number: int) -> str:
        """The path of the one file of a name, wherever it is below the root."""
        found = self._by_name.get(Path(name).stem.lower(), [])
        suffix = Path(name).suffix.lower()
        exact = [path for path in found if path.lower().endswith(suffix)] if suffix in IMAGE_SUFFIXES else found
        if len(exact) > 1:
            raise row_error(self.root, number, "the image's name is found more than once", f" ({name})")
        return exact[0] if exact else name

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        found = defaultdict(list)
        for folder, folders, files in os.walk(self.root):
            folders[:] = sorted(entry for entry in folders if not entry.startswith("."))
            for file in sorted(files):
                if file.lower().endswith(IMAGE_SUFFIXES) and not file.startswith("."):
                    found[Path(file).stem.lower()].append(os.path.relpath(os.path.join(folder, file), self.root))
        return dict(found)


def _among(cells: Mapping[str, str], wanted: Mapping[str, tuple[str, ...]], how: Callable) -> bool:
    """Whether cells hold wanted values, whatever their case; of all columns or of any, as `how` says."""
    return how(cells[column].lower() in {value.lower() for value in values} for column, values in wanted.items())


def _listed(cell: str, separators: str) -> list[str]:
    """What a cell lists: a list as Python or JSON writes it, or texts with separators between."""
    if cell.startswith("["):
        for parse in (ast.literal_eval, json.loads):
            try:
                values = parse(cell)
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                continue
            if isinstance(values, list):
                return [text for text in (str(value).strip() for value in values) if text]
    return [text for text in (part.strip() for part in re.split(separators, cell)) if text]


def _separators(separator: str | None) -> str:
    """A pattern of what parts labels: the layout's own, with its full-width form."""
    if separator is None:
        return "[;|]"
    wide = {",": "\uff0c", ";": "\uff1b"}
    return "|".join(re.escape(mark) for mark in filter(None, (separator, wide.get(separator))))


def _text(value: Any) -> str:
    """A cell as text; lists with semicolons between, whole numbers without a point, "" for an empty one."""
    if isinstance(value, (list, tuple)):
        return "; ".join(map(_text, value))
    if isinstance(value, float) and value == value and value.is_integer():
        value = int(value)
    text = "" if value is None else " ".join(str(value).split())
    text = text.partition(".")[0] if re.fullmatch(r"[-+]?\d+\.0+", text) else text
    return "" if text.lower() in _EMPTY else text
