"""A folder of images with one folder for each class, as torchvision's ImageFolder has it."""

import os
from collections.abc import Iterator
from pathlib import Path

from keepfit_clip.data.records import Record
from keepfit_clip.data.sources.cells import IMAGE_SUFFIXES, RowReader, row_error
from keepfit_clip.data.sources.notes import SourceNotes
from keepfit_clip.data.sources.options import SourceOptions
from keepfit_clip.errors import TableError
from keepfit_clip.files import printable

__all__ = ["fits", "read", "walk_images"]

_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}


def fits(path: Path) -> bool:
    """Whether a path is a folder that holds folders."""
    return path.is_dir() and any(entry.is_dir() for entry in path.iterdir())


def read(
    path: Path, images: str | Path | None, options: SourceOptions, notes: SourceNotes | None = None
) -> Iterator[Record | TableError]:
    """The images of a folder, each with its class as category; an error for each image outside a class folder.

    Raises:
        TableError: no such folder, no image in it, or its folders are splits rather than classes.
    """
    if not path.is_dir():
        raise TableError(f"{path}: no such folder")
    if images is not None and Path(images).resolve() != path.resolve():
        raise TableError(f"{path}: a folder of classes holds its images itself; leave --images out")
    classes = {entry.name.lower() for entry in path.iterdir() if entry.is_dir()}
    if classes and classes <= _SPLITS:
        raise TableError(f"{path}: its folders look like splits ({', '.join(sorted(classes))}): give one of them")
    reader = RowReader(path, path, options, needs_image=False, notes=notes)
    if notes is not None:
        notes.classes = sorted(map(printable, classes))
    number = 0
    for number, name in enumerate(walk_images(path), start=1):
        parts = Path(name).parts
        if len(parts) < 2:
            reason = "the image is not inside a folder that names its class"
            yield row_error(path, number, reason, f" ({name})")
            continue
        yield from reader.read(number, {"class": parts[0].replace("_", " ")}, path / name)
    if number == 0:
        raise TableError(f"{path}: holds no images ({', '.join(IMAGE_SUFFIXES)})")


def walk_images(folder: str | Path) -> Iterator[str]:
    """Names of all images below a folder, relative to it, in a fixed order."""
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("."):
                yield os.path.relpath(os.path.join(root, name), folder)
