"""The folder that `open_clip.create_model('local-dir:DIR')` loads: config, tokenizer, maybe weights and a card."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
from safetensors.torch import save_file
from torch import Tensor

from keepfit_clip.errors import CheckpointError, ConfigError, first_line
from keepfit_clip.files import new_folder, read_json, write_json, write_text
from keepfit_clip.folders.model_card import CARD_NAME, model_card
from keepfit_clip.folders.training_record import TRAINING_NAME, TrainingRecord
from keepfit_clip.model.config import OWN_PREPROCESS_KEYS, ModelConfig, check_preprocess_config, is_keepfit_config
from keepfit_clip.model.preprocess import of_open_clip
from keepfit_clip.model.pretrained import note_foreign_source

__all__ = [
    "CONFIG_NAME",
    "WEIGHTS_NAME",
    "FolderConfig",
    "check_config",
    "check_folder",
    "read_model_config",
    "require_model",
    "write_config",
    "write_model",
    "write_model_folder",
]

CONFIG_NAME = "open_clip_config.json"
WEIGHTS_NAME = "open_clip_model.safetensors"
_NOT_OF_A_TOWER = ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state*", "checkpoint-*")


@dataclass(frozen=True)
class FolderConfig:
    """What the config of a model folder holds.

    Args:
        model: `model_cfg`.
        preprocess: `preprocess_cfg`, open_clip's preprocessing values in force, as far as the file has some; and
            `crop` and `pad` where the model wants them.
    """

    model: ModelConfig
    preprocess: dict[str, Any]


def read_model_config(folder: str | Path) -> FolderConfig:
    """The config of a model folder.

    Raises:
        CheckpointError: there is no such folder or no config in it.
        ConfigError: the config is not JSON, not one of a KeepFIT model, or names what cannot be built.
    """
    path = Path(folder) / CONFIG_NAME
    if not path.is_file():
        raise CheckpointError(f"{folder} is no model folder (no {CONFIG_NAME}): make one with `keepfit-clip export`")
    try:
        config = read_json(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({first_line(error)})") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON ({error})") from error
    model = check_config(config, str(path), Path(folder))
    if model is None or "model_cfg" not in config:
        raise ConfigError(f"{path}: not the config of a KeepFIT model (no model_cfg with keepfit_cfg)")
    own = {key: value for key, value in model.keepfit.preprocess.items() if key in OWN_PREPROCESS_KEYS}
    return FolderConfig(model, {**config.get("preprocess_cfg", {}), **own})


def check_folder(folder: Path) -> None:
    """Checks the config of a folder before open_clip reads it; says nothing of folders of other models.

    Raises:
        ConfigError: it is one of ours and cannot be used.
    """
    try:
        config = read_json(folder / CONFIG_NAME)
    except (OSError, ValueError):  # missing, or not JSON: open_clip says so itself
        return
    check_config(config, str(folder / CONFIG_NAME), folder)


def check_config(config: Any, where: str, folder: Path | None = None) -> ModelConfig | None:
    """The model config in the content of an `open_clip_config.json`, checked; None where it is of no KeepFIT model.

    Args:
        config: as it was read.
        where: its file or repository, for the error.
        folder: where it lies on this machine; a text tower inside it is its own.

    Raises:
        ConfigError: it is of a KeepFIT model and cannot be used; names the key.
    """
    model_cfg = config.get("model_cfg", config) if isinstance(config, dict) else None
    if not is_keepfit_config(model_cfg):
        return None
    try:
        model = ModelConfig.from_dict(model_cfg)
        check_preprocess_config(config.get("preprocess_cfg", {}))
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    source = model.text.hf_model_name
    its_own = folder is not None and Path(source).resolve().is_relative_to(folder.resolve())
    if source and not its_own and source not in _registered_sources():
        note_foreign_source(source)
    return model


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


def write_model_folder(
    folder: Path, model: ModelConfig, preprocess_cfg: dict, tokenizer, text_tower: Path | None = None
) -> None:
    """Writes config and tokenizer into an existing folder.

    Args:
        folder: where to.
        model: its config.
        preprocess_cfg: open_clip preprocessing values in force.
        tokenizer: from `open_clip.get_tokenizer`; the BPE one needs no files.
        text_tower: a Hugging Face folder to copy in and to name as the source of the text tower's weights.
    """
    if text_tower is not None:
        shutil.copytree(text_tower, folder / "text_tower", ignore=shutil.ignore_patterns(*_NOT_OF_A_TOWER))
    if hasattr(tokenizer, "save_pretrained"):
        tokenizer.save_pretrained(str(folder))
    write_config(folder, model, preprocess_cfg)


def write_config(folder: Path, model: ModelConfig, preprocess_cfg: dict) -> None:
    """Writes the config alone."""
    stored = {"model_cfg": model.to_dict(), "preprocess_cfg": of_open_clip(preprocess_cfg)}
    write_json(folder / CONFIG_NAME, stored)


def write_model(
    out: Path,
    model: ModelConfig,
    preprocess_cfg: dict,
    tokenizer,
    state: Mapping[str, Tensor],
    history: Mapping[str, object],
    record: TrainingRecord | None = None,
) -> None:
    """Makes a folder of a model with its weights and its card, with no path of this machine in it.

    Args:
        out: folder to make.
        model: its config.
        preprocess_cfg: open_clip preprocessing values in force.
        tokenizer: from `open_clip.get_tokenizer`, or transformers' own.
        state: the model's state dict.
        history: where the weights come from, for the card: labels and values.
        record: what they were trained with, where that is known.
    """
    model = model.portable()
    if record is not None:
        history = {**history, **record.lines}
    with new_folder(out) as folder:
        write_model_folder(folder, model, preprocess_cfg, tokenizer)
        save_file({key: value.contiguous() for key, value in state.items()}, folder / WEIGHTS_NAME)
        write_text(folder / CARD_NAME, model_card(model, preprocess_cfg, history))
        if record is not None:
            write_json(folder / TRAINING_NAME, record.to_json())


def _registered_sources() -> set[str]:
    """Where the registered configs' text towers come from: hub names and wheels."""
    configs = (open_clip.get_model_config(name) for name in open_clip.list_models())
    return {ModelConfig.from_dict(config).text.hf_model_name for config in configs if is_keepfit_config(config)}
