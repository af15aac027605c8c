"""Which column of a source means what: those that somebody named, else those with usual names."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from keepfit_clip.data.sources.notes import SourceNotes
from keepfit_clip.data.sources.options import NO_COLUMN, SourceOptions
from keepfit_clip.errors import TableError

__all__ = ["Columns", "find_columns", "form"]

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
_VOLUME = ("volume", "volume_id", "volumeid", "scan_id")
_VISIT = ("visit", "visit_id", "visitid", "encounter_id", "exam_id")
_SLICE = ("slice", "slice_id", "slice_number", "bscan", "b_scan")
_CAPTION_WORDS = {"caption", "captions", "report", "reports", "text", "texts", "description", "descriptions",
                  "finding", "findings", "impression", "impressions"}  # fmt: skip
_LANGUAGES = {"en": "en", "english": "en", "cn": "zh", "zh": "zh", "ch": "zh", "chinese": "zh"}


@dataclass(frozen=True)
class Columns:
    """The columns taken; None for what no column says."""

    image: str | None
    captions: dict[str, str | None]  # name -> language, None where the name does not tell
    categories: tuple[str, ...]
    attributes: str | None
    modality: str | None
    patient: str | None
    eye: str | None
    dataset: str | None
    volume: str | None
    visit: str | None
    slice: str | None


def find_columns(
    names: tuple[str, ...], options: SourceOptions, needs_image: bool, where: str | Path, notes: SourceNotes
) -> Columns:
    """The columns of a source.

    Args:
        names: of all its columns.
        options: which of them somebody named.
        needs_image: whether one of an image must be there.
        where: what to call the source in errors.
        notes: told which are taken for what.

    Raises:
        TableError: a named column is not there, or no record can be made of these.
    """
    by_form = {form(name): name for name in reversed(names)}

    def named(chosen: str | None, usual: Sequence[str]) -> str | None:
        if chosen is None:
            return next((by_form[usual_form] for usual_form in usual if usual_form in by_form), None)
        if chosen == NO_COLUMN:
            return None
        if form(chosen) not in by_form:
            raise TableError(f"{where}: has no column {chosen!r}; it has {', '.join(filter(None, names))}")
        return by_form[form(chosen)]

    def several(chosen: Sequence[str], usual: Sequence[str]) -> tuple[str, ...]:
        matches = [named(name, ()) for name in chosen] if chosen else [named(None, usual)]
        return tuple(name for name in matches if name is not None)

    image = named(options.image_column, _IMAGE)
    categories = several(options.category_columns, _CATEGORY)
    captions = {name: _caption_language(name) or None for name in several(options.caption_columns, ())}
    if not options.caption_columns:
        captions = {name: language or None for name in names if (language := _caption_language(name)) is not None}
    if (needs_image and image is None) or not (categories or captions or options.images_only):
        raise TableError(
            f"{where}: needs a column 'image' and a column 'categories' or 'caption'; it has {', '.join(names)}",
            remedy=". Name yours with --image-column, --category-column or --caption-column",
        )
    columns = Columns(
        image,
        captions,
        categories,
        named(options.attribute_column, _ATTRIBUTE),
        named(options.modality_column, ("modality",)),
        named(options.patient_column, _PATIENT),
        named(options.eye_column, _EYE),
        named(options.dataset_column, ("dataset",)),
        named(options.volume_column, _VOLUME),
        named(options.visit_column, _VISIT),
        named(options.slice_column, _SLICE),
    )
    _note(columns, options, notes)
    return columns


def _note(columns: Columns, options: SourceOptions, notes: SourceNotes) -> None:
    taken = {
        "image": (columns.image, options.image_column),
        "caption": (tuple(columns.captions), options.caption_columns),
        "category": (columns.categories, options.category_columns),
        "attribute": (columns.attributes, options.attribute_column),
        "modality": (columns.modality, options.modality_column),
        "patient": (columns.patient, options.patient_column),
        "eye": (columns.eye, options.eye_column),
        "dataset": (columns.dataset, options.dataset_column),
        "volume": (columns.volume, options.volume_column),
        "visit": (columns.visit, options.visit_column),
        "slice": (columns.slice, options.slice_column),
    }
    for role, (column, chosen) in taken.items():
        names = column if isinstance(column, tuple) else (column,) if column else ()
        if names:
            notes.take(role, names, guessed=not chosen)


def form(name: str) -> str:
    """A name as it is compared: in lower case, with "_" for blanks and dashes."""
    return re.sub(r"[\s_\-]+", "_", name.strip().casefold())


def _caption_language(name: str) -> str | None:
    """Language of a caption column, "" where its name does not tell; None for other columns."""
    words = [word for word in re.split(r"_+", re.sub(r"(\d+)", r"_\1_", form(name))) if word and not word.isdigit()]
    languages = [_LANGUAGES[word] for word in words if word in _LANGUAGES]
    rest = [word for word in words if word not in _LANGUAGES]
    if len(rest) != 1 or rest[0] not in _CAPTION_WORDS or len(languages) > 1:
        return None
    return languages[0] if languages else ""
