"""Hybrid pretraining (stage 2) by open_clip_train's own main and loop.

    torchrun --nproc-per-node 2 -m keepfit_clip.training.main -- --model keepfit-v2-lite \
        --public-data DIR --elite-data DIR --val-data DIR --name my-run

This is the only file that replaces names of open_clip_train. While a run lasts, these are others:

    parse_args               our flags first, the rest to upstream's parser
    get_data                 the mixed stream and the held-out shards
    create_loss              HybridLoss
    evaluate                 caption NLL and zero-shot classes over the held-out shards
    train_one_epoch          upstream's own, with generators seeded per epoch, every term logged, troubles reported
    DistributedDataParallel  without device_ids for modules on the CPU, which torch refuses
    pt_load                  with an error that names the checkpoint
    torch.save               under a temporary name, then renamed
"""

import logging
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import open_clip_train.main as upstream_main
import torch
from open_clip_train.distributed import is_master, world_info_from_env
from open_clip_train.params import parse_args as upstream_parse_args
from open_clip_train.train import train_one_epoch as upstream_train_one_epoch
from open_clip_train.train import unwrap_model
from safetensors import safe_open

from keepfit_clip.errors import CheckpointError, ConfigError, exit_code
from keepfit_clip.loss import HybridLoss
from keepfit_clip.training.data import build_data, samples_per_epoch
from keepfit_clip.training.loss_log import LossLog
from keepfit_clip.training.params import parse_keepfit_args, upstream_argv
from keepfit_clip.training.run_folder import prepare_run
from keepfit_clip.training.validation import evaluate

__all__ = ["main"]

_SMALL_DISK = 64 * 2**20  # bytes; torch does not say why it could not write


