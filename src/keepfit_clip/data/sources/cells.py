"""From the cells of one row to a record: which column means what, and what a cell may hold."""

import ast
import json
import math
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from keepfit_clip.data.records import Caption, FileSlice, Record
from keepfit_clip.data.sources.notes import SourceNotes
from keepfit_clip.data.sources.options import NO_COLUMN, SourceOptions
from keepfit_clip.errors import TableError
from keepfit_clip.files import printable

__all__ = ["IMAGE_SUFFIXES", "RowReader", "image_root", "row_error"]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp", ".ppm")

# Usual names of columns, the first that is there wins; compared in lower case with "_" for blanks and dashes.
_IMAGE = (
    "image", "images", "image_path", "image_paths", "img_path", "filepath", "file_path", "path", "filename",
    "file_name", "image_name", "image_file", "image_id", "img", "file", "id_code",
)  # fmt: skip
_CATEGORY = (
    "categories", "category", "labels", "label", "classes", "class", "cls", "diagnosis", "diagnoses", "diagnostics",
    "disease", "diseases",
)  # fmt: skip
_ATTRIBUTE = ("atributes", "attributes", "attribute")  # FLAIR spells it with one t
_PATIENT = ("patient", "patient_id", "patientid", "subject", "subject_id", "case_id")  # a group or study is many people
_EYE = ("eye", "laterality", "eye_side", "exam_eye", "side")
_CAPTION_WORDS = {"caption", "captions", "report", "reports", "text", "texts", "description", "descriptions",
                  "finding", "findings", "impression", "impressions"}  # fmt: skip
_LANGUAGES = {"en": "en", "english": "en", "cn": "zh", "zh": "zh", "ch": "zh", "chinese": "zh"}

_EYES = {
    **dict.fromkeys(("left", "l", "os", "oi", "left_eye"), "left"),
    **dict.fromkeys(("right", "r", "od", "right_eye"), "right"),
}
_MODALITIES = {
    **dict.fromkeys(("cfp", "fundus", "color_fundus", "colour_fundus", "color_fundus_photography"), "CFP"),
    **dict.fromkeys(("ffa", "fa", "fluorescein_angiography", "fundus_fluorescein_angiography"), "FFA"),
    **dict.fromkeys(("oct", "optical_coherence_tomography"), "OCT"),
}
_EMPTY = ("", "nan", "none", "null", "n/a", "na")
_NUMBER = re.compile(r"[-+]?\d+(\.\d+)?")
_WHOLE = re.compile(r"[-+]?\d+\.0+")  # as pandas writes grades where a row has none
_CHINESE = re.compile(r"[\u4e00-\u9fff]")


def row_error(where: str | Path, row: int, reason: str, detail: str = "") -> TableError:
    """The error of one row; only `reason` may leave the user's terminal."""
    return TableError(printable(f"{where}, row {row}: {reason}{detail}"), row=row, reason=reason)


def image_root(images: str | Path | None) -> Path | None:
    """The folder that image names are relative to.

    Raises:
        TableError: no such folder.
    """
    if images is not None and not os.path.isdir(images):
        if os.path.exists(images):
            raise TableError(f"{images}: is a file; give the folder that the image names are relative to (--images)")
        raise TableError(f"{images}: no such folder of images")
    return None if images is None else Path(images)


@dataclass(frozen=True)
class _Columns:
    image: str | None
    captions: dict[str, str | None]  # name -> language, None where the name does not tell
    categories: tuple[str, ...]
    attributes: str | None
    modality: str | None
    patient: str | None
    eye: str | None
    dataset: str | None


