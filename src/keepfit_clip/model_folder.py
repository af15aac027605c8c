"""The folder that `open_clip.create_model('local-dir:DIR')` loads: config, tokenizer, maybe weights and a card."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from keepfit_clip.errors import CheckpointError, ConfigError
from keepfit_clip.files import new_folder, write_json, write_text
from keepfit_clip.model_card import CARD_NAME, model_card
from keepfit_clip.registry import is_keepfit_config

__all__ = ["CONFIG_NAME", "WEIGHTS_NAME", "read_model_config", "require_model", "write_model", "write_model_folder"]

CONFIG_NAME = "open_clip_config.json"
WEIGHTS_NAME = "open_clip_model.safetensors"
_NOT_OF_A_TOWER = ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state*", "checkpoint-*")


def read_model_config(folder: str | Path) -> dict[str, Any]:
    """The config of a model folder: `model_cfg` and `preprocess_cfg`.

    Raises:
        CheckpointError: there is no such folder or no config in it.
        ConfigError: the config is not JSON, or not one of a KeepFIT model.
    """
    path = Path(folder) / CONFIG_NAME
    if not path.is_file():
        raise CheckpointError(f"{folder} is no model folder (no {CONFIG_NAME}): make one with `keepfit-clip export`")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON ({error})") from error
    if not isinstance(config, dict) or not is_keepfit_config(config.get("model_cfg")):
        raise ConfigError(f"{path}: not the config of a KeepFIT model (no model_cfg with keepfit_cfg)")
    return config


def require_model(folder: str | Path) -> Path:
    """The folder, if it holds a model with weights; the prefix 'local-dir:' is taken off.

    Raises:
        CheckpointError: there is no such folder, no config or no weights in it.
        ConfigError: its config cannot be used.
    """
    folder = Path(str(folder).removeprefix("local-dir:"))
    read_model_config(folder)
    if not (folder / WEIGHTS_NAME).is_file():
        raise CheckpointError(f"{folder} holds no weights ({WEIGHTS_NAME}): export a trained run into it")
    return folder


def write_model_folder(folder: Path, model_cfg: dict, preprocess_cfg: dict, tokenizer, text_tower: Path | None = None):
    """Writes config and tokenizer into an existing folder.

    Args:
        folder: where to.
        model_cfg: an open_clip model config.
        preprocess_cfg: open_clip preprocessing values in force.
        tokenizer: from `open_clip.get_tokenizer`; the BPE one needs no files.
        text_tower: a Hugging Face folder to copy in and to name as the source of the text tower's weights.
    """
    if text_tower is not None:
        shutil.copytree(text_tower, folder / "text_tower", ignore=shutil.ignore_patterns(*_NOT_OF_A_TOWER))
    if hasattr(tokenizer, "save_pretrained"):
        tokenizer.save_pretrained(str(folder))
    write_json(folder / CONFIG_NAME, {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg})


def write_model(
    out: Path,
    model_cfg: dict,
    preprocess_cfg: dict,
    tokenizer,
    state: Mapping[str, Tensor],
    history: Mapping[str, object],
) -> None:
    """Makes a folder of a model with its weights and its card, with no path of this machine in it.

    Args:
        out: folder to make.
        model_cfg: an open_clip model config.
        preprocess_cfg: open_clip preprocessing values in force.
        tokenizer: from `open_clip.get_tokenizer`, or transformers' own.
        state: the model's state dict.
        history: where the weights come from, for the card: labels and values.
    """
    model_cfg = _portable(model_cfg)
    with new_folder(out) as folder:
        write_model_folder(folder, model_cfg, preprocess_cfg, tokenizer)
        save_file({key: value.contiguous() for key, value in state.items()}, folder / WEIGHTS_NAME)
        write_text(folder / CARD_NAME, model_card(model_cfg, preprocess_cfg, history))


def _portable(model_cfg: dict) -> dict:
    """The config without paths of this machine: the weights stand in the folder, so no source is needed."""
    text_cfg = dict(model_cfg["text_cfg"])
    for key in ("hf_model_name", "hf_tokenizer_name"):
        name = text_cfg.get(key, "")
        if name and Path(name).is_absolute():
            text_cfg[key] = Path(name).name
    return {**model_cfg, "text_cfg": text_cfg}
