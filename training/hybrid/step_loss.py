"""The loss as open_clip's loop calls it, with what belongs to a step: the caption schedule, the guard, the log."""

import logging

from torch import Tensor

from keepfit_clip.model.loss import HybridLoss
from keepfit_clip.training.hybrid.guard import NonFiniteGuard
from keepfit_clip.training.hybrid.loss_log import LossLog
from keepfit_clip.training.hybrid.objective import CaptionSchedule
from keepfit_clip.training.hybrid.outlook import Pace

__all__ = ["StepLoss"]

_log = logging.getLogger(__name__)


class StepLoss:
    """The terms of one epoch's batches.

    Args:
        loss: gives the terms.
        schedule: of the caption weight.
        guard: keeps what is not finite away from the weights.
        epoch: the current one, counted from 0.
        steps: of the optimizer in an epoch.
        calls_per_step: batches whose gradients are accumulated.
        log: writes the terms down, on the rank that does.
        pace: says how far the run is, on that rank.
    """

    def __init__(
        self,
        loss: HybridLoss,
        schedule: CaptionSchedule,
        guard: NonFiniteGuard,
        epoch: int,
        steps: int,
        calls_per_step: int = 1,
        log: LossLog | None = None,
        pace: Pace | None = None,
    ):
        self.loss, self.schedule, self.guard, self.log, self.pace = loss, schedule, guard, log, pace
        self.epoch, self.steps, self.calls_per_step = epoch, steps, calls_per_step
        self.calls = 0

    @property
    def step(self) -> int:
        """Steps begun in the whole run before this one."""
        return self.epoch * self.steps + max(0, self.calls - 1) // self.calls_per_step

    def __call__(self, output_dict: bool = True, **outputs: Tensor) -> dict[str, Tensor]:
        """The terms for a model's outputs.

        Raises:
            NonFiniteLossError: one is NaN or infinite.
        """
        self.calls += 1
        step_of_epoch, waiting = divmod(self.calls - 1, self.calls_per_step)
        if not waiting:
            self.guard.end_step()  # of the step before
            if self.pace:
                self.pace.step()
        self.loss.caption_weight = self.schedule(self.step)
        # open_clip's loop gives it to each of the accumulated batches: their sum would be as many times its gradient.
        if "logit_scale" in outputs:
            outputs["logit_scale"] = _with_share_of_gradient(outputs["logit_scale"], 1 / self.calls_per_step)
        terms = self.loss(**outputs)
        terms = self.guard.check(terms, outputs, f"epoch {self.epoch}, step {step_of_epoch + 1} of {self.steps}")
        if self.log and waiting == self.calls_per_step - 1 and self.log.due(step_of_epoch + 1):
            self.log.write(step_of_epoch + 1, terms, self.loss.figures)
            if self.pace:
                _log.info(self.pace.line(self.epoch, step_of_epoch + 1, self.steps, terms))
        return terms


def _with_share_of_gradient(value: Tensor, share: float) -> Tensor:
    """The same value, to which so much of its gradient comes back."""
    return value if share == 1 else value.detach() + share * (value - value.detach())
