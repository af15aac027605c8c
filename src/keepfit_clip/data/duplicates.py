"""Which images show the same picture: by their bytes, and by a perceptual hash that survives resizing and recoding.

The hash is imagehash's DCT hash of 256 bits. Two photographs of one eye differ in far more bits than two copies of one
photograph: `NEAR_BITS` was chosen on real fundus photographs, see docs/DATA.md.
"""

import hashlib
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import imagehash
import numpy as np
from PIL import Image

from keepfit_clip.data.sources import SourceOptions, find_source, plain_tables_only, read_records
from keepfit_clip.data.sources.folder import walk_images
from keepfit_clip.data.tars.reader import list_all_shards, read_raw_samples, split_parts
from keepfit_clip.errors import ImageError, TableError
from keepfit_clip.images.field_of_view import crop_field_of_view
from keepfit_clip.images.reading import FileSlice, image_bytes, image_name, open_image
from keepfit_clip.remote.opening import RemoteFile
from keepfit_clip.remote.paths import Place, RemotePath, place

__all__ = [
    "NEAR_BITS",
    "ImageIndex",
    "UnionFind",
    "both_views",
    "copies_of",
    "image_digest",
    "near_pairs",
    "perceptual_hash",
    "with_copies",
]

NEAR_BITS = 20
_SIDE = 16
_BLOCK = 2048


def image_digest(content: bytes) -> str:
    """SHA-256 of an encoded image."""
    return hashlib.sha256(content).hexdigest()


def perceptual_hash(image: Image.Image) -> bytes:
    """256 bits of the low frequencies of an image's brightness, as 32 bytes."""
    return np.packbits(imagehash.phash(image.convert("L"), hash_size=_SIDE).hash.ravel()).tobytes()


def both_views(image: Image.Image) -> np.ndarray:
    """(2, 32) uint8: the hash of an image as it is, and without its black border."""
    hashes = _views(image)
    return np.frombuffer(hashes[0] + hashes[-1], dtype=np.uint8).reshape(2, -1)


def _views(image: Image.Image) -> list[bytes]:
    """Hashes of an image as it is and without its black border: either set may have cut it off."""
    cropped = crop_field_of_view(image)
    return [perceptual_hash(image)] + ([perceptual_hash(cropped)] if cropped.size != image.size else [])


def near_pairs(hashes: np.ndarray, bits: int = NEAR_BITS) -> Iterator[tuple[int, int]]:
    """All pairs i < j of perceptual hashes that differ in at most `bits` bits.

    Args:
        hashes: (N, 32) uint8. Time grows with N squared; memory does not beyond the hashes.
        bits: of 256.
    """
    for start in range(0, len(hashes), _BLOCK):
        rows = _signs(hashes[start : start + _BLOCK])
        for other in range(start, len(hashes), _BLOCK):
            products = rows @ _signs(hashes[other : other + _BLOCK]).T  # (n, m): 256 - 2 * bits that differ
            for i, j in np.argwhere(products >= 8 * hashes.shape[1] - 2 * bits):
                if start + i < other + j:
                    yield start + int(i), other + int(j)


def _signs(hashes: np.ndarray) -> np.ndarray:
    return np.unpackbits(hashes, axis=1).astype(np.float32) * 2 - 1


class UnionFind:
    """Which things belong together, of those that were ever joined."""

    def __init__(self):
        self._parent: dict = {}

    def find(self, item):
        """The representative of an item's set; the item itself where it was never joined."""
        root = item
        while (parent := self._parent.get(root, root)) != root:
            root = parent
        while item != root:  # shorten the way for the next time
            self._parent[item], item = root, self._parent[item]
        return root

    def join(self, one, other) -> None:
        """Puts two sets together; the smaller representative stays."""
        first, second = sorted((self.find(one), self.find(other)))
        self._parent[second] = first

    def members(self) -> Iterator:
        """All items that were joined to another."""
        yield from self._parent


