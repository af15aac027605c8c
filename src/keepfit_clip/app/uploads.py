"""Files that were uploaded: how they are read and removed, and how what Gradio would keep is forgotten."""

import ctypes
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path

from PIL import Image

from keepfit_clip.errors import ImageError
from keepfit_clip.images.reading import open_image
from keepfit_clip.images.volumes import holds_volume, volume_facts

__all__ = ["SESSION_KEPT", "Uploads", "forget", "forgetting", "give_memory_back"]

SESSION_KEPT = 1800  # seconds that an idle session stays in memory
_UPLOAD_KEPT = 600  # seconds that a file stays which nobody comes for: its upload broke off, or others are before it
_WATCH = 15  # seconds between two looks for them


class Uploads:
    """The folder where Gradio puts what was uploaded.

    Args:
        folder: there.
        max_pixels: of an image that is read.
    """

    def __init__(self, folder: Path, max_pixels: int):
        self.folder, self.max_pixels = folder.resolve(), max_pixels

    def read(self, path: Path) -> tuple[Image.Image, str | None]:
        """A file's picture and the modality that the file says, None where it says none.

        Raises:
            ImageError: it cannot be read, or shows nothing.
        """
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ImageError(path.name, "it did not arrive; upload it again") from error
        image = open_image(content, max_pixels=self.max_pixels, blank=False)
        return image, volume_facts(content)[0].modality if holds_volume(content) else None

    def keep(self, paths: Sequence[Path]) -> None:
        """Says that files are waited for, so that they are not taken for left behind while others are looked at."""
        for path in paths:
            with suppress(OSError):
                if self._holds(path):
                    os.utime(path)

    def remove(self, paths: Sequence[Path]) -> None:
        """Removes uploads; a file of the page's own, which anybody can name as an upload, stays."""
        for path in paths:
            if self._holds(path):
                path.unlink(missing_ok=True)
                with suppress(OSError):  # Gradio's folder of the same content, maybe in use
                    path.parent.rmdir()

    def _holds(self, path: Path) -> bool:
        return path.resolve().is_relative_to(self.folder)


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
