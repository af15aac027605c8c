"""JSON lines: one object a line, with an image and its captions or categories."""

from collections.abc import Iterator
from pathlib import Path

from keepfit_clip.data.records import Record
from keepfit_clip.data.sources import table
from keepfit_clip.data.sources.notes import SourceNotes
from keepfit_clip.data.sources.options import SourceOptions
from keepfit_clip.errors import TableError

__all__ = ["fits", "read"]


def fits(path: Path) -> bool:
    """Whether a path looks like JSON lines."""
    return path.suffix.lower() in (".jsonl", ".ndjson")


def read(
    path: Path, images: str | Path | None, options: SourceOptions, notes: SourceNotes | None = None
) -> Iterator[Record | TableError]:
    """The records of a file of JSON lines, and an error for each line that cannot be used.

    Raises:
        TableError: the file as a whole cannot be read.
    """
    yield from table.read(path, images, options, notes, "jsonl", "lacks an image, or a caption and a category")
