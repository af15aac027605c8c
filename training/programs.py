"""How the training programs begin, speak and end: one line for ordinary trouble, a traceback for a bug."""

import os
import sys
from collections.abc import Callable

from rich.console import Console

from keepfit_clip.errors import KeepFITError, ordinary_trouble
from keepfit_clip.processor import keep_freed_memory

__all__ = ["exit_code", "output_console"]

_PIPED = 10_000  # columns where no terminal says how many: no line is broken for a program that reads it


def output_console() -> Console:
    """Standard output: as wide as the terminal or COLUMNS says, else so wide that nothing is broken."""
    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else _PIPED)


def exit_code(program: str, main: Callable[[], None]) -> int:
    """Runs a program: 0, or 1 with one line on standard error after an error of ours or ordinary trouble."""
    keep_freed_memory()
    try:
        main()
    except Exception as error:
        message = str(error) if isinstance(error, KeepFITError) else ordinary_trouble(error)
        if message is None:
            raise
        print(f"{program}: {message}", file=sys.stderr)
        return 1
    return 0
