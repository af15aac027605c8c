"""What a build of shards is asked for."""

import math
from dataclasses import dataclass

from keepfit_clip.data.description import KINDS
from keepfit_clip.errors import ShardError
from keepfit_clip.knowledge.conditions import MODALITIES
from keepfit_clip.knowledge.corrections import corrections_of

__all__ = ["GIVEN", "ShardOptions"]

GIVEN = "given"  # in place of shares: the parts that the source gives


@dataclass(frozen=True)
class ShardOptions:
    """What shards hold.

    Args:
        kind: public (categories become texts) or elite (an expert's captions).
        modality: CFP, FFA or OCT for rows that do not say; None leaves them without.
        size: a side of the stored image, pixels; None keeps the size. Images are never enlarged.
        side: which one, longest or shortest; None is the shortest of OCT, whose wide scans towers stretch, and the
            longest of others.
        dataset: a name of the data set to store, or None.
        samples_per_shard: at most this many samples in a tar.
        quality: of the stored JPEGs.
        crop: whether the black border of fundus photographs is cut off.
        originals: store the images as they are coded, without their metadata; excludes size and crop.
        split: part -> share, e.g. {"train": 0.8, "val": 0.2}; each becomes a folder of its own. Images of a patient,
            copies of an image and near duplicates stay together. "given" keeps the parts that the source gives. None
            makes one set.
        near_duplicates: what becomes of nearly equal pictures: ignore; together, in one part of the split; or drop
            all but the first. By default together with a split, else ignore.
        exclude: sets whose images must not be in the shards, see `ImageIndex.of`.
        identifiers: what becomes of captions that seem to hold a name, date or record number: refuse the row, redact
            the place, or keep it.
        correct_terms: name of the data set whose known mistranslations are replaced in captions; "" replaces none.
        keep_blank: keep pictures that are even or nearly black, which are left out otherwise.
        burnt_in_text: what becomes of pictures with text at their edges: count them, mask the text, refuse the row, or
            ignore it, which is faster: nothing is looked for.

    Raises:
        ShardError: a value that cannot be used.
        ConfigError: there are no corrections of that name.
    """

    kind: str
    modality: str | None = None
    size: int | None = None
    side: str | None = None
    dataset: str | None = None
    samples_per_shard: int = 1000
    quality: int = 95
    crop: bool = False
    originals: bool = False
    split: dict[str, float] | str | None = None
    near_duplicates: str | None = None
    exclude: tuple[str, ...] = ()
    identifiers: str = "refuse"
    correct_terms: str = ""
    keep_blank: bool = False
    burnt_in_text: str = "count"

    def __post_init__(self):
        self._one_of("kind of shards", self.kind, KINDS)
        self._one_of("modality", self.modality, (None, *MODALITIES))
        self._one_of("near_duplicates", self.near_duplicates, (None, "ignore", "together", "drop"))
        self._one_of("identifiers", self.identifiers, ("refuse", "redact", "keep"))
        self._one_of("side", self.side, (None, "longest", "shortest"))
        self._one_of("way with burnt_in_text", self.burnt_in_text, ("count", "mask", "refuse", "ignore"))
        if self.correct_terms:
            corrections_of(self.correct_terms)
        if self.size is not None and self.size < 16:
            raise ShardError(f"the size is {self.size} pixels; it must be at least 16")
        if self.samples_per_shard < 1:
            raise ShardError("a shard holds at least one sample")
        if self.originals and (self.size is not None or self.crop):
            raise ShardError("originals are neither sized nor cropped: leave the size and the crop out")
        if self.originals and self.burnt_in_text == "mask":
            raise ShardError(
                "originals are stored as they are coded: no text can be masked in them, leave one of the two out"
            )
        if isinstance(self.split, str):
            self._one_of("split", self.split, (GIVEN,))
            if self.near_duplicates == "together":
                raise ShardError("a given split is kept as it is: near duplicates cannot be brought together in it")
        elif self.split is not None:
            shares = list(self.split.values())
            positive = all(math.isfinite(share) and share > 0 for share in shares)
            if len(shares) < 2 or not positive or abs(sum(shares) - 1) > 1e-6:
                raise ShardError(f"the shares of a split, two or more, must add up to 1; these are {shares}")
            if any(not name.replace("_", "").replace("-", "").isalnum() for name in self.split):
                raise ShardError(f"the parts of a split become folders; {list(self.split)} cannot")

    @staticmethod
    def _one_of(what: str, value: str | None, choices: tuple) -> None:
        if value not in choices:
            raise ShardError(f"the {what} is {value!r}; it can be {', '.join(c for c in choices if c)}")

    @property
    def nearness(self) -> str:
        """What becomes of near duplicates, decided."""
        return self.near_duplicates or ("together" if isinstance(self.split, dict) else "ignore")
