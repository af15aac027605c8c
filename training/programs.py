"""How the training programs begin and end: a line on standard error for ordinary trouble, a traceback for a bug."""

import sys
from collections.abc import Callable

from keepfit_clip.errors import KeepFITError, ordinary_trouble
from keepfit_clip.processor import keep_freed_memory

__all__ = ["exit_code"]


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
