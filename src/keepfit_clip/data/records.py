"""Reading labelled tables: FLAIR's CSV (image, atributes, categories) and caption CSVs (image, caption, ...)."""

import ast
import csv
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from keepfit_clip.errors import TableError
from keepfit_clip.knowledge import MODALITIES

__all__ = ["Record", "read_records"]

_ATTRIBUTES = ("atributes", "attributes")  # FLAIR spells it with one t
_EYES = {"left": "left", "l": "left", "os": "left", "right": "right", "r": "right", "od": "right", "": None}
_EMPTY = ("", "nan", "none")


@dataclass(frozen=True)
class Record:
    """One row of a table.

    Args:
        row: its number, from 1; the header is not counted.
        image: path of the image: under the table's image root, or as it stands in the table when none was given.
        captions: an expert's captions, maybe none.
        categories: what the image shows, as written.
        attributes: words about the image itself, as written.
        modality: CFP, FFA, OCT or None.
        patient: identifier of the patient, or None. For grouping only; it must not leave the program.
        eye: left, right or None.
    """

    row: int
    image: Path
    captions: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    modality: str | None = None
    patient: str | None = None
    eye: str | None = None


def read_records(
    table: str | Path,
    images: str | Path | None = None,
    on_reject: Callable[[TableError], None] | None = None,
) -> Iterator[Record]:
    """Yields the records of a table.

    Args:
        table: a CSV with a column `image` and either `categories` (a Python list in each cell; FLAIR) or `caption`.
            Optional columns: atributes, modality, patient, eye.
        images: folder the image paths are relative to; None reads the table alone and looks at no image.
        on_reject: called with the error of each row that cannot be used, which is then left out; without it the
            first such row raises.

    Raises:
        TableError: no such table, an empty one, no usable columns; or a row cannot be used (see `on_reject`).
    """
    table = Path(table)
    root = None
    if images is not None:
        root = Path(images)
        if not root.is_dir():
            raise TableError(f"{root}: no such folder of images")
    for number, cells in _rows(table):
        try:
            yield _record(table, number, cells, root)
        except TableError as error:
            if on_reject is None:
                raise
            on_reject(error)


def _rows(table: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Numbered rows as column -> cell, after the header was checked."""
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = [name.strip() for name in reader.fieldnames or []]
            _check_columns(table, columns)
            reader.fieldnames = columns
            number = 0
            for number, cells in enumerate(reader, start=1):
                yield number, cells
    except OSError as error:
        raise TableError(f"{table}: cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise TableError(f"{table}: not a CSV in UTF-8 ({error})") from error
    if number == 0:
        raise TableError(f"{table}: has a header but no rows")


def _check_columns(table: Path, columns: list[str]) -> None:
    if not any(columns):
        raise TableError(f"{table}: is empty")
    if "image" not in columns or not {"categories", "caption"} & set(columns):
        raise TableError(
            f"{table}: needs a column 'image' and a column 'categories' or 'caption'; it has {', '.join(columns)}"
        )


def _record(table: Path, number: int, cells: dict[str, str], root: Path | None) -> Record:
    def fail(reason: str, detail: str = "") -> TableError:
        return TableError(f"{table}, row {number}: {reason}{detail}", row=number, reason=reason)

    def cell(*names: str) -> str:
        return next((cells[name].strip() for name in names if cells.get(name)), "")

    if None in cells or None in cells.values():
        raise fail("the row has another number of cells than the header")
    attributes = _list(cell(*_ATTRIBUTES), "atributes", fail)
    categories = _list(cell("categories"), "categories", fail)
    caption = cell("caption")
    if caption.lower() in _EMPTY:
        caption = ""
    if not caption and not categories:
        raise fail("has neither a caption nor a category")
    modality = cell("modality").upper() or None
    if modality is not None and modality not in MODALITIES:
        raise fail(f"the modality is none of {', '.join(MODALITIES)}", f" ({modality!r})")
    eye = cell("eye").lower()
    if eye not in _EYES:
        raise fail("the eye is neither left nor right", f" ({eye!r})")
    return Record(
        row=number,
        image=_image_path(cell("image"), root, fail),
        captions=(caption,) if caption else (),
        categories=tuple(categories),
        attributes=tuple(attributes),
        modality=modality,
        patient=cell("patient") or None,
        eye=_EYES[eye],
    )


def _list(cell: str, column: str, fail: Callable[..., TableError]) -> list[str]:
    """A cell that holds a Python list of texts; an empty cell is an empty list."""
    if cell.lower() in _EMPTY:
        return []
    try:
        values = ast.literal_eval(cell)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        values = None
    if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
        raise fail(f"the cell of '{column}' is not a Python list of texts", f" like ['glaucoma']: {cell[:60]!r}")
    return [v.strip() for v in values if v.strip()]


def _image_path(name: str, root: Path | None, fail: Callable[..., TableError]) -> Path:
    """The image's path; under `root` it must stay and exist."""
    if not name or "\0" in name:
        raise fail("the cell of 'image' is empty")
    if root is None:
        return Path(name)
    base = os.path.abspath(root)
    path = os.path.join(base, name)  # an absolute name stands for itself
    if ".." in Path(name).parts or os.path.commonpath([base, os.path.normpath(path)]) != base:
        raise fail("the image path leaves the image folder", f" ({name})")
    if not os.path.isfile(path):
        raise fail("the image file is missing", f" ({path})")
    return Path(path)
