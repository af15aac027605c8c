"""Weights averaged over the steps of a run, which evaluation and export use: timm's exponential moving average."""

from collections.abc import Mapping

from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = ["AveragedWeights"]

_POWER = 2 / 3  # of the warm-up: after n steps the decay is at most 1 - (n + 1) ** -_POWER


class AveragedWeights:
    """The average of a model's weights, moved on by each step of its optimizer.

    Args:
        model: as it is trained, bare.
        optimizer: of the run.
        decay: share of the average that stays at a step; less at first.
        step: steps done before, in a run that goes on.
        stored: the average that a checkpoint holds.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        decay: float,
        step: int = 0,
        stored: Mapping[str, Tensor] | None = None,
    ):
        self._average = ModelEmaV3(model, decay=decay, use_warmup=True, warmup_power=_POWER)
        if stored is not None:
            self._average.module.load_state_dict(stored)
        self._step = step
        optimizer.register_step_post_hook(lambda *_: self._move(model))

    @property
    def model(self) -> nn.Module:
        """A model of the averaged weights, in eval mode."""
        return self._average.module

    def _move(self, model: nn.Module) -> None:
        self._step += 1
        self._average.update(model, self._step)
