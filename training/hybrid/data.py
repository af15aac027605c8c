"""What open_clip_train's loop reads: the mixed training stream and the held-out shards."""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from keepfit_clip.data.stream.decoding import make_resizer
from keepfit_clip.data.stream.mixed import MixedStream, StreamOptions
from keepfit_clip.data.stream.sampling import ShardPool, category_repeats, make_pools
from keepfit_clip.data.tars.reader import check_kind, count_samples, list_shards
from keepfit_clip.errors import ConfigError, ShardError
from keepfit_clip.knowledge.conditions import Knowledge
from keepfit_clip.knowledge.held_out import HeldOut
from keepfit_clip.model.tokenization import Tokenizer
from keepfit_clip.training.hybrid.evaluators import HeldOutShards, ZeroShotTable
from keepfit_clip.training.hybrid.settings import HybridPretraining
from keepfit_clip.training.hybrid.upstream import DataInfo, SharedEpoch, as_batch
from keepfit_clip.training.hybrid.validation import Validation

__all__ = ["Process", "samples_per_epoch", "training_data", "validation_data"]

_log = logging.getLogger(__name__)


class EpochLoader:
    """A DataLoader with the two figures open_clip's loop reads and, on a terminal, a bar with the time left of the run.

    Args:
        loader: of the mixed stream.
        num_batches: batches that this process sees in an epoch.
        num_samples: samples that all processes see in an epoch.
        epoch: gives the current one, counted from 0.
        epochs: of the run.
        show: whether this process shows progress.
    """

    def __init__(
        self,
        loader: DataLoader,
        num_batches: int,
        num_samples: int,
        epoch: Callable[[], int],
        epochs: int,
        show: bool,
    ):
        self.loader = loader
        self.num_batches = num_batches
        self.num_samples = num_samples
        self.epoch, self.epochs = epoch, epochs
        self.show = show
        self.limit: int | None = None  # batches after which it ends, before all are read

    def __iter__(self) -> Iterator:
        # disable=None: a bar on a terminal only, so that logs stay plain lines.
        bar = tqdm(
            desc=f"epoch {self.epoch() + 1}/{self.epochs}",
            total=self.epochs * self.num_batches,
            initial=self.epoch() * self.num_batches,
            unit="batch",
            leave=False,
            disable=None if self.show else True,
        )
        try:
            with bar, logging_redirect_tqdm() if not bar.disable else nullcontext():
                for images, texts in islice(self.loader, self.limit):
                    yield as_batch(images, texts)
                    bar.update()
        except ShardError as error:  # out of a worker it comes with the worker's whole traceback as its message
            raise ShardError(str(error).strip().splitlines()[-1].rpartition("ShardError: ")[2]) from error


@dataclass(frozen=True)
class Process:
    """Which of the processes of a run this is, and how it steps.

    Args:
        rank: its number, from 0.
        world_size: how many there are.
        accum_freq: batches whose gradients make one step.
    """

    rank: int = 0
    world_size: int = 1
    accum_freq: int = 1


def samples_per_epoch(settings: HybridPretraining) -> int:
    """Samples in an epoch: --train-num-samples, or as many as all shards hold."""
    if settings.train_num_samples:
        return settings.train_num_samples
    return sum(count_samples(list_shards(spec)) for spec in settings.training_data)


def validation_data(
    settings: HybridPretraining,
    preprocess_cfg: dict,
    preprocess: Callable,
    tokenizer: Tokenizer,
    knowledge: Knowledge,
) -> Validation:
    """What is evaluated while a run lasts.

    Args:
        settings: which shards and tables.
        preprocess_cfg: values of the image tower.
        preprocess: from a PIL image to a tensor (3, H, W), without augmentation.
        tokenizer: of the model.
        knowledge: words the texts.

    Raises:
        ConfigError, ShardError, TableError: shards or tables cannot be used.
    """
    tables = [ZeroShotTable(spec, tokenizer, preprocess, knowledge) for spec in settings.zeroshot_table]
    shards = []
    if settings.val_data:
        held_out = HeldOutShards(
            list_shards(settings.val_data),
            settings.batch_size,
            tokenizer,
            knowledge,
            preprocess_cfg,
            settings.caption_languages,
            settings.caption_samples,
        )
        shards.append(held_out)
    return Validation(shards, tables)


