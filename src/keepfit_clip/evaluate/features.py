"""What a model says of images, computed once: a cache on the disk keyed by weights, preprocessing and image content.

One SQLite file for each model and preprocessing; its name and its keys are hashes, so nothing of an image's name stands
in it. Several processes may use it at once.
"""

import hashlib
import json
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from keepfit_clip.data.duplicates import both_views
from keepfit_clip.data.records import LeftOut, Record
from keepfit_clip.errors import ImageError, KeepFITError, NonFiniteError, OutputError, first_line
from keepfit_clip.evaluate.table import image_batches
from keepfit_clip.files import file_sha256
from keepfit_clip.finite import finite_rows
from keepfit_clip.folders.loaded import LoadedModel
from keepfit_clip.images.reading import FileSlice, Frame, image_bytes
from keepfit_clip.remote.opening import RemoteFile

__all__ = ["FeatureCache", "ImageFeatures", "ImageRow", "image_features", "once_each", "unreadable_rows"]

_WAIT = 120  # seconds for another process to finish writing


class ImageRow(NamedTuple):
    """What is kept of an image: `pooled` (C,), `projected` (D,) and `perceptual_hashes` (2, 32) uint8."""

    pooled: np.ndarray
    projected: np.ndarray
    perceptual_hashes: np.ndarray


@dataclass
class ImageFeatures:
    """Features of some images.

    Args:
        pooled: (N, C) of the backbone, before the projection.
        projected: (N, D) in the joint space, L2-normalised.
        kept: (N,) numbers of the records they belong to; those of unreadable images are missing.
        keys: (N,) hashes of the images' content.
        perceptual_hashes: (N, 2, 32) uint8, with and without a black border; near copies share one.
        unreadable: number of a record -> what is wrong with its image.
        computed: how many were not in the cache.
    """

    pooled: np.ndarray
    projected: np.ndarray
    kept: np.ndarray
    keys: list[str]
    perceptual_hashes: np.ndarray
    unreadable: dict[int, ImageError] = field(default_factory=dict)
    computed: int = 0


class FeatureCache:
    """Features on the disk.

    Args:
        folder: where the files lie.
        loaded: the model, whose fingerprint names the file.

    Raises:
        OutputError: the folder cannot be used.
    """

    def __init__(self, folder: str | Path, loaded: LoadedModel):
        self.path = Path(folder) / f"{loaded.fingerprint[:32]}.sqlite"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(self._open()) as database, database:
                database.execute(
                    "CREATE TABLE IF NOT EXISTS pictures (image TEXT PRIMARY KEY, sizes TEXT, data BLOB, look BLOB)"
                )
                database.execute(
                    "CREATE TABLE IF NOT EXISTS captions (image TEXT, how TEXT, text TEXT, PRIMARY KEY (image, how))"
                )
        except (OSError, sqlite3.Error) as error:
            raise OutputError(
                f"{self.path}: the feature cache cannot be used ({error}): give another --cache"
            ) from error

    @property
    def folder(self) -> Path:
        """Where what else was computed with this model is kept; made where it is missing."""
        folder = self.path.with_suffix("")
        folder.mkdir(exist_ok=True)
        return folder

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=_WAIT)

    def get(self, keys: Sequence[str]) -> dict[str, ImageRow]:
        """What is kept of those keys that are there."""
        cached = {}
        with closing(self._open()) as database:
            for key in dict.fromkeys(keys):
                row = database.execute("SELECT sizes, data, look FROM pictures WHERE image = ?", (key,)).fetchone()
                if row is not None:
                    first, second = json.loads(row[0])
                    values = np.frombuffer(row[1], dtype=np.float32)
                    if len(values) == first + second:
                        cached[key] = ImageRow(
                            values[:first], values[first:], np.frombuffer(row[2], dtype=np.uint8).reshape(2, -1)
                        )
        return cached

    def put(self, images: dict[str, ImageRow]) -> None:
        """Keeps what was computed; a batch is written whole or not at all."""
        rows = [
            (
                key,
                json.dumps([len(row.pooled), len(row.projected)]),
                np.concatenate([row.pooled, row.projected]).tobytes(),
                row.perceptual_hashes.tobytes(),
            )
            for key, row in images.items()
        ]
        self._write("INSERT OR REPLACE INTO pictures VALUES (?, ?, ?, ?)", rows)

    def get_captions(self, keys: Sequence[str], how: str) -> dict[str, str]:
        """Captions of those keys that are there.

        Args:
            keys: hashes of images.
            how: names the way they were written.
        """
        captions = {}
        with closing(self._open()) as database:
            for key in dict.fromkeys(keys):
                query = "SELECT text FROM captions WHERE image = ? AND how = ?"
                row = database.execute(query, (key, how)).fetchone()
                if row is not None:
                    captions[key] = row[0]
        return captions

    def put_captions(self, captions: dict[str, str], how: str) -> None:
        """Keeps captions of a batch; see `get_captions`."""
        rows = [(key, how, text) for key, text in captions.items()]
        self._write("INSERT OR REPLACE INTO captions VALUES (?, ?, ?)", rows)

    def _write(self, statement: str, rows: list[tuple]) -> None:
        try:
            with closing(self._open()) as database, database:
                database.executemany(statement, rows)
        except sqlite3.Error as error:
            raise OutputError(f"{self.path}: the feature cache cannot be written ({error})") from error


