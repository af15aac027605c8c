"""JSON lines: one object a line, with an image and its captions or categories."""

from collections.abc import Iterator

from keepfit_clip.data.records import Record
from keepfit_clip.data.sources import table
from keepfit_clip.data.sources.notes import SourceNotes
from keepfit_clip.data.sources.options import SourceOptions
from keepfit_clip.errors import TableError
from keepfit_clip.remote.paths import Place

__all__ = ["fits", "read"]


def fits(path: Place) -> bool:
    """Whether a path looks like JSON lines."""
    return path.suffix.lower() in (".jsonl", ".ndjson")


def read(
    path: Place, images: str | Place | None, options: SourceOptions, notes: SourceNotes | None = None
) -> Iterator[Record | TableError]:
    """The records of a file of JSON lines, and an error for each line that cannot be used.

    Raises:
        TableError: the file as a whole cannot be read.
    """
    yield from table.read(path, images, options, notes, "jsonl", "lacks an image, or a caption and a category")
