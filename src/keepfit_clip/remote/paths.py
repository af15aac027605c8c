"""Folders and files in object storage with the few methods of pathlib that reading a data set needs.

    folder = place("s3://bucket/rfmid")     # a Path where it is one
    folder.file("images/1.png")             # a RemoteFile, or None

Names and sizes come from listings of whole folders, not from a request for each file. All paths that were made from one
share the listings, of which the last are kept.
"""

import hashlib
import io
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import IO, Any

from keepfit_clip.errors import TableError, WorkerError, first_line
from keepfit_clip.remote.opening import RemoteFile, RetryingReader, filesystem_of, with_retries, without_secrets

__all__ = ["Listings", "Place", "RemotePath", "files_below", "is_url", "place"]

_MOST_NAMES = 1 << 18  # in the listings that are kept
_LEAST_LISTINGS = 8  # kept however long they are, so that a table that goes back and forth lists no folder twice
_VERSIONS = ("ETag", "etag", "md5Hash", "LastModified", "last_modified", "updated", "mtime", "created")
_ACCOUNTS = ("abfs", "abfss")  # whose URLs have CONTAINER@ACCOUNT
_FOLDER = (-1, None)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_url(location: Any) -> bool:
    """Whether a location is in object storage or on a server, not a local path."""
    return _URL.match(str(location)) is not None


def place(location: "str | Path | RemotePath", listings: "Listings | None" = None) -> "Path | RemotePath":
    """Where a location is: a local path or one in object storage.

    Args:
        location: path or URL.
        listings: to share with other paths.

    Raises:
        TableError: a URL with a password or a query in it, which would stand in messages; or of no known protocol.
        MissingExtraError: the protocol needs a package that is not installed.
    """
    if isinstance(location, RemotePath) or not is_url(location):
        return location if isinstance(location, RemotePath) else Path(location)
    url = str(location)
    _refuse_secrets(url)
    try:
        filesystem_of(url)
    except (ValueError, OSError) as error:
        raise TableError(f"{url}: {first_line(error)}") from error
    return RemotePath(url if url.endswith("://") else url.rstrip("/"), listings or Listings())


def _refuse_secrets(url: str) -> None:
    """Raises TableError where a URL may hold a password, a key or a signature; nothing of it is said again."""
    scheme, _, rest = url.partition("://")
    host = rest.partition("/")[0]
    login = "@" in host and not (scheme in _ACCOUNTS and ":" not in host)
    key = ":" in host and not host.rpartition(":")[2].isdigit()  # some keys have a slash, which ends the host
    if login or key or "?" in rest:
        raise TableError(
            f"a URL at {scheme}:// with a user, a password or a query in it: leave them out, and give them to the "
            "library of that storage in its own way (AWS_PROFILE, GOOGLE_APPLICATION_CREDENTIALS, ...)"
        )


class Listings:
    """What stands in folders: for each name its size and version; the last listings are kept."""

    def __init__(self):
        self._kept: OrderedDict[str, dict[str, tuple[int, int | None]]] = OrderedDict()
        self._names = 0

    def of(self, url: str) -> Mapping[str, tuple[int, int | None]]:
        """Name -> size and version of what stands in a folder; the size of a folder is -1. Empty where none is.

        Raises:
            WorkerError: it cannot be listed.
        """
        if url in self._kept:
            self._kept.move_to_end(url)
            return self._kept[url]
        found = self._kept[url] = _listing(url)
        self._names += len(found)
        while len(self._kept) > _LEAST_LISTINGS and self._names > _MOST_NAMES:
            self._names -= len(self._kept.popitem(last=False)[1])
        return found

    def entry(self, url: str) -> tuple[int, int | None] | None:
        """Size and version of a file, (-1, None) of a folder, None where nothing is.

        Raises:
            WorkerError: the storage does not say.
        """
        folder, _, name = url.rpartition("/")
        return self._kept[folder].get(name) if folder in self._kept else _entry(url)


def _entry(url: str) -> tuple[int, int | None] | None:
    info = _asked(url, lambda filesystem, path: filesystem.info(path))
    return None if info is None else _size_and_version(info)


def _listing(url: str) -> dict[str, tuple[int, int | None]]:
    entries = _asked(url, lambda filesystem, path: filesystem.ls(path, detail=True)) or ()
    own = filesystem_of(url)[1].strip("/")
    names = ((entry["name"].strip("/"), entry) for entry in entries)  # a folder may list itself, and a file does
    return {name.rpartition("/")[2]: _size_and_version(entry) for name, entry in names if name != own}


def _asked(url: str, ask: Callable) -> Any:
    """What a storage answers of a URL, None where nothing is there.

    Raises:
        WorkerError: it does not answer: that says nothing against what stands in it.
    """
    filesystem, path = filesystem_of(url)
    try:
        return with_retries(lambda: ask(filesystem, path), url)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        why = without_secrets(first_line(error))
        raise WorkerError(f"{url}: cannot be read ({why}); what was finished is kept") from error


