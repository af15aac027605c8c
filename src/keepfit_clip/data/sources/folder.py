"""A folder of images with one folder for each class, as torchvision's ImageFolder has it."""

from collections.abc import Iterator
from pathlib import PurePath

from keepfit_clip.data.records import Record
from keepfit_clip.data.sources.cells import IMAGE_SUFFIXES, RowReader, row_error
from keepfit_clip.data.sources.notes import SourceNotes
from keepfit_clip.data.sources.options import SourceOptions
from keepfit_clip.errors import TableError
from keepfit_clip.files import printable
from keepfit_clip.remote.paths import Place, RemotePath, files_below, place

__all__ = ["fits", "read", "walk_images"]

_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}


def fits(path: Place) -> bool:
    """Whether a path is a folder that holds folders."""
    return path.is_dir() and any(entry.is_dir() for entry in path.iterdir())


def read(
    path: Place, images: str | Place | None, options: SourceOptions, notes: SourceNotes | None = None
) -> Iterator[Record | TableError]:
    """The images of a folder, each with its class as category; an error for each image outside a class folder.

    Raises:
        TableError: no such folder, no image in it, or its folders are splits rather than classes.
    """
    if not path.is_dir():
        raise TableError(f"{path}: no such folder")
    if images is not None and place(images).resolve() != path.resolve():
        raise TableError(f"{path}: a folder of classes holds its images itself; leave --images out")
    classes = {entry.name.lower() for entry in path.iterdir() if entry.is_dir()}
    if classes and classes <= _SPLITS:
        raise TableError(f"{path}: its folders look like splits ({', '.join(sorted(classes))}): give one of them")
    reader = RowReader(path, path, options, needs_image=False, notes=notes)
    if notes is not None:
        notes.classes = sorted(map(printable, classes))
    number = 0
    for number, name in enumerate(walk_images(path), start=1):
        parts = PurePath(name).parts
        if len(parts) < 2:
            reason = "the image is not inside a folder that names its class"
            yield row_error(path, number, reason, f" ({name})")
            continue
        image = path.file(name) if isinstance(path, RemotePath) else path / name
        yield from reader.read(number, {"class": parts[0].replace("_", " ")}, image)
    if number == 0:
        raise TableError(f"{path}: holds no images ({', '.join(IMAGE_SUFFIXES)})")


def walk_images(folder: str | Place) -> Iterator[str]:
    """Names of all images below a folder, relative to it, in a fixed order."""
    return (name for name in files_below(folder) if name.lower().endswith(IMAGE_SUFFIXES))
