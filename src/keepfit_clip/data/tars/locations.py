"""Opening shards wherever they are: local files, http(s), s3, gs and anything else fsspec knows, and `pipe:COMMAND`."""

import io
import os
from typing import BinaryIO

from webdataset.gopen import gopen

from keepfit_clip.errors import ShardError
from keepfit_clip.remote.opening import RetryingReader, filesystem_of

__all__ = ["beside", "exists", "is_local", "open_location", "read_text"]


def is_local(location: str) -> bool:
    """Whether a location is a plain path."""
    return "://" not in location and not location.startswith("pipe:")


def exists(location: str) -> bool:
    """Whether a local file exists; other locations are tried when they are read."""
    return not is_local(location) or os.path.isfile(location)


def beside(location: str, name: str) -> str:
    """The file `name` in the folder of a location."""
    if is_local(location):
        return os.path.join(os.path.dirname(location), name)
    return f"{location.rpartition('/')[0]}/{name}"


def read_text(location: str) -> str:
    """A small text file.

    Raises:
        OSError: it cannot be read.
        UnicodeError: it is not text.
    """
    if location.startswith("pipe:"):
        raise FileNotFoundError(location)
    with open_location(location) as stream:
        return stream.read().decode("utf-8")


def open_location(location: str) -> BinaryIO:
    """Opens a location for one read from its start to its end.

    A server that fails or falls silent is asked again, after longer and longer waits, for what is still missing.

    Raises:
        OSError: it cannot be opened.
        ShardError: a protocol nobody knows.
        MissingExtraError: the protocol needs a package that is not installed.
    """
    if is_local(location):
        return open(location, "rb")
    if location.startswith("pipe:"):
        return io.BufferedReader(_PipeReader(location))
    try:
        filesystem_of(location)
    except ValueError as error:
        raise ShardError(f"{location}: {error}") from error
    return RetryingReader(location).buffered()


class _PipeReader(io.RawIOBase):
    """What a command writes, as webdataset runs it; a command that fails is an OSError at its end."""

    def __init__(self, location: str):
        self._pipe = gopen(location)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        block = self._pipe.read(len(buffer))
        buffer[: len(block)] = block
        return len(block)

    def close(self) -> None:
        if not self.closed:
            self._pipe.close()
        super().close()
