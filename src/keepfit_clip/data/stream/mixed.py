"""The training stream: endless public and elite samples, mixed at a fixed ratio in every batch on every rank.

Every worker seeds one generator afresh from (seed, epoch, rank, worker) and draws everything from it: the order of
shards and samples, the texts, the augmentation. A run that resumes at an epoch sees the samples it would have seen.
What cannot be read is left out and counted; too much of it ends the run.
"""

import logging
import multiprocessing
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import cv2
import numpy as np
import webdataset as wds
from torch.utils.data import IterableDataset, get_worker_info

from keepfit_clip.data.description import Description
from keepfit_clip.data.stream.augment import augment
from keepfit_clip.data.stream.batch import TrainingSample, collate, stable_id
from keepfit_clip.data.stream.decoding import Resizer
from keepfit_clip.data.stream.sampling import ShardPool
from keepfit_clip.data.tars.reader import ShardSample, read_shards
from keepfit_clip.errors import ConfigError, ImageError, ShardError
from keepfit_clip.knowledge.conditions import Knowledge
from keepfit_clip.knowledge.held_out import HeldOut
from keepfit_clip.knowledge.mentions import stated
from keepfit_clip.knowledge.templates import draw_text, mentions_place
from keepfit_clip.model.tokenization import Tokenizer

__all__ = ["LeftOutCounts", "MixedStream", "StreamOptions", "draw_sample", "usable_captions"]

_log = logging.getLogger(__name__)

_SHUFFLE_BUFFER = 1000  # encoded samples, over all pools of a kind
_SHUFFLE_START = 250
_SMALLEST_BUFFER = 50
_ENOUGH_TO_JUDGE = 200  # samples tried before their bad fraction can end a run


@dataclass(frozen=True)
class StreamOptions:
    """How batches are put together.

    Args:
        batch_size: B, samples in a batch on one rank.
        elite_fraction: share of elite samples in every batch, where both kinds are given.
        seed: of the run.
        rank: of this process among the run's.
        augmentation: of the images, one of `AUGMENTATIONS`.
        languages: of the captions that are used.
        max_bad_fraction: share of the samples tried that may be unusable.
        held_out: categories whose public samples are left out.
    """

    batch_size: int
    elite_fraction: float = 0.5
    seed: int = 0
    rank: int = 0
    augmentation: str = "mild"
    languages: tuple[str, ...] = ("en",)
    max_bad_fraction: float = 0.1
    held_out: HeldOut | None = None


def _counter():
    return multiprocessing.Value("q", 0)


@dataclass
class LeftOutCounts:
    """What had to be left out or cut, counted over all workers."""

    samples: multiprocessing.Value = field(default_factory=_counter)
    shards: multiprocessing.Value = field(default_factory=_counter)
    images: multiprocessing.Value = field(default_factory=_counter)
    languages: multiprocessing.Value = field(default_factory=_counter)
    held_out: multiprocessing.Value = field(default_factory=_counter)
    cut_texts: multiprocessing.Value = field(default_factory=_counter)

    @staticmethod
    def add(counter: multiprocessing.Value, number: int = 1) -> None:
        """Adds to a counter."""
        with counter.get_lock():
            counter.value += number

    @property
    def bad(self) -> int:
        """Shards, samples and images that could not be read."""
        return self.shards.value + self.images.value

    def check(self, max_bad_fraction: float) -> None:
        """Ends a run that has too many of them.

        Raises:
            ShardError: more than this share of what was tried, once there is enough to judge by.
        """
        tried = self.samples.value + self.bad
        if tried >= _ENOUGH_TO_JUDGE and self.bad > max_bad_fraction * tried:
            raise ShardError(
                f"{self.bad} of {tried} samples could not be read, more than --max-bad-fraction {max_bad_fraction}: "
                "look at them with `keepfit-clip shards check`"
            )

    def summary(self) -> str:
        """One sentence for the log."""
        named = (
            (self.shards, "unreadable shards or samples left out"),
            (self.images, "undecodable images left out"),
            (self.languages, "samples without a caption in the chosen language left out"),
            (self.held_out, "samples of categories held out left out"),
            (self.cut_texts, "texts cut to the context"),
        )
        counts = ", ".join(f"{counter.value} {name}" for counter, name in named if counter.value)
        return f"{self.samples.value} samples read; {counts or 'nothing left out'}"


