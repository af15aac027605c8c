"""JSON lines: one object a line, with an image and its captions or categories."""

import json
from collections.abc import Iterator
from pathlib import Path

from keepfit_clip.data.records import Record
from keepfit_clip.data.sources.cells import RowReader, image_root, row_error
from keepfit_clip.data.sources.notes import SourceNotes
from keepfit_clip.data.sources.options import SourceOptions
from keepfit_clip.errors import TableError, first_line

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
    reader = RowReader(
        path, image_root(images), options, notes=notes, unfit="lacks an image, or a caption and a category"
    )
    number = 0
    try:
        with open(path, encoding=options.encoding) as file:
            for line in file:
                if not line.strip():
                    continue
                number += 1
                try:
                    cells = json.loads(line.removeprefix("\ufeff"))
                    if not isinstance(cells, dict):
                        raise ValueError("not an object")
                except (ValueError, RecursionError):
                    yield row_error(path, number, "the line is not a JSON object")
                    continue
                yield from reader.read(number, cells)
    except OSError as error:
        raise TableError(f"{path}: cannot be read ({first_line(error)})") from error
    except UnicodeError as error:
        message = f"{path}: not text in {options.encoding.upper()} ({error})"
        raise TableError(message, remedy="; give --encoding, e.g. gb18030 or cp1252") from error
    if number == 0:
        raise TableError(f"{path}: is empty")
