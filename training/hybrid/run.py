"""Hybrid pretraining (stage 2) by open_clip_train's own main and loop.

    torchrun --nproc-per-node 2 -m keepfit_clip.training.main -- --model keepfit-v2-lite \
        --public-data DIR --elite-data DIR --val-data DIR --name my-run

What stands there in place of open_clip_train's own functions is in upstream.py, the only file that imports it.
"""

import logging
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from keepfit_clip.errors import CheckpointError, ConfigError
from keepfit_clip.files import writing
from keepfit_clip.folders.export import AVERAGE, read_checkpoint
from keepfit_clip.folders.model_folder import FolderConfig
from keepfit_clip.knowledge.conditions import Knowledge
from keepfit_clip.model.config import TEXT_SOURCES
from keepfit_clip.model.keepfit import KeepFIT
from keepfit_clip.model.loss import HybridLoss
from keepfit_clip.model.preprocess import image_transform
from keepfit_clip.model.pretrained import allow_source
from keepfit_clip.model.state_dicts import read_weights
from keepfit_clip.model.tokenization import Tokenizer
from keepfit_clip.training.hybrid.averaging import AveragedWeights
from keepfit_clip.training.hybrid.causes import cause_of
from keepfit_clip.training.hybrid.checkpoints import (
    Checkpoints,
    check_readable,
    name_newest_latest,
    newest_checkpoint,
)
from keepfit_clip.training.hybrid.data import Process, samples_per_epoch, training_data, validation_data
from keepfit_clip.training.hybrid.dry_run import DRY_STEPS, DryRunDone, described, in_temporary_folder
from keepfit_clip.training.hybrid.guard import NonFiniteGuard
from keepfit_clip.training.hybrid.logs import set_up_logs, strip_folders
from keepfit_clip.training.hybrid.loss_log import LossLog
from keepfit_clip.training.hybrid.objective import CaptionSchedule, frozen
from keepfit_clip.training.hybrid.optimizer import parameter_groups, scaled_rates
from keepfit_clip.training.hybrid.outlook import (
    Pace,
    checkpoint_bytes,
    closing_lines,
    disk_line,
    kept_checkpoints,
)
from keepfit_clip.training.hybrid.params import parse_keepfit_args, upstream_argv
from keepfit_clip.training.hybrid.plausibility import check_held_out, doubts, image_weights_within_reach
from keepfit_clip.training.hybrid.run_folder import (
    begin_anew,
    begin_record,
    end_record,
    has_weights,
    only_run_in,
    prepare_run,
    write_settings,
)
from keepfit_clip.training.hybrid.settings import HybridPretraining, shaping
from keepfit_clip.training.hybrid.step_loss import StepLoss
from keepfit_clip.training.hybrid.upstream import (
    DataInfo,
    create_model_and_transforms,
    is_master,
    load_checkpoint,
    parse_args,
    run_main,
    train_one_epoch,
    unwrap_model,
    world_info_from_env,
)
from keepfit_clip.training.hybrid.validation import Validation, evaluate

__all__ = ["main"]

_log = logging.getLogger(__name__)

_LARGEST_LR = 1e30  # beyond, a step is no number of single precision any more