def _note_few_shards(kind: str, pools: list[ShardPool], workers: int) -> None:
    count = sum(len(pool.shards) for pool in pools)
    if 0 < count < workers:
        _log.info(f"{count} {kind} shards for {workers} workers: each worker reads all of them in an order of its own")


def training_data(
    settings: HybridPretraining,
    process: Process,
    preprocess_cfg: dict,
    tokenizer: Tokenizer,
    knowledge: Knowledge,
    epoch: int,
) -> DataInfo:
    """The mixed stream of one process, and how much of it is an epoch.

    Args:
        settings: which shards, and how they are mixed.
        process: that reads it.
        preprocess_cfg: values of the image tower.
        tokenizer: of the model.
        knowledge: words the public texts.
        epoch: the first one.

    Raises:
        ConfigError, CategoryError, ShardError: the settings or shards cannot be used.
    """
    workers = max(1, settings.workers)
    public, elite = _pools(settings, workers * process.world_size)
    global_batch = settings.batch_size * process.world_size
    batches_per_worker = math.ceil(math.ceil(samples_per_epoch(settings) / global_batch) / workers)
    num_batches = batches_per_worker * workers
    if num_batches < process.accum_freq:
        raise ConfigError(
            f"an epoch has {num_batches} batches, fewer than --accum-freq {process.accum_freq}: raise "
            "--train-num-samples"
        )
    held_out = HeldOut(settings.held_out_categories, knowledge) if settings.held_out_categories else None
    shared_epoch = SharedEpoch(epoch)
    stream = MixedStream(
        public,
        elite,
        StreamOptions(
            batch_size=settings.batch_size,
            elite_fraction=settings.elite_fraction,
            seed=settings.seed,
            rank=process.rank,
            augmentation=settings.augmentation,
            languages=settings.caption_languages,
            max_bad_fraction=settings.max_bad_fraction,
            held_out=held_out,
        ),
        batches_per_worker,
        shared_epoch.get_value,
        make_resizer(preprocess_cfg),
        tokenizer,
        held_out.knowledge if held_out else knowledge,
        preprocess_cfg["mean"],
        preprocess_cfg["std"],
        repeats=_repeats(settings, {"public": public, "elite": elite}),
    )
    loader = DataLoader(
        stream,
        batch_size=None,
        num_workers=settings.workers,
        persistent_workers=settings.workers > 0,
        generator=torch.Generator(),  # else starting workers, as only a resumed epoch does, shifts the dropout masks
    )
    epoch_loader = EpochLoader(
        loader, num_batches, num_batches * global_batch, shared_epoch.get_value, settings.epochs, process.rank == 0
    )
    return DataInfo(dataloader=epoch_loader, shared_epoch=shared_epoch)


def _repeats(settings: HybridPretraining, pools: dict[str, list[ShardPool]]) -> dict[str, dict[str, float]]:
    """Kind -> how often a sample of each category is used in a pass, where categories are balanced."""
    balances = {"public": settings.balance, "elite": settings.elite_balance}
    return {kind: category_repeats(of, balances[kind]) for kind, of in pools.items() if of}


def _pools(settings: HybridPretraining, readers: int) -> tuple[list[ShardPool], list[ShardPool]]:
    """Pools of public and of elite shards, looked at as far as what lies beside them tells."""
    public, elite = [], []
    if settings.public_data:
        public = make_pools(settings.public_data, settings.public_weights, settings.balance)
    if settings.elite_data:
        elite = make_pools(settings.elite_data, settings.elite_weights, settings.elite_balance)
    for kind, pools in (("public", public), ("elite", elite)):
        check_kind([shard for pool in pools for shard in pool.shards], kind)
        _note_few_shards(kind, pools, readers)
    return public, elite
