"""Where commands write: results to standard output, everything else to standard error."""

import logging
from collections.abc import Sequence

from rich.console import Console
from rich.progress import track

__all__ = ["console", "error_console", "quiet_libraries", "show_messages", "with_progress"]

console = Console()
error_console = Console(stderr=True)

_SHOWN = 5


def with_progress(text: str):
    """A function that wraps a sequence so that going through it shows progress."""

    def wrap(items: Sequence):
        return track(items, description=text, console=error_console, transient=True)

    return wrap


def show_messages(messages: Sequence[str], what: str) -> None:
    """Sums up what was left out: the first few in full, then a count."""
    if not messages:
        return
    error_console.print(f"[yellow]{len(messages)} {what}:[/]")
    for message in messages[:_SHOWN]:
        error_console.print(f"  {message}", markup=False, soft_wrap=True)
    if len(messages) > _SHOWN:
        error_console.print(f"  ... and {len(messages) - _SHOWN} more")


def quiet_libraries() -> None:
    """Keeps the libraries' progress bars and notes about partial weights off the terminal."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger().setLevel(logging.ERROR)
