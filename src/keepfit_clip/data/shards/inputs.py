"""The files that a build read, so that a build that goes on notices what changed meanwhile.

They are told apart by size and time, in object storage by size and version.
"""

import os
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

from keepfit_clip.remote.opening import RemoteFile
from keepfit_clip.remote.paths import Listings, Place, RemotePath, files_below, is_url, place

__all__ = ["INPUTS_TABLE", "Inputs", "size_of"]

INPUTS_TABLE = """
    CREATE TABLE IF NOT EXISTS inputs (
        path BLOB PRIMARY KEY,    -- as the file system has it, which need not be text; or a URL
        size INTEGER,             -- bytes; NULL where it is not there
        mtime INTEGER             -- nanoseconds; in object storage what stands for a version, NULL where none is said
    ) WITHOUT ROWID;
"""
_AT_ONCE = 512


class Inputs:
    """The table of them in a plan.

    Args:
        db: the plan's database; transactions are the caller's.
    """

    def __init__(self, db: sqlite3.Connection):
        self._db = db
        self._last: tuple[str | Path | RemoteFile, int | None] = ("", None)
        self._listings = Listings()
        self._alone: set[str] = set()  # URLs whose folder need not be one that may be listed

    def clear(self) -> None:
        """Forgets all."""
        self._db.execute("DELETE FROM inputs")

    def note(self, path: str | Path | RemoteFile) -> int | None:
        """Notes a file as it is now, or as its listing said; returns its size, None where it is not there."""
        if path != self._last[0]:  # else the next part of the same tar
            size, mtime = path[1:] if isinstance(path, RemoteFile) else self._now(path)
            self._db.execute("INSERT OR IGNORE INTO inputs VALUES (?, ?, ?)", (_encoded(path), size, mtime))
            self._last = path, size
        return self._last[1]

    def note_all(self, locations: Iterable[str | Place]) -> None:
        """Notes files, and all that is below folders."""
        self._alone.update(map(str, locations := list(locations)))
        for path in self._files(locations):
            self.note(path)

    def note_missing(self, path: str) -> None:
        """Notes a file that was looked for and is not there."""
        if not is_url(path):
            self.note(path)
        else:  # no need to ask a server again
            self._db.execute("INSERT OR IGNORE INTO inputs VALUES (?, NULL, NULL)", (_encoded(path),))

    def changes(self, locations: Iterable[str | Place]) -> Iterator[tuple[str, str]]:
        """What changed since: "changed", "gone" or "new", and the path.

        Args:
            locations: files and folders, as they were given to `note_all`.
        """
        self._alone.update(map(str, locations := list(locations)))
        last = b""
        while block := self._db.execute(
            f"SELECT path, size, mtime FROM inputs WHERE path > ? ORDER BY path LIMIT {_AT_ONCE}", (last,)
        ).fetchall():
            for path, *noted in block:
                now = self._now(os.fsdecode(path))
                if [*now] != noted:
                    yield "gone" if now[0] is None else "new" if noted[0] is None else "changed", os.fsdecode(path)
            last = block[-1][0]
        for path in self._files(locations):
            if not self._db.execute("SELECT 1 FROM inputs WHERE path = ?", (_encoded(path),)).fetchone():
                yield "new", str(path)

    def accept(self, paths: Iterable[str]) -> None:
        """Notes these files as they are now."""
        for path in paths:
            self._db.execute("INSERT OR REPLACE INTO inputs VALUES (?, ?, ?)", (_encoded(path), *self._now(path)))

    def _now(self, path: str | Path) -> tuple[int | None, int | None]:
        """Size and time, or version, of a file; in object storage by the listing of its folder."""
        if not is_url(path):
            return _size_and_time(path)
        remote = RemotePath(str(path), self._listings)
        file = remote.as_file() if remote.url in self._alone else remote.parent.file(remote.name)
        return (None, None) if file is None else (file.size, file.version)

    def _files(self, locations: Iterable[str | Place]) -> Iterator[str]:
        """Files, and those below folders but hidden ones, in a fixed order."""
        for location in locations:
            where = place(location, self._listings)
            if where.is_dir():
                yield from (str(where / name) for name in files_below(where))
            else:
                yield str(location)


def _encoded(path: str | Path | RemoteFile) -> bytes:
    return os.fsencode(str(path) if is_url(path) else os.path.abspath(path))


def size_of(path: str | Path | RemoteFile) -> int | None:
    """Bytes of a file, None where it is not there."""
    return path.size if isinstance(path, RemoteFile) else _size_and_time(path)[0]


def _size_and_time(path: str | bytes | Path) -> tuple[int | None, int | None]:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None, None
    return status.st_size, status.st_mtime_ns
