"""Which images are meant: files, a folder of any depth, a table, shards."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from keepfit_clip.data.records import LeftOut, Record
from keepfit_clip.data.sources import SourceOptions, find_source, read_records
from keepfit_clip.data.sources.cells import IMAGE_SUFFIXES, RowReader
from keepfit_clip.data.sources.folder import walk_images
from keepfit_clip.errors import TableError
from keepfit_clip.images.reading import FileSlice, Frame, image_bytes, image_name
from keepfit_clip.images.volumes import VOLUME_SUFFIXES
from keepfit_clip.remote.opening import RemoteFile
from keepfit_clip.remote.paths import Place, RemotePath, place

__all__ = ["Input", "as_records", "content_key", "find_inputs"]


@dataclass(frozen=True)
class Input:
    """An image to be asked about.

    Args:
        name: as it was given: a path, or the cell of a table.
        record: where it is, and its modality where the source tells it.
    """

    name: str
    record: Record


def find_inputs(
    sources: Sequence[str | Place],
    images: str | Place | None = None,
    options: SourceOptions | None = None,
    on_left_out: Callable[[LeftOut], None] = lambda row: None,
) -> list[Input]:
    """The images of some sources, in their order.

    Args:
        sources: image files; folders, of which all images at any depth are taken; tables and shards.
        images: folder that the paths of a table are relative to.
        options: of tables; their labels are not read.
        on_left_out: told of each row of a table that cannot be used.

    Raises:
        TableError: a source is none, or holds no image.
    """
    options = replace(options or SourceOptions(), images_only=True)
    found: list[Input] = []
    for given in sources:
        source = place(given)
        before = len(found)
        if _is_image(source):
            found += _of_file(str(given), source, len(found) + 1, options, on_left_out)
        elif source.is_dir() and not _is_shards(source):
            for name in walk_images(source):
                path = source.file(name) if isinstance(source, RemotePath) else source / name
                full = f"{str(given).rstrip('/')}/{name}"
                found += _of_file(full, path, len(found) + 1, options, on_left_out)
        else:
            records = read_records(source, images, lambda error: on_left_out(LeftOut.of(error)), options)
            found += [Input(_name(record, images), record) for record in records]
        if len(found) == before:
            raise TableError(f"{given}: holds no image that can be used")
    return found


def _of_file(
    name: str, path: Path | RemoteFile, row: int, options: SourceOptions, on_left_out: Callable[[LeftOut], None]
) -> list[Input]:
    """The image of a file, or those pictures of a volume that the options choose."""
    if not name.lower().endswith(VOLUME_SUFFIXES):
        return [Input(name, Record(row, path))]
    reader = RowReader(name, None, options, needs_image=False)
    try:
        records = reader.records(row, {}, path)
    except TableError as error:
        on_left_out(LeftOut.of(error))
        return []
    return [Input(f"{name}#{r.image.number}" if isinstance(r.image, Frame) else name, r) for r in records]


def as_records(paths: Sequence[Path]) -> list[Record]:
    """Image files as records of which nothing else is known."""
    return [Record(number, path) for number, path in enumerate(paths, start=1)]


def content_key(record: Record) -> str:
    """A name for an image that tells nothing of its file: a hash of its content."""
    return hashlib.sha256(image_bytes(record.image)).hexdigest()[:16]


def _is_image(source: Place) -> bool:
    return source.suffix.lower() in IMAGE_SUFFIXES and not source.is_dir()


def _is_shards(folder: Place) -> bool:
    try:
        return find_source(folder) == "shards"
    except TableError:
        return False


def _name(record: Record, images: str | Place | None) -> str:
    image = record.image
    if isinstance(image, bytes):
        return f"row {record.row}"
    if isinstance(image, FileSlice):
        return f"{Path(str(image.path)).name}:{record.row}"
    path = image.path if isinstance(image, Frame) else image
    try:
        name = str(Path(str(path)).relative_to(str(images))) if images is not None else image_name(path)
    except ValueError:
        name = image_name(path)
    return f"{name}#{image.number}" if isinstance(image, Frame) else name
