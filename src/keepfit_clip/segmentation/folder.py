"""Images and masks in folders, as IDRiD, DDR-seg or REFUGE lie.

Either a label mask for each image (masks/STEM.png, whose pixel values are classes), or a folder of binary masks for
each class (masks/CLASS/STEM.png). A mask belongs to the image of the same stem, or to that whose stem it begins with
before a "_": IDRiD_01_EX.tif is of IDRiD_01.jpg.
"""

import csv
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath

import numpy as np
from PIL import Image, UnidentifiedImageError

from keepfit_clip.data.records import LeftOut
from keepfit_clip.data.sources.folder import walk_images
from keepfit_clip.errors import CategoryError, ConfigError, ImageError, TableError, first_line
from keepfit_clip.images.reading import open_image
from keepfit_clip.segmentation.masked import MaskedImage, MaskedSet

__all__ = ["MaskValues", "parse_classes", "read_masks"]

_NO_MASK = "it has no mask"
_NO_IMAGE = "the mask belongs to no image"
_OTHER_SIZE = "its mask is not of the image's size"
_BACKGROUND = "background"
_MOST = 254  # classes of a mask of 8 bits, beside the background


@dataclass(frozen=True)
class MaskValues:
    """What the pixels of a label mask mean.

    Args:
        classes: names of classes 1 to K.
        values: the pixel value of each, as the masks have it.
        background: the value of what is none of them.
    """

    classes: list[str]
    values: list[int]
    background: int = 0


def parse_classes(text: str) -> MaskValues:
    """Reads "hard exudate,hemorrhage", which are values 1 and 2, or "disc=128,cup=0,background=255".

    Raises:
        CategoryError: no name, one twice, a value twice or none from 0 to 255, or values for some names only.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    pairs = [tuple(part.strip() for part in word.rpartition("=")[::2]) if "=" in word else (word, "") for word in words]
    given = [value for _, value in pairs if value]
    if given and len(given) < len(pairs):
        raise CategoryError(f"--classes {text!r}: give a value to each name, or to none of them")
    numbers = given or [str(number) for number in range(1, len(pairs) + 1)]
    if not all(re.fullmatch(r"\d{1,3}", number) and int(number) <= 255 for number in numbers):
        raise CategoryError(f"--classes {text!r}: values of masks are whole numbers from 0 to 255")
    values = {name: int(number) for (name, _), number in zip(pairs, numbers, strict=True)}
    twice = len(values) < len(pairs)
    background = values.pop(_BACKGROUND, 0)
    shared = len({*values.values(), background}) <= len(values)
    if twice or shared or not values or "" in values or len(values) > _MOST:
        raise CategoryError(
            f"--classes {text!r}: name each class once, with a value of its own that is no background's"
        )
    return MaskValues(list(values), list(values.values()), background)


def read_masks(
    images: str | Path,
    masks: str | Path,
    classes: str | None = None,
    group_pattern: str | None = None,
    groups: str | Path | None = None,
) -> MaskedSet:
    """Pairs the images of a folder with their masks; the files themselves are opened later, one by one.

    Args:
        images: folder of images.
        masks: folder of masks.
        classes: see `parse_classes`; of a folder for each class those that count, in order, all by default. Where
            masks of two classes overlap, the later one stands.
        group_pattern: regular expression on an image's file name, see `SourceOptions`.
        groups: CSV of columns image (file name) and group, in place of a pattern.

    Raises:
        TableError: a folder or the CSV is missing or not as it should be, or no image has a mask.
        CategoryError: the classes cannot be told.
        ConfigError: the pattern is no regular expression, or stands beside a CSV.
    """
    images, masks = Path(images), Path(masks)
    for folder in (images, masks):
        if not folder.is_dir():
            raise TableError(f"{folder}: no such folder")
    names = list(walk_images(images))
    stems = _stems(images, names)
    of_class, values = _layout(masks, classes)
    pairs, strangers = _paired(masks, of_class, stems)
    group_of = _groups(names, group_pattern, groups)
    found = MaskedSet(images.name, values.classes, [])
    for row, name in enumerate(names, start=1):
        paths = pairs.get(PurePath(name).stem)
        if paths is None:
            found.left_out.append(LeftOut(row, _NO_MASK, f"image {row} ({name}): {_NO_MASK} in {masks}"))
        else:
            read = partial(_read, images / name, paths, values if of_class is None else None)
            found.images.append(MaskedImage(row, read, group_of.get(name)))
    if not found.images:
        raise TableError(
            f"{masks}: no mask is called as one of the {len(names)} images of {images} (STEM.png, or CLASS/STEM.png)"
        )
    found.left_out += [
        LeftOut(row, _NO_IMAGE, f"mask {name}: {_NO_IMAGE} of {images}") for row, name in enumerate(strangers, start=1)
    ]
    return found


def _stems(folder: Path, names: Sequence[str]) -> set[str]:
    stems = [PurePath(name).stem for name in names]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1}) if len(set(stems)) < len(stems) else []
    if twice:
        raise TableError(f"{folder}: two images are called {twice[0]}, so that a mask of that name may be of either")
    if not names:
        raise TableError(f"{folder}: holds no images")
    return set(stems)


def _layout(masks: Path, classes: str | None) -> tuple[list[str] | None, MaskValues]:
    """The folders of classes, None where there are label masks; and what pixels mean."""
    folders = sorted(entry.name for entry in masks.iterdir() if entry.is_dir() and any(walk_images(entry)))
    if not folders:
        if classes is None:
            raise CategoryError(f"{masks} holds label masks: name the classes of their values 1, 2, ... with --classes")
        return None, parse_classes(classes)
    names = parse_classes(classes).classes if classes is not None else folders
    by_name = {folder.casefold(): folder for folder in folders}
    missing = [name for name in names if name.casefold() not in by_name]
    if missing:
        raise CategoryError(f"{masks} has no folder of masks of {', '.join(missing)}; it has {', '.join(folders)}")
    chosen = [by_name[name.casefold()] for name in names]
    return chosen, MaskValues(names, list(range(1, len(names) + 1)))


def _paired(
    masks: Path, of_class: list[str] | None, stems: set[str]
) -> tuple[dict[str, list[tuple[int, Path]]], list[str]]:
    """Stem of an image -> number of a class and path of each of its masks; and the names of masks of no image.

    Raises:
        TableError: an image has two masks where one is meant.
    """
    pairs: dict[str, list[tuple[int, Path]]] = {}
    strangers = []
    for number, folder in enumerate(of_class or [""], start=1):
        for name in walk_images(masks / folder):
            stem = _longest(PurePath(name).stem, stems)
            if stem is None:
                strangers.append(f"{folder}/{name}".lstrip("/"))
                continue
            own = pairs.setdefault(stem, [])
            if any(other == number for other, _ in own):
                raise TableError(f"{masks / folder}: the image {stem} has two masks, {name} and another: leave one")
            own.append((number, masks / folder / name))
    return pairs, strangers


def _longest(stem: str, stems: set[str]) -> str | None:
    """The stem of an image that a mask's begins with, whole or before a "_"."""
    while stem not in stems:
        stem, underscore, _ = stem.rpartition("_")
        if not underscore:
            return None
    return stem


