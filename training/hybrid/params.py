"""The flags of stage 2: ours first, everything else goes to open_clip_train."""

import argparse
import importlib.util
from collections.abc import Sequence
from datetime import datetime

import torch

from keepfit_clip.data.stream.sampling import BALANCES
from keepfit_clip.errors import ConfigError, MissingExtraError
from keepfit_clip.extras import install_command
from keepfit_clip.folders.loading import pick_device
from keepfit_clip.training.hybrid.objective import PRESETS, SCHEDULES
from keepfit_clip.training.hybrid.plausibility import check_elite
from keepfit_clip.training.hybrid.upstream import parse_args as upstream_parse_args
from keepfit_clip.training.hybrid.upstream import world_info_from_env

__all__ = ["UNSUPPORTED", "keepfit_parser", "parse_keepfit_args", "upstream_argv"]

# Flags of open_clip_train whose objective or model is another one.
UNSUPPORTED = {
    "--distill-model": "the objective has no distillation",
    "--distill-pretrained": "the objective has no distillation",
    "--siglip": "the objective is soft-CLIP, not the sigmoid loss",
    "--horovod": "features are gathered with torch.distributed; start with torchrun",
    "--trace": "a traced model cannot be trained",
    "--torchscript": "the caption decoder cannot be scripted",
    "--force-quick-gelu": "KeepFIT towers have no QuickGELU",
    "--force-custom-text": "KeepFIT models always have a text tower of their own",
    "--use-bnb-linear": "int8 layers are not supported",
    "--coca-caption-loss-weight": "use --caption-weight",
    "--coca-contrastive-loss-weight": "use --contrastive-weight",
    "--loss-dist-impl": "features are always gathered with gradient",
    "--aug-cfg": "augmentation is this library's own; --no-augment turns it off",
    "--train-data": "give --public-data and --elite-data",
    "--train-data-upsampling-factors": "use --elite-fraction, --public-weights and --elite-weights",
    "--dataset-type": "training reads shards of `keepfit-clip shards build`",
    "--dataset-resampled": "training data are always drawn anew",
    "--csv-separator": "training reads shards of `keepfit-clip shards build`, which finds it out itself",
    "--csv-img-key": "training reads shards; give the column to `keepfit-clip shards build`",
    "--csv-caption-key": "training reads shards; give the column to `keepfit-clip shards build`",
    "--imagenet-val": "evaluation is zero-shot over --val-data and --zeroshot-table",
    "--imagenet-v2": "evaluation is zero-shot over --val-data and --zeroshot-table",
    "--val-num-samples": "all of --val-data is evaluated",
    "--copy-codebase": "it would copy the whole Python environment",
}


