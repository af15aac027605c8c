"""Every logged value of every loss term of a run, as JSON lines: what curves are drawn from.

`RUN/losses.jsonl` holds {"epoch", "step", "steps", "terms": {...}}, step counted within the epoch from 1.
"""

import json
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from keepfit_clip.files import write_text

__all__ = ["LOSSES_NAME", "LossLog", "read_losses"]

LOSSES_NAME = "losses.jsonl"


class LossLog:
    """A loss that writes its terms down on the way.

    Args:
        loss: gives a dict of terms.
        run: the run folder.
        epoch: the current one; what stands there of it or later, from an interrupted attempt, is dropped.
        steps: in the epoch.
        every: steps between two lines; the first and the last are always written.
        calls_per_step: of the loss, where gradients are accumulated.
    """

    def __init__(
        self,
        loss: Callable[..., dict[str, Tensor]],
        run: Path,
        epoch: int,
        steps: int,
        every: int = 1,
        calls_per_step: int = 1,
    ):
        self.loss = loss
        self.file = run / LOSSES_NAME
        self.epoch = epoch
        self.steps = steps
        self.every = every
        self.calls_per_step = calls_per_step
        self.calls = 0
        kept = [line for line in read_losses(run) if line["epoch"] < epoch]
        write_text(self.file, "".join(json.dumps(line) + "\n" for line in kept))

    def __call__(self, **outputs) -> dict[str, Tensor]:
        """The terms of the loss for a model's outputs; one call in a while is written down."""
        terms = self.loss(**outputs)
        self.calls += 1
        step, waiting = divmod(self.calls, self.calls_per_step)
        if not waiting and (step in (1, self.steps) or step % self.every == 0):
            line = {
                "epoch": self.epoch,
                "step": step,
                "steps": self.steps,
                "terms": {name: float(value.detach()) for name, value in terms.items()},
            }
            with open(self.file, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        return terms


def read_losses(run: str | Path) -> list[dict]:
    """The lines of a run folder's log, in order, without one that an interruption cut; none where there is no log."""
    file = Path(run) / LOSSES_NAME
    lines = []
    if file.exists():
        for text in file.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                continue
    return lines
