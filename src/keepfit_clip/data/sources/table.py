"""Tables, as CSV, TSV or a workbook: FLAIR's and KeepFIT's (image, atributes, categories), MM-Retinal's (Image_ID,
Label, cn_caption, en_caption), and any other with a column of images and one of categories or captions.
"""

from collections.abc import Iterator

from keepfit_clip.data.records import Record
from keepfit_clip.data.sources.cells import RowReader, image_root
from keepfit_clip.data.sources.notes import SourceNotes
from keepfit_clip.data.sources.options import SourceOptions
from keepfit_clip.data.sources.rows import read_rows
from keepfit_clip.errors import TableError
from keepfit_clip.remote.paths import Place

__all__ = ["fits", "read"]


def fits(path: Place) -> bool:
    """Whether a path looks like such a table."""
    return path.suffix.lower() in (".csv", ".tsv", ".txt", ".tab", ".xlsx")


def read(
    path: Place,
    images: str | Place | None,
    options: SourceOptions,
    notes: SourceNotes | None = None,
    kind: str = "",
    unfit: str = "",
) -> Iterator[Record | TableError]:
    """The records of a table, and an error for each row that cannot be used.

    Args:
        path: of the table.
        images: folder that the image names are relative to.
        options: names of columns and the like.
        notes: told which columns are taken for what.
        kind: of the file, see `read_rows`; by its ending by default.
        unfit: what to say of a row that no record can be made of, where each row has columns of its own.

    Raises:
        TableError: the table as a whole cannot be read.
        MissingExtraError: it is a workbook, and what reads one is not installed.
    """
    reader = RowReader(path, image_root(images), options, notes=notes, unfit=unfit)
    empty = True
    for number, cells in read_rows(path, {"kind": kind, "encoding": options.encoding}):
        empty = False
        if isinstance(cells, TableError):
            yield cells
        else:
            yield from reader.read(number, cells)
    if empty:
        raise TableError(f"{path}: has no rows")