def _size_and_version(info: Mapping[str, Any]) -> tuple[int, int | None]:
    if info["type"] == "directory":
        return _FOLDER
    said = next((str(info[key]) for key in _VERSIONS if info.get(key)), "")
    digest = hashlib.blake2b(said.encode(), digest_size=7).digest()
    return info.get("size") or 0, int.from_bytes(digest, "big") if said else None


class RemotePath:
    """A folder or file in object storage.

    Args:
        url: of it, without a slash at its end.
        listings: that it shares with the paths that are made from it.
    """

    __slots__ = ("listings", "url")

    def __init__(self, url: str, listings: Listings):
        self.url, self.listings = url, listings

    def __str__(self) -> str:
        return self.url

    def __repr__(self) -> str:
        return f"RemotePath({self.url!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and self.url == other.url

    def __hash__(self) -> int:
        return hash(self.url)

    def __truediv__(self, name: str) -> "RemotePath":
        return RemotePath(f"{self.url}{'' if self.url.endswith('/') else '/'}{name}", self.listings)

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return self.url.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """The name without its ending."""
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """The name's ending."""
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> "RemotePath":
        """The folder that it stands in; a bucket stands in itself."""
        above = self.url.rpartition("/")[0]
        return self if above.endswith("/") and self.url.count("/") < 3 else RemotePath(above, self.listings)

    def relative_to(self, folder: "RemotePath") -> PurePosixPath:
        """The path below a folder."""
        return PurePosixPath(self.url.removeprefix(f"{str(folder).removesuffix('/')}/"))

    def absolute(self) -> "RemotePath":
        """Itself."""
        return self

    def resolve(self) -> "RemotePath":
        """Itself."""
        return self

    def exists(self) -> bool:
        """Whether something is there."""
        return self.listings.entry(self.url) is not None

    def is_dir(self) -> bool:
        """Whether it is a folder."""
        return self.listings.entry(self.url) == _FOLDER

    def is_file(self) -> bool:
        """Whether it is a file."""
        entry = self.listings.entry(self.url)
        return entry is not None and entry != _FOLDER

    def iterdir(self) -> "Iterator[RemotePath]":
        """What stands in the folder, sorted."""
        for name in sorted(self.listings.of(self.url)):
            yield self / name

    def glob(self, pattern: str) -> "Iterator[RemotePath]":
        """What of it has a name of a pattern."""
        return (path for path in self.iterdir() if fnmatchcase(path.name, pattern))

    def file(self, name: str) -> RemoteFile | None:
        """The file of a path below this folder, from the listing of its own folder; None where there is none.

        Raises:
            WorkerError: that folder cannot be listed.
        """
        path = self / name
        entry = self.listings.of(path.parent.url).get(path.name)
        return None if entry is None or entry == _FOLDER else RemoteFile(path.url, *entry)

    def as_file(self) -> RemoteFile | None:
        """Itself as a file, from a request for it alone; None where there is none."""
        entry = _entry(self.url)
        return None if entry is None or entry == _FOLDER else RemoteFile(self.url, *entry)

    def open(self, mode: str = "r", newline: str | None = None, encoding: str | None = None) -> IO:
        """Opens the file: as text for one read from its start to its end, as bytes ("rb") to seek in it too."""
        if mode == "rb":
            filesystem, path = filesystem_of(self.url)
            return filesystem.open(path, "rb")
        return io.TextIOWrapper(RetryingReader(self.url).buffered(), encoding=encoding, newline=newline)

    def read_text(self, encoding: str | None = None) -> str:
        """The file's text."""
        with self.open(encoding=encoding) as file:
            return file.read()

    def read_bytes(self) -> bytes:
        """The file's bytes."""
        with RetryingReader(self.url).buffered() as file:
            return file.read()


Place = Path | RemotePath


def files_below(folder: str | Place) -> Iterator[str]:
    """Names of all files below a folder, relative to it, in a fixed order and without hidden ones."""
    if isinstance(folder, RemotePath):
        yield from _remote_files_below(folder, "")
        return
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith("."):
                yield os.path.relpath(os.path.join(root, name), folder)


def _remote_files_below(folder: RemotePath, above: str) -> Iterator[str]:
    entries = sorted((name, size < 0) for name, (size, _) in folder.listings.of(folder.url).items())
    shown = [(name, is_folder) for name, is_folder in entries if name and not name.startswith(".")]
    yield from (above + name for name, is_folder in shown if not is_folder)
    for name in [name for name, is_folder in shown if is_folder]:
        yield from _remote_files_below(folder / name, f"{above}{name}/")
