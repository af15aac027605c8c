"""What Gradio would keep of those who used the page, and how it is forgotten."""

import ctypes
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path

__all__ = ["SESSION_KEPT", "forget", "forgetting", "give_memory_back"]

SESSION_KEPT = 1800  # seconds that an idle session stays in memory
_UPLOAD_KEPT = 600  # seconds that a file stays which nobody comes for: its upload broke off, or others are before it
_WATCH = 15  # seconds between two looks for them


@contextmanager
def forgetting(page, uploads: Path) -> Iterator[None]:
    """Removes, while the block runs, what Gradio would keep: sessions that are over, and uploads nobody came for.

    A session holds the images and what was shown of them; it is over once its tab is closed or idle for `SESSION_KEPT`.
    """
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_WATCH):
            forget(page.state_holder, uploads)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def forget(sessions, uploads: Path) -> None:
    """One look at the sessions (Gradio's state holder) and at the folder of uploads."""
    idle = datetime.now() - timedelta(seconds=SESSION_KEPT)
    for key, last_used in list(sessions.time_last_used.items()):
        session = sessions.session_data.get(key)
        if session is None or session.is_closed or last_used < idle:
            sessions.session_data.pop(key, None)
            sessions.time_last_used.pop(key, None)
    for path in uploads.rglob("*"):
        with suppress(OSError):
            if path.is_file() and time.time() - path.stat().st_mtime > _UPLOAD_KEPT:
                path.unlink()
    give_memory_back()


def give_memory_back() -> None:
    """Asks the C library to return what is free, where it has a call for that (glibc)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
