"""Hybrid pretraining (stage 2) by open_clip_train's own main and loop.

    torchrun --nproc-per-node 2 -m keepfit_clip.training.main -- --model keepfit-v2-lite \
        --public-data DIR --elite-data DIR --val-data DIR --name my-run

What stands there in place of open_clip_train's own functions is in upstream.py, the only file that imports it.
"""

import logging
import os
import random
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch

from keepfit_clip.errors import CheckpointError, ConfigError, KeepFITError
from keepfit_clip.files import writing
from keepfit_clip.model.loss import HybridLoss
from keepfit_clip.model.pretrained import allow_source
from keepfit_clip.model.state_dicts import read_weights
from keepfit_clip.training.hybrid.checkpoints import Checkpoints, check_readable, name_newest_latest, newest_checkpoint
from keepfit_clip.training.hybrid.data import build_data, samples_per_epoch
from keepfit_clip.training.hybrid.guard import NonFiniteGuard
from keepfit_clip.training.hybrid.loss_log import LossLog
from keepfit_clip.training.hybrid.objective import CaptionSchedule, frozen
from keepfit_clip.training.hybrid.params import parse_keepfit_args, upstream_argv
from keepfit_clip.training.hybrid.plausibility import check_held_out, doubts
from keepfit_clip.training.hybrid.run_folder import (
    begin_anew,
    forget_places,
    has_weights,
    log_names_only,
    only_run_in,
    prepare_run,
    write_settings,
)
from keepfit_clip.training.hybrid.step_loss import StepLoss
from keepfit_clip.training.hybrid.upstream import (
    create_model_and_transforms,
    is_master,
    load_checkpoint,
    parse_args,
    run_main,
    train_one_epoch,
    unwrap_model,
    world_info_from_env,
)
from keepfit_clip.training.hybrid.validation import evaluate

__all__ = ["main"]

_log = logging.getLogger(__name__)

# Flags that shape what is learnt; kept in each checkpoint, so that a run that goes on can say which of them changed.
_SHAPING = ("batch_size", "lr", "wd", "beta1", "beta2", "eps", "warmup", "epochs", "seed", "train_num_samples",
            "precision", "accum_freq", "world_size", "workers", "grad_clip_norm", "lr_scheduler")  # fmt: skip
_OUR_SHAPING = ("preset", "contrastive_weight", "revision_weight", "caption_weight", "public_caption_weight",
                "caption_schedule", "joint_contrast", "elite_fraction", "freeze_text_steps", "balance", "languages",
                "no_augment")  # fmt: skip
# All ranks wait for the first one's evaluation; NCCL's own patience is ten minutes.
_LARGEST_LR = 1e30  # beyond, a step is no number of single precision any more
_PATIENCE = timedelta(hours=1)


