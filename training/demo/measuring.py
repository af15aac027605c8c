"""How long the steps of a job take and how much memory it needs, over interruptions."""

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from keepfit_clip.errors import KeepFITError
from keepfit_clip.files import write_json

__all__ = ["peak_memory", "timed"]

_EVERY = 2.0  # seconds between two looks at the memory


@contextmanager
def timed(clock: Path, step: str) -> Iterator[None]:
    """Adds the seconds of a step to those that earlier, interrupted attempts took; not those that were killed outright.

    Args:
        clock: JSON file of step -> seconds.
        step: name of the step.
    """
    start = time.monotonic()
    try:
        yield
    finally:
        spent = _read(clock)
        spent[step] = spent.get(step, 0.0) + time.monotonic() - start
        write_json(clock, spent)


@contextmanager
def peak_memory(clock: Path, name: str) -> Iterator[None]:
    """Keeps the largest memory of this process and all its children, in GiB, in the same kind of file.

    Memory that processes share counts once, where the system can tell.
    """
    _read(clock)  # rather fail now than after the work
    done = threading.Event()
    peak = 0

    def watch() -> None:
        nonlocal peak
        while True:
            peak = max(peak, _memory_of_all())
            if done.wait(_EVERY):
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        kept = _read(clock)
        kept[name] = max(kept.get(name, 0.0), peak / 2**30)
        write_json(clock, kept)


def _read(clock: Path) -> dict[str, float]:
    try:
        return json.loads(clock.read_text(encoding="utf-8")) if clock.exists() else {}
    except ValueError as error:
        raise KeepFITError(f"{clock}: missing or damaged; remove it and start again") from error


def _memory_of_all() -> int:
    own = psutil.Process(os.getpid())
    total = 0
    for process in [own, *own.children(recursive=True)]:
        try:
            memory = process.memory_full_info()
            total += getattr(memory, "pss", memory.rss)
        except psutil.Error:  # it has just ended
            continue
    return total