def _groups(names: Sequence[str], pattern: str | None, table: str | Path | None) -> dict[str, str]:
    """Name of an image -> its patient, where one is known."""
    if pattern is not None and table is not None:
        raise ConfigError("--group-pattern and --groups both say whose an image is: give one of them")
    if table is not None:
        return _group_table(Path(table), names)
    try:
        expression = re.compile(pattern or "(?!)")
    except re.error as error:
        raise ConfigError(f"the group pattern {pattern!r} is not a regular expression: {error}") from error
    matches = {name: expression.search(PurePath(name).name) for name in names}
    return {name: match[1] if expression.groups else match[0] for name, match in matches.items() if match}


def _group_table(path: Path, names: Sequence[str]) -> dict[str, str]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TableError(f"{path}: cannot be read ({first_line(error)})") from error
    if not rows or not {"image", "group"} <= rows[0].keys():
        raise TableError(f"{path}: no columns image and group in it")
    named = {row["image"]: row["group"] for row in rows if row["image"] and row["group"]}
    missing = [name for name in names if name not in named and PurePath(name).name not in named]
    if missing:
        raise TableError(f"{path}: says nothing of {len(missing)} images, e.g. {missing[0]}")
    return {name: named.get(name, named.get(PurePath(name).name)) for name in names}


def _read(image: Path, paths: Sequence[tuple[int, Path]], values: MaskValues | None) -> tuple[Image.Image, np.ndarray]:
    """An image with its mask, see `MaskedImage`; without `values` the masks are binary, one for each class."""
    picture = open_image(image)
    mask = np.zeros((picture.height, picture.width), dtype=np.uint8)
    for number, path in paths:
        pixels = _pixels(path)
        if pixels.shape[:2] != mask.shape:
            height, width = pixels.shape[:2]
            raise ImageError(f"{image} ({picture.width} x {picture.height}), {path} ({width} x {height})", _OTHER_SIZE)
        if values is None:
            mask[pixels.reshape(*mask.shape, -1).any(axis=2)] = number
        else:
            mask = _labelled(path, pixels, values)
    return picture, mask


def _pixels(path: Path) -> np.ndarray:
    """A mask's values as they stand in the file, those of a palette as its numbers: (H, W), or (H, W, 3) of colours."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as mask:
                pixels, bands = np.asarray(mask), mask.getbands()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(
            str(path), f"the mask has more than {Image.MAX_IMAGE_PIXELS / 1e6:.0f} million pixels"
        ) from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise ImageError(str(path), "the mask cannot be read") from error
    return pixels[..., :-1] if bands[-1] == "A" else pixels


def _labelled(path: Path, pixels: np.ndarray, values: MaskValues) -> np.ndarray:
    """Class numbers (H, W) of a label mask."""
    if pixels.ndim == 3:
        if (pixels != pixels[..., :1]).any():
            raise ImageError(str(path), "the mask is coloured, and class numbers are meant")
        pixels = pixels[..., 0]
    labels = np.zeros(pixels.shape, dtype=np.uint8)
    known = pixels == values.background
    for number, value in enumerate(values.values, start=1):
        labels[pixels == value] = number
        known |= pixels == value
    if not known.all():
        there = sorted({int(value) for value in np.unique(pixels[~known])})
        raise ImageError(
            str(path),
            f"the mask has the values {', '.join(map(str, there[:5]))}, which no class has "
            "(--classes NAME=VALUE,... says what values mean)",
        )
    return labels
