"""A layout file of a table or folder as it is read now, to be kept, corrected and passed on."""

import os
from dataclasses import replace
from pathlib import Path

from keepfit_clip.data.sources import find_source
from keepfit_clip.data.sources.columns import Columns, find_columns, form
from keepfit_clip.data.sources.notes import SourceNotes
from keepfit_clip.data.sources.options import SourceOptions
from keepfit_clip.data.sources.rows import STUDY, read_rows
from keepfit_clip.errors import TableError

__all__ = ["draft_layout"]

_ROLES = ("attributes", "eye", "patient", "visit", "volume", "slice", "dataset", "modality")


def draft_layout(path: str | Path, images: str | Path | None, options: SourceOptions) -> tuple[dict, Path]:
    """The content of a layout file that reads a source as it is read now, and the folder that it is read from.

    Args:
        path: a table (CSV, TSV, workbook), JSON lines, a JSON of studies or a folder of classes.
        images: folder that the image names are relative to.
        options: as the source is read with them.

    Raises:
        TableError: another kind of source, one that cannot be read, or a column whose name cannot stand in a layout.
    """
    path = Path(path)
    kind = find_source(path, options.source)
    if kind == "folder":
        rule = {"image": "{path}", "labels": [{"column": "class"}]}
        return _content(path, {"files": "{class}/**/{file}", "images": [rule]}), path
    if kind not in ("table", "jsonl", "studies"):
        raise TableError(f"{path}: a layout is drafted of a table, JSON or a folder of classes, not of {kind}")
    root = Path(os.path.commonpath([path.parent.absolute(), Path(images or path.parent).absolute()]))
    how: dict[str, str] = {} if options.encoding == SourceOptions.encoding else {"encoding": options.encoding}
    if kind in ("jsonl", "studies"):
        how["kind"] = kind
    if kind == "studies":
        options = replace(options, patient_column=options.patient_column or STUDY)
    first = next((row.cells for row in read_rows(path, how) if isinstance(row.cells, dict)), None)
    if first is None:
        raise TableError(f"{path}: has no rows")
    columns = find_columns(tuple(first), options, True, path, SourceNotes())
    below = Path(os.path.relpath(Path(images or path.parent).absolute(), root)).as_posix()
    rule = _image_rule(columns, options, "" if below == "." else f"{below}/", path)
    part = {"table": Path(os.path.relpath(path.absolute(), root)).as_posix(), "images": [rule]}
    if how:
        part["format"] = how
    return _content(path, part), root


def _content(path: Path, part: dict) -> dict:
    return {"schema": 1, "title": path.stem, "modality": None, "parts": [part]}


def _image_rule(columns: Columns, options: SourceOptions, below: str, path: Path) -> dict:
    used = [columns.image, *columns.captions, *(getattr(columns, role) for role in _ROLES)]
    odd = next((name for name in used if name and set(name) & set("{}!:")), None)
    if odd is not None:
        raise TableError(f"{path}: the column {odd!r} cannot stand in a layout: name it without brackets, ! and :")
    named = {role: f"{{{column}}}" for role in _ROLES if (column := getattr(columns, role))}
    rule = {"image": f"{below}{{{columns.image}}}", **named}
    codes = {role: _named(getattr(columns, role), options) for role in ("eye", "modality")}
    if any(codes.values()):
        rule["codes"] = {role: names for role, names in codes.items() if names}
    if columns.captions:
        rule["captions"] = [f"{{{name}}}" for name in columns.captions]
    if columns.categories:
        rule["labels"] = [_label_rule(column, options, len(columns.categories) > 1) for column in columns.categories]
    return rule


def _label_rule(column: str, options: SourceOptions, several: bool) -> dict:
    own = _named(column, options)
    of_all = {label: name for label, name in options.label_names.items() if ":" not in label}
    meanings = {label: [name] for label, name in ({**of_all, **own} if not (several and own) else own).items()}
    rule = {"column": column, "map": meanings} if meanings else {"column": column}
    return {**rule, "label_map": options.labels} if options.labels else rule


def _named(column: str | None, options: SourceOptions) -> dict[str, str]:
    """What the labels of a column alone stand for."""
    parts = ((*key.rpartition(":"), name) for key, name in options.label_names.items())
    return {label.strip(): name for of, colon, label, name in parts if colon and column and form(of) == form(column)}
