"""From the cells of one row to a record: what a cell may hold, and what it says."""

import ast
import json
import math
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from keepfit_clip.data.records import Caption, Record
from keepfit_clip.data.sources.columns import Columns, find_columns, form
from keepfit_clip.data.sources.notes import SourceNotes
from keepfit_clip.data.sources.options import SourceOptions
from keepfit_clip.errors import ImageError, TableError
from keepfit_clip.files import printable
from keepfit_clip.images.facts import VolumeFacts
from keepfit_clip.images.reading import FileSlice, Frame, image_bytes
from keepfit_clip.images.volumes import VOLUME_SUFFIXES, holds_volume, volume_facts
from keepfit_clip.knowledge.labels import is_number
from keepfit_clip.remote.opening import RemoteFile
from keepfit_clip.remote.paths import Place, RemotePath, place

__all__ = ["IMAGE_SUFFIXES", "RowReader", "as_text", "existing_image", "image_root", "listed", "row_error",
           "whole"]  # fmt: skip

_OF_ONE = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp", ".ppm")
IMAGE_SUFFIXES = (*_OF_ONE, *VOLUME_SUFFIXES)

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
_WHOLE = re.compile(r"[-+]?\d+\.0+")  # as pandas writes grades where a row has none
_CHINESE = re.compile(r"[\u4e00-\u9fff]")


def row_error(
    where: str | Place, row: int, reason: str, detail: str = "", looked_for: Sequence[str] = (), remedy: str = ""
) -> TableError:
    """The error of one row; only `reason` may leave the user's terminal."""
    return TableError(printable(f"{where}, row {row}: {reason}{detail}"), row, reason, looked_for, remedy)


def image_root(images: str | Place | None) -> Place | None:
    """The folder that image names are relative to.

    Raises:
        TableError: no such folder.
    """
    if images is None:
        return None
    root = place(images)
    if str(images).startswith(("http://", "https://")):
        raise TableError(f"{images}: a web server does not list its folders; images are read from disks and buckets")
    if not root.is_dir():
        if root.exists():
            raise TableError(f"{images}: is a file; give the folder that the image names are relative to (--images)")
        raise TableError(f"{images}: no such folder of images")
    return root