class MixedStream(IterableDataset):
    """Yields batches `(ImageBatch, BatchEncoding)`, see `keepfit_clip.data.stream.batch`.

    Args:
        public, elite: pools of shards; one of them may be empty.
        options: batch size, ratio, seed, rank.
        batches_per_worker: batches that one worker yields in an epoch.
        epoch: gives the number of the current epoch, also inside workers.
        resize: from an encoded image to the tower's input.
        tokenizer: of the model.
        knowledge: where public texts come from.
        mean, std: of the image tower.
        repeats: kind -> how often a sample of each category is used in a pass; once by default.

    Raises:
        ConfigError: no shards, or a batch too small to hold both kinds.
    """

    def __init__(
        self,
        public: Sequence[ShardPool],
        elite: Sequence[ShardPool],
        options: StreamOptions,
        batches_per_worker: int,
        epoch: Callable[[], int],
        resize: Resizer,
        tokenizer: Tokenizer,
        knowledge: Knowledge,
        mean: Sequence[float],
        std: Sequence[float],
        repeats: Mapping[str, Mapping[str, float]] | None = None,
    ):
        self.public, self.elite = list(public), list(elite)
        self.options = options
        self.batches_per_worker = batches_per_worker
        self.epoch = epoch
        self.resize = resize
        self.tokenizer = tokenizer
        self.knowledge = knowledge
        self.mean, self.std = mean, std
        self.repeats = repeats or {}
        self.left_out = LeftOutCounts()
        self.elite_per_batch = self._elite_per_batch()

    def _elite_per_batch(self) -> int:
        if not self.public and not self.elite:
            raise ConfigError("no training data: give shards of public or elite samples")
        if not self.elite:
            return 0
        if not self.public:
            return self.options.batch_size
        elite = round(self.options.batch_size * self.options.elite_fraction)
        if not 0 < elite < self.options.batch_size:
            raise ConfigError(
                f"a batch of {self.options.batch_size} at an elite fraction of {self.options.elite_fraction} has no "
                "room for both kinds: raise --batch-size or change --elite-fraction"
            )
        return elite

    def __iter__(self) -> Iterator[tuple]:
        worker = get_worker_info()
        number = worker.id if worker else 0
        if worker:
            cv2.setNumThreads(0)  # the workers are the parallelism; OpenCV's own threads do not survive their fork
        rng = random.Random(f"{self.options.seed} {self.epoch()} {self.options.rank} {number}")
        public = self._mixed(self.public, "public", rng)
        elite = self._mixed(self.elite, "elite", rng)
        elite_count, public_count = self.elite_per_batch, self.options.batch_size - self.elite_per_batch
        for _ in range(self.batches_per_worker):
            samples = [next(public) for _ in range(public_count)] + [next(elite) for _ in range(elite_count)]
            self.left_out.add(self.left_out.samples, len(samples))
            self.left_out.check(self.options.max_bad_fraction)
            yield collate(samples, self.tokenizer, self.mean, self.std, on_too_long=self._count_cut)

    def _mixed(self, pools: Sequence[ShardPool], kind: str, rng: random.Random) -> Iterator[TrainingSample]:
        """Samples of a kind for ever, each from a pool drawn by its weight."""
        own = random.Random(rng.random())  # its draws do not depend on how the two kinds interleave
        buffer = max(_SMALLEST_BUFFER, _SHUFFLE_BUFFER // max(1, len(pools)))
        streams = [self._endless(pool.shards, kind, own, buffer) for pool in pools]
        weights = [pool.weight for pool in pools]
        while True:
            yield next(streams[0] if len(streams) == 1 else own.choices(streams, weights)[0])

    def _endless(self, shards: Sequence[str], kind: str, rng: random.Random, buffer: int) -> Iterator[TrainingSample]:
        """Passes over the shards for ever, each in a new order; every readable sample comes up once per pass."""
        own = random.Random(rng.random())
        shuffle = wds.shuffle(buffer, initial=min(_SHUFFLE_START, buffer), rng=own)
        while True:
            used = 0
            for sample, pixels in self._decoded(shuffle(self._one_pass(shards, kind, own))):
                used += 1
                yield draw_sample(
                    sample, pixels, self.knowledge, own, self.options.augmentation, self.options.languages
                )
            if not used:
                raise ShardError(
                    f"none of the {len(shards)} {kind} shards has a sample that can be read, e.g. {shards[0]}"
                )

    def _one_pass(self, shards: Sequence[str], kind: str, rng: random.Random) -> Iterator[ShardSample]:
        """The samples of the right kind and language, some of them repeated; the others are counted."""
        order = rng.sample(shards, len(shards))
        for sample in read_shards(order, on_error=lambda error: self._report(self.left_out.shards, error)):
            if sample.description.kind != kind:
                problem = ShardError(f"sample {sample.key} is not {kind}, but its shard was given as {kind} data")
                self._report(self.left_out.shards, problem)
            elif kind == "elite" and not sample.description.captions_in(self.options.languages):
                self.left_out.add(self.left_out.languages)
            elif kind == "public" and self._is_held_out(sample.description):
                self.left_out.add(self.left_out.held_out)
            else:
                yield from (sample for _ in range(self._times(sample, rng)))

    def _is_held_out(self, description: Description) -> bool:
        held_out = self.options.held_out
        return held_out is not None and any(_is_named(name, held_out) for name in description.categories)

    def _times(self, sample: ShardSample, rng: random.Random) -> int:
        """How often a sample is used in this pass: its repeat factor, rounded up or down at random."""
        repeats = self.repeats.get(sample.description.kind)
        if not repeats:
            return 1
        factor = max((repeats.get(name, 1.0) for name in sample.description.categories), default=1.0)
        return int(factor) + (rng.random() < factor % 1)

    def _decoded(self, samples: Iterator[ShardSample]) -> Iterator[tuple[ShardSample, np.ndarray]]:
        """The samples whose image can be decoded; the others are counted."""
        for sample in samples:
            try:
                pixels = self.resize(sample.image_bytes, f"sample {sample.key}")
            except ImageError as error:
                self._report(self.left_out.images, error)
            else:
                yield sample, pixels

    def _report(self, counter: multiprocessing.Value, error: Exception) -> None:
        if counter.value == 0:
            _log.warning(f"left out, and any more like it: {error}")
        self.left_out.add(counter)

    def _count_cut(self, number: int) -> None:
        self.left_out.add(self.left_out.cut_texts, number)


usable_captions = Description.captions_in


def draw_sample(
    sample: ShardSample,
    pixels: np.ndarray,
    knowledge: Knowledge,
    rng: random.Random,
    augmentation: str = "mild",
    languages: Sequence[str] = ("en",),
) -> TrainingSample:
    """One training sample from a sample of a shard: its text drawn, its image augmented.

    Args:
        sample: from a shard; an elite one has a caption in one of the languages.
        pixels: its image (H, W, 3) uint8 at the tower's input size.
        knowledge: where public texts come from.
        rng: decides.
        augmentation: of the image, one of `AUGMENTATIONS`.
        languages: of the captions.
    """
    description = sample.description
    modality, categories = description.modality, description.categories
    if description.is_elite:
        captions = description.captions_in(languages)
        text = rng.choice(captions)
        text_id, category_ids = stable_id(text), [stable_id(caption) for caption in captions]
        stated = [name for caption in description.captions for name in _stated(caption.text, knowledge)]
        of_image, of_text = knowledge.image_codes([*categories, *stated]), _stated(text, knowledge)
    else:
        text, category = draw_text(
            categories, modality, knowledge, rng, description.attributes, description.eye, languages
        )
        text_id = stable_id(modality, category)
        category_ids = [stable_id(modality, category) for category in categories]
        of_image, of_text = knowledge.image_codes(categories), knowledge.text_codes(category)
    pixels = augment(pixels, rng, not mentions_place(text), augmentation, coloured=modality in (None, "CFP"))
    return TrainingSample(
        sample.key,
        pixels,
        text,
        text_id,
        category_ids,
        description.is_elite,
        modality,
        [stable_id(modality, code) for code in of_image],
        [stable_id(modality, code) for code in of_text],
    )


@lru_cache(maxsize=4096)
def _is_named(category: str, held_out: HeldOut) -> bool:
    """Whether a category of a sample is held out; a data set has few, and each comes up again and again."""
    return held_out.named_in(category)


@lru_cache(maxsize=4096)
def _stated(caption: str, knowledge: Knowledge) -> tuple[str, ...]:
    """Canonical names of what a caption states, with "no" before what it denies."""
    return tuple(sorted(stated(caption, knowledge)))
