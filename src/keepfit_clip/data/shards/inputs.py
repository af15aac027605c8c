"""The files that a build read, their sizes and times, so that a build that goes on notices what changed meanwhile."""

import os
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = ["INPUTS_TABLE", "Inputs", "size_of"]

INPUTS_TABLE = """
    CREATE TABLE IF NOT EXISTS inputs (
        path BLOB PRIMARY KEY,    -- as the file system has it, which need not be text
        size INTEGER,             -- bytes; NULL where it is not there
        mtime INTEGER             -- nanoseconds
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
        self._last: tuple[str | Path, int | None] = ("", None)

    def clear(self) -> None:
        """Forgets all."""
        self._db.execute("DELETE FROM inputs")

    def note(self, path: str | Path) -> int | None:
        """Notes a file as it is now; returns its size, None where it is not there."""
        if path != self._last[0]:  # else the next part of the same tar
            size, mtime = _size_and_time(path)
            self._db.execute("INSERT OR IGNORE INTO inputs VALUES (?, ?, ?)", (_encoded(path), size, mtime))
            self._last = path, size
        return self._last[1]

    def note_all(self, locations: Iterable[str | Path]) -> None:
        """Notes files, and all that is below folders."""
        for path in _files(locations):
            self.note(path)

    def changes(self, locations: Iterable[str | Path]) -> Iterator[tuple[str, str]]:
        """What changed since: "changed", "gone" or "new", and the path.

        Args:
            locations: files and folders, as they were given to `note_all`.
        """
        last = b""
        while block := self._db.execute(
            f"SELECT path, size, mtime FROM inputs WHERE path > ? ORDER BY path LIMIT {_AT_ONCE}", (last,)
        ).fetchall():
            for path, *noted in block:
                now = _size_and_time(path)
                if [*now] != noted:
                    yield "gone" if now[0] is None else "new" if noted[0] is None else "changed", os.fsdecode(path)
            last = block[-1][0]
        for path in _files(locations):
            if not self._db.execute("SELECT 1 FROM inputs WHERE path = ?", (_encoded(path),)).fetchone():
                yield "new", str(path)

    def accept(self, paths: Iterable[str]) -> None:
        """Notes these files as they are now."""
        for path in paths:
            self._db.execute("INSERT OR REPLACE INTO inputs VALUES (?, ?, ?)", (_encoded(path), *_size_and_time(path)))


def _encoded(path: str | Path) -> bytes:
    return os.fsencode(os.path.abspath(path))


def size_of(path: str | Path) -> int | None:
    """Bytes of a file, None where it is not there."""
    return _size_and_time(path)[0]


def _size_and_time(path: str | bytes | Path) -> tuple[int | None, int | None]:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None, None
    return status.st_size, status.st_mtime_ns


def _files(locations: Iterable[str | Path]) -> Iterator[str]:
    """Files, and those below folders but hidden ones, in a fixed order."""
    for location in locations:
        if not os.path.isdir(location):
            yield str(location)
            continue
        for root, folders, files in os.walk(location):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            yield from (os.path.join(root, name) for name in sorted(files) if not name.startswith("."))