class ImageIndex:
    """The images of other sets, to be recognised among new ones.

    Args:
        digests: SHA-256 of encoded images.
        hashes: (N, 32) uint8 perceptual hashes, one or two of each image.
    """

    def __init__(self, digests: Iterable[str], hashes: np.ndarray):
        self.digests = frozenset(digests)
        self.hashes = np.ascontiguousarray(hashes, dtype=np.uint8).reshape(-1, _SIDE * _SIDE // 8)

    @classmethod
    def of(cls, sets: Iterable[str | Path], on_unreadable=None, progress=iter) -> "ImageIndex":
        """Reads the images of sets: folders of images, shards, or tables with paths relative to their own folder.

        Args:
            sets: where they are.
            on_unreadable: called with the ImageError of each image that cannot be read.
            progress: wraps the images as they are read.

        Raises:
            TableError, ShardError: a set cannot be read at all, or holds no image.
        """
        digests, hashes = [], []
        for where in sets:
            readable = 0
            for image in progress(_images(place(where))):
                try:
                    content = image_bytes(image)
                    hashes += _views(open_image(content, image_name(image)))
                except ImageError as error:
                    if on_unreadable is not None:
                        on_unreadable(error)
                else:
                    digests.append(image_digest(content))
                    readable += 1
            if not readable:
                raise TableError(f"{where}: holds no image that can be read, so nothing can be excluded by it")
        return cls(digests, np.frombuffer(b"".join(hashes), dtype=np.uint8))

    def holds(self, content: bytes, image: Image.Image, bits: int = NEAR_BITS) -> bool:
        """Whether an image is among these, byte for byte or nearly.

        Args:
            content: the encoded image.
            image: the same, decoded.
            bits: how near is near.
        """
        if image_digest(content) in self.digests:
            return True
        views = (np.frombuffer(view, dtype=np.uint8) for view in _views(image))
        return any((np.bitwise_count(self.hashes ^ view).sum(axis=1) <= bits).any() for view in views)

    def save(self, path: Path) -> None:
        """Writes the index to a file, under a temporary name first."""
        partial = path.with_name(f".{path.name}.partial")
        with open(partial, "wb") as file:
            np.savez(file, digests=np.array(sorted(self.digests), dtype="U64"), hashes=self.hashes)
        os.replace(partial, path)

    @classmethod
    def load(cls, path: Path) -> "ImageIndex":
        """Reads what `save` wrote.

        Raises:
            ValueError: it is damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                return cls(stored["digests"].tolist(), stored["hashes"])
        except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, AttributeError) as error:
            raise ValueError(f"not a readable index ({error})") from error


def _images(where: Place) -> Iterator[Path | FileSlice | RemoteFile | bytes]:
    """Every image of a set, whatever is said of it."""
    if where.is_dir() and not any(where.glob("*.tar")) and list(split_parts(where)) == [""]:
        for name in walk_images(where):
            yield where.file(name) if isinstance(where, RemotePath) else where / name
    elif where.is_dir() or find_source(where) == "shards":
        for shard in list_all_shards(where):
            for sample in read_raw_samples(shard, on_error=lambda _: None):
                if sample.image is not None:
                    yield sample.image
    else:
        options = SourceOptions(images_only=True)
        with plain_tables_only("--exclude"):
            for record in read_records(where, where.parent, on_reject=lambda _: None, options=options):
                yield record.image


def with_copies(groups: np.ndarray | None, hashes: np.ndarray) -> np.ndarray | None:
    """Groups that hold near duplicates too.

    Args:
        groups: (N,) patients, or None.
        hashes: (N, 2, 32) perceptual hashes, with and without a black border.

    Returns:
        (N,) numbers of what belongs together; None where every image stands alone.
    """
    together = UnionFind()
    for one, other in _near_images(hashes):
        together.join(one, other)
    if groups is not None:
        first = {group: row for row, group in reversed(list(enumerate(groups.tolist())))}
        for row, group in enumerate(groups.tolist()):
            together.join(first[group], row)
    representatives, numbers = np.unique([together.find(row) for row in range(len(hashes))], return_inverse=True)
    return None if groups is None and len(representatives) == len(hashes) else numbers


def copies_of(hashes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which images look like one of other images: (N,) bool of perceptual hashes (N, 2, 32) and (M, 2, 32)."""
    is_copy = np.zeros(len(hashes), dtype=bool)
    for pair in _near_images(np.concatenate([hashes, others])):
        one, other = sorted(pair)
        if one < len(hashes) <= other:
            is_copy[one] = True
    return is_copy


def _near_images(hashes: np.ndarray) -> Iterator[tuple[int, int]]:
    """Pairs of images of which a view is near one of the other: of hashes (N, views, 32)."""
    count, views, width = hashes.shape
    for one, other in near_pairs(hashes.transpose(1, 0, 2).reshape(views * count, width)):
        yield one % count, other % count