class RowReader:
    """Makes records of rows.

    Args:
        where: what to call the source in errors.
        root: folder the image names are relative to; None leaves them as written and looks at no file.
        options: column names, label names and the like.
        needs_image: whether a row without an image column is refused; False where images come by another way.
        label_names: column -> what its numbers stand for, where the source itself says so.
        notes: told which columns are taken for what.
        unfit: what to say of a row whose columns cannot make a record, where each row has columns of its own.
    """

    def __init__(
        self,
        where: str | Place,
        root: Place | None,
        options: SourceOptions,
        needs_image: bool = True,
        label_names: Mapping[str, Mapping[str, str]] | None = None,
        notes: SourceNotes | None = None,
        unfit: str = "",
    ):
        self.unfit = unfit
        self.notes = notes or SourceNotes()
        self._number_column: str | None = None  # whose numbers the names without a column were used for
        self.where = where
        self.root = root
        self.options = options
        self.needs_image = needs_image
        self.label_names = label_names or {}
        self._known: dict[tuple[str, ...], Columns] = {}
        self._column_names: dict[str, dict[str, str]] = {}
        self._group_pattern = re.compile(options.group_pattern) if options.group_pattern else None

    def check(self, names: Sequence[str]) -> None:
        """Raises TableError where columns of these names cannot make a record."""
        self._columns(tuple(names))

    def records(
        self, row: int, cells: Mapping[str, Any], image: Path | FileSlice | RemoteFile | bytes | None = None
    ) -> list[Record]:
        """The records of a row: one for each of its images.

        Args:
            row: its number, from 1.
            cells: column -> text, number, list, bytes or None.
            image: where the image is, if the row itself does not say.

        Raises:
            TableError: the row cannot be used; without a row's number, no row can.
        """
        try:
            columns = self._columns(tuple(cells))
        except TableError as error:
            if not self.unfit:
                raise
            raise row_error(self.where, row, self.unfit) from error
        if self.options.images_only:
            fields = {"modality": self._known_modality(row, cells, columns)}
        else:
            fields = self._record_fields(row, cells, columns)
        patient = self._plain(cells.get(columns.patient))
        images = [(image, _file_name(image))] if image is not None else self._images(row, cells.get(columns.image))
        records = [
            Record(row=row, image=where, patient=patient or self._group(row, name), **fields) for where, name in images
        ]
        return [frame for record in records for frame in self._frames(record)]

    def _frames(self, record: Record) -> list[Record]:
        """The pictures of a file of several, each with the eye and modality that it says where the row does not."""
        path = record.image
        if not _is_volume(path):
            return [record]
        try:
            volumes = volume_facts(image_bytes(path) if isinstance(path, RemoteFile) else path, str(path))
        except ImageError as error:
            raise row_error(self.where, record.row, error.reason, f" ({path})") from error
        if len(volumes) == volumes[0].frames == 1:
            return [_told(record, volumes[0])]
        own = str(path)  # as other rows and tables may have it too; it stays inside the program
        of_eye = any(facts.eye == record.eye is not None for facts in volumes)  # the row's, where the file has both
        frames = []
        for number, facts in enumerate(volumes, start=1):
            if of_eye and facts.eye != record.eye:
                continue
            volume = (record.volume or own) + (f", part {number}" if len(volumes) > 1 else "")
            told = replace(_told(record, facts), volume=volume)
            for frame in _chosen_frames(self.options.frames, facts.frames):
                frames.append(replace(told, image=Frame(path, facts.first + frame), slice=frame + 1))
        patient = record.patient or (own if len(frames) > 1 else None)
        return [replace(frame, patient=patient) for frame in frames]

    def read(
        self, row: int, cells: Mapping[str, Any], image: Path | FileSlice | RemoteFile | bytes | None = None
    ) -> Iterator[Record | TableError]:
        """The same, or the error."""
        try:
            yield from self.records(row, cells, image)
        except TableError as error:
            yield error

    def _record_fields(self, row: int, cells: Mapping[str, Any], columns: Columns) -> dict:
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
            "dataset": self._plain(cells.get(columns.dataset)),
            "volume": self._plain(cells.get(columns.volume)),
            "visit": self._plain(cells.get(columns.visit)),
            "slice": self._number(row, "slice", columns.slice, cells),
        }

    def _known_modality(self, row: int, cells: Mapping[str, Any], columns: Columns) -> str | None:
        """The modality where the row tells one that is known."""
        try:
            return self._one_of(row, "modality", columns.modality, cells, _MODALITIES)
        except TableError:
            return None

    # -- columns -------------------------------------------------------------------------------------------------

    def _columns(self, names: tuple[str, ...]) -> Columns:
        if names not in self._known:
            self._known[names] = find_columns(names, self.options, self.needs_image, self.where, self.notes)
        return self._known[names]

    # -- cells ---------------------------------------------------------------------------------------------------

    def _captions(self, row: int, cells: Mapping[str, Any], columns: Columns) -> list[Caption]:
        captions = []
        for name, language in columns.captions.items():
            for text in self._texts(row, name, cells[name], split=False):
                lang = language or self.options.lang
                captions.append(Caption(text, lang or ("zh" if _CHINESE.search(text) else "en")))
        return captions

    def _labels(self, row: int, column: str, cells: Mapping[str, Any]) -> list[str]:
        labels, value = [], cells[column]
        a_written_list = isinstance(value, str) and value.lstrip().startswith("[")
        several = len(self._columns(tuple(cells)).categories) > 1
        for written in self._texts(row, column, value):
            label = self._named(column, written)
            if not a_written_list and is_number(label) and label not in self.options.known_labels:
                own = f"'{column}:{label}=...'" if several else f"{label}=..."
                raise row_error(
                    self.where,
                    row,
                    f"the label in '{column}' is a number",
                    f" ({label})",
                    remedy=f": say what it stands for with --label-name {own}",
                )
            labels.append(label)
        return labels

    def _named(self, column: str, written: str) -> str:
        """What a label of a column stands for: by its own column's name, the source's own, or one for all columns.

        Raises:
            TableError: numbers of two columns would be named alike.
        """
        label = whole(written)
        for own in (self._of_column(column), self.label_names.get(column, {})):
            if label in own:
                return own[label]
        name = self._for_all.get(label)
        if name is None:
            return label
        if is_number(label):
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
        return {whole(label): name for label, name in self.options.label_names.items()}

    def _of_column(self, column: str) -> dict[str, str]:
        """Names of the labels of one column alone."""
        if column not in self._column_names:
            pairs = ((key.rpartition(":"), name) for key, name in self.options.label_names.items())
            self._column_names[column] = {
                whole(label.strip()): name for (of, colon, label), name in pairs if colon and form(of) == form(column)
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
        texts = [self._plain(item) for item in value]
        if any(isinstance(item, (Mapping, list, tuple, bytes)) for item in value):
            raise row_error(self.where, row, f"the cell of '{column}' is not a list of texts")
        return [text for text in texts if text is not None]

    def _written_list(self, row: int, column: str, cell: str, must: bool) -> list | str:
        values = _parsed_list(cell)
        if values is not None and all(isinstance(value, str) for value in values):
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
        text = self._plain(cells.get(column))
        if text is None:
            return None
        text = self._of_column(column).get(whole(text), text)
        if form(text) in known:
            return known[form(text)]
        if column in self.notes.guessed:
            self.notes.ignored[role, column] += 1
            return None
        raise row_error(
            self.where, row, f"the {role} is none of {', '.join(dict.fromkeys(known.values()))}", f" ({text!r})"
        )

    def _number(self, row: int, role: str, column: str | None, cells: Mapping[str, Any]) -> int | None:
        """The whole number in a cell; in a column that was guessed, what is none is counted."""
        text = self._plain(cells.get(column))
        if text is None or re.fullmatch(r"\d{1,9}", whole(text)):
            return None if text is None else int(whole(text))
        if column in self.notes.guessed:
            self.notes.ignored[role, column] += 1
            return None
        raise row_error(self.where, row, f"the {role} is no whole number", f" ({text[:40]!r})")

    def _images(self, row: int, value: Any) -> list[tuple[Path | RemoteFile | bytes, str | None]]:
        """Images of a row, and the name of each one's file where there is one."""
        values = value if isinstance(value, (list, tuple)) else [value]
        if not values:
            raise row_error(self.where, row, "names no image")
        return [self._image(row, item) for item in values]

    def _image(self, row: int, value: Any) -> tuple[Path | RemoteFile | bytes, str | None]:
        if isinstance(value, Mapping) and set(value) <= {"bytes", "path"}:  # as Hugging Face's datasets store it
            content, value = value.get("bytes"), value.get("path")
            if isinstance(content, bytes):
                return content, self._plain(value)
        if isinstance(value, bytes):
            return value, None
        name = self._plain(value)
        if name is None or "\0" in name:
            raise row_error(self.where, row, "the cell of 'image' is empty")
        if self.root is None:
            return Path(name), Path(name).name
        if isinstance(self.root, RemotePath):
            return self._remote_image(row, name, self.root)
        base = os.path.abspath(self.root)
        path = os.path.join(base, name)  # an absolute name stands for itself
        if ".." in Path(name).parts or os.path.commonpath([base, os.path.normpath(path)]) != base:
            raise row_error(self.where, row, "the image path leaves the image folder", f" ({name})")
        file = existing_image(path)
        if file is None:
            raise row_error(self.where, row, "the image file is missing", f" ({path})", _candidates(path))
        return Path(file), os.path.basename(file)

    def _remote_image(self, row: int, name: str, root: RemotePath) -> tuple[RemoteFile, str]:
        inside = name.removeprefix(f"{root}/")  # a whole URL may stand there
        below = PurePosixPath(inside)
        if below.is_absolute() or ".." in below.parts or "::" in inside or "://" in inside:
            raise row_error(self.where, row, "the image path leaves the image folder", f" ({name})")
        path = root / str(below)
        file = existing_image(path)
        if file is None:
            raise row_error(self.where, row, "the image file is missing", f" ({path})", _candidates(str(path)))
        return file, file.name

    def _plain(self, value: Any) -> str | None:
        """A cell as text; None for an empty one."""
        written = as_text(value)
        text = printable(written)
        self.notes.half_characters += text != written
        return None if text.lower() in _EMPTY else text

    def _group(self, row: int, name: str | None) -> str | None:
        """The patient or eye that a file's name tells of."""
        if self._group_pattern is None:
            return None
        match = self._group_pattern.search(name or "")
        if match is None:
            raise row_error(self.where, row, "the file name does not match the group pattern", f" ({name})")
        return (match[1] if match.groups() else None) or match[0]


def _file_name(image: Path | FileSlice | RemoteFile | bytes) -> str | None:
    return image.name if isinstance(image, (Path, RemoteFile)) else None


def _told(record: Record, facts: VolumeFacts) -> Record:
    return replace(record, eye=record.eye or facts.eye, modality=record.modality or facts.modality)


def _is_volume(image: Any) -> bool:
    """Whether a record's image is a file of several; in object storage its ending alone tells: nothing is fetched."""
    suffix = image.suffix.lower() if isinstance(image, (Path, RemoteFile)) else ""
    if isinstance(image, RemoteFile):
        return suffix in VOLUME_SUFFIXES
    if not isinstance(image, Path) or suffix in _OF_ONE or not image.is_file():
        return False
    try:
        return suffix in VOLUME_SUFFIXES or holds_volume(image)
    except OSError:  # told by what reads the image
        return False


def _chosen_frames(which: str, count: int) -> list[int]:
    """Numbers of the frames that "middle", "all" or "every:N" mean."""
    if which == "middle":
        return [count // 2]
    return list(range(0, count, 1 if which == "all" else int(which.partition(":")[2])))


def _candidates(path: str) -> list[str]:
    """The path, and those with a suffix of an image where the source leaves it out."""
    if path.lower().endswith(IMAGE_SUFFIXES):
        return [path]
    return [path, *(path + written for suffix in IMAGE_SUFFIXES for written in (suffix, suffix.upper()))]


def existing_image(path: str | os.PathLike | RemotePath) -> str | RemoteFile | None:
    """The file of an image's path, its ending filled in where it has none; None where there is none."""
    if isinstance(path, RemotePath):
        found = (path.parent.file(candidate) for candidate in _candidates(path.name))
        return next(filter(None, found), None)
    path = os.fspath(path)
    try:
        return next((candidate for candidate in _candidates(path) if os.path.isfile(candidate)), None)
    except (OSError, ValueError):  # a name too long or odd for the file system
        pass
    return None


def as_text(value: Any) -> str:
    """A cell as text in one line, whole numbers without a point; "" for an empty one."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return " ".join(str(value).split())


def listed(cell: str, separators: str = "[;|]") -> list[str]:
    """What a cell lists: a list as Python or JSON writes it, or texts with separators, a pattern, between."""
    values = _parsed_list(cell) if cell.startswith("[") else None
    parts = re.split(separators, cell) if values is None else map(str, values)
    return [text for text in (part.strip() for part in parts) if text]


def _parsed_list(cell: str) -> list | None:
    """The list that a cell holds as Python or JSON writes it; None where it holds none."""
    for parse in (ast.literal_eval, json.loads):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # "\\d" in a text is odd, not wrong
                values = parse(cell)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(values, list):
            return values
    return None


def whole(label: str) -> str:
    """A whole number without the zeros behind its point; any other label as it is."""
    return label.partition(".")[0] if _WHOLE.fullmatch(label) else label
