"""Where commands write: results to standard output, everything else to standard error."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn, track
from rich.table import Table

from keepfit_clip.errors import KeepFITWarning
from keepfit_clip.training.programs import output_console

__all__ = [
    "StepProgress",
    "console",
    "error_console",
    "markdown_table",
    "quiet_libraries",
    "show_left_out",
    "show_messages",
    "warnings_shown",
    "with_progress",
]

console = output_console()
error_console = Console(stderr=True)

_SHOWN = 5


def with_progress(text: str):
    """A function that wraps a sequence so that going through it shows progress."""

    def wrap(items: Sequence):
        return track(items, description=text, console=error_console, transient=True)

    return wrap


@contextmanager
def warnings_shown() -> Iterator[None]:
    """While a command runs, each of our warnings is a yellow line, once."""
    with warnings.catch_warnings():
        warnings.simplefilter("default", KeepFITWarning)
        others, shown = warnings.showwarning, set()

        def show(message, category, *rest):
            if not issubclass(category, KeepFITWarning):
                others(message, category, *rest)
            elif str(message) not in shown:
                shown.add(str(message))
                error_console.print(f"[yellow]{escape(str(message))}[/]", soft_wrap=True)

        warnings.showwarning = show
        yield


class StepProgress:
    """Shows how far the current step of a long job is, as an `on_step` callback."""

    def __init__(self):
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            console=error_console, transient=True,
        )  # fmt: skip
        self._task = None

    def __enter__(self) -> "StepProgress":
        self._progress.start()
        return self

    def __exit__(self, *_) -> None:
        self._progress.stop()

    def __call__(self, step: str, done: int, total: int | None) -> None:
        """Shows that so much of a step is done."""
        if self._task is None:
            self._task = self._progress.add_task("")
        self._progress.update(self._task, description=step.capitalize(), completed=done, total=total)


def markdown_table(markdown: str) -> Table:
    """A Markdown table below its title for a terminal; the first column is never broken."""
    title, _, header, _, *rows = markdown.splitlines()

    def cells(line: str) -> list[str]:
        return [escape(cell.strip()) for cell in line.strip("|").split("|")]

    table = Table(title=escape(title), title_justify="left")
    for number, name in enumerate(cells(header)):
        table.add_column(name, no_wrap=number == 0)
    for row in rows:
        table.add_row(*cells(row))
    return table


def show_left_out(rows: Sequence, what: str) -> None:
    """Sums up rows that were left out, `LeftOut`s, see `show_messages`."""
    show_messages([row.message for row in rows], what)


def show_messages(messages: Sequence[str], what: str) -> None:
    """Sums up what was left out: the first few in full, then a count."""
    if not messages:
        return
    error_console.print(f"[yellow]{len(messages)} {what}:[/]")
    for message in messages[:_SHOWN]:
        error_console.print(f"  {message}", markup=False, soft_wrap=True)
    if len(messages) > _SHOWN:
        error_console.print(f"  ... and {len(messages) - _SHOWN} more")


def end_in_part(problems: Sequence[str]) -> None:
    """Names the images that were left out; then the command has failed in part, and ends with 1."""
    show_messages(problems, "images left out")
    if problems:
        raise typer.Exit(1)


def quiet_libraries() -> None:
    """Keeps the libraries' progress bars and notes about partial weights off the terminal."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger().setLevel(logging.ERROR)
