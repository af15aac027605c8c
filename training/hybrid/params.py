"""The flags of stage 2: ours first, everything else goes to open_clip_train."""

import argparse
import importlib.util
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from keepfit_clip.errors import ConfigError, MissingExtraError
from keepfit_clip.extras import install_command
from keepfit_clip.training.config_file import RunFile, with_config
from keepfit_clip.training.flags import FlagParser, add_flags, flag_of, marked
from keepfit_clip.training.hybrid.run_folder import SETTINGS_NAME
from keepfit_clip.training.hybrid.settings import HEAD_LR, HybridPretraining
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
    "--aug-cfg": "augmentation is this library's own: --augmentation none, mild or strong",
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

_RUN_FILE = RunFile(
    SETTINGS_NAME,
    names_only=("public_data", "elite_data", "val_data", "zeroshot_table", "text_tower", "image_tower", "pretrained",
                "allow_source", "knowledge", "remote_sync"),
    passed_over=("logs", "name", "resume", "device", "cache_dir", "world_size", "manifests", "trained_before",
                 "dry_run", *(flag.removeprefix("--").replace("-", "_") for flag in UNSUPPORTED)),
)  # fmt: skip
_EXAMPLES = (
    "keepfit-clip train --model keepfit-v2-lite --public-data shards/public --elite-data shards/elite --name first",
    "keepfit-clip train --config run.yaml --dry-run",
    "keepfit-clip train --config runs/first --public-data more --elite-data shards/elite --name second --lr 3e-4",
)


def keepfit_parser() -> FlagParser:
    """The parser of our own flags and of those of open_clip_train that get another default here."""
    parser = FlagParser(
        _EXAMPLES,
        prog="keepfit-clip train",
        description="Hybrid pretraining (stage 2) of KeepFIT V2 by open_clip's training loop.\n"
        "All of open_clip_train's own flags work too, but for those of another objective or model: --help-all.",
    )
    add_flags(parser, HybridPretraining)
    parser.add_argument("--help-all", action=_HelpAll, nargs=0, help="show open_clip_train's flags too and exit")
    return parser


class _HelpAll(argparse.Action):
    """Shows our help and open_clip_train's, with a word on each flag that is refused."""

    def __call__(self, parser, *_):
        parser.print_help()
        print("\nopen_clip_train's own flags; those above go before. Refused are:")
        print("\n".join(f"  {flag}: {why}" for flag, why in UNSUPPORTED.items()))
        upstream_parse_args(["--help"])


def parse_keepfit_args(argv: Sequence[str]) -> tuple[HybridPretraining, list[str]]:
    """Our settings, checked, and the rest for open_clip_train.

    Raises:
        ConfigError: flags that cannot work together or not with our objective.
    """
    parser = keepfit_parser()
    upstreams = vars(upstream_parse_args([]))
    own = {f.name: list(f.default) if isinstance(f.default, tuple) else f.default for f in fields(HybridPretraining)}
    flags, rest = parser.parse_known_args(with_config(argv, {**upstreams, **own}, _RUN_FILE))
    parser.require_known(rest, [flag_of(name) for name in upstreams])
    processes = world_info_from_env()[2]
    settings = HybridPretraining.of(flags, processes)
    if settings.image_tower and "--pretrained-image" in rest:
        raise ConfigError("--image-tower and other weights for the image tower exclude each other")
    upstream = _check_upstream(rest, settings)
    if settings.head_lr is None and upstream["opt"] == "adamw":
        settings = replace(settings, head_lr=max(settings.lr, HEAD_LR))
    if "--use-bn-sync" in rest and settings.device.startswith("cpu") and processes > 1:
        raise ConfigError("--use-bn-sync needs GPUs: torch has no SyncBatchNorm for the CPU")
    return settings, rest


def _check_upstream(rest: Sequence[str], settings: HybridPretraining) -> dict[str, Any]:
    """open_clip_train's own flags; finds what it would only find out later, by a crash."""
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
    if upstream["opt"] != "adamw" and (settings.head_lr is not None or settings.layer_decay != 1):
        raise ConfigError(f"--head-lr and --layer-decay are AdamW's, not --opt {upstream['opt']}'s: leave them out")
    if upstream["delete_previous_checkpoint"] and upstream["save_frequency"] > 1 and not upstream["save_most_recent"]:
        raise ConfigError(
            "--delete-previous-checkpoint with --save-frequency above 1 would delete the only checkpoint there is: "
            "use --save-most-recent instead"
        )
    for name in ("tensorboard", "wandb"):
        asked = name in upstream["report_to"] or "all" in upstream["report_to"]
        if asked and importlib.util.find_spec(name) is None:
            raise MissingExtraError(f"--report-to {upstream['report_to']} needs {name}: {install_command('track')}")
    return upstream


def upstream_argv(settings: HybridPretraining, rest: Sequence[str], train_data: str | None) -> list[str]:
    """The argument list for open_clip_train's own parser.

    Args:
        settings: ours.
        rest: what our parser did not know.
        train_data: set where there is something to train on; upstream makes an optimizer then.
    """
    argv = ["--warmup", str(settings.warmup or 0)]
    for name in marked(HybridPretraining, "upstream"):
        value = getattr(settings, name)
        if value is not None and value != "":
            argv += [flag_of(name), str(value)]
    if train_data:
        argv += ["--train-data", train_data, "--dataset-type", "webdataset"]
    return [*argv, *rest]