class RowReader:
    """Makes records of rows.

    Args:
        where: what to call the source in errors.
        root: folder the image names are relative to; None leaves them as written and looks at no file.
        options: column names, label names and the like.
        needs_image: whether a row without an image column is refused; False where images come by another way.
        label_names: column -> what its numbers stand for, where the source itself says so.
        notes: told which columns are taken for what.
    """

    def __init__(
        self,
        where: str | Path,
        root: Path | None,
        options: SourceOptions,
        needs_image: bool = True,
        label_names: Mapping[str, Mapping[str, str]] | None = None,
        notes: SourceNotes | None = None,
    ):
        self.notes = notes or SourceNotes()
        self._number_column: str | None = None  # whose numbers the names without a column were used for
        self.where = where
        self.root = root
        self.options = options
        self.needs_image = needs_image
        self.label_names = label_names or {}
        self._known: dict[tuple[str, ...], _Columns] = {}
        self._column_names: dict[str, dict[str, str]] = {}
        self._group_pattern = re.compile(options.group_pattern) if options.group_pattern else None

    def check(self, names: Sequence[str]) -> None:
        """Raises TableError where columns of these names cannot make a record."""
        self._columns(tuple(names))

    def records(
        self, row: int, cells: Mapping[str, Any], image: Path | FileSlice | bytes | None = None
    ) -> list[Record]:
        """The records of a row: one for each of its images.

        Args:
            row: its number, from 1.
            cells: column -> text, number, list, bytes or None.
            image: where the image is, if the row itself does not say.

        Raises:
            TableError: the row cannot be used.
        """
        columns = self._columns(tuple(cells))
        said = {} if self.options.images_only else self._said(row, cells, columns)
        patient = _plain(cells.get(columns.patient))
        images = [(image, _file_name(image))] if image is not None else self._images(row, cells.get(columns.image))
        return [
            Record(row=row, image=where, patient=patient or self._group(row, name), **said) for where, name in images
        ]

    def _said(self, row: int, cells: Mapping[str, Any], columns: "_Columns") -> dict:
        """What a row says of its images, as fields of a record."""
        captions = self._captions(row, cells, columns)
        categories = [text for name in columns.categories for text in self._labels(row, name, cells)]
        if not captions and not categories:
            raise row_error(self.where, row, "has neither a caption nor a category")
        attributes = self._texts(row, columns.attributes, cells.get(columns.attributes)) if columns.attributes else []
        return {
            "captions": tuple(dict.fromkeys(captions)),
            "categories": tuple(dict.fromkeys(categories)),
            "attributes": tuple(attributes),
            "modality": self._one_of(row, "modality", columns.modality, cells, _MODALITIES),
            "eye": self._one_of(row, "eye", columns.eye, cells, _EYES),
            "dataset": _plain(cells.get(columns.dataset)),
        }

    # -- columns -------------------------------------------------------------------------------------------------

    def _columns(self, names: tuple[str, ...]) -> _Columns:
        if names not in self._known:
            self._known[names] = self._find_columns(names)
        return self._known[names]

    def _find_columns(self, names: tuple[str, ...]) -> _Columns:
        by_form = {_form(name): name for name in reversed(names)}
        options = self.options

        def named(chosen: str | None, usual: Sequence[str]) -> str | None:
            if chosen is None:
                return next((by_form[form] for form in usual if form in by_form), None)
            if chosen == NO_COLUMN:
                return None
            if _form(chosen) not in by_form:
                raise TableError(f"{self.where}: has no column {chosen!r}; it has {', '.join(filter(None, names))}")
            return by_form[_form(chosen)]

        def several(chosen: Sequence[str], usual: Sequence[str]) -> tuple[str, ...]:
            found = [named(name, ()) for name in chosen] if chosen else [named(None, usual)]
            return tuple(name for name in found if name is not None)

        image = named(options.image_column, _IMAGE)
        categories = several(options.category_columns, _CATEGORY)
        captions = {name: _caption_language(name) or None for name in several(options.caption_columns, ())}
        if not options.caption_columns:
            captions = {name: language or None for name in names if (language := _caption_language(name)) is not None}
        if (self.needs_image and image is None) or not (categories or captions or options.images_only):
            raise TableError(
                f"{self.where}: needs a column 'image' and a column 'categories' or 'caption'; it has "
                f"{', '.join(names)}. Name yours with --image-column, --category-column or --caption-column"
            )
        found = _Columns(
            image,
            captions,
            categories,
            named(options.attribute_column, _ATTRIBUTE),
            named(options.modality_column, ("modality",)),
            named(options.patient_column, _PATIENT),
            named(options.eye_column, _EYE),
            named(options.dataset_column, ("dataset",)),
        )
        self._note(found)
        return found

    def _note(self, columns: _Columns) -> None:
        options = self.options
        taken = {
            "image": (columns.image, options.image_column),
            "caption": (tuple(columns.captions), options.caption_columns),
            "category": (columns.categories, options.category_columns),
            "attribute": (columns.attributes, options.attribute_column),
            "modality": (columns.modality, options.modality_column),
            "patient": (columns.patient, options.patient_column),
            "eye": (columns.eye, options.eye_column),
            "dataset": (columns.dataset, options.dataset_column),
        }
        for role, (found, chosen) in taken.items():
            names = found if isinstance(found, tuple) else (found,) if found else ()
            if names:
                self.notes.take(role, names, guessed=not chosen)

    # -- cells ---------------------------------------------------------------------------------------------------

    def _captions(self, row: int, cells: Mapping[str, Any], columns: _Columns) -> list[Caption]:
        captions = []
        for name, language in columns.captions.items():
            for text in self._texts(row, name, cells[name], split=False):
                told = language or self.options.lang
                captions.append(Caption(text, told or ("zh" if _CHINESE.search(text) else "en")))
        return captions

    def _labels(self, row: int, column: str, cells: Mapping[str, Any]) -> list[str]:
        labels, value = [], cells[column]
        a_written_list = isinstance(value, str) and value.lstrip().startswith("[")
        several = len(self._columns(tuple(cells)).categories) > 1
        for written in self._texts(row, column, value):
            label = self._named(column, written)
            if not a_written_list and _NUMBER.fullmatch(label) and label not in self.options.known_labels:
                own = f"'{column}:{label}=...'" if several else f"{label}=..."
                raise row_error(
                    self.where,
                    row,
                    f"the label in '{column}' is a number",
                    f" ({label}): say what it stands for with --label-name {own}, or in a class file",
                )
            labels.append(label)
        return labels

    def _named(self, column: str, written: str) -> str:
        """What a label of a column stands for: by its own column's name, the source's own, or one for all columns.

        Raises:
            TableError: numbers of two columns would be named alike.
        """
        label = _whole(written)
        for own in (self._of_column(column), self.label_names.get(column, {})):
            if label in own:
                return own[label]
        name = self._for_all.get(label)
        if name is None:
            return label
        if _NUMBER.fullmatch(label):
            if self._number_column not in (None, column):
                raise TableError(
                    f"{self.where}: the columns {self._number_column!r} and {column!r} both hold numbers, and "
                    f"--label-name {label}={name} does not say whose it is: write '{column}:{label}=...'"
                )
            self._number_column = column
        return name

    @cached_property
    def _for_all(self) -> dict[str, str]:
        """Names of labels whatever their column."""
        return {_whole(label): name for label, name in self.options.label_names.items()}

    def _of_column(self, column: str) -> dict[str, str]:
        """Names of the labels of one column alone."""
        if column not in self._column_names:
            pairs = ((key.rpartition(":"), name) for key, name in self.options.label_names.items())
            self._column_names[column] = {
                _whole(label.strip()): name
                for (of, colon, label), name in pairs
                if colon and _form(of) == _form(column)
            }
        return self._column_names[column]

    def _texts(self, row: int, column: str, value: Any, split: bool = True) -> list[str]:
        """The texts in a cell: a list, a list written as Python or JSON writes it, or plain text.

        Args:
            row, column: for the error.
            value: the cell.
            split: whether ";" and "|" part a plain text.
        """
        value = getattr(value, "tolist", lambda: value)()
        if isinstance(value, str):
            value = value.strip()
            if value.startswith("["):
                value = self._written_list(row, column, value, must=split)
        if isinstance(value, str):
            value = re.split(r"[;|]", value) if split else [value]
        elif not isinstance(value, (list, tuple)):
            value = [value]
        texts = [_plain(item) for item in value]
        if any(isinstance(item, (Mapping, list, tuple, bytes)) for item in value):
            raise row_error(self.where, row, f"the cell of '{column}' is not a list of texts")
        return [text for text in texts if text is not None]

    def _written_list(self, row: int, column: str, cell: str, must: bool) -> list | str:
        for parse in (ast.literal_eval, json.loads):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # "\\d" in a text is odd, not wrong
                    values = parse(cell)
            except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
                continue
            if isinstance(values, list) and all(isinstance(v, str) for v in values):
                return values
        if must:
            raise row_error(
                self.where,
                row,
                f"the cell of '{column}' is not a Python list of texts",
                f" like ['glaucoma']: {cell[:60]!r}",
            )
        return cell

    def _one_of(
        self, row: int, role: str, column: str | None, cells: Mapping[str, Any], known: Mapping[str, str]
    ) -> str | None:
        """What a cell of a column says, of a few things it can say.

        What makes no sense costs the row only where somebody named the column; of one that was guessed it is counted.
        """
        text = _plain(cells.get(column))
        if text is None:
            return None
        text = self._of_column(column).get(_whole(text), text)
        if _form(text) in known:
            return known[_form(text)]
        if column in self.notes.guessed:
            self.notes.ignored[role, column] += 1
            return None
        raise row_error(
            self.where, row, f"the {role} is none of {', '.join(dict.fromkeys(known.values()))}", f" ({text!r})"
        )

    def _images(self, row: int, value: Any) -> list[tuple[Path | bytes, str | None]]:
        """Images of a row, and the name of each one's file where there is one."""
        values = value if isinstance(value, (list, tuple)) else [value]
        if not values:
            raise row_error(self.where, row, "names no image")
        return [self._image(row, item) for item in values]

    def _image(self, row: int, value: Any) -> tuple[Path | bytes, str | None]:
        if isinstance(value, Mapping) and set(value) <= {"bytes", "path"}:  # as Hugging Face's datasets store it
            content, value = value.get("bytes"), value.get("path")
            if isinstance(content, bytes):
                return content, _plain(value)
        if isinstance(value, bytes):
            return value, None
        name = _plain(value)
        if name is None or "\0" in name:
            raise row_error(self.where, row, "the cell of 'image' is empty")
        if self.root is None:
            return Path(name), Path(name).name
        base = os.path.abspath(self.root)
        path = os.path.join(base, name)  # an absolute name stands for itself
        if ".." in Path(name).parts or os.path.commonpath([base, os.path.normpath(path)]) != base:
            raise row_error(self.where, row, "the image path leaves the image folder", f" ({name})")
        found = _existing(path)
        if found is None:
            raise row_error(self.where, row, "the image file is missing", f" ({path})")
        return Path(found), os.path.basename(found)

    def _group(self, row: int, name: str | None) -> str | None:
        """The patient or eye that a file's name tells of."""
        if self._group_pattern is None:
            return None
        match = self._group_pattern.search(name or "")
        if match is None:
            raise row_error(self.where, row, "the file name does not match the group pattern", f" ({name})")
        return (match[1] if match.groups() else None) or match[0]