def image_features(
    loaded: LoadedModel,
    records: Sequence[Record],
    cache: FeatureCache | None = None,
    progress: Callable = iter,
    batch_size: int = 32,
) -> ImageFeatures:
    """Features of the images of records, each computed once.

    Args:
        loaded: the model.
        records: whose images are encoded, never augmented.
        cache: where features are kept.
        progress: wraps the list of images that have to be encoded.
        batch_size: images in a batch.

    Raises:
        KeepFITError: none of the images can be read, or a feature is not finite.
    """
    perceptual_hashes: list[np.ndarray] = []  # of the images of a batch

    def prepare(image: Image.Image) -> Tensor:
        perceptual_hashes.append(both_views(image))
        return loaded.preprocess(image)

    def answer(batch: Tensor, members: list[Record]) -> list[ImageRow]:
        pooled, projected = (part.cpu().numpy() for part in loaded.encode_batch(batch))
        rows = [ImageRow(*parts) for parts in zip(pooled, projected, perceptual_hashes, strict=True)]
        perceptual_hashes.clear()
        _check_finite(rows, members)
        return rows

    known, keep = (cache.get, cache.put) if cache else (None, None)
    result = once_each(records, prepare, answer, known, keep, progress, batch_size)
    pooled, projected, hashes = (np.stack(part) for part in zip(*result.values, strict=True))
    return ImageFeatures(
        pooled, projected, np.array(result.kept), result.keys, hashes, result.unreadable, result.computed
    )


@dataclass
class AnswersPerImage:
    """What `once_each` gives.

    Args:
        values: one for each readable image.
        kept: numbers of their records.
        keys: hashes of their content.
        unreadable: number of a record -> what is wrong with its image.
        computed: how many were not known before.
    """

    values: list
    kept: list[int]
    keys: list[str]
    unreadable: dict[int, ImageError]
    computed: int


def once_each(
    records: Sequence[Record],
    preprocess: Callable[[Image.Image], Tensor],
    answer: Callable[[Tensor, list[Record]], Sequence],
    known: Callable[[Sequence[str]], dict] | None = None,
    keep: Callable[[dict], None] | None = None,
    progress: Callable = iter,
    batch_size: int = 32,
) -> AnswersPerImage:
    """Answers something about the content of each image once, unless the answer is known.

    Args:
        records: whose images they are.
        preprocess: from an image to a tensor (3, H, W).
        answer: from a batch (B, 3, H, W) and its records to an answer for each.
        known: from hashes of contents to the answers that are there.
        keep: called with the new answers of a batch.
        progress: wraps the list of images that have to be read.
        batch_size: images in a batch.

    Raises:
        KeepFITError: none of the images can be read.
    """
    unreadable: dict[int, ImageError] = {}
    keys = [_content_hash(record, number, unreadable) for number, record in enumerate(records)]
    answers = known([key for key in keys if key]) if known else {}
    wanted = {key: number for number, key in enumerate(keys) if key and key not in answers}
    new = list(wanted)
    bad: dict[str, ImageError] = {}
    images = progress([records[wanted[key]].image for key in new])
    for numbers, batch in image_batches(
        images, preprocess, batch_size, on_error=lambda n, error: bad.update({new[n]: error})
    ):
        members = [new[number] for number in numbers]
        computed = dict(zip(members, answer(batch, [records[wanted[key]] for key in members]), strict=True))
        if keep:
            keep(computed)
        answers |= computed
    unreadable |= {number: bad[key] for number, key in enumerate(keys) if key in bad}
    kept = [number for number, key in enumerate(keys) if key in answers]
    if not kept:
        first = next(iter(unreadable.values()), "there are none")
        raise KeepFITError(f"none of the {len(records)} images can be read: {first}")
    kept_keys = [keys[number] for number in kept]
    return AnswersPerImage([answers[key] for key in kept_keys], kept, kept_keys, unreadable, len(new) - len(bad))


def unreadable_rows(records: Sequence[Record], unreadable: dict[int, ImageError]) -> list[LeftOut]:
    """The rows of a table whose images cannot be read."""
    return [
        LeftOut(records[number].row, error.reason, f"row {records[number].row}: {error}")
        for number, error in unreadable.items()
    ]


def _content_hash(record: Record, number: int, unreadable: dict[int, ImageError]) -> str | None:
    try:
        if isinstance(record.image, Path):
            return file_sha256(record.image)
        if isinstance(record.image, Frame) and isinstance(record.image.path, Path):
            return f"{file_sha256(record.image.path)}-{record.image.number}"
        if isinstance(record.image, Frame):
            return f"{hashlib.sha256(image_bytes(record.image.path)).hexdigest()}-{record.image.number}"
        if isinstance(record.image, RemoteFile):
            return hashlib.sha256(image_bytes(record.image)).hexdigest()
        content = record.image.read() if isinstance(record.image, FileSlice) else record.image
        return hashlib.sha256(content).hexdigest()
    except ImageError as error:
        unreadable[number] = error
        return None
    except OSError as error:
        unreadable[number] = ImageError(str(record.image), f"cannot be read ({first_line(error)})")
        return None


def _check_finite(rows: Sequence[ImageRow], records: Sequence[Record]) -> None:
    values = np.stack([np.concatenate([row.pooled, row.projected]) for row in rows])
    for record, finite in zip(records, finite_rows(values), strict=True):
        if not finite:
            raise NonFiniteError(
                f"the features of row {record.row} are not finite: the weights are broken, or its image is"
            )