class _Run:
    """One run: our flags and the functions that stand in for upstream's.

    Args:
        settings: ours.
        rest: flags of open_clip_train alone.
        argv: the command line, as it is written down.
        steps: after which it ends with `DryRunDone`; None makes all.
    """

    def __init__(self, settings: HybridPretraining, rest: Sequence[str], argv: Sequence[str], steps: int | None = None):
        self.settings, self.rest, self.argv, self.steps = settings, rest, argv, steps
        for source in self.settings.allow_source:
            allow_source(source)
        self.config: FolderConfig | None = None  # once it is prepared
        self.flags: dict = {}
        self.model: KeepFIT | None = None
        self.guard: NonFiniteGuard | None = None
        self.average: AveragedWeights | None = None
        self.start: str | None = None  # the checkpoint that the run goes on from
        self.pace: Pace | None = None
        self.kept = 0  # checkpoints that lie on the disk at a time
        self.disk = ""  # what the checkpoints take, in words
        self.checkpoints = Checkpoints(torch.save, load_checkpoint, self._of_checkpoints)
        self.open = ExitStack()

    def functions(self) -> dict[str, Callable]:
        """Name in open_clip_train's main -> what stands there while this run lasts."""
        return {
            "parse_args": self.parse_args,
            "create_model_and_transforms": self.create_model_and_transforms,
            "get_data": self.get_data,
            "create_loss": self.create_loss,
            "evaluate": self.evaluate,
            "optim": SimpleNamespace(AdamW=self.create_optimizer),
            "train_one_epoch": self.train_one_epoch,
            "pt_load": self.checkpoints.load,
        }

    def wrapped(self) -> dict[str, Callable]:
        """Name in open_clip_train's main -> what makes another function of the one that stands there."""
        return {**_WRAPPED, "setup_logging": self._with_our_logs}

    def _with_our_logs(self, original: Callable) -> Callable:
        def setup(*args, **options):
            original(*args, **options)
            set_up_logs(self.settings.log_level)

        return setup

    def parse_args(self, _argv):
        settings, trains = self.settings, self.settings.training_data
        _, rank, world_size = world_info_from_env()
        upstream = parse_args(upstream_argv(settings, self.rest, "".join(trains[:1])))
        if trains and settings.warmup is None:
            steps = samples_per_epoch(settings) * settings.epochs // (settings.batch_size * world_size)
            upstream.warmup = round(settings.warmup_share * steps / upstream.accum_freq)
        self._check_start(upstream)
        if trains:
            check_held_out(settings)
            self.open.enter_context(only_run_in(settings.run))
        if rank == 0:
            if upstream.resume != "latest":
                begin_anew(settings.run)
            elif upstream.save_most_recent:
                name_newest_latest(settings.run)
        upstream.model, self.config = prepare_run(settings, upstream)
        self.start = newest_checkpoint(settings.run) if upstream.resume == "latest" else upstream.resume
        if trains and not self._has_weights() and not settings.no_pretrained_image:
            upstream.pretrained_image |= image_weights_within_reach(self.config.model.vision)
        self.kept = kept_checkpoints(
            settings.epochs, upstream.save_frequency, upstream.delete_previous_checkpoint, upstream.save_most_recent
        )
        flags = {**asdict(settings), **vars(upstream), "world_size": world_size}
        self.flags = shaping(flags)
        if trains and rank == 0:
            write_settings(settings.run, {**flags, "model": settings.model})
            begin_record(settings.run, self.argv, goes_on=bool(upstream.resume))
        return upstream

    def _has_weights(self) -> bool:
        """Whether the image tower starts from weights that a flag or a checkpoint brings."""
        s = self.settings
        return bool(self.start or s.image_tower or s.pretrained or has_weights(s.model))

    def _check_start(self, upstream) -> None:
        """Raises an error of ours where a run cannot start from what it is to start from."""
        if not 0 <= (upstream.lr or 0) <= _LARGEST_LR:
            raise ConfigError(f"--lr {upstream.lr}: is no learning rate; it is a number such as 5e-4")
        if upstream.resume and upstream.resume != "latest" and not Path(upstream.resume).is_file():
            raise CheckpointError(f"--resume {upstream.resume}: no such checkpoint")
        if self.settings.pretrained:
            check_readable(self.settings.pretrained)

    def _of_checkpoints(self) -> dict:
        """What each checkpoint holds beside open_clip's own; the model config without where its weights came from."""
        model_cfg = self.config.model.with_text(**dict.fromkeys(TEXT_SOURCES, "")).to_dict()
        average = {AVERAGE: self.average.model.state_dict()} if self.average else {}
        return {"model_cfg": model_cfg, "flags": self.flags, **average}

    def create_model_and_transforms(self, *args, **kwargs):
        if self.settings.training_data:
            random_image = not (self._has_weights() or kwargs.get("pretrained_image"))
            for doubt in doubts(self.settings, self.config.model, random_image):
                _log.warning(doubt)
        model, *transforms = create_model_and_transforms(*args, **kwargs)
        self.model = model
        if self.settings.image_tower and not self.start:
            left_out, _ = model.visual.load_backbone(read_weights(self.settings.image_tower), self.settings.image_tower)
            _log.info(f"the image tower starts from a file; {left_out} of its tensors are not the encoder's")
        if self.settings.training_data and world_info_from_env()[1] == 0:
            self._tell_disk(model)
        return model, *transforms

    def _tell_disk(self, model: KeepFIT) -> None:
        size = checkpoint_bytes(model, averaged=self.settings.ema_decay > 0)
        self.disk, fits = disk_line(size, self.kept, self.settings.run)
        _log.log(logging.INFO if fits else logging.WARNING, self.disk)

    def get_data(self, upstream, preprocess, epoch=0, tokenizer=None, **_):
        if is_master(upstream):
            strip_folders(Path(upstream.logs) / upstream.name)  # upstream has just written them
        settings, text, preprocess_cfg = self.settings, self.config.model.text, self.config.preprocess
        texts = Tokenizer(tokenizer, text.context_length, text.pad_id, text.eos_id)
        knowledge = Knowledge.load(settings.knowledge)
        data = {}
        if settings.training_data:
            process = Process(upstream.rank, upstream.world_size, upstream.accum_freq)
            data["train"] = training_data(settings, process, preprocess_cfg, texts, knowledge, epoch)
        if settings.val_data or settings.zeroshot_table:
            measured = Validation([], [])  # the other ranks wait for the first one
            if is_master(upstream):
                transform = image_transform(preprocess_cfg)
                measured = validation_data(settings, preprocess_cfg, transform, texts, knowledge)
            data["val"] = DataInfo(dataloader=measured)
        return data

    def create_optimizer(self, groups: list[dict], lr: float, **options) -> torch.optim.AdamW:
        """AdamW as open_clip_train asks for it, with groups of our own; a run that began without them goes on so."""
        if not self._goes_on_with_one_rate():
            decay = max(group["weight_decay"] for group in groups)
            head_scale = self.settings.head_lr / lr if lr else 1.0
            groups = parameter_groups(self.model, decay, head_scale, self.settings.layer_decay)
        return torch.optim.AdamW(groups, lr=lr, **options)

    def _goes_on_with_one_rate(self) -> bool:
        try:
            groups = read_checkpoint(self.start).get("optimizer", {}).get("param_groups", []) if self.start else []
        except CheckpointError:  # `Checkpoints.load` says what is wrong with it
            return False
        return bool(groups) and not any("lr_scale" in group for group in groups)

    def evaluate(self, model, *args, **options) -> dict:
        """`validation.evaluate` of the averaged weights, where there are some."""
        return evaluate(self.average.model if self.average else model, *args, **options)

    def create_loss(self, _upstream) -> HybridLoss:
        """Its weight of captions is the schedule's, which `StepLoss` sets at each step."""
        return HybridLoss(
            contrastive_weight=self.settings.contrastive_weight,
            revision_weight=self.settings.revision_weight,
            public_caption_weight=self.settings.public_caption_weight,
            joint_contrast=self.settings.joint_contrast,
            implied=self.settings.implied,
        )

    def train_one_epoch(self, model, data, loss, epoch, optimizer, scaler, scheduler, dist_model, args, tb_writer=None):
        _seed_everything(f"{self.settings.seed} {epoch} {args.rank}")
        bare_model = unwrap_model(model)
        bare_model.caption_public = self.settings.public_caption_weight > 0
        if self.guard is None:
            self.guard = NonFiniteGuard(bare_model, optimizer, self.settings.skip_nonfinite)
        steps = data["train"].dataloader.num_batches // args.accum_freq
        log = None
        if is_master(args):
            if self.average is None and self.settings.ema_decay:
                stored, self.checkpoints.average = self.checkpoints.average, None  # it is held once
                self.average = AveragedWeights(bare_model, optimizer, self.settings.ema_decay, epoch * steps, stored)
            log = LossLog(Path(args.logs) / args.name, epoch, steps, args.log_every_n_steps)
            if self.pace is None:
                self.pace = Pace(args.epochs, args.batch_size * args.accum_freq * args.world_size)
            self.pace.begin()
        schedule = CaptionSchedule(
            self.settings.caption_schedule,
            self.settings.caption_weight_start,
            self.settings.caption_weight,
            self.settings.caption_schedule_steps or max(1, steps * args.epochs),
        )
        step_loss = StepLoss(loss, schedule, self.guard, epoch, steps, args.accum_freq, log, self.pace)
        if self.steps is not None:
            data["train"].dataloader.limit = self.steps * args.accum_freq
        with ExitStack() as stack:
            if epoch * steps < self.settings.freeze_text_steps:
                text = bare_model.text.transformer
                stack.enter_context(frozen(text, optimizer, lambda: step_loss.step < self.settings.freeze_text_steps))
            train_one_epoch(
                model, data, step_loss, epoch, optimizer, scaler, scheduler, dist_model, args, tb_writer=tb_writer
            )
        self.guard.end_step()
        if self.steps is not None:
            raise DryRunDone(steps * args.epochs, self.pace.median, self.disk)
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
    argv = sys.argv[1:] if argv is None else list(argv)
    settings, rest = parse_keepfit_args(argv)
    _, rank, processes = world_info_from_env()
    if settings.dry_run:
        with in_temporary_folder(settings, processes) as elsewhere:
            try:
                _train(_Run(elsewhere, rest, argv, DRY_STEPS))
            except DryRunDone as done:
                print("\n".join(described(settings, done)))
        return
    start = time.monotonic()
    _train(_Run(settings, rest, argv))
    if settings.training_data and rank == 0:
        end_record(settings.run)
        print("\n".join(closing_lines(settings, time.monotonic() - start)))


def _train(run: _Run) -> None:
    with writing(run.settings.run), run.open:
        try:
            code = run_main(run.argv, run.functions(), run.checkpoints.save, run.wrapped())
        except (RuntimeError, ValueError) as error:
            cause = cause_of(error, run.settings)
            if cause is None:
                raise
            raise cause from error
    if code not in (None, 0):  # only where it gave up before it started
        raise ConfigError(f"open_clip_train refused to start {run.settings.name}; its last line above says why")


def _newest_or_remote(original: Callable) -> Callable:
    def newest(folder: str, remote: bool):
        return original(folder, remote) if remote else newest_checkpoint(Path(folder).parent)

    return newest


def _with_scaled_rates(original: Callable) -> Callable:
    def schedule(optimizer, *args, **options):
        return scaled_rates(original(optimizer, *args, **options), optimizer.param_groups)

    return schedule


# Those of `_Run.wrapped` that are the same for every run.
_WRAPPED = {
    "get_latest_checkpoint": _newest_or_remote,
    **dict.fromkeys(("cosine_lr", "const_lr", "const_lr_cooldown"), _with_scaled_rates),
}
