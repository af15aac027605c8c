"""The settings of stage 2: each is written once, as a field, and is at once a flag, checked, kept and reported.

Marks of a field say what else it is for: "upstream" goes on to open_clip_train's own parser, "shapes" has a part in
what is learnt and stands in every checkpoint and in the model card, "report" is shown in a run's page.
"""

import argparse
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from typing_extensions import Self

from keepfit_clip.data.stream.augment import AUGMENTATIONS
from keepfit_clip.data.stream.sampling import BALANCES
from keepfit_clip.errors import ConfigError
from keepfit_clip.folders.loading import pick_device
from keepfit_clip.model.loss import IMPLIED
from keepfit_clip.processor import has_fast_bfloat16
from keepfit_clip.training.flags import flag_of, listed, marked, setting
from keepfit_clip.training.hybrid.logs import LEVELS
from keepfit_clip.training.hybrid.objective import PRESETS, SCHEDULES

__all__ = ["HEAD_LR", "HybridPretraining", "reported", "shaping"]

HEAD_LR = 1e-3  # of layers that no weights were pretrained for

# What of open_clip_train's own flags shapes what is learnt, and what a run's page shows of them.
_SHAPING_UPSTREAM = ("accum_freq", "lr_scheduler", "world_size")
_REPORTED_UPSTREAM = ("world_size", "accum_freq", "pretrained_image")

_data = partial(setting, group="data")
_model = partial(setting, group="model")
_loss = partial(setting, group="objective")
_changed = partial(setting, group="open_clip_train's, with other defaults")
_program = partial(setting, group="the program")
_SHARDS = "shards of public samples: a folder, a brace pattern, a URL, pipe:COMMAND, or several joined by '::'"