def keepfit_parser() -> argparse.ArgumentParser:
    """The parser of our own flags and of those of open_clip_train that get another default here."""
    parser = argparse.ArgumentParser(
        prog="keepfit-clip train",
        description="Hybrid pretraining (stage 2) of KeepFIT V2 by open_clip's training loop.",
        epilog="All other flags are open_clip_train's own: --workers, --accum-freq, --grad-checkpointing, --resume, "
        "--save-most-recent, --report-to, --lock-image, --lock-text, --use-bn-sync, ... Refused, with the reason, are "
        f"{', '.join(UNSUPPORTED)}.",
        allow_abbrev=False,
    )
    data = parser.add_argument_group("data")
    data.add_argument(
        "--public-data",
        metavar="SHARDS",
        help="shards of public samples: a folder, a brace pattern, a URL, pipe:COMMAND, or several joined by '::'",
    )
    data.add_argument("--elite-data", metavar="SHARDS", help="the same, of elite samples")
    data.add_argument("--val-data", metavar="SHARDS", help="held-out shards of both kinds, see --val-frequency")
    data.add_argument(
        "--zeroshot-table",
        action="append",
        default=[],
        metavar="NAME[@MODALITY]=TABLE.csv:ROOT",
        help="a table of labelled images, classified zero-shot, see --zeroshot-frequency; may be given several times",
    )
    data.add_argument("--caption-samples", type=int, default=4, help="captions written at each evaluation (4)")
    data.add_argument("--elite-fraction", type=float, default=0.5, help="share of elite samples in every batch (0.5)")
    data.add_argument("--public-weights", metavar="W::W", help="how often each part of --public-data is drawn from")
    data.add_argument("--elite-weights", metavar="W::W", help="the same for --elite-data")
    data.add_argument(
        "--balance",
        choices=BALANCES,
        default="none",
        help="draw public samples evenly from every folder of shards (dataset) or for every category (category); "
        "none draws each as often as it stands there",
    )
    data.add_argument("--languages", default="en", help="of the captions used, joined by ',' (en)")
    data.add_argument(
        "--max-bad-fraction", type=float, default=0.1, help="share of unreadable samples that ends the run (0.1)"
    )
    data.add_argument("--knowledge", metavar="FILE", help="knowledge file instead of the shipped one")
    data.add_argument("--no-augment", action="store_true", help="train on the images as they are")
    model = parser.add_argument_group("model")
    model.add_argument("--text-tower", metavar="DIR", help="text tower from textual pretraining (stage 1)")
    model.add_argument(
        "--image-tower", metavar="FILE", help="encoder to start from: RETFound's, or any of timm's names"
    )
    model.add_argument(
        "--allow-source",
        action="append",
        default=[],
        metavar="NAME",
        help="hub name or folder that the config of --model local-dir:DIR names for its text tower; may be repeated",
    )
    model.add_argument("--random-text", action="store_true", help="start from a text tower without pretrained weights")
    loss = parser.add_argument_group("objective")
    loss.add_argument(
        "--preset",
        choices=PRESETS,
        default="v2",
        help="contrastive: FLAIR's, public data only; v1: and elite data, text revision; v2: and captions (v2)",
    )
    loss.add_argument("--contrastive-weight", type=float, default=1.0, help="of the soft-CLIP terms (1)")
    loss.add_argument("--revision-weight", type=float, help="of the text revision (the preset's: 100)")
    loss.add_argument("--caption-weight", type=float, help="of the NLL of elite captions (the preset's: 1)")
    loss.add_argument("--public-caption-weight", type=float, default=0.0, help="of the NLL of public texts (0)")
    loss.add_argument(
        "--caption-schedule",
        choices=SCHEDULES,
        default="constant",
        help="how the weight of elite captions goes from --caption-weight-start to --caption-weight (constant)",
    )
    loss.add_argument("--caption-weight-start", type=float, default=0.0, help="where the schedule starts (0)")
    loss.add_argument("--caption-schedule-steps", type=int, help="steps the schedule takes (the whole run)")
    loss.add_argument(
        "--freeze-text-steps", type=int, default=0, help="keep the text encoder as it is for so many steps (0)"
    )
    loss.add_argument(
        "--skip-nonfinite", type=int, default=0, metavar="N", help="go on after at most N steps of NaN or infinity (0)"
    )
    loss.add_argument("--joint-contrast", action="store_true", help="contrast public and elite pairs in one matrix")
    changed = parser.add_argument_group("open_clip_train's, with other defaults")
    changed.add_argument("--model", default="keepfit-v2", help="config name or local-dir:DIR (keepfit-v2)")
    changed.add_argument("--logs", default="runs", help="where run folders are made (runs)")
    changed.add_argument("--name", help="name of the run folder (model and time)")
    changed.add_argument("--seed", type=int, default=0)
    changed.add_argument("--batch-size", type=int, default=64, help="per process (64)")
    changed.add_argument("--epochs", type=int, default=15)
    changed.add_argument("--workers", type=int, default=2, help="data workers per process (2)")
    changed.add_argument("--lr", type=float, default=1e-4)
    changed.add_argument("--wd", type=float, default=1e-5)
    changed.add_argument("--beta1", type=float, default=0.9)
    changed.add_argument("--beta2", type=float, default=0.98)
    changed.add_argument("--eps", type=float, default=1e-6)
    changed.add_argument("--warmup", type=int, help="steps (one epoch)")
    changed.add_argument("--grad-clip-norm", type=float, default=1.0)
    changed.add_argument("--log-every-n-steps", type=int, default=20)
    changed.add_argument("--device", help="cuda, cpu, ... (CUDA where there is one)")
    changed.add_argument("--precision", help="fp32, amp, amp_bf16, ... (amp_bf16 on CUDA, else fp32)")
    changed.add_argument("--resume", help="a checkpoint, or 'latest' for this run's own")
    changed.add_argument("--pretrained", default="", help="open_clip checkpoint file to start from")
    changed.add_argument("--zeroshot-frequency", type=int, default=1, help="epochs between two looks at the tables (1)")
    changed.add_argument("--train-num-samples", type=int, help="samples in one (virtual) epoch (all there are)")
    return parser


