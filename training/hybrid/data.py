"""What open_clip_train's loop reads: the mixed training stream and the held-out shards."""

import argparse
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from keepfit_clip.data.stream.decoding import make_letterbox
from keepfit_clip.data.stream.mixed import MixedStream, StreamOptions
from keepfit_clip.data.stream.sampling import ShardPool, category_repeats, make_pools
from keepfit_clip.data.tars.reader import check_kind, count_samples, list_shards
from keepfit_clip.errors import ConfigError, ShardError
from keepfit_clip.knowledge.conditions import Knowledge
from keepfit_clip.model.config import TextConfig, config_from_dict
from keepfit_clip.model.tokenization import Tokenizer
from keepfit_clip.training.hybrid.evaluators import HeldOutShards, ZeroShotTable
from keepfit_clip.training.hybrid.upstream import DataInfo, SharedEpoch, as_batch
from keepfit_clip.training.hybrid.validation import Validation

__all__ = ["build_data", "samples_per_epoch"]

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
                for images, texts in self.loader:
                    yield as_batch(images, texts)
                    bar.update()
        except ShardError as error:  # out of a worker it comes with the worker's whole traceback as its message
            raise ShardError(str(error).strip().splitlines()[-1].rpartition("ShardError: ")[2]) from error


def samples_per_epoch(args: argparse.Namespace) -> int:
    """Samples in an epoch: --train-num-samples, or as many as all shards hold."""
    if args.train_num_samples:
        return args.train_num_samples
    return sum(count_samples(list_shards(spec)) for spec in (args.public_data, args.elite_data) if spec)


def build_data(
    args: argparse.Namespace,
    upstream: argparse.Namespace,
    config: dict,
    open_clip_tokenizer: Callable,
    preprocess: Callable,
    epoch: int,
) -> dict[str, DataInfo]:
    """The `data` of open_clip's main: `train` and, with --val-data or tables, `val`.

    Args:
        args: our flags.
        upstream: open_clip's, with rank, world size and workers.
        config: of the run's model folder.
        open_clip_tokenizer: of the model.
        preprocess: from a PIL image to a tensor (3, H, W), without augmentation.
        epoch: the first one.

    Raises:
        ConfigError, ShardError: the flags or shards cannot be used.
    """
    text = config_from_dict(TextConfig, config["model_cfg"]["text_cfg"], "text_cfg")
    preprocess_cfg = config["preprocess_cfg"]
    tokenizer = Tokenizer(open_clip_tokenizer, text.context_length, text.pad_id, text.eos_id)
    knowledge = Knowledge.load(args.knowledge)
    data = {}
    if args.public_data or args.elite_data:
        data["train"] = _training_data(args, upstream, preprocess_cfg, tokenizer, knowledge, epoch)
    if args.val_data or args.zeroshot_table:
        shards, tables = [], []
        if upstream.rank == 0:  # the other ranks wait for it
            tables = [ZeroShotTable(spec, tokenizer, preprocess, knowledge) for spec in args.zeroshot_table]
        if upstream.rank == 0 and args.val_data:
            held_out = HeldOutShards(
                list_shards(args.val_data),
                upstream.batch_size,
                tokenizer,
                knowledge,
                preprocess_cfg,
                _languages(args),
                args.caption_samples,
            )
            shards.append(held_out)
        data["val"] = DataInfo(dataloader=Validation(shards, tables))
    return data


def _languages(args: argparse.Namespace) -> tuple[str, ...]:
    return tuple(language.strip() for language in args.languages.split(","))


def _note_few_shards(kind: str, pools: list[ShardPool], workers: int) -> None:
    count = sum(len(pool.shards) for pool in pools)
    if 0 < count < workers:
        _log.info(f"{count} {kind} shards for {workers} workers: each worker reads all of them in an order of its own")


def _training_data(args, upstream, preprocess_cfg, tokenizer, knowledge, epoch) -> DataInfo:
    public = make_pools(args.public_data, args.public_weights, args.balance) if args.public_data else []
    elite = make_pools(args.elite_data, args.elite_weights) if args.elite_data else []
    for kind, pools in (("public", public), ("elite", elite)):
        check_kind([shard for pool in pools for shard in pool.shards], kind)
        _note_few_shards(kind, pools, max(1, upstream.workers) * upstream.world_size)
    workers = max(1, upstream.workers)
    global_batch = upstream.batch_size * upstream.world_size
    batches_per_worker = math.ceil(math.ceil(samples_per_epoch(args) / global_batch) / workers)
    num_batches = batches_per_worker * workers
    if num_batches < upstream.accum_freq:
        raise ConfigError(
            f"an epoch has {num_batches} batches, fewer than --accum-freq {upstream.accum_freq}: raise "
            "--train-num-samples"
        )
    shared_epoch = SharedEpoch(epoch)
    stream = MixedStream(
        public,
        elite,
        StreamOptions(
            batch_size=upstream.batch_size,
            elite_fraction=args.elite_fraction,
            seed=args.seed,
            rank=upstream.rank,
            augment=not args.no_augment,
            languages=_languages(args),
            max_bad_fraction=args.max_bad_fraction,
        ),
        batches_per_worker,
        shared_epoch.get_value,
        make_letterbox(preprocess_cfg),
        tokenizer,
        knowledge,
        preprocess_cfg["mean"],
        preprocess_cfg["std"],
        repeats=category_repeats(public) if public and args.balance == "category" else None,
    )
    loader = DataLoader(
        stream,
        batch_size=None,
        num_workers=upstream.workers,
        persistent_workers=upstream.workers > 0,
        generator=torch.Generator(),  # else starting workers, as only a resumed epoch does, shifts the dropout masks
    )
    epoch_loader = EpochLoader(
        loader, num_batches, num_batches * global_batch, shared_epoch.get_value, upstream.epochs, upstream.rank == 0
    )
    return DataInfo(dataloader=epoch_loader, shared_epoch=shared_epoch)
