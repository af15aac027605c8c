"""What imports of every kind need: a tokenizer by its name, a kind's image tower in a config, a config's model."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from transformers import AutoTokenizer

from keepfit_clip.folders.imports.kinds import Kind
from keepfit_clip.model.config import ModelConfig
from keepfit_clip.model.image_tower import with_backbone
from keepfit_clip.model.keepfit import KeepFIT
from keepfit_clip.model.preprocess import default_preprocess
from keepfit_clip.model.pretrained import load_pretrained, resolve_source, unreachable

__all__ = ["build", "load_tokenizer", "with_tower"]


def load_tokenizer(name: str):
    """The tokenizer of a hub name or a folder.

    Raises:
        MissingWeightsError: it cannot be read.
    """
    source = resolve_source(name)
    try:
        return load_pretrained(AutoTokenizer, source)
    except (OSError, ValueError) as error:
        raise unreachable(name, error, "--tokenizer") from error


def build(config: ModelConfig) -> KeepFIT:
    """The model of a config; what no weights are for is the same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return KeepFIT(config, default_preprocess())


def with_tower(config: ModelConfig, kind: Kind, told: Mapping[str, Any], backbone: str | None) -> ModelConfig:
    """A config with the image tower of a kind of checkpoint.

    Args:
        config: to begin with.
        kind: its settings of the image tower and its preprocessing values are taken.
        told: settings that the tensors tell; they stand above the kind's.
        backbone: timm's name that the user gave; it stands above both, with the size timm knows for it.

    Raises:
        ConfigError: timm has no such backbone.
    """
    settings = {**kind.vision, **told}
    name = backbone or settings.get("timm_model_name")
    if name and name != config.vision.timm_model_name:
        config = with_backbone(config, name)
    if backbone:  # the kind's size is that of the kind's own
        settings = {key: value for key, value in settings.items() if key not in ("timm_model_name", "image_size")}
    config = replace(config, vision=replace(config.vision, **settings))
    return config.with_preprocess(**kind.preprocess)
