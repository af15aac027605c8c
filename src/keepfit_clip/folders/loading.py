"""Loading a trained model for use, with errors that say what to do."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import open_clip
import torch
from torch import nn

from keepfit_clip.errors import CheckpointError, ConfigError, KeepFITError, first_line
from keepfit_clip.finite import is_finite
from keepfit_clip.folders.model_folder import require_model
from keepfit_clip.model.tokenization import Tokenizer

__all__ = ["LoadedModel", "load_model", "pick_device"]


@dataclass
class LoadedModel:
    """A model ready for use.

    Args:
        model: the KeepFIT model, in eval mode.
        preprocess: from a PIL image to a tensor (3, H, W).
        tokenizer: from `open_clip.get_tokenizer`, or a `Tokenizer`.
    """

    model: nn.Module
    preprocess: Callable
    tokenizer: Callable

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.logit_scale.device

    def decode(self, ids: torch.Tensor) -> list[str]:
        """Texts of generated token ids (B, L)."""
        return Tokenizer.of_model(self.model, self.tokenizer).decode(ids)


def pick_device(name: str | torch.device | None = None) -> torch.device:
    """The named device, or CUDA where there is one, else the CPU.

    Raises:
        ConfigError: torch knows no such device, or cannot compute on it here.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # "meta" holds no values, and a driver may be missing
    except (RuntimeError, ImportError, NotImplementedError) as error:
        raise ConfigError(f"--device {name}: cannot be used here ({first_line(error)[:200]})") from error
    return device


def load_model(folder: str | Path, device: str | torch.device | None = None, crop: bool | None = None) -> LoadedModel:
    """Loads an exported model folder, offline.

    Args:
        folder: made by `keepfit-clip export`; the prefix 'local-dir:' is allowed.
        device: CUDA where there is one by default.
        crop: whether the black border of colour photographs is cut off; as the model was trained by default.

    Raises:
        CheckpointError: no such folder, no weights in it, weights of another architecture, or weights that are not
            finite.
        ConfigError: its config cannot be used.
    """
    folder = require_model(folder)
    name = f"local-dir:{folder}"
    try:
        model = open_clip.create_model(name, device=pick_device(device))
        tokenizer = open_clip.get_tokenizer(name)
    except KeepFITError:
        raise
    except Exception as error:  # whatever a damaged file makes safetensors, torch or transformers say
        first_lines = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{folder}: the weights or the tokenizer cannot be loaded: {first_lines}") from error
    broken = [name for name, value in model.state_dict().items() if not is_finite(value)]
    if broken:
        raise CheckpointError(f"{folder}: {len(broken)} of its tensors hold NaN or infinity, e.g. {broken[0]}")
    model.eval()
    return LoadedModel(model, model.visual.image_transform(crop), tokenizer)
