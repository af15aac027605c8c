"""State dicts: reading them out of a file, and whether one fits a model."""

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from keepfit_clip.errors import MissingWeightsError

__all__ = ["Fit", "fit_of", "read_weights"]

_SHOWN = 5
_NESTED = ("model", "state_dict", "model_state_dict", "teacher")  # where checkpoints keep them; EyeCLIP's, DINOv2's


@dataclass(frozen=True)
class Fit:
    """What does not fit between a model and a state dict; false where anything does not.

    Args:
        missing: keys of the model that the state dict lacks.
        unknown: keys of the state dict that the model lacks.
        misshapen: key -> (the state dict's shape, the model's).
    """

    missing: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    misshapen: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return not self.problems

    @property
    def problems(self) -> list[str]:
        """One clause for each key that does not fit, of which the state dict is the subject."""
        return [
            *(f"lacks {key}" for key in self.missing),
            *(f"has the unknown {key}" for key in self.unknown),
            *(f"has {key} as {theirs} instead of {ours}" for key, (theirs, ours) in self.misshapen.items()),
        ]

    def of(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The part of the state dict that fits."""
        wrong = {*self.unknown, *self.misshapen}
        return {key: value for key, value in given.items() if key not in wrong}

    def __str__(self) -> str:
        more = f"; and {len(self.problems) - _SHOWN} more" if len(self.problems) > _SHOWN else ""
        return "it " + "; it ".join(self.problems[:_SHOWN]) + more


def fit_of(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> Fit:
    """Compares the state dict of a model with another one.

    Args:
        own: the model's.
        given: the other one.
    """
    shapes = {key: (tuple(given[key].shape), tuple(own[key].shape)) for key in own if key in given}
    return Fit(
        tuple(key for key in own if key not in given),
        tuple(key for key in given if key not in own),
        {key: pair for key, pair in shapes.items() if pair[0] != pair[1]},
    )


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a PyTorch or safetensors file, bare or under the key of a training program, without DDP's prefix.

    Raises:
        MissingWeightsError: there is no such file, or it holds more than weights, or none.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingWeightsError(f"{path}: no such file of weights")
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            with torch.serialization.safe_globals([Namespace]):  # RETFound's files hold their training flags
                content = torch.load(path, map_location="cpu", weights_only=True)
        while (inner := _nested(content)) is not None:
            content = inner
        tensors = {key.removeprefix("module."): v for key, v in content.items() if isinstance(v, Tensor)}
    except Exception as error:  # torch and safetensors raise many kinds for damaged files
        raise MissingWeightsError(
            f"{path}: not readable weights ({type(error).__name__}); it must be safetensors, or a state dict that "
            "torch.load(weights_only=True) takes"
        ) from error
    if not tensors:
        raise MissingWeightsError(f"{path} holds no tensor")
    return tensors


def _nested(content: object) -> dict | None:
    """The next dict on the way to the tensors."""
    inner = (content[name] for name in _NESTED if name in content) if isinstance(content, dict) else ()
    return next((value for value in inner if isinstance(value, dict)), None)
