"""From a training run or one of its checkpoints to a model folder that open_clip loads, offline, tokenizer included."""

import re
from pathlib import Path

import open_clip
import torch
from torch import Tensor, nn

from keepfit_clip.errors import CheckpointError
from keepfit_clip.files import read_json, require_free
from keepfit_clip.folders.model_folder import read_model_config, write_model
from keepfit_clip.folders.training_record import TrainingRecord, record_of_run
from keepfit_clip.folders.weightless import weights_follow
from keepfit_clip.knowledge.conditions import Knowledge
from keepfit_clip.model.state_dicts import fit_of

__all__ = ["check_state_dict", "export_model", "find_checkpoint", "load_training_checkpoint", "read_checkpoint"]

RUN_MODEL = "model"  # the model folder inside a run folder
RUN_CHECKPOINTS = "checkpoints"
RUN_SETTINGS = "settings.json"
AVERAGE = "averaged_state_dict"  # in a checkpoint: the weights averaged over the steps, which are used


def export_model(run_or_checkpoint: str | Path, out: str | Path) -> Path:
    """Writes the weights of a run as a model folder.

    Args:
        run_or_checkpoint: a run folder (its latest checkpoint is taken) or one checkpoint in it.
        out: folder to make; it must not hold anything yet.

    Returns:
        The checkpoint that was exported.

    Raises:
        CheckpointError: no checkpoint, not one of ours, or of another architecture.
        OutputError: `out` holds something already.
    """
    out = require_free(out)
    checkpoint = find_checkpoint(run_or_checkpoint)
    source = checkpoint.parent.parent / RUN_MODEL
    config = read_model_config(source)
    name = f"local-dir:{source}"
    with weights_follow():
        model = open_clip.create_model(name, load_weights=False, pretrained_text=False, pretrained_image=False)
    state = load_training_checkpoint(checkpoint)
    check_state_dict(model, state, checkpoint)
    tokenizer = open_clip.get_tokenizer(name)
    record = _record(source.parent)
    write_model(out, config.model, config.preprocess, tokenizer, state, _history(checkpoint), record)
    return checkpoint


def _record(run: Path) -> TrainingRecord | None:
    """What the run of a checkpoint saw; None where it does not tell."""
    try:
        settings = read_json(run / RUN_SETTINGS)
    except (OSError, ValueError):
        return None
    return record_of_run(settings, Knowledge.load()) if isinstance(settings, dict) else None


def _history(checkpoint: Path) -> dict[str, object]:
    """What a checkpoint tells of its training, for the model card."""
    content = read_checkpoint(checkpoint)
    flags = {f"training: {name.replace('_', ' ')}": value for name, value in content.get("flags", {}).items()}
    return {
        "weights": f"trained by keepfit-clip train for {content.get('epoch', '?')} epochs",
        **{name: value for name, value in flags.items() if value is not None},
    }


def find_checkpoint(run_or_checkpoint: str | Path) -> Path:
    """The checkpoint itself, or the latest one of a run folder.

    Raises:
        CheckpointError: there is none.
    """
    path = Path(run_or_checkpoint)
    if path.is_file():
        return path.resolve()
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such run folder or checkpoint")
    folder = path / RUN_CHECKPOINTS
    checkpoints = [p for p in folder.glob("epoch_*.pt") if re.fullmatch(r"epoch_(\d+|latest)\.pt", p.name)]
    if not checkpoints:
        raise CheckpointError(f"{path} holds no checkpoint ({RUN_CHECKPOINTS}/epoch_N.pt): has the training saved one?")
    return max(checkpoints, key=_epoch).resolve()


def _epoch(checkpoint: Path) -> int:
    """How many epochs a checkpoint has seen; `epoch_latest.pt` does not say so in its name."""
    number = checkpoint.stem.removeprefix("epoch_")
    return int(number) if number.isdigit() else int(read_checkpoint(checkpoint).get("epoch", 0))


def read_checkpoint(path: str | Path) -> dict:
    """What a checkpoint of open_clip's loop holds, on the CPU and left on the disk until it is used.

    Raises:
        CheckpointError: the file cannot be read.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises many kinds for damaged files
        raise CheckpointError(f"{path}: not a readable checkpoint ({type(error).__name__})") from error
    return content if isinstance(content, dict) else {}


def load_training_checkpoint(path: Path) -> dict[str, Tensor]:
    """The model's state dict out of a checkpoint of open_clip's loop, on the CPU, without DDP's prefix.

    Where the run averaged its weights over the steps it is these.

    Raises:
        CheckpointError: the file cannot be read or holds something else.
    """
    content = read_checkpoint(path)
    state = content.get(AVERAGE) or content.get("state_dict")
    if not isinstance(state, dict) or not state:
        raise CheckpointError(f"{path}: holds no state_dict, so it is no checkpoint of a training run")
    return {key.removeprefix("module."): value for key, value in state.items()}


def check_state_dict(model: nn.Module, state: dict[str, Tensor], name: str | Path) -> None:
    """Raises CheckpointError, with what differs, unless the state dict fits the model exactly."""
    fit = fit_of(model.state_dict(), state)
    if not fit:
        raise CheckpointError(f"{name} is of another architecture: {fit}")
