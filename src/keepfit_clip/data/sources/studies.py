"""JSON of studies with several images and one report each, as FFA-IR has it.

The file is a list of studies or an object of them (identifier -> study), maybe inside an object of splits
(train, val, test). The images of one study are one group.
"""

from collections.abc import Iterator
from dataclasses import replace

from keepfit_clip.data.records import Record
from keepfit_clip.data.sources import table
from keepfit_clip.data.sources.notes import SourceNotes
from keepfit_clip.data.sources.options import SourceOptions
from keepfit_clip.data.sources.rows import STUDY
from keepfit_clip.errors import TableError
from keepfit_clip.remote.paths import Place

__all__ = ["fits", "read"]


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
    if options.patient_column is None:  # the images of a study belong together
        options = replace(options, patient_column=STUDY)
    yield from table.read(path, images, options, notes, "studies", "the study lacks images, or a report and a category")
