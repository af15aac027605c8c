"""Where a job of several steps is: bars with the time left on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["StepDisplay"]

_PLAIN_EVERY = 15.0  # seconds between two lines of one step


class StepDisplay:
    """A context that shows the steps of a job, one after the other, on standard error.

    Args:
        seconds: that each step takes somewhere, from which the time left of the whole is told.
    """

    def __init__(self, seconds: Sequence[float]):
        self.seconds = list(seconds)
        self.number = 0
        self.console = Console(stderr=True)
        self.bars = Progress(
            TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(),
            TextColumn("left:"), TimeRemainingColumn(), console=self.console, disable=not self.console.is_terminal,
        )  # fmt: skip
        self.whole = self.bars.add_task("the whole", total=sum(self.seconds))
        self._begun = time.monotonic()
        self._done_before = 0.0  # of `seconds`, by earlier attempts
        self._finished = 0.0  # of `seconds`, by steps that are done

    def __enter__(self) -> "StepDisplay":
        self.bars.start()
        return self

    def __exit__(self, *error) -> None:
        self.bars.stop()

    def left(self, share: float) -> float:
        """Seconds left of the whole, where so much of the present step is done."""
        done = self._finished + share * self.seconds[self.number - 1]
        here = done - self._done_before
        pace = (time.monotonic() - self._begun) / here if here > 0 else 1.0
        return pace * (sum(self.seconds) - done)

    @contextmanager
    def step(self, name: str, done_before: bool = False) -> Iterator[Callable[[int, int], None]]:
        """Shows one step while the block runs; the block calls what it gets with (done, all).

        Args:
            name: of the step.
            done_before: it is there already from an earlier attempt.
        """
        self.number += 1
        expected = self.seconds[self.number - 1]
        title = f"[{self.number}/{len(self.seconds)}] {name}"
        task = self.bars.add_task(title.replace("[", r"\["), total=None)
        start = last_line = time.monotonic()
        done_at_start: int | None = None
        self._say(f"{title}{' (done before)' if done_before else ''}")

        def on_step(done: int, total: int) -> None:
            nonlocal last_line, done_at_start
            done = min(done, total)
            if done_at_start is None:  # what an earlier attempt did says nothing of this one's speed
                done_at_start = done
                self._done_before += expected * done / total
                self.bars.reset(task, completed=done, total=total)
            self.bars.update(task, completed=done, total=total)
            self.bars.update(self.whole, completed=self._finished + expected * done / total)
            now = time.monotonic()
            if done > done_at_start and now - last_line > _PLAIN_EVERY:
                last_line = now
                left = (now - start) * (total - done) / (done - done_at_start)
                self._say(f"{title}: {done / total:.0%}, about {left:.0f} s left, {self.left(done / total):.0f} of all")

        yield on_step
        self._finished += expected
        if done_before:
            self._done_before += expected
        self.bars.update(task, completed=1, total=1)
        self.bars.update(self.whole, completed=self._finished)
        if not done_before:
            left = f", about {self.left(0):.0f} s left of all" if self.number < len(self.seconds) else ""
            self._say(f"{title}: done in {time.monotonic() - start:.0f} s{left}")

    def _say(self, line: str) -> None:
        if not self.console.is_terminal:
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)
