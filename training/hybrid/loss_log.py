"""Every logged value of every loss term of a run, as JSON lines: what curves are drawn from.

`RUN/losses.jsonl` holds {"epoch", "step", "steps", "terms": {...}, "figures": {...}}, step counted within the epoch
from 1; figures are no part of the loss.
"""

from pathlib import Path

from torch import Tensor

from keepfit_clip.files import parse_json, to_json, write_text, writing

__all__ = ["LOSSES_NAME", "LossLog", "read_losses", "steps_done"]

LOSSES_NAME = "losses.jsonl"


class LossLog:
    """Writes terms down, one line in a while.

    Args:
        run: the run folder.
        epoch: the current one; what stands there of it or later, from an interrupted attempt, is dropped.
        steps: in the epoch.
        every: steps between two lines; the first and the last are always written.
    """

    def __init__(self, run: Path, epoch: int, steps: int, every: int = 1):
        self.file = run / LOSSES_NAME
        self.epoch = epoch
        self.steps = steps
        self.every = every
        kept = [line for line in read_losses(run) if line["epoch"] < epoch]
        write_text(self.file, "".join(to_json(line) + "\n" for line in kept))

    def due(self, step: int) -> bool:
        """Whether a step of the epoch, counted from 1, is written down."""
        return step in (1, self.steps) or step % self.every == 0

    def write(self, step: int, terms: dict[str, Tensor], figures: dict[str, Tensor | None] | None = None) -> None:
        """Writes the terms of a step of the epoch, counted from 1, and figures beside them.

        Raises:
            OutputError: no space is left.
        """
        values = {name: float(value.detach()) for name, value in terms.items()}
        line = {"epoch": self.epoch, "step": step, "steps": self.steps, "terms": values}
        line["figures"] = {name: float(value) for name, value in (figures or {}).items() if value is not None}
        with writing(self.file), open(self.file, "a", encoding="utf-8") as file:
            file.write(to_json(line) + "\n")


def read_losses(run: str | Path) -> list[dict]:
    """The lines of a run folder's log, in order, without one that an interruption cut; none where there is no log."""
    file = Path(run) / LOSSES_NAME
    lines = []
    if file.exists():
        for text in file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = parse_json(text)
            except ValueError:
                continue
            if _is_line(line):
                lines.append(line)
    return lines


def _is_line(line: object) -> bool:
    """Whether it is what `LossLog` writes; anything else tells nothing and is passed over."""
    if not isinstance(line, dict) or not isinstance(terms := line.get("terms"), dict) or not terms:
        return False
    return all(isinstance(line.get(name), int) for name in ("epoch", "step", "steps")) and all(
        isinstance(value, (int, float)) for value in terms.values()
    )


def steps_done(run: str | Path, epochs: int) -> tuple[int, int] | None:
    """Steps that a run of so many epochs has logged, and all it has; None before the first."""
    lines = read_losses(run)
    if not lines:
        return None
    last = lines[-1]
    return last["epoch"] * last["steps"] + last["step"], epochs * last["steps"]
