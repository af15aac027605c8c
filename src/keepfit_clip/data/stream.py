"""The training stream: endless public and elite samples, mixed at a fixed ratio in every batch on every rank.

Every worker seeds one generator afresh from (seed, epoch, rank, worker) and draws everything from it: the order of
shards and samples, the texts, the augmentation. A run that resumes at an epoch sees the samples it would have seen.
"""

import logging
import multiprocessing
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import webdataset as wds
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info
from torchvision.transforms.v2.functional import pil_to_tensor

from keepfit_clip.data.augment import augment
from keepfit_clip.data.batch import TrainingSample, collate, stable_id
from keepfit_clip.data.shard_reader import ShardSample, read_shards
from keepfit_clip.errors import ConfigError, ImageError, ShardError
from keepfit_clip.knowledge import Knowledge
from keepfit_clip.templates import draw_text, mentions_place
from keepfit_clip.tokenization import Tokenizer

__all__ = ["MixedStream", "StreamOptions", "Troubles", "draw_sample"]

_SHUFFLE_BUFFER = 1000
_SHUFFLE_START = 250


@dataclass(frozen=True)
class StreamOptions:
    """How batches are put together.

    Args:
        batch_size: B, samples in a batch on one rank.
        elite_fraction: share of elite samples in every batch, where both kinds are given.
        seed: of the run.
        rank, world_size: this process among the run's.
        augment: whether images are augmented.
    """

    batch_size: int
    elite_fraction: float = 0.5
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    augment: bool = True


@dataclass
class Troubles:
    """What had to be left out or cut, counted over all workers."""

    shards: multiprocessing.Value = field(default_factory=lambda: multiprocessing.Value("q", 0))
    images: multiprocessing.Value = field(default_factory=lambda: multiprocessing.Value("q", 0))
    cut_texts: multiprocessing.Value = field(default_factory=lambda: multiprocessing.Value("q", 0))

    @staticmethod
    def add(counter: multiprocessing.Value, number: int = 1) -> None:
        """Adds to a counter."""
        with counter.get_lock():
            counter.value += number

    def summary(self) -> str:
        """One sentence for the log, empty where nothing happened."""
        named = (
            (self.shards, "unreadable shards or samples left out"),
            (self.images, "undecodable images left out"),
            (self.cut_texts, "texts cut to the context"),
        )
        return ", ".join(f"{counter.value} {name}" for counter, name in named if counter.value)


class MixedStream(IterableDataset):
    """Yields batches `(ImageBatch, BatchEncoding)`, see `keepfit_clip.data.batch`.

    Args:
        public, elite: paths of shards; one of them may be empty.
        options: batch size, ratio, seed, rank.
        batches_per_worker: batches that one worker yields in an epoch.
        epoch: gives the number of the current epoch, also inside workers.
        letterbox: from an image to the tower's input size.
        tokenizer: of the model.
        knowledge: where public texts come from.
        mean, std: of the image tower.

    Raises:
        ConfigError: no shards, or a batch too small to hold both kinds.
    """

    def __init__(
        self,
        public: Sequence[str],
        elite: Sequence[str],
        options: StreamOptions,
        batches_per_worker: int,
        epoch: Callable[[], int],
        letterbox: Callable[[Image.Image], Image.Image],
        tokenizer: Tokenizer,
        knowledge: Knowledge,
        mean: Sequence[float],
        std: Sequence[float],
    ):
        self.public, self.elite = list(public), list(elite)
        self.options = options
        self.batches_per_worker = batches_per_worker
        self.epoch = epoch
        self.letterbox = letterbox
        self.tokenizer = tokenizer
        self.knowledge = knowledge
        self.mean, self.std = mean, std
        self.troubles = Troubles()
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
        rng = random.Random(f"{self.options.seed} {self.epoch()} {self.options.rank} {number}")
        public = self._endless(self.public, "public", rng)
        elite = self._endless(self.elite, "elite", rng)
        elite_count, public_count = self.elite_per_batch, self.options.batch_size - self.elite_per_batch
        for _ in range(self.batches_per_worker):
            samples = [next(public) for _ in range(public_count)] + [next(elite) for _ in range(elite_count)]
            yield collate(samples, self.tokenizer, self.mean, self.std, on_too_long=self._count_cut)

    def _endless(self, shards: Sequence[str], kind: str, rng: random.Random) -> Iterator[TrainingSample]:
        """Passes over the shards for ever, each in a new order; every readable sample comes up once per pass."""
        if not shards:
            return
        own = random.Random(rng.random())  # its draws do not depend on how the two streams interleave
        shuffle = wds.shuffle(_SHUFFLE_BUFFER, initial=_SHUFFLE_START, rng=own)
        while True:
            used = 0
            for sample, image in self._decoded(shuffle(self._one_pass(shards, own)), kind):
                used += 1
                yield draw_sample(sample, image, self.letterbox, self.knowledge, own, self.options.augment)
            if not used:
                raise ShardError(
                    f"none of the {len(shards)} {kind} shards has a sample that can be read, e.g. {shards[0]}"
                )

    def _one_pass(self, shards: Sequence[str], rng: random.Random) -> Iterator[ShardSample]:
        order = rng.sample(list(shards), len(shards))
        return read_shards(order, on_error=lambda error: self._report(self.troubles.shards, error))

    def _decoded(self, samples: Iterator[ShardSample], kind: str) -> Iterator[tuple[ShardSample, Image.Image]]:
        """The samples of the right kind whose image can be decoded; the others are counted."""
        for sample in samples:
            if sample.description["kind"] != kind:
                problem = ShardError(f"sample {sample.key} is not {kind}, but its shard was given as {kind} data")
                self._report(self.troubles.shards, problem)
                continue
            try:
                image = sample.image()
            except ImageError as error:
                self._report(self.troubles.images, error)
            else:
                yield sample, image

    def _report(self, counter: multiprocessing.Value, error: Exception) -> None:
        if counter.value == 0:
            logging.warning(f"left out, and any more like it: {error}")
        self.troubles.add(counter)

    def _count_cut(self, number: int) -> None:
        self.troubles.add(self.troubles.cut_texts, number)


def draw_sample(
    sample: ShardSample,
    image: Image.Image,
    letterbox: Callable[[Image.Image], Image.Image],
    knowledge: Knowledge,
    rng: random.Random,
    augmented: bool = True,
) -> TrainingSample:
    """One training sample from a sample of a shard: its text drawn, its image sized and augmented.

    Args:
        sample: from a shard.
        image: its decoded image.
        letterbox: to the tower's input size.
        knowledge: where public texts come from.
        rng: decides.
        augmented: whether to augment.
    """
    description = sample.description
    modality = description.get("modality")
    if description["kind"] == "elite":
        captions = [caption["text"] for caption in description["captions"]]
        text = rng.choice(captions)
        text_id, category_ids = stable_id(text), [stable_id(caption) for caption in captions]
    else:
        categories = description["categories"]
        text, category = draw_text(categories, modality, knowledge, rng, description.get("attributes", ()))
        text_id = stable_id(modality, category)
        category_ids = [stable_id(modality, category) for category in categories]
    pixels: Tensor = pil_to_tensor(letterbox(image))
    if augmented:
        pixels = augment(pixels, rng, may_flip=not mentions_place(text))
    return TrainingSample(pixels, text, text_id, category_ids, description["kind"] == "elite", modality)
