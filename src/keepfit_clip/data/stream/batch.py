"""A training batch: images that travel as uint8, and texts with the ids the objective compares.

`texts` is a transformers `BatchEncoding` (it has the `.to(device, non_blocking=...)` that open_clip's loop calls):

    input_ids     (B, L)   token ids, padded to the longest of the batch
    is_elite      (B,)     bool
    modality      (B,)     index into keepfit_clip.knowledge.conditions.MODALITIES, -1 where unknown
    text_id       (B,)     what the text says: public, modality and the category drawn; elite, its caption
    category_ids  (B, 16)  what is true of the image: public, all its categories; elite, its captions; -1 where unused
    image_codes   (B, 48)  ids of what is true of the image and what follows from it; -1 where unused
    text_codes    (B, 8)   ids of what makes the text true; -1 where unused (see `Knowledge.text_codes`)
    sample_key    (B, 32)  uint8, the sample's key, so that a report of trouble can name it
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate
from transformers import BatchEncoding

from keepfit_clip.data.description import MAX_IDS
from keepfit_clip.errors import ShardError
from keepfit_clip.knowledge.conditions import MODALITIES
from keepfit_clip.model.tokenization import Tokenizer

__all__ = ["ImageBatch", "TrainingSample", "collate", "encode_keys", "sample_keys", "stable_id"]

_IMAGE_CODES, _TEXT_CODES = 48, 8  # the broadest of more are left out
_KEY_BYTES = 32  # our own keys have 20


def stable_id(*parts: str | None) -> int:
    """A 63-bit id of a text, the same in every process and run; never negative."""
    digest = hashlib.blake2b("\x1f".join(p or "" for p in parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def encode_keys(keys: Sequence[str]) -> Tensor:
    """Keys of B samples as bytes (B, 32), so that they travel with the batch; longer ones are cut."""
    rows = [list(key.encode()[:_KEY_BYTES].ljust(_KEY_BYTES, b"\0")) for key in keys]
    return torch.tensor(rows, dtype=torch.uint8).reshape(-1, _KEY_BYTES)


def sample_keys(encoded: Tensor) -> list[str]:
    """The keys back from their bytes (B, 32)."""
    return [bytes(row).rstrip(b"\0").decode(errors="replace") for row in encoded.cpu().tolist()]


@dataclass
class TrainingSample:
    """One sample as the stream draws it.

    Args:
        key: of the sample in its shard.
        image: (H, W, 3) uint8.
        text: the text drawn.
        text_id: what it says.
        category_ids: what is true of the image, `text_id` among it.
        is_elite: whether the text is an expert's.
        modality: CFP, FFA, OCT or None.
        image_codes: ids of what is true of the image, what was seen first.
        text_codes: ids of what makes the text true.
    """

    key: str
    image: np.ndarray
    text: str
    text_id: int
    category_ids: Sequence[int]
    is_elite: bool
    modality: str | None
    image_codes: Sequence[int] = ()
    text_codes: Sequence[int] = ()


class ImageBatch:
    """Images that travel as bytes and become normalised floats on the device: a quarter of the traffic.

    Args:
        pixels: (B, H, W, 3) uint8.
        mean, std: three values each, for pixels scaled to 0..1.
    """

    def __init__(self, pixels: Tensor, mean: Sequence[float], std: Sequence[float]):
        self.pixels = pixels
        self.mean, self.std = tuple(mean), tuple(std)

    def __len__(self) -> int:
        return len(self.pixels)

    def pin_memory(self) -> "ImageBatch":
        """The same batch in page-locked memory."""
        return ImageBatch(self.pixels.pin_memory(), self.mean, self.std)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None, non_blocking: bool = False
    ) -> Tensor:
        """The normalised images (B, 3, H, W) on a device, float32 or `dtype`, in channels-last memory."""
        pixels = self.pixels.to(device=device, non_blocking=non_blocking).permute(0, 3, 1, 2).float()
        mean = torch.tensor(self.mean, device=pixels.device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, device=pixels.device).view(1, 3, 1, 1)
        return pixels.sub_(255 * mean).div_(255 * std).to(dtype or torch.float32)


def collate(
    samples: Sequence[TrainingSample], tokenizer: Tokenizer, mean: Sequence[float], std: Sequence[float], on_too_long
) -> tuple[ImageBatch, BatchEncoding]:
    """Puts samples into a batch `(images, texts)` as open_clip's loop takes it.

    Args:
        samples: B samples with images of one size.
        tokenizer: cuts texts longer than the context.
        mean, std: of the image tower.
        on_too_long: called with the number of texts that were cut.

    Raises:
        ShardError: an image with more than 16 categories.
    """
    for sample in samples:
        if len(sample.category_ids) > MAX_IDS:
            raise ShardError(f"a sample has {len(sample.category_ids)} categories; at most {MAX_IDS} are supported")
    texts = BatchEncoding(
        {
            "input_ids": tokenizer([s.text for s in samples], on_too_long=on_too_long),
            "is_elite": torch.tensor([s.is_elite for s in samples]),
            "modality": torch.tensor([MODALITIES.index(s.modality) if s.modality else -1 for s in samples]),
            "text_id": torch.tensor([s.text_id for s in samples]),
            "category_ids": _padded([s.category_ids for s in samples], MAX_IDS),
            "image_codes": _padded([s.image_codes for s in samples], _IMAGE_CODES),
            "text_codes": _padded([s.text_codes for s in samples], _TEXT_CODES),
            "sample_key": encode_keys([s.key for s in samples]),
        }
    )
    # In a worker default_collate stacks straight into memory shared with the main process.
    pixels = default_collate([torch.from_numpy(np.require(s.image, requirements="W")) for s in samples])
    return ImageBatch(pixels, mean, std), texts


def _padded(rows: Sequence[Sequence[int]], width: int) -> Tensor:
    """Ids (B, width), -1 where a row has no more, and without those beyond it."""
    padded = torch.full((len(rows), width), -1, dtype=torch.long)
    for row, ids in zip(padded, rows, strict=True):
        kept = torch.tensor(ids[:width], dtype=torch.long)
        row[: len(kept)] = kept
    return padded
