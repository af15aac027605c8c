"""The objective as a run uses it: the paper's ablations as presets, a schedule for the caption weight, frozen text.

contrastive   FLAIR's: public data, soft-CLIP only
v1            KeepFIT's: soft-CLIP on public and elite data, text revision
v2            KeepFIT V2's: the same and caption generation
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from keepfit_clip.errors import ConfigError

__all__ = ["PRESETS", "SCHEDULES", "CaptionSchedule", "Preset", "frozen"]


@dataclass(frozen=True)
class Preset:
    """What one arm of the ablation uses.

    Args:
        elite: whether elite data is used.
        revision_weight: of the text revision.
        caption_weight: of the caption NLL; without any caption weight the model has no decoder.
    """

    elite: bool
    revision_weight: float
    caption_weight: float


PRESETS = {
    "contrastive": Preset(elite=False, revision_weight=0.0, caption_weight=0.0),
    "v1": Preset(elite=True, revision_weight=100.0, caption_weight=0.0),
    "v2": Preset(elite=True, revision_weight=100.0, caption_weight=1.0),
}

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: done,
    "cosine": lambda done: (1 - math.cos(math.pi * done)) / 2,
}


@dataclass(frozen=True)
class CaptionSchedule:
    """The weight of the caption loss at each step: from one value to another, then constant.

    Args:
        kind: one of SCHEDULES, from `start` (0 of it) to `end` (1 of it).
        start, end: weights.
        steps: that the change takes.

    Raises:
        ConfigError: no such schedule, or it takes no step.
    """

    kind: str
    start: float
    end: float
    steps: int

    def __post_init__(self):
        if self.kind not in SCHEDULES:
            raise ConfigError(f"--caption-schedule {self.kind!r} is none of {', '.join(SCHEDULES)}")
        if self.steps < 1:
            raise ConfigError(f"--caption-schedule-steps is {self.steps}; it must be at least 1")

    def __call__(self, step: int) -> float:
        """The weight at a step of the whole run, counted from 0."""
        return self.start + (self.end - self.start) * SCHEDULES[self.kind](min(1.0, step / self.steps))


@contextmanager
def frozen(module: nn.Module, optimizer: torch.optim.Optimizer, active: Callable[[], bool]) -> Iterator[None]:
    """Keeps the parameters of a module as they are while `active()` says so.

    Their gradients are zero (so that they do not count in the clipped norm, and DDP still gets what it waits for) and
    are withheld from the optimizer (whose weight decay and moments would move them).

    Args:
        module: a part of the model, or the whole.
        optimizer: of the run.
        active: asked at every gradient and step.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]

    def silence(gradient: Tensor) -> Tensor:
        return torch.zeros_like(gradient) if active() else gradient

    def withhold(*_) -> None:
        if active():
            for parameter in parameters:
                parameter.grad = None

    handles = [p.register_hook(silence) for p in parameters] + [optimizer.register_step_pre_hook(withhold)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