class _Run:
    """One run: our flags and the functions that stand in for upstream's."""

    def __init__(self, argv: Sequence[str]):
        self.args, self.rest = parse_keepfit_args(argv)
        for source in self.args.allow_source:
            allow_source(source)
        self.config: dict = {}
        self.flags: dict = {}
        self.guard: NonFiniteGuard | None = None
        self.checkpoints = Checkpoints(torch.save, load_checkpoint, self._model_cfg, lambda: self.flags)
        self.open = ExitStack()

    def functions(self) -> dict[str, Callable]:
        """Name in open_clip_train's main -> what stands there while this run lasts."""
        return {
            "parse_args": self.parse_args,
            "create_model_and_transforms": self.create_model_and_transforms,
            "get_data": self.get_data,
            "create_loss": self.create_loss,
            "evaluate": evaluate,
            "train_one_epoch": self.train_one_epoch,
            "pt_load": self.checkpoints.load,
        }

    def parse_args(self, _argv):
        train = self.args.public_data or self.args.elite_data
        upstream = parse_args(upstream_argv(self.args, self.rest, train))
        if train and self.args.warmup is None:
            upstream.warmup = self._steps_per_epoch() // upstream.accum_freq
        run = Path(self.args.logs) / self.args.name
        if not 0 <= (upstream.lr or 0) <= _LARGEST_LR:
            raise ConfigError(f"--lr {upstream.lr}: is no learning rate; it is a number such as 5e-4")
        if upstream.resume and upstream.resume != "latest" and not Path(upstream.resume).is_file():
            raise CheckpointError(f"--resume {upstream.resume}: no such checkpoint")
        if self.args.pretrained:
            check_readable(self.args.pretrained)
        if train:
            check_held_out(self.args)
            self.open.enter_context(only_run_in(run))
        if upstream.resume != "latest" and world_info_from_env()[1] == 0:
            begin_anew(run)
        if upstream.resume == "latest" and upstream.save_most_recent and world_info_from_env()[1] == 0:
            name_newest_latest(Path(self.args.logs) / self.args.name)
        upstream.model, self.config = prepare_run(self.args, upstream)
        _, _, world_size = world_info_from_env()
        given = {**vars(upstream), "world_size": world_size}
        self.flags = {name: given[name] for name in _SHAPING}
        self.flags |= {name: getattr(self.args, name) for name in _OUR_SHAPING}
        if train and world_info_from_env()[1] == 0:
            write_settings(Path(self.args.logs) / self.args.name, {**given, **vars(self.args)})
        return upstream

    def _model_cfg(self) -> dict:
        """The run's model config without the places its weights came from."""
        model_cfg = self.config["model_cfg"]
        text_cfg = {k: v for k, v in model_cfg["text_cfg"].items() if k not in ("hf_model_name", "hf_tokenizer_name")}
        return {**model_cfg, "text_cfg": text_cfg}

    def _steps_per_epoch(self) -> int:
        _, _, world_size = world_info_from_env()
        return max(1, samples_per_epoch(self.args) // (self.args.batch_size * world_size))

    def create_model_and_transforms(self, *args, **kwargs):
        if self.args.public_data or self.args.elite_data:
            from_weights = bool(self.args.pretrained) or has_weights(self.args.model)
            for doubt in doubts(self.args, self.rest, self.config["model_cfg"], from_weights):
                _log.warning(doubt)
        model, *transforms = create_model_and_transforms(*args, **kwargs)
        started = list((Path(self.args.logs) / self.args.name / "checkpoints").glob("*.pt"))
        if self.args.image_tower and not started:
            left_out, _ = model.visual.load_backbone(read_weights(self.args.image_tower), self.args.image_tower)
            _log.info(f"the image tower starts from a file; {left_out} of its tensors are not the encoder's")
        return model, *transforms

    def get_data(self, upstream, preprocess, epoch=0, tokenizer=None, **_):
        if is_master(upstream):
            forget_places(Path(upstream.logs) / upstream.name)  # upstream has just written them
        _, without_augmentation = preprocess
        return build_data(self.args, upstream, self.config, tokenizer, without_augmentation, epoch)

    def create_loss(self, _upstream) -> HybridLoss:
        """Its weight of captions is the schedule's, which `StepLoss` sets at each step."""
        return HybridLoss(
            contrastive_weight=self.args.contrastive_weight,
            revision_weight=self.args.revision_weight,
            public_caption_weight=self.args.public_caption_weight,
            joint_contrast=self.args.joint_contrast,
        )

    def train_one_epoch(self, model, data, loss, epoch, optimizer, scaler, scheduler, dist_model, args, tb_writer=None):
        _seed_everything(f"{self.args.seed} {epoch} {args.rank}")
        bare_model = unwrap_model(model)
        bare_model.caption_public = self.args.public_caption_weight > 0
        if self.guard is None:
            self.guard = NonFiniteGuard(bare_model, optimizer, self.args.skip_nonfinite)
        steps = data["train"].dataloader.num_batches // args.accum_freq
        log = None
        if is_master(args):
            log = LossLog(Path(args.logs) / args.name, epoch, steps, args.log_every_n_steps)
        schedule = CaptionSchedule(
            self.args.caption_schedule,
            self.args.caption_weight_start,
            self.args.caption_weight,
            self.args.caption_schedule_steps or max(1, steps * args.epochs),
        )
        step_loss = StepLoss(loss, schedule, self.guard, epoch, steps, args.accum_freq, log)
        with ExitStack() as stack:
            if epoch * steps < self.args.freeze_text_steps:
                text = bare_model.text.transformer
                stack.enter_context(frozen(text, optimizer, lambda: step_loss.step < self.args.freeze_text_steps))
            train_one_epoch(
                model, data, step_loss, epoch, optimizer, scaler, scheduler, dist_model, args, tb_writer=tb_writer
            )
        self.guard.end_step()
        _log.info(f"data so far in this run: {data['train'].dataloader.loader.dataset.left_out.summary()}")


def _seed_everything(name: str) -> None:
    """Seeds all generators: a resumed run draws the dropout masks that the uninterrupted one would have drawn."""
    seed = random.Random(name).getrandbits(32)
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def main(argv: Sequence[str] | None = None) -> None:
    """Trains, resumes or evaluates as the flags say.

    Raises:
        KeepFITError: with one sentence on what is wrong.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # workers fork after the tokenizer was used
    run = _Run(sys.argv[1:] if argv is None else list(argv))
    with writing(Path(run.args.logs) / run.args.name), run.open:
        try:
            code = run_main(argv, run.functions(), run.checkpoints.save, _WRAPPED)
        except (RuntimeError, ValueError) as error:
            explained = _explained(error, run.args)
            if explained is None:
                raise
            raise explained from error
    if code not in (None, 0):  # only where it gave up before it started
        raise ConfigError(f"open_clip_train refused to start {run.args.name}; its last line above says why")


def _explained(error: Exception, args) -> KeepFITError | None:
    """What an error out of torch means for the person at the terminal; None where that is not known."""
    words = " ".join(str(error).split())
    if "loading state_dict" in words:
        start = f"--resume {args.resume}" if args.resume else f"--pretrained {args.pretrained}"
        return CheckpointError(f"{start}: the checkpoint is of another architecture: {words[:300]}")
    if "parameter group" in words:
        return CheckpointError(
            f"--resume {args.resume}: other parameters were trained in that run: "
            "give the same --lock-image and --lock-text flags"
        )
    if any(sign in words for sign in _LOST_PEER):
        return KeepFITError("another process of this run has ended; what it said above is the reason")
    if isinstance(error, torch.distributed.DistError):
        return KeepFITError(f"the processes of this run cannot work together: {words[:400]}")
    if any(sign in words for sign in _SHARED_MEMORY):
        return KeepFITError(
            f"shared memory is full, through which the data workers send their batches ({words[:200]}): "
            "give the container more of it (docker run --shm-size 8g), or take fewer --workers"
        )
    return None


# What gloo and NCCL say when a process on the other side is gone.
_LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting",
              "remote process exited", "Application timeout caused pair closure")  # fmt: skip
_SHARED_MEMORY = ("shared memory", "</torch_", "/dev/shm")


def _with_names_only(original: Callable) -> Callable:
    def setup(*args, **options):
        original(*args, **options)
        log_names_only()

    return setup


def _newest_or_remote(original: Callable) -> Callable:
    def newest(folder: str, remote: bool):
        return original(folder, remote) if remote else newest_checkpoint(Path(folder).parent)

    return newest


# Name in open_clip_train's main -> what makes another function of the one that stands there.
_WRAPPED = {"setup_logging": _with_names_only, "get_latest_checkpoint": _newest_or_remote}
