"""Where the images of a set lie, by their names: for tables that do not say the folder."""

import os
import sqlite3

from keepfit_clip.data.sources.folder import walk_images
from keepfit_clip.remote.paths import Place

__all__ = ["ImagesByName"]


class ImagesByName:
    """All images below a folder, in a temporary file of SQLite's, so that millions of them need no memory.

    Args:
        root: the folder; it is walked through once.
    """

    def __init__(self, root: Place):
        self._db = sqlite3.connect("", isolation_level=None)  # a file without a name, gone with this process
        self._db.execute("CREATE TABLE images (stem BLOB, path BLOB)")
        rows = ((_key(path), os.fsencode(path)) for path in walk_images(root))
        self._db.execute("BEGIN")
        self._db.executemany("INSERT INTO images VALUES (?, ?)", rows)
        self._db.execute("CREATE INDEX by_stem ON images (stem)")
        self._db.execute("COMMIT")

    def paths(self, name: str) -> list[str]:
        """Paths, below the root, of the images that are called so, whatever their ending and the size of letters."""
        found = self._db.execute("SELECT path FROM images WHERE stem = ? ORDER BY rowid", (_key(name),))
        return [os.fsdecode(path) for (path,) in found]

    def close(self) -> None:
        """Removes the file."""
        self._db.close()


def _key(path: str) -> bytes:
    return os.fsencode(os.path.splitext(os.path.basename(path))[0].lower())
