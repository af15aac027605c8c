"""Opening shards wherever they are: local files, http(s), s3, gs and anything else fsspec knows, and `pipe:COMMAND`."""

import io
import logging
import os
import time
from typing import BinaryIO

import fsspec
from webdataset.gopen import gopen

from keepfit_clip.errors import MissingExtraError, ShardError
from keepfit_clip.extras import install_command

__all__ = ["beside", "exists", "is_local", "open_location", "read_text"]

_log = logging.getLogger(__name__)

_ATTEMPTS = 5
_FIRST_DELAY = 0.5  # seconds; doubled after every failure
_BLOCK = 1 << 22  # bytes asked of a server at once
_READ_TIMEOUT = 60  # seconds without a byte before a connection counts as broken
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, ImportError, ShardError)  # waiting does not help


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
    return io.BufferedReader(_RetryingReader(location), buffer_size=_BLOCK)


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


class _RetryingReader(io.RawIOBase):
    """A remote file read forward; after a failure it is opened again where reading stopped."""

    def __init__(self, location: str):
        self.location = location
        self._position = 0
        self._file = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        block = self._with_retries(lambda: self._opened().read(len(buffer)))
        buffer[: len(block)] = block
        self._position += len(block)
        return len(block)

    def close(self) -> None:
        if not self.closed:
            self._drop()
        super().close()

    def _with_retries(self, act):
        delay = _FIRST_DELAY
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return act()
            except _FINAL:
                raise
            except Exception as error:  # every protocol's library has its own kinds
                self._drop()
                if attempt == _ATTEMPTS:
                    what = str(error) or type(error).__name__
                    raise OSError(f"gave up after {_ATTEMPTS} attempts: {what}") from error
                _log.info(f"{self.location}: {type(error).__name__}, attempt {attempt}; again in {delay:.1f} s")
                time.sleep(delay)
                delay *= 2

    def _opened(self):
        if self._file is None:
            file = _open_remote(self.location)
            try:
                _skip_to(file, self._position)
            except Exception:
                file.close()
                raise
            self._file = file
        return self._file

    def _drop(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except Exception as error:  # the connection is broken already
                _log.debug(f"{self.location}: {error}")


def _open_remote(location: str) -> BinaryIO:
    options = {}
    if location.startswith(("http://", "https://")):
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_READ_TIMEOUT, sock_read=_READ_TIMEOUT)
        options["client_kwargs"] = {"timeout": timeout}
    try:
        filesystem, path = fsspec.core.url_to_fs(location, **options)
    except ImportError as error:
        raise MissingExtraError(f"{location}: {error}; or {install_command('remote')}") from error
    except ValueError as error:
        raise ShardError(f"{location}: {error}") from error
    return filesystem.open(path, "rb", block_size=_BLOCK, cache_type="readahead")


def _skip_to(file: BinaryIO, position: int) -> None:
    if not position:
        return
    if file.seekable():
        file.seek(position)
        return
    while position:  # a server that cannot answer for a part of a file
        block = file.read(min(position, _BLOCK))
        if not block:
            raise OSError("the file became shorter")
        position -= len(block)
