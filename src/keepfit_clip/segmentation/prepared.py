"""Images and masks as an image tower takes them, each read once; masks of the images' own size stay beside them."""

import hashlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from keepfit_clip.data.downstream import groups_of
from keepfit_clip.data.duplicates import both_views, with_copies
from keepfit_clip.data.records import LeftOut, Record
from keepfit_clip.errors import ImageError, KeepFITError, MissingClassesError
from keepfit_clip.model.preprocess import to_input_size
from keepfit_clip.segmentation.geometry import View
from keepfit_clip.segmentation.masked import MaskedImage, MaskedSet

__all__ = ["Prepared", "prepare"]


@dataclass(frozen=True)
class _Truth:
    """A mask of the image's own size, compressed: most of it is background."""

    content: bytes
    shape: tuple[int, int]

    @classmethod
    def of(cls, mask: np.ndarray) -> "_Truth":
        return cls(zlib.compress(mask.tobytes(), 1), mask.shape)

    @property
    def mask(self) -> np.ndarray:
        return np.frombuffer(zlib.decompress(self.content), dtype=np.uint8).reshape(self.shape)


@dataclass
class Prepared:
    """A set of N images that could be read.

    Args:
        source: what they come from; what could not be read is added to its `left_out`.
        images: those of `source` that could be read.
        pixels: (N, h, w, 3) uint8, as the tower sees them before its mean and standard deviation.
        masks: (N, h, w) uint8, the same way.
        truths: of the images' own size.
        views: from one to the other.
        keys: hashes of picture and mask.
        groups: (N,) what must not be parted, or None.
        by_patient: whether patients are known.
        copies_together: whether near copies count as one.
    """

    source: MaskedSet
    images: list[MaskedImage]
    pixels: np.ndarray
    masks: np.ndarray
    truths: list[_Truth]
    views: list[View]
    keys: list[str]
    groups: np.ndarray | None = None
    by_patient: bool = False
    copies_together: bool = False
    presence: np.ndarray = field(init=False)  # (N, K), whether an image has a class

    def __post_init__(self):
        counts = [np.bincount(t.mask.ravel(), minlength=len(self.source.classes) + 1)[1:] for t in self.truths]
        self.presence = np.array(counts) > 0


def prepare(source: MaskedSet, preprocess: dict, copies_together: bool = True, progress: Callable = iter) -> Prepared:
    """Reads every image and mask of a set.

    Args:
        source: the set; what cannot be read is counted in its `left_out`.
        preprocess: values in force, see `resolve_preprocess`.
        copies_together: near duplicates belong to one group, so that none is learnt from while another is tested.
        progress: wraps the images.

    Raises:
        KeepFITError: none can be read.
        MissingClassesError: a class has no pixel in any image.
    """
    resize = to_input_size(preprocess)
    kept, pixels, masks, truths, views, keys, hashes = [], [], [], [], [], [], []
    for image in progress(source.images):
        try:
            picture, mask = image.read()
        except ImageError as error:
            source.left_out.append(LeftOut(image.row, error.reason, f"image {image.row}: {error}"))
            continue
        views.append(View.of(picture, preprocess))
        pixels.append(np.asarray(resize(picture)))
        masks.append(views[-1].to_input(mask))
        truths.append(_Truth.of(mask))
        keys.append(hashlib.sha256(picture.tobytes() + mask.tobytes()).hexdigest())
        if source.copies and copies_together:
            hashes.append(both_views(picture))
        kept.append(image)
    if not kept:
        raise KeepFITError(f"none of the images can be used: {source.left_out[-1].message}")
    patients = groups_of([Record(image.row, b"", patient=image.group) for image in kept])
    groups = with_copies(patients, np.stack(hashes)) if hashes else patients
    prepared = Prepared(
        source, kept, np.stack(pixels), np.stack(masks), truths, views, keys, groups, patients is not None, bool(hashes)
    )
    empty = [name for name, there in zip(source.classes, prepared.presence.any(axis=0), strict=True) if not there]
    if empty:
        raise MissingClassesError(
            f"no mask that can be used has a pixel of {', '.join(empty)}: leave it out of --classes"
        )
    return prepared
