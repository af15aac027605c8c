"""Where labelled pictures come from. A source is one file here with two functions: `fits(path)`, whether a path looks
like it, and `read(path, images, options, notes)`, which yields records and an error for each row that cannot be used.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from keepfit_clip.data.records import Record
from keepfit_clip.data.sources import folder, jsonl, layout, parquet, shards, studies, table
from keepfit_clip.data.sources.cells import IMAGE_SUFFIXES
from keepfit_clip.data.sources.labels import SourceLabels
from keepfit_clip.data.sources.notes import SourceNotes
from keepfit_clip.data.sources.options import SourceOptions
from keepfit_clip.errors import TableError
from keepfit_clip.remote.paths import Place, place

__all__ = ["SOURCES", "SourceNotes", "SourceOptions", "find_source", "nothing_usable", "plain_tables_only",
           "read_records"]  # fmt: skip

# In the order in which they are tried; a folder of shards or Parquet files comes before a folder of images.
SOURCES = {
    "table": table,
    "jsonl": jsonl,
    "studies": studies,
    "parquet": parquet,
    "shards": shards,
    "layout": layout,
    "folder": folder,
}


_FORMS = (
    "a CSV, TSV or xlsx table, JSON lines, a JSON of studies, Parquet, a folder with a folder of images for each "
    "class, or shards"
)


def _what_it_is(path: Place) -> str:
    """Why a path is no source, in the words of the person who gave it."""
    if path.is_dir():
        if any(folder.walk_images(path)):
            return "holds images, but no folders that name their classes: give the table that labels them"
        return "holds neither images nor shards"
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return "is one image, with nothing said of it"
    if path.suffix.lower() in (".xls", ".ods"):
        return "is a workbook: save its sheet as CSV"
    return "has an ending that tells nothing; say what it is with --source"


def find_source(path: str | Place, source: str = "auto") -> str:
    """Name of the source that a path is, or the one asked for.

    Raises:
        TableError: an unknown source, or nothing that looks like one.
    """
    names = ", ".join(SOURCES)
    if source != "auto":
        if source not in SOURCES:
            raise TableError(f"the source {source!r} is not known; it can be auto, {names}")
        return source
    path = place(path)
    if not path.exists() and not shards.fits(path):
        raise TableError(f"{path}: cannot be read (no such file or folder)")
    fitting = next((name for name, module in SOURCES.items() if module.fits(path)), None)
    if fitting is None:
        raise TableError(f"{path}: does not look like any source ({_FORMS}): it {_what_it_is(path)}")
    return fitting


def nothing_usable(where: str | Place, rejected: Sequence[TableError]) -> TableError:
    """The error of a source whose rows were all rejected: the first says why."""
    if not rejected:
        return TableError(f"{where}: none of its rows can be used")
    first = rejected[0]
    return TableError(f"{where}: none of its rows can be used: {first.statement}", remedy=first.remedy)


@contextmanager
def plain_tables_only(option: str) -> Iterator[None]:
    """For a table behind an option, whose columns no other option names: errors say what helps there.

    Raises:
        TableError: one of the block's, with that remedy.
    """
    try:
        yield
    except TableError as error:
        if not error.remedy:
            raise
        remedy = f". A table of {option} is read by the usual names, in UTF-8, with labels in words: write it so"
        raise TableError(error.statement, error.row, error.reason, error.looked_for, remedy) from error


def read_records(
    source: str | Place,
    images: str | Place | None = None,
    on_reject: Callable[[TableError], None] | None = None,
    options: SourceOptions | None = None,
    notes: SourceNotes | None = None,
) -> Iterator[Record]:
    """Yields the records of a source, in its order.

    Args:
        source: a table (CSV, TSV), JSON lines, a JSON of studies, Parquet, a folder of classes, or shards; a path, or
            a URL such as s3://bucket/table.csv.
        images: folder the image paths are relative to, or its URL; None leaves them as written and looks at no file.
        on_reject: called with the error of each row that cannot be used, which is then left out; without it the
            first such row raises.
        options: column names and the like.
        notes: told which columns are taken for what.

    Raises:
        TableError: no such source, an empty one, no usable columns; or a row cannot be used (see `on_reject`).
        CategoryError: there is no such label map as the options name.
    """
    options, notes, source = options or SourceOptions(), notes or SourceNotes(), place(source)
    module = SOURCES["layout" if options.layout else find_source(source, options.source)]
    labels = SourceLabels(source, options, notes)
    for item in module.read(source, images, labels.options, notes):
        if isinstance(item, Record):
            yield labels.read(item)
        elif on_reject is None or item.row is None:
            raise item
        else:
            on_reject(item)