def _file_name(image: Path | FileSlice | bytes) -> str | None:
    return image.name if isinstance(image, Path) else None


def _existing(path: str) -> str | None:
    """The path, or the one with a suffix of an image where the source leaves it out."""
    try:
        if os.path.isfile(path):
            return path
        if not path.lower().endswith(IMAGE_SUFFIXES):
            return next((path + s for s in IMAGE_SUFFIXES for s in (s, s.upper()) if os.path.isfile(path + s)), None)
    except (OSError, ValueError):  # a name too long or odd for the file system
        pass
    return None


def _plain(value: Any) -> str | None:
    """A cell as text; None for an empty one."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = printable(" ".join(str(value).split()))
    return None if text.lower() in _EMPTY else text


def _whole(label: str) -> str:
    """A whole number without the zeros behind its point; any other label as it is."""
    return label.partition(".")[0] if _WHOLE.fullmatch(label) else label


def _form(name: str) -> str:
    return re.sub(r"[\s_\-]+", "_", name.strip().casefold())


def _caption_language(name: str) -> str | None:
    """Language of a caption column, "" where its name does not tell; None for other columns."""
    words = [word for word in re.split(r"_+", re.sub(r"(\d+)", r"_\1_", _form(name))) if word and not word.isdigit()]
    languages = [_LANGUAGES[word] for word in words if word in _LANGUAGES]
    rest = [word for word in words if word not in _LANGUAGES]
    if len(rest) != 1 or rest[0] not in _CAPTION_WORDS or len(languages) > 1:
        return None
    return languages[0] if languages else ""
