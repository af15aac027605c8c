"""Checkpoints of a run: never half written, never of weights that are not finite, refused with what differs.

Beside what open_clip's loop puts into a checkpoint, each holds the resolved model config (`model_cfg`) and the flags
that shape what is learnt (`flags`), so that a run that goes on can say what changed.
"""

import logging
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from keepfit_clip.errors import CheckpointError, ConfigError, NonFiniteLossError, first_line
from keepfit_clip.files import writing
from keepfit_clip.finite import is_finite
from keepfit_clip.folders.export import AVERAGE, find_checkpoint
from keepfit_clip.model.config import ModelConfig
from keepfit_clip.training.hybrid.run_folder import differing_settings

__all__ = ["Checkpoints", "check_readable", "name_newest_latest", "newest_checkpoint"]

_log = logging.getLogger(__name__)

_SMALL_DISK = 64 * 2**20  # bytes; torch does not say why it could not write
_SHOWN = 5
_DDP = "module."
_TRAINED = {"state_dict", "optimizer"}  # beside the epoch; without an epoch it is a bare state dict


class Checkpoints:
    """What stands in for `torch.save` and open_clip_train's `pt_load` while a run lasts.

    Args:
        save: torch's own.
        load: open_clip_train's own.
        own: gives what a checkpoint of ours holds beside open_clip's own: `model_cfg`, the resolved model config of
            the run, `flags`, those that shape what is learnt, and maybe averaged weights.

    Attributes:
        average: the averaged weights of the checkpoint that the run goes on from, where it has some.
    """

    def __init__(self, save: Callable, load: Callable, own: Callable[[], dict[str, Any]]):
        self._save, self._load, self._own = save, load, own
        self.average: dict[str, Tensor] | None = None

    def save(self, content: Any, path: Any, *args: Any, **kwargs: Any) -> None:
        """Saves under a temporary name, on the disk before it is renamed.

        Raises:
            CheckpointError: it could not be written; what stood there before still stands.
            NonFiniteLossError: its weights are not finite.
        """
        if not isinstance(path, (str, os.PathLike)):
            return self._save(content, path, *args, **kwargs)
        if isinstance(content, dict) and set(content) >= _TRAINED:
            _check_finite(content["state_dict"], path)
            content = {**content, **self._own()}
        partial = f"{os.fspath(path)}.partial"  # not *.pt, so that `--resume latest` never picks it
        try:
            self._save(content, partial, *args, **kwargs)
            with open(partial, "rb+") as file:
                os.fsync(file.fileno())  # a machine that loses power must not leave the new name on old blocks
            os.replace(partial, path)
        except (OSError, RuntimeError) as error:
            full = shutil.disk_usage(Path(path).parent).free < _SMALL_DISK
            Path(partial).unlink(missing_ok=True)
            why = "no space is left on the disk" if full else first_line(error)
            raise CheckpointError(f"{path}: could not be saved ({why}); earlier checkpoints are untouched") from error

    def load(self, path: str, map_location: Any = None) -> Any:
        """Loads a checkpoint that this run may go on from.

        Raises:
            CheckpointError: it is damaged, no checkpoint of a training, or of another model config.
        """
        try:
            checkpoint = self._load(path, map_location=map_location)
        except Exception as error:  # torch raises many kinds for damaged files
            raise CheckpointError(
                f"{path}: not a readable checkpoint ({type(error).__name__}); without it the run goes on from the one "
                "before"
            ) from error
        if not isinstance(checkpoint, dict) or ("epoch" in checkpoint and not set(checkpoint) >= _TRAINED):
            raise CheckpointError(f"{path}: not a checkpoint of a training run")
        self._compare(path, checkpoint)
        self.average = checkpoint.pop(AVERAGE, None)
        return _for_all_processes(checkpoint) if torch.distributed.is_initialized() else checkpoint

    def _compare(self, path: str, checkpoint: Mapping) -> None:
        stored = checkpoint.get("model_cfg")
        try:
            model_cfg = ModelConfig.from_dict(stored).to_dict() if stored else self._own()["model_cfg"]
        except ConfigError as error:
            raise CheckpointError(f"{path}: its model config cannot be used: {error}") from error
        differing = differing_settings(model_cfg, self._own()["model_cfg"])
        if differing:
            raise CheckpointError(f"{path} was trained with another model config: {_listed(differing)}")
        before, now = checkpoint.get("flags", {}), self._own()["flags"]
        changed = differing_settings(before, {name: now.get(name) for name in before})
        if changed:
            _log.warning(f"going on with other flags than before: {_listed(changed)}")


def _for_all_processes(checkpoint: dict) -> dict:
    """With the names that DDP gives, which upstream only knows how to take away: one process saved, several go on."""
    state = checkpoint["state_dict"] if "epoch" in checkpoint else checkpoint
    named = {key if key.startswith(_DDP) else f"{_DDP}{key}": value for key, value in state.items()}
    return {**checkpoint, "state_dict": named} if "epoch" in checkpoint else named


def newest_checkpoint(run: Path) -> str | None:
    """The checkpoint of a run folder that has seen the most epochs, whatever its name; None where there is none."""
    return str(find_checkpoint(run)) if any((run / "checkpoints").glob("epoch_*.pt")) else None


def name_newest_latest(run: Path) -> None:
    """Lets open_clip's `--save-most-recent --resume latest`, which knows one name only, go on from the newest one."""
    newest, latest = newest_checkpoint(run), run / "checkpoints" / "epoch_latest.pt"
    if newest is not None and Path(newest).name != latest.name:
        partial = latest.with_name(f"{latest.name}.partial")
        with writing(latest):
            shutil.copyfile(newest, partial)
        os.replace(partial, latest)


def check_readable(path: str) -> None:
    """Raises CheckpointError unless a file of weights, given with --pretrained, can be read."""
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


def _check_finite(state: Mapping[str, Tensor], path: Any) -> None:
    bad = [key for key, value in state.items() if not is_finite(value)]
    if bad:
        raise NonFiniteLossError(
            f"{path} is not saved: {_listed(bad)} hold values that are not finite. Earlier checkpoints are untouched; "
            "go on from one with a lower --lr"
        )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
