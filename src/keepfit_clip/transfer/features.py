"""Image features of a model, computed once: a cache on the disk keyed by weights, preprocessing and image content.

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
import torch
from PIL import Image
from torch import Tensor

from keepfit_clip.data.duplicates import perceptual_hash
from keepfit_clip.data.records import FileSlice, Record
from keepfit_clip.errors import ImageError, KeepFITError, OutputError
from keepfit_clip.evaluation import image_batches
from keepfit_clip.files import file_sha256
from keepfit_clip.loading import LoadedModel
from keepfit_clip.model_folder import CONFIG_NAME, WEIGHTS_NAME, require_model

__all__ = ["FeatureCache", "ImageFeatures", "ImageRow", "image_features"]

_WAIT = 120  # seconds for another process to finish writing


class ImageRow(NamedTuple):
    """What is kept of an image: `pooled` (C,), `projected` (D,) and `look` (32,) uint8."""

    pooled: np.ndarray
    projected: np.ndarray
    look: np.ndarray


@dataclass
class ImageFeatures:
    """Features of some images.

    Args:
        pooled: (N, C) of the backbone, before the projection.
        projected: (N, D) in the joint space, L2-normalised.
        kept: (N,) numbers of the records they belong to; those of unreadable images are missing.
        keys: (N,) hashes of the images' content.
        looks: (N, 32) uint8 perceptual hashes, which near copies share; see `data.duplicates`.
        unreadable: number of a record -> what is wrong with its image.
        computed: how many were not in the cache.
    """

    pooled: np.ndarray
    projected: np.ndarray
    kept: np.ndarray
    keys: list[str]
    looks: np.ndarray
    unreadable: dict[int, ImageError] = field(default_factory=dict)
    computed: int = 0


class FeatureCache:
    """Features on the disk.

    Args:
        folder: where the files lie.
        model: folder of the model, whose weights and config name the file.

    Raises:
        CheckpointError: there is no model.
        OutputError: the folder cannot be used.
    """

    def __init__(self, folder: str | Path, model: str | Path):
        model = require_model(model)
        key = hashlib.sha256(f"{file_sha256(model / WEIGHTS_NAME)} {file_sha256(model / CONFIG_NAME)}".encode())
        self.path = Path(folder) / f"{key.hexdigest()[:32]}.sqlite"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(self._open()) as database, database:
                database.execute(
                    "CREATE TABLE IF NOT EXISTS images (image TEXT PRIMARY KEY, sizes TEXT, data BLOB, look BLOB)"
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
        found = {}
        with closing(self._open()) as database:
            for key in dict.fromkeys(keys):
                row = database.execute("SELECT sizes, data, look FROM images WHERE image = ?", (key,)).fetchone()
                if row is not None:
                    first, second = json.loads(row[0])
                    values = np.frombuffer(row[1], dtype=np.float32)
                    if len(values) == first + second:
                        found[key] = ImageRow(values[:first], values[first:], np.frombuffer(row[2], dtype=np.uint8))
        return found

    def put(self, found: dict[str, ImageRow]) -> None:
        """Keeps what was computed; a batch is written whole or not at all."""
        rows = [
            (
                key,
                json.dumps([len(row.pooled), len(row.projected)]),
                np.concatenate([row.pooled, row.projected]).tobytes(),
                row.look.tobytes(),
            )
            for key, row in found.items()
        ]
        try:
            with closing(self._open()) as database, database:
                database.executemany("INSERT OR REPLACE INTO images VALUES (?, ?, ?, ?)", rows)
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
    unreadable: dict[int, ImageError] = {}
    keys = [_content_hash(record, number, unreadable) for number, record in enumerate(records)]
    found = cache.get([key for key in keys if key]) if cache else {}
    wanted = {key: number for number, key in enumerate(keys) if key and key not in found}
    new = list(wanted)
    bad: dict[str, ImageError] = {}
    looks: list[np.ndarray] = []  # of the images of a batch

    def prepare(image: Image.Image) -> Tensor:
        looks.append(np.frombuffer(perceptual_hash(image), dtype=np.uint8))
        return loaded.preprocess(image)

    images = progress([records[wanted[key]].image for key in new])
    for numbers, batch in image_batches(
        images, prepare, batch_size, on_error=lambda n, error: bad.update({new[n]: error})
    ):
        pooled, projected = _encode(loaded, batch)
        computed = {new[n]: ImageRow(pooled[i], projected[i], looks[i]) for i, n in enumerate(numbers)}
        looks.clear()
        _check_finite(computed, {key: records[wanted[key]] for key in computed})
        if cache:
            cache.put(computed)
        found |= computed
    unreadable |= {number: bad[key] for number, key in enumerate(keys) if key in bad}
    kept = [number for number, key in enumerate(keys) if key in found]
    if not kept:
        first = next(iter(unreadable.values()), "there are none")
        raise KeepFITError(f"none of the {len(records)} images can be read: {first}")
    rows = [found[keys[number]] for number in kept]
    pooled, projected, looks = (np.stack(part) for part in zip(*rows, strict=True))
    kept_keys = [keys[number] for number in kept]
    return ImageFeatures(pooled, projected, np.array(kept), kept_keys, looks, unreadable, len(new) - len(bad))


@torch.inference_mode()
def _encode(loaded: LoadedModel, batch: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Pooled (B, C) and projected (B, D) features of images (B, 3, H, W), in float32."""
    pooled, projected = loaded.model.visual.pool(batch.to(loaded.device))
    projected = torch.nn.functional.normalize(projected.float(), dim=-1)
    return pooled.float().cpu().numpy(), projected.cpu().numpy()


def _content_hash(record: Record, number: int, unreadable: dict[int, ImageError]) -> str | None:
    try:
        if isinstance(record.image, Path):
            return file_sha256(record.image)
        content = record.image.read() if isinstance(record.image, FileSlice) else record.image
        return hashlib.sha256(content).hexdigest()
    except OSError as error:
        unreadable[number] = ImageError(str(record.image), f"cannot be read ({error.strerror})")
        return None


def _check_finite(computed: dict[str, ImageRow], records: dict[str, Record]) -> None:
    for key, row in computed.items():
        if not (np.isfinite(row.pooled).all() and np.isfinite(row.projected).all()):
            raise KeepFITError(
                f"the features of row {records[key].row} are not finite: the weights are broken, or its image is"
            )
