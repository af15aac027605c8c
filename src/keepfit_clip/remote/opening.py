"""Reading files at http(s), s3, gs and anything else fsspec knows, again and again where a server fails."""

import io
import logging
import re
import time
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import fsspec

from keepfit_clip.errors import MissingExtraError, first_line
from keepfit_clip.extras import install_command

__all__ = ["RemoteFile", "RetryingReader", "UnreadableName", "filesystem_of", "with_retries", "without_secrets"]

_log = logging.getLogger(__name__)

_ATTEMPTS = 5
_FIRST_DELAY = 0.5  # seconds; doubled after every failure
_BLOCK = 1 << 22  # bytes asked of a server at once
_READ_TIMEOUT = 60  # seconds without a byte before a connection counts as broken
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ImportError)


class UnreadableName(OSError):
    """A name that fsspec would take for a protocol inside another."""


class RemoteFile(NamedTuple):
    """An image's file in object storage, as a listing told of it.

    Args:
        url: of the file.
        size: bytes.
        version: a number that is another one when the file is; None where the storage says nothing of it.
    """

    url: str
    size: int
    version: int | None = None

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """Of the file, without its folder."""
        return self.url.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """The ending of its name."""
        stem, dot, ending = self.name.rpartition(".")
        return dot + ending if stem else ""

    def read(self, limit: int) -> bytes:
        """Its bytes, one more than `limit` at most.

        Raises:
            OSError: it cannot be read.
            MissingExtraError: its protocol needs a package that is not installed.
        """
        if not self.size:
            return b""  # there is no range of it that could be asked for
        filesystem, path = filesystem_of(self.url)
        return with_retries(lambda: filesystem.cat_file(path, start=0, end=limit + 1), self.url)


def filesystem_of(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URL, and what the URL's path is called there. Listings are not kept in it.

    Raises:
        MissingExtraError: the protocol needs a package that is not installed.
        ValueError: a protocol nobody knows.
        UnreadableName: a name with "::" in it.
    """
    if "::" in url:
        raise UnreadableName("a name with '::' in it is not read, nor are protocols inside each other")
    options: dict[str, Any] = {"use_listings_cache": False}
    if url.startswith(("http://", "https://")):
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_READ_TIMEOUT, sock_read=_READ_TIMEOUT)
        options["client_kwargs"] = {"timeout": timeout}
    try:
        return fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        raise MissingExtraError(f"{url}: {error}; or {install_command('remote')}") from error


def with_retries(act: Callable[[], Any], location: str, on_failure: Callable[[], None] = lambda: None) -> Any:
    """What a function returns, called again after longer and longer waits where a server fails.

    Args:
        act: the function.
        location: for the log.
        on_failure: called after each failure.

    Raises:
        ConnectionError: it failed each time; errors that waiting does not mend are raised at once, as they are.
    """
    delay = _FIRST_DELAY
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return act()
        except _FINAL:
            raise
        except Exception as error:  # every protocol's library has its own kinds
            on_failure()
            if attempt == _ATTEMPTS:
                what = without_secrets(first_line(error)) or type(error).__name__
                raise ConnectionError(f"gave up after {_ATTEMPTS} attempts: {what}") from error
            _log.info(f"{location}: {type(error).__name__}, attempt {attempt}; again in {delay:.1f} s")
            time.sleep(delay)
            delay *= 2
    raise AssertionError("unreachable")


def without_secrets(text: str) -> str:
    """A text with nothing in its URLs that may be a password, a key or a signature."""
    text = re.sub(r"(?<=://)[^/\s]*@", "", text)
    return re.sub(r"(://[^\s?]*)\?[^\s\"']*", r"\1", text)


class RetryingReader(io.RawIOBase):
    """A remote file read forward; after a failure it is opened again where reading stopped."""

    def __init__(self, location: str):
        self.location = location
        self._position = 0
        self._file = None

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer) -> int:
        """Reads at most as many bytes as the buffer holds; returns how many."""
        block = with_retries(lambda: self._opened().read(len(buffer)), self.location, self._drop)
        buffer[: len(block)] = block
        self._position += len(block)
        return len(block)

    def close(self) -> None:
        """Closes it."""
        if not self.closed:
            self._drop()
        super().close()

    def buffered(self) -> BinaryIO:
        """Itself, read in large blocks."""
        return io.BufferedReader(self, buffer_size=_BLOCK)

    def _opened(self):
        if self._file is None:
            filesystem, path = filesystem_of(self.location)
            file = filesystem.open(path, "rb", block_size=_BLOCK, cache_type="readahead")
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
