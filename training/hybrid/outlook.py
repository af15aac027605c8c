"""How far a run is, what it will take, and where things are once it has ended: what people read of it."""

import math
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from keepfit_clip.files import parse_json
from keepfit_clip.folders.export import RUN_CHECKPOINTS
from keepfit_clip.training.hybrid.run_folder import RESULTS_NAME
from keepfit_clip.training.hybrid.settings import HybridPretraining

__all__ = ["Pace", "checkpoint_bytes", "closing_lines", "disk_line", "duration", "kept_checkpoints", "memory"]

_RECENT = 50  # steps whose time tells how long the others will take
_SHORT = {"public_contrastive": "public", "elite_contrastive": "elite", "revision": "rev", "caption": "cap"}


def duration(seconds: float) -> str:
    """Such as 40s, 12m30s, 3h05m or 2d4h."""
    whole = max(0, round(seconds))
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if days:
        return f"{days}d{hours % 24}h"
    if hours:
        return f"{hours}h{minutes % 60:02}m"
    return f"{minutes}m{whole % 60:02}s" if minutes else f"{whole}s"


class Pace:
    """Times the steps of a run, and says in a line of at most 88 characters how far it is.

    Args:
        epochs: of the run.
        samples: in a step, of all processes together.
        clock: gives seconds.
    """

    def __init__(self, epochs: int, samples: int, clock: Callable[[], float] = time.monotonic):
        self.epochs, self.samples, self.clock = epochs, samples, clock
        self.seconds: list[float] = []  # of the last steps
        self._before: float | None = None

    def begin(self) -> None:
        """An epoch begins: the time since the last step, of an evaluation maybe, is no step's."""
        self._before = None

    def step(self) -> None:
        """A step begins, and the one before it has ended."""
        now = self.clock()
        if self._before is not None:
            self.seconds = [*self.seconds[1 - _RECENT :], now - self._before]
        self._before = now

    @property
    def median(self) -> float:
        """Seconds of a step; of one alone its own, and NaN before there is one."""
        return statistics.median(self.seconds) if self.seconds else math.nan

    def line(self, epoch: int, step: int, steps: int, terms: Mapping[str, Tensor]) -> str:
        """How far the run is and what the losses are.

        Args:
            epoch: counted from 0.
            step: of the epoch, counted from 1.
            steps: in an epoch.
            terms: of the loss, weighted as they are summed.
        """
        values = {name.removesuffix("_loss"): float(value.detach()) for name, value in terms.items()}
        losses = [f"loss {sum(values.values()):.3g}", *(f"{_SHORT.get(n, n)} {v:.3g}" for n, v in values.items())]
        words = [f"epoch {epoch + step / steps:.2f}/{self.epochs}", *losses]
        if self.seconds:
            left = (self.epochs - epoch) * steps - step
            words += [f"{self.samples / self.median:.3g}/s", f"left {duration(left * self.median)}"]
        return " ".join(words)


def checkpoint_bytes(model: nn.Module, averaged: bool) -> int:
    """Size of a checkpoint: weights, two moments of AdamW, and maybe the averaged weights.

    Args:
        model: the weights.
        averaged: whether averaged weights are kept.
    """
    weights = sum({value.data_ptr(): value.nbytes for value in model.state_dict().values()}.values())
    moments = 2 * sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    return weights * (2 if averaged else 1) + moments


def kept_checkpoints(epochs: int, frequency: int, delete_previous: bool, most_recent: bool) -> int:
    """How many a run holds at most, one that is being written included."""
    numbered = math.ceil(epochs / frequency) if frequency else 1
    return min(numbered, 2) if delete_previous else numbered + most_recent


def disk_line(size: int, count: int, folder: Path) -> tuple[str, bool]:
    """What the checkpoints take of the disk, in words, and whether there is room for them.

    Args:
        size: of one, in bytes.
        count: how many are kept.
        folder: where they go; it may not exist yet.
    """
    exists = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(exists).free
    total = memory(size * count)
    what = f"{count} checkpoints of {memory(size)} take {total}" if count > 1 else f"the checkpoint takes {total}"
    return f"{what}; {memory(free)} are free there", size * count < free


def closing_lines(settings: HybridPretraining, seconds: float) -> list[str]:
    """Where things are once a run has ended, and what comes next.

    Args:
        settings: of the run.
        seconds: that it took.
    """
    run = settings.run
    results = run / RUN_CHECKPOINTS / RESULTS_NAME
    lines = [f"trained for {duration(seconds)}: {run}"]
    lines.append(f"  checkpoints  {run / RUN_CHECKPOINTS}")
    if results.exists():
        lines.append(f"  evaluation   {results}")
        lines += [f"               {line}" for line in _last_values(results)]
    lines.append(f"  logs         {run / 'out.log'}; losses.jsonl, debug.log and settings.json beside it")
    lines.append(f"next: keepfit-clip export {run} --out {run}-model")
    lines.append(f"      keepfit-clip report {run} --out {run}.html")
    return lines


def _last_values(results: Path) -> Sequence[str]:
    last = parse_json(results.read_text(encoding="utf-8").splitlines()[-1])
    return [f"{name} {value:.3f}" for name, value in last.items() if name != "epoch" and isinstance(value, float)][:6]


def memory(size: float) -> str:
    """Such as 1.25 GiB."""
    return f"{size / 2**30:.2f} GiB" if size < 2**33 else f"{size / 2**30:.0f} GiB"
