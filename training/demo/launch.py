"""Programs started from another one: stage 2, the judge.

    python -m keepfit_clip.training.demo.launch PARENT MODULE ARGUMENT...

runs MODULE as a program that ends when the process PARENT does, however that ended: a training never goes on unseen
while the next one writes into its run folder.
"""

import os
import runpy
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from keepfit_clip.errors import KeepFITError
from keepfit_clip.processor import keep_freed_memory

__all__ = ["flag_words", "program", "run_logged"]

_POLL_SECONDS = 0.5  # seconds between two looks at another process


def program(module: str, *arguments: object) -> list[str]:
    """The command line of a module that runs no longer than this process."""
    return [sys.executable, "-m", "keepfit_clip.training.demo.launch", str(os.getpid()), module, *map(str, arguments)]


def flag_words(flags: Mapping[str, object]) -> list[str]:
    """Flags as words; one whose value is True stands alone."""
    return [str(word) for flag, value in flags.items() for word in ([flag] if value is True else [flag, value])]


def run_logged(command: list[str], log: Path, poll: Callable[[], None], name: str) -> None:
    """Runs a program, its output in a file, looking at its progress; ends it where this one is interrupted.

    Raises:
        KeepFITError: it failed.
    """
    with open(log, "a", encoding="utf-8") as file:
        child = subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        try:
            while child.poll() is None:
                time.sleep(_POLL_SECONDS)
                poll()
        finally:
            if child.poll() is None:
                child.terminate()
                child.wait()
    if child.returncode:
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        raise KeepFITError(f"{name} failed (all of its output is in {log}): {lines[-1] if lines else 'no output'}")


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    os._exit(1)


def main() -> None:
    """Runs a module in this process while its parent lives."""
    threading.Thread(target=_end_with, args=(int(sys.argv[1]),), daemon=True).start()
    keep_freed_memory()
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