@dataclass(frozen=True)
class HybridPretraining:
    """Settings of stage 2; the help of each field says what it is.

    Raises:
        ConfigError: settings that cannot work, or not together.
    """

    public_data: str | None = _data(None, _SHARDS, metavar="SHARDS", marks=["report"])
    elite_data: str | None = _data(None, "the same, of elite samples", metavar="SHARDS", marks=["report"])
    val_data: str | None = _data(
        None, "held-out shards of both kinds, see --val-frequency", metavar="SHARDS", marks=["report", "upstream"]
    )
    zeroshot_table: tuple[str, ...] = _data(
        (),
        "a table of labelled images, classified zero-shot, see --zeroshot-frequency; may be given several times",
        metavar="NAME[@MODALITY]=TABLE.csv:ROOT",
    )
    caption_samples: int = _data(4, "captions written at each evaluation", marks=["not negative"])
    elite_fraction: float = _data(0.5, "share of elite samples in every batch", marks=["shapes", "report"])
    public_weights: str | None = _data(
        None, "how often each part of --public-data is drawn from", metavar="W::W", marks=["shapes"]
    )
    elite_weights: str | None = _data(None, "the same for --elite-data", metavar="W::W", marks=["shapes"])
    balance: str = _data(
        "none",
        "draw public samples evenly from every folder of shards (dataset) or for every category (category), or half "
        "the way there (root: by the square root of how rare it is); none draws each as often as it stands there",
        choices=BALANCES,
        marks=["shapes"],
    )
    elite_balance: str = _data(
        "none",
        "the same for elite samples; by category where their tables name some (none)",
        choices=BALANCES,
        marks=["shapes"],
    )
    languages: str = _data("en", "of the captions used, joined by ','", marks=["shapes"])
    max_bad_fraction: float = _data(0.1, "share of unreadable samples that ends the run")
    knowledge: str | None = _data(None, "knowledge file instead of the shipped one", metavar="FILE")
    hold_out_categories: str | None = _data(
        None,
        "train without the public samples of these, and without what the knowledge says of them (joined by ',')",
        metavar="NAME,NAME",
        marks=["shapes", "report"],
    )
    augmentation: str = _data(
        "mild",
        "none, mild (FLAIR's) or strong (also colours, light, blur and zoom of other cameras)",
        choices=AUGMENTATIONS,
        marks=["shapes", "report"],
    )

    crop: bool = _data(
        False,
        "cut the black border off colour photographs; the model does so from then on wherever it is used",
        marks=["shapes", "report"],
    )

    text_tower: str | None = _model(
        None, "text tower from textual pretraining (stage 1)", metavar="DIR", marks=["report"]
    )
    image_tower: str | None = _model(
        None, "encoder to start from: RETFound's, or any of timm's names", metavar="FILE", marks=["report"]
    )
    no_pretrained_image: bool = _model(
        False, "start from a random image tower, although pretrained weights are within reach"
    )
    allow_source: tuple[str, ...] = _model(
        (),
        "hub name or folder that the config of --model local-dir:DIR names for its text tower; may be repeated",
        metavar="NAME",
    )
    random_text: bool = _model(False, "start from a text tower without pretrained weights")

    preset: str = _loss(
        "v2",
        "contrastive: FLAIR's, public data only; v1: and elite data, text revision; v2: and captions (v2)",
        choices=PRESETS,
        marks=["shapes", "report"],
    )
    contrastive_weight: float = _loss(1.0, "of the soft-CLIP terms", marks=["shapes", "report", "not negative"])
    revision_weight: float | None = _loss(
        None, "of the text revision (the preset's: 100)", marks=["shapes", "report", "not negative"]
    )
    caption_weight: float | None = _loss(
        None, "of the NLL of elite captions (the preset's: 1)", marks=["shapes", "report", "not negative"]
    )
    public_caption_weight: float = _loss(0.0, "of the NLL of public texts", marks=["shapes", "not negative"])
    caption_schedule: str = _loss(
        "constant",
        "how the weight of elite captions goes from --caption-weight-start to --caption-weight (constant)",
        choices=SCHEDULES,
        marks=["shapes", "report"],
    )
    caption_weight_start: float = _loss(0.0, "where the schedule starts", marks=["shapes", "not negative"])
    caption_schedule_steps: int | None = _loss(None, "steps the schedule takes (the whole run)", marks=["shapes"])
    freeze_text_steps: int = _loss(
        0, "keep the text encoder as it is for so many steps", marks=["shapes", "not negative"]
    )
    skip_nonfinite: int = _loss(
        0, "go on after at most N steps of NaN or infinity", metavar="N", marks=["not negative"]
    )
    implied: str = _loss(
        "positive",
        "what a public text is that follows from what is known of another image ('no glaucoma' of a normal one): "
        "positive, of no account (mask), or negative as any other (positive)",
        choices=IMPLIED,
        marks=["shapes", "report"],
    )
    joint_contrast: bool = _loss(False, "contrast public and elite pairs in one matrix", marks=["shapes"])

    model: str = _changed("keepfit-v2", "config name or local-dir:DIR", marks=["upstream", "report"])
    logs: str = _changed("runs", "where run folders are made", marks=["upstream"])
    name: str | None = _changed(None, "name of the run folder (model and time)", marks=["upstream"])
    seed: int = _changed(0, "of every draw", marks=["upstream", "shapes", "report"])
    batch_size: int = _changed(64, "per process", marks=["upstream", "shapes", "report"])
    epochs: int = _changed(15, "virtual ones, see --train-num-samples", marks=["upstream", "shapes", "report"])
    workers: int = _changed(2, "data workers per process", marks=["upstream", "shapes"])
    lr: float = _changed(1e-4, "learning rate", marks=["upstream", "shapes", "report"])
    wd: float = _changed(1e-5, "weight decay", marks=["upstream", "shapes", "report"])
    beta1: float = _changed(0.9, "of AdamW", marks=["upstream", "shapes", "report"])
    beta2: float = _changed(0.98, "of AdamW", marks=["upstream", "shapes", "report"])
    eps: float | None = _changed(
        None, "of AdamW (1e-8; 1e-6 where weights are in half precision)", marks=["upstream", "shapes", "report"]
    )
    warmup: int | None = _changed(None, "steps (--warmup-share of the run)", marks=["shapes", "report"])
    warmup_share: float = _changed(0.05, "share of the run's steps in which the rate rises")
    head_lr: float | None = _changed(
        None,
        f"learning rate of projections, decoder and revision ({HEAD_LR:g}, or --lr where that is more)",
        marks=["shapes", "report", "not negative"],
    )
    layer_decay: float = _changed(
        1.0, "factor of the rate from each layer of a tower to the one below it", marks=["shapes", "report"]
    )
    ema_decay: float = _changed(
        0.999, "of the averaged weights that evaluation and export use; 0 keeps none", marks=["shapes", "report"]
    )
    grad_clip_norm: float = _changed(1.0, "norm to which gradients are clipped", marks=["upstream", "shapes", "report"])
    log_every_n_steps: int = _changed(20, "steps between two lines of the log", marks=["upstream"])
    device: str | None = _changed(None, "cuda, cpu, ... (CUDA where there is one)", marks=["upstream"])
    precision: str | None = _changed(
        None,
        "fp32, amp, amp_bf16, ... (amp_bf16 on CUDA and on processors with AMX, else fp32)",
        marks=["upstream", "shapes", "report"],
    )
    resume: str | None = _changed(None, "a checkpoint, or 'latest' for this run's own", marks=["upstream"])
    pretrained: str = _changed("", "open_clip checkpoint file to start from", marks=["upstream"])
    zeroshot_frequency: int = _changed(1, "epochs between two looks at the tables", marks=["upstream"])
    train_num_samples: int | None = _changed(
        None, "samples in one (virtual) epoch (all there are)", marks=["upstream", "shapes", "report"]
    )

    dry_run: bool = _program(
        False, "make a few steps in a temporary folder and say what the run would read, take and write"
    )
    log_level: str = _program("info", "what the terminal shows; RUN/debug.log has everything (info)", choices=LEVELS)

    def __post_init__(self):
        if not (self.public_data or self.elite_data or self.val_data or self.zeroshot_table):
            raise ConfigError(
                "nothing to train on: give --public-data and --elite-data, --elite-data alone, or --public-data alone "
                "with --preset contrastive"
            )
        if self.image_tower and self.pretrained:
            raise ConfigError("--image-tower and other weights for the image tower exclude each other")
        if self.random_text and self.text_tower:
            raise ConfigError("--random-text and --text-tower exclude each other")
        if not (0 < self.layer_decay <= 1 and 0 <= self.ema_decay < 1 and 0 <= self.warmup_share <= 1):
            raise ConfigError(
                "--layer-decay lies above 0 and up to 1, --ema-decay from 0 and below 1, --warmup-share from 0 to 1"
            )
        for name in marked(type(self), "not negative"):
            if (getattr(self, name) or 0) < 0:
                raise ConfigError(f"{flag_of(name)} is negative")

    @classmethod
    def of(cls, flags: argparse.Namespace, processes: int = 1) -> Self:
        """The settings that flags ask for, with what the preset, the machine and the clock say where no flag does.

        Args:
            flags: as the parser gives them.
            processes: of the run.
        """
        values = {f.name: getattr(flags, f.name) for f in fields(cls)}
        given = cls(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})
        return given._with_preset()._with_machine(processes)

    def _with_preset(self) -> Self:
        preset = PRESETS[self.preset]
        if not preset.elite and self.elite_data and not self.public_data:
            raise ConfigError(f"--preset {self.preset} trains on public data only: give --public-data")
        weights = {
            name: getattr(preset, name) if getattr(self, name) is None else getattr(self, name)
            for name in ("revision_weight", "caption_weight")
        }
        learns = [name.removesuffix("_weight") for name, weight in weights.items() if weight]
        elite_data = self.elite_data if preset.elite else None
        if self.public_data and not elite_data and learns:
            raise ConfigError(
                f"--preset {self.preset} learns from elite pairs ({' and '.join(learns)}), and none are given: give "
                "--elite-data, or train on public data alone with --preset contrastive"
            )
        return replace(self, elite_data=elite_data, **weights)

    def _with_machine(self, processes: int) -> Self:
        name = self.name
        if name is None:
            if processes > 1:
                raise ConfigError("with several processes give --name, so that all of them share one run folder")
            name = f"{self.model.rstrip('/').rpartition('/')[2]}-{datetime.now():%Y%m%d-%H%M%S}"
        if self.device is not None:
            pick_device(self.device)
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        fast = device.startswith("cuda") or (device == "cpu" and has_fast_bfloat16())
        precision = self.precision or ("amp_bf16" if fast else "fp32")
        # The smallest number of fp16 is 6e-8: a smaller epsilon is nothing, by which AdamW would divide.
        eps = self.eps if self.eps is not None else (1e-6 if "fp16" in precision else 1e-8)
        return replace(self, name=name, device=device, precision=precision, eps=eps)

    @property
    def run(self) -> Path:
        """The run folder."""
        return Path(self.logs) / self.name

    @property
    def training_data(self) -> list[str]:
        """What is trained on: the specifications of public and elite shards that are given; empty to evaluate only."""
        return [spec for spec in (self.public_data, self.elite_data) if spec]

    @property
    def without_decoder(self) -> bool:
        """Whether no caption is learnt, so that a model needs no decoder."""
        return PRESETS[self.preset].caption_weight == 0 == self.caption_weight + self.public_caption_weight

    @property
    def held_out_categories(self) -> tuple[str, ...]:
        """`hold_out_categories`, one by one."""
        return listed(self.hold_out_categories)

    @property
    def caption_languages(self) -> tuple[str, ...]:
        """`languages`, one by one."""
        return listed(self.languages)


def shaping(values: dict[str, Any]) -> dict[str, Any]:
    """Of all flags of a run those that shape what is learnt."""
    return _chosen(values, (*marked(HybridPretraining, "shapes"), *_SHAPING_UPSTREAM))


def reported(values: dict[str, Any]) -> dict[str, Any]:
    """Of all flags of a run those that its page shows, where they have a value."""
    chosen = _chosen(values, (*marked(HybridPretraining, "report"), *_REPORTED_UPSTREAM))
    return {name: value for name, value in chosen.items() if value not in (None, "", [])}


def _chosen(values: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: values[name] for name in names if name in values}