def parse_keepfit_args(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Our flags, checked, and the rest for open_clip_train.

    Raises:
        ConfigError: flags that cannot work together or not with our objective.
    """
    args, rest = keepfit_parser().parse_known_args(argv)
    if not (args.public_data or args.elite_data or args.val_data or args.zeroshot_table):
        raise ConfigError(
            "nothing to train on: give --public-data and --elite-data, --elite-data alone, or --public-data alone with "
            "--preset contrastive"
        )
    if args.image_tower and (args.pretrained or "--pretrained-image" in rest):
        raise ConfigError("--image-tower and other weights for the image tower exclude each other")
    if args.random_text and args.text_tower:
        raise ConfigError("--random-text and --text-tower exclude each other")
    _apply_preset(args)
    check_elite(args)
    for name in ("contrastive_weight", "revision_weight", "caption_weight", "public_caption_weight",
                 "caption_weight_start", "freeze_text_steps", "skip_nonfinite", "caption_samples"):  # fmt: skip
        if getattr(args, name) < 0:
            raise ConfigError(f"--{name.replace('_', '-')} is negative")
    _check_upstream(rest)
    if args.name is None:
        if world_info_from_env()[2] > 1:
            raise ConfigError("with several processes give --name, so that all of them share one run folder")
        args.name = f"{args.model.rstrip('/').rpartition('/')[2]}-{datetime.now():%Y%m%d-%H%M%S}"
    if args.device is not None:
        pick_device(args.device)
    else:
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.precision is None:
        args.precision = "amp_bf16" if args.device.startswith("cuda") else "fp32"
    if "--use-bn-sync" in rest and args.device.startswith("cpu") and world_info_from_env()[2] > 1:
        raise ConfigError("--use-bn-sync needs GPUs: torch has no SyncBatchNorm for the CPU")
    return args, rest


def _apply_preset(args: argparse.Namespace) -> None:
    """Fills in what the preset says and no flag does."""
    preset = PRESETS[args.preset]
    if args.revision_weight is None:
        args.revision_weight = preset.revision_weight
    if args.caption_weight is None:
        args.caption_weight = preset.caption_weight
    if not preset.elite:
        if args.elite_data and not args.public_data:
            raise ConfigError(f"--preset {args.preset} trains on public data only: give --public-data")
        args.elite_data = None
    args.without_decoder = preset.caption_weight == 0 == args.caption_weight + args.public_caption_weight


def _check_upstream(rest: Sequence[str]) -> None:
    """Finds what open_clip_train would only find out later, by a crash."""
    upstream = vars(upstream_parse_args([*rest]))
    for flag in (word.partition("=")[0] for word in rest if word.startswith("--")):
        exact = flag.removeprefix("--").replace("-", "_") in upstream  # else the parser took it as an abbreviation
        meant = [name for name in UNSUPPORTED if name == flag or (not exact and name.startswith(flag))]
        if meant:
            raise ConfigError(f"{meant[0]} cannot be used here: {UNSUPPORTED[meant[0]]}")
    if upstream["lr_scheduler"] == "const-cooldown" and upstream["epochs_cooldown"] is None:
        raise ConfigError("--lr-scheduler const-cooldown needs --epochs-cooldown")
    if upstream["lr_scheduler"] not in ("cosine", "const", "const-cooldown"):
        raise ConfigError(f"--lr-scheduler {upstream['lr_scheduler']} is none of cosine, const, const-cooldown")
    if upstream["opt"] != "adamw" and not upstream["opt"].startswith("timm/"):
        raise ConfigError(f"--opt {upstream['opt']} is neither adamw nor timm/NAME")
    if upstream["delete_previous_checkpoint"] and upstream["save_frequency"] > 1 and not upstream["save_most_recent"]:
        raise ConfigError(
            "--delete-previous-checkpoint with --save-frequency above 1 would delete the only checkpoint there is: "
            "use --save-most-recent instead"
        )
    for name in ("tensorboard", "wandb"):
        asked = name in upstream["report_to"] or "all" in upstream["report_to"]
        if asked and importlib.util.find_spec(name) is None:
            raise MissingExtraError(f"--report-to {upstream['report_to']} needs {name}: {install_command('track')}")


def upstream_argv(args: argparse.Namespace, rest: Sequence[str], train_data: str | None) -> list[str]:
    """The argument list for open_clip_train's own parser.

    Args:
        args: ours.
        rest: what our parser did not know.
        train_data: set where there is something to train on; upstream makes an optimizer then.
    """
    shared = ("model", "logs", "name", "seed", "batch_size", "epochs", "workers", "lr", "wd", "beta1", "beta2", "eps",
              "grad_clip_norm", "log_every_n_steps", "device", "precision", "resume", "pretrained", "train_num_samples",
              "val_data", "zeroshot_frequency")  # fmt: skip
    argv = ["--warmup", str(args.warmup or 0)]
    for name in shared:
        value = getattr(args, name)
        if value is not None and value != "":
            argv += [f"--{name.replace('_', '-')}", str(value)]
    if train_data:
        argv += ["--train-data", train_data, "--dataset-type", "webdataset"]
    return [*argv, *rest]