class _Run:
    """One run: our flags and the functions that stand in for upstream's."""

    def __init__(self, argv: Sequence[str]):
        self.args, self.rest = parse_keepfit_args(argv)
        self.config: dict = {}

    def parse_args(self, _argv):
        train = self.args.public_data or self.args.elite_data
        upstream = upstream_parse_args(upstream_argv(self.args, self.rest, train))
        if train and self.args.warmup is None:
            upstream.warmup = self._steps_per_epoch() // upstream.accum_freq
        self._check_run_is_new(upstream)
        if self.args.pretrained:
            _check_readable(self.args.pretrained)
        upstream.model, self.config = prepare_run(self.args, upstream)
        return upstream

    def _steps_per_epoch(self) -> int:
        _, _, world_size = world_info_from_env()
        return max(1, samples_per_epoch(self.args) // (self.args.batch_size * world_size))

    def _check_run_is_new(self, upstream) -> None:
        folder = Path(upstream.logs) / upstream.name
        _, rank, _ = world_info_from_env()
        if rank == 0 and upstream.resume != "latest" and (folder / "out.log").exists():
            raise ConfigError(f"{folder} holds a run already: go on with --resume latest, or choose another --name")
        if upstream.resume and upstream.resume != "latest" and not Path(upstream.resume).is_file():
            raise CheckpointError(f"--resume {upstream.resume}: no such checkpoint")

    def get_data(self, upstream, _preprocess, epoch=0, tokenizer=None):
        return build_data(self.args, upstream, self.config, tokenizer, epoch)

    def create_loss(self, _upstream) -> HybridLoss:
        return HybridLoss(
            contrastive_weight=self.args.contrastive_weight,
            revision_weight=self.args.revision_weight,
            caption_weight=self.args.caption_weight,
            public_caption_weight=self.args.public_caption_weight,
            joint_contrast=self.args.joint_contrast,
        )

    def train_one_epoch(self, model, data, loss, epoch, optimizer, scaler, scheduler, dist_model, args, tb_writer=None):
        # A resumed run draws the dropout masks that the uninterrupted one would have drawn.
        seed = random.Random(f"{args.seed} {epoch} {args.rank}").getrandbits(32)
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        unwrap_model(model).caption_public = self.args.public_caption_weight > 0
        if is_master(args):
            steps = data["train"].dataloader.num_batches // args.accum_freq
            loss = LossLog(
                loss, Path(args.logs) / args.name, epoch, steps, args.log_every_n_steps, calls_per_step=args.accum_freq
            )
        upstream_train_one_epoch(
            model, data, loss, epoch, optimizer, scaler, scheduler, dist_model, args, tb_writer=tb_writer
        )
        logging.info(f"data so far in this run: {data['train'].dataloader.loader.dataset.troubles.summary()}")


def main(argv: Sequence[str] | None = None) -> None:
    """Trains, resumes or evaluates as the flags say.

    Raises:
        KeepFITError: with one sentence on what is wrong.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # workers fork after the tokenizer was used
    run = _Run(sys.argv[1:] if argv is None else list(argv))
    with _patched(run), _own_logging():
        try:
            code = upstream_main.main(argv)
        except RuntimeError as error:
            if "loading state_dict" not in str(error):
                raise
            start = f"--resume {run.args.resume}" if run.args.resume else f"--pretrained {run.args.pretrained}"
            differing = " ".join(str(error).split())[:300]
            raise CheckpointError(f"{start}: the checkpoint is of another architecture: {differing}") from error
        except ValueError as error:
            if "parameter group" not in str(error):
                raise
            raise CheckpointError(
                f"--resume {run.args.resume}: other parameters were trained in that run: "
                "give the same --lock-image and --lock-text flags"
            ) from error
    if code not in (None, 0):  # only where it gave up before it started
        raise ConfigError(f"open_clip_train refused to start {run.args.name}; its last line above says why")


@contextmanager
def _patched(run: _Run) -> Iterator[None]:
    """Puts our functions in place of upstream's while the block runs."""
    replacements = {
        (upstream_main, "parse_args"): run.parse_args,
        (upstream_main, "get_data"): run.get_data,
        (upstream_main, "create_loss"): run.create_loss,
        (upstream_main, "evaluate"): evaluate,
        (upstream_main, "train_one_epoch"): run.train_one_epoch,
        (upstream_main, "pt_load"): _explained_load(upstream_main.pt_load),
        (torch.nn.parallel, "DistributedDataParallel"): _ddp_on_any_device(torch.nn.parallel.DistributedDataParallel),
        (torch, "save"): _save_then_rename(torch.save),
    }
    missing = [name for (module, name) in replacements if not hasattr(module, name)]
    if missing:
        raise ConfigError(f"this open_clip_train lacks {', '.join(missing)}: pip install 'open_clip_torch>=3.3,<4'")
    originals = {place: getattr(*place) for place in replacements}
    try:
        for (module, name), function in replacements.items():
            setattr(module, name, function)
        yield
    finally:
        for (module, name), function in originals.items():
            setattr(module, name, function)


@contextmanager
def _own_logging() -> Iterator[None]:
    """Gives the run's log handlers to the run alone; upstream also raises the level of every logger there is."""
    root = logging.getLogger()
    handlers, levels = root.handlers, {name: logging.getLogger(name).level for name in root.manager.loggerDict}
    root_level = root.level
    root.handlers = [logging.NullHandler()]  # else the first log line installs a handler, and each stands twice
    try:
        yield
    finally:
        for handler in root.handlers:  # the run's log file among them
            handler.close()
        root.handlers = handlers
        root.setLevel(root_level)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _ddp_on_any_device(original: type) -> Callable:
    def build(module, device_ids=None, **options):
        on_cpu = next(module.parameters()).device.type == "cpu"
        return original(module, device_ids=None if on_cpu else device_ids, **options)

    return build


def _save_then_rename(original: Callable) -> Callable:
    def save(content, path, *args, **kwargs):
        if not isinstance(path, (str, os.PathLike)):
            return original(content, path, *args, **kwargs)
        partial = f"{os.fspath(path)}.partial"  # not *.pt, so that `--resume latest` never picks it
        try:
            original(content, partial, *args, **kwargs)
            os.replace(partial, path)
        except (OSError, RuntimeError) as error:
            full = shutil.disk_usage(Path(path).parent).free < _SMALL_DISK
            Path(partial).unlink(missing_ok=True)
            why = "no space is left on the disk" if full else str(error).splitlines()[0]
            raise CheckpointError(f"{path}: could not be saved ({why}); earlier checkpoints are untouched") from error

    return save


def _check_readable(path: str) -> None:
    """Raises CheckpointError unless a file of weights can be read."""
    if not Path(path).is_file():
        raise CheckpointError(f"--pretrained {path}: no such file")
    try:
        if path.endswith(".safetensors"):
            with safe_open(path, framework="pt") as file:
                file.keys()
        else:
            torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch and safetensors raise many kinds for damaged files
        raise CheckpointError(f"--pretrained {path}: not readable weights ({type(error).__name__})") from error


def _explained_load(original: Callable) -> Callable:
    def load(path, map_location=None):
        try:
            checkpoint = original(path, map_location=map_location)
        except Exception as error:  # torch raises many kinds for damaged files
            raise CheckpointError(f"{path}: not a readable checkpoint ({type(error).__name__})") from error
        trained = {"state_dict", "optimizer"}  # beside the epoch; without an epoch it is a bare state dict
        complete = isinstance(checkpoint, dict) and ("epoch" not in checkpoint or trained <= set(checkpoint))
        if not complete:
            raise CheckpointError(f"{path}: not a checkpoint of a training run")
        return checkpoint

    return load


if __name__ == "__main__":
    sys.exit(exit_code("keepfit-clip train", main))
