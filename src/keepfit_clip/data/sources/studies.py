"""JSON of studies with several images and one report each, as FFA-IR has it.

The file is a list of studies or an object of them (identifier -> study), maybe inside an object of splits
(train, val, test). The images of one study are one group.
"""

import json
from collections.abc import Iterator
from dataclasses import replace

from keepfit_clip.data.records import Record
from keepfit_clip.data.sources.cells import RowReader, image_root
from keepfit_clip.data.sources.notes import SourceNotes
from keepfit_clip.data.sources.options import SourceOptions
from keepfit_clip.errors import TableError, first_line
from keepfit_clip.remote.opening import without_secrets
from keepfit_clip.remote.paths import Place

__all__ = ["fits", "read"]

_STUDY = "study_id"


def fits(path: Place) -> bool:
    """Whether a path looks like such a file."""
    return path.suffix.lower() == ".json"


def read(
    path: Place, images: str | Place | None, options: SourceOptions, notes: SourceNotes | None = None
) -> Iterator[Record | TableError]:
    """The images of all studies, each with its study's reports; an error for each study that cannot be used.

    Raises:
        TableError: the file as a whole cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding=options.encoding).removeprefix("\ufeff"))
    except OSError as error:
        raise TableError(f"{path}: cannot be read ({without_secrets(first_line(error))})") from error
    except (ValueError, RecursionError) as error:
        raise TableError(f"{path}: not a JSON file ({error})") from error
    if options.patient_column is None:  # the images of a study belong together
        options = replace(options, patient_column=_STUDY)
    reader = RowReader(
        path,
        image_root(images),
        options,
        notes=notes,
        unfit="the study lacks images, or a report and a category",
    )
    number = 0
    for number, (identifier, study) in enumerate(_studies(content), start=1):
        yield from reader.read(number, {_STUDY: identifier or f"study {number}", **study})
    if number == 0:
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
