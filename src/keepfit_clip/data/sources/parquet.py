"""Parquet tables, with the images beside them or inside (as Hugging Face's datasets store them)."""

import json
from collections.abc import Iterator
from contextlib import nullcontext

from keepfit_clip.data.records import Record
from keepfit_clip.data.sources.cells import RowReader, image_root
from keepfit_clip.data.sources.notes import SourceNotes
from keepfit_clip.data.sources.options import SourceOptions
from keepfit_clip.errors import TableError, first_line
from keepfit_clip.extras import require_extra
from keepfit_clip.remote.opening import without_secrets
from keepfit_clip.remote.paths import Place, RemotePath

__all__ = ["fits", "read"]

_ROWS_AT_ONCE = 64


def fits(path: Place) -> bool:
    """Whether a path is a Parquet file or a folder of them."""
    return path.suffix.lower() == ".parquet" or (path.is_dir() and any(path.glob("*.parquet")))


def read(
    path: Place, images: str | Place | None, options: SourceOptions, notes: SourceNotes | None = None
) -> Iterator[Record | TableError]:
    """The records of a Parquet file or a folder of them, and an error for each row that cannot be used.

    Raises:
        MissingExtraError: pyarrow is not installed.
        TableError: a file cannot be read or holds no row.
    """
    require_extra("parquet")
    import pyarrow
    import pyarrow.parquet

    files = sorted(path.glob("*.parquet"), key=str) if path.is_dir() else [path]
    root = image_root(images)
    number = 0
    for file in files:
        try:
            with file.open("rb") if isinstance(file, RemotePath) else nullcontext(file) as opened:
                table = pyarrow.parquet.ParquetFile(opened)
                label_names = _label_names(table.schema_arrow.metadata or {})
                reader = RowReader(file, root, options, label_names=label_names, notes=notes)
                reader.check(table.schema_arrow.names)
                for batch in table.iter_batches(batch_size=_ROWS_AT_ONCE):
                    for cells in batch.to_pylist():
                        number += 1
                        yield from reader.read(number, cells)
        except FileNotFoundError as error:
            raise TableError(f"{file}: cannot be read (no such file)") from error
        except (OSError, UnicodeError, pyarrow.ArrowException) as error:
            raise TableError(f"{file}: not a readable Parquet file ({without_secrets(first_line(error))})") from error
    if number == 0:
        raise TableError(f"{path}: has no rows")


def _label_names(metadata: dict[bytes, bytes]) -> dict[str, dict[str, str]]:
    """Column -> number -> class name, as Hugging Face's datasets keep them beside the rows."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"].items()
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}
    label_names = {}
    for column, feature in features:
        while isinstance(feature, (dict, list)) and "names" not in feature:  # a list of classes holds their feature
            feature = feature[0] if isinstance(feature, list) and feature else dict(feature or {}).get("feature")
        if isinstance(feature, dict) and isinstance(feature["names"], list):
            label_names[column] = {str(number): str(name) for number, name in enumerate(feature["names"])}
    return label_names
