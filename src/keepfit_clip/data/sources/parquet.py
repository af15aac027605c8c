"""Parquet tables, with the images beside them or inside (as Hugging Face's datasets store them)."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from keepfit_clip.data.records import Record
from keepfit_clip.data.sources.cells import RowReader, image_root
from keepfit_clip.data.sources.options import SourceOptions
from keepfit_clip.errors import MissingExtraError, TableError

__all__ = ["fits", "read"]

_ROWS_AT_ONCE = 64


def fits(path: Path) -> bool:
    """Whether a path is a Parquet file or a folder of them."""
    return path.suffix.lower() == ".parquet" or (path.is_dir() and any(path.glob("*.parquet")))


def read(path: Path, images: str | Path | None, options: SourceOptions) -> Iterator[Record | TableError]:
    """The records of a Parquet file or a folder of them, and an error for each row that cannot be used.

    Raises:
        MissingExtraError: pyarrow is not installed.
        TableError: a file cannot be read or holds no row.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError("reading Parquet needs pyarrow: pip install 'keepfit-clip[parquet]'") from error
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    root = image_root(images)
    number = 0
    for file in files:
        try:
            table = pyarrow.parquet.ParquetFile(file)
            names = table.schema_arrow.names
            reader = RowReader(file, root, _with_label_names(options, table.schema_arrow.metadata or {}))
            reader.check(names)
            for batch in table.iter_batches(batch_size=_ROWS_AT_ONCE):
                for cells in batch.to_pylist():
                    number += 1
                    try:
                        yield from reader.records(number, cells)
                    except TableError as error:
                        yield error
        except FileNotFoundError as error:
            raise TableError(f"{file}: cannot be read (no such file)") from error
        except (OSError, pyarrow.ArrowException) as error:
            raise TableError(f"{file}: not a readable Parquet file ({str(error).splitlines()[0]})") from error
    if number == 0:
        raise TableError(f"{path}: has no rows")


def _with_label_names(options: SourceOptions, metadata: dict[bytes, bytes]) -> SourceOptions:
    """The options with the class names that Hugging Face's datasets keep beside the rows."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        stored = next(f["names"] for f in features.values() if isinstance(f, dict) and f.get("_type") == "ClassLabel")
    except (KeyError, TypeError, ValueError, AttributeError, StopIteration):
        return options
    return replace(options, label_names={**{str(i): name for i, name in enumerate(stored)}, **options.label_names})
