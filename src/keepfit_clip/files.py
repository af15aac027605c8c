"""Writing outputs so that nothing half written ever stands under its final name."""

import errno
import fcntl
import hashlib
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from keepfit_clip.errors import KeepFITError, OutputError, first_line

__all__ = ["WorkFolder", "cache_folder", "file_sha256", "new_folder", "parse_json", "printable", "put_in_place",
           "read_json", "read_shipped", "remove", "require_free", "to_json", "write_json", "write_text",
           "writing"]  # fmt: skip

_PARTIAL_LOCK = ".keepfit-writing"  # in a temporary folder, locked by the process that writes it
_FORGOTTEN = 24 * 3600  # seconds after which a temporary folder that has none is nobody's
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LARGEST_JSON = 64 << 20  # bytes


def require_free(path: str | Path) -> Path:
    """The path, if a new folder can be made there.

    Raises:
        OutputError: it is a file, a folder that holds something, a link or a mounted volume.
    """
    path = Path(path)
    if path.is_symlink() or path.is_mount():
        what = "a link" if path.is_symlink() else "a mounted volume"
        raise OutputError(f"{path} is {what}, which cannot be replaced by a finished folder: choose a folder inside it")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise OutputError(f"{path} holds something already: choose a new folder")
    return path


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turns a full disk while the block writes `path` into an error of ours.

    Raises:
        OutputError: no space is left.
    """
    try:
        yield
    except KeepFITError:  # says already what it is about
        raise
    except Exception as error:  # safetensors raises its own kind, with the system's words in it
        full = isinstance(error, OSError) and error.errno in _NO_ROOM
        if not full and os.strerror(errno.ENOSPC) not in str(error):
            raise
        raise OutputError(f"{path}: cannot be written, no space is left on the disk") from error


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Gives a temporary folder beside `path` that becomes `path` when the block ends without an error.

    An existing empty folder is replaced; `require_free` tells beforehand whether something else stands there. What
    processes that were killed left beside `path` is removed.

    Raises:
        OutputError: the folder cannot be made there, or no space is left.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
        lock = _locked(temporary)
    except OSError as error:
        raise OutputError(f"{path}: the folder cannot be made ({first_line(error)})") from error
    try:
        with writing(path):
            yield temporary
            temporary.chmod(0o755)
        (temporary / _PARTIAL_LOCK).unlink(missing_ok=True)  # the lock itself stays until the folder is in its place
        put_in_place(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(lock)


def put_in_place(finished: Path, path: Path) -> None:
    """Gives a finished folder the name it is made for; an empty folder of that name is replaced.

    Raises:
        OutputError: something else stands there.
    """
    try:
        if path.exists():
            path.rmdir()
        os.replace(finished, path)
    except OSError as error:
        raise OutputError(f"{path} cannot be put in place ({first_line(error)}): was it made meanwhile?") from error


class WorkFolder:
    """A folder in which one process at a time does a long job, and goes on with it after a stop.

    Args:
        path: of the folder.
        lock_name: of the file that is locked meanwhile.
    """

    def __init__(self, path: str | Path, lock_name: str = ".lock"):
        self.path = Path(path)
        self._lock = self.path / lock_name

    @contextmanager
    def alone(self, busy: KeepFITError | None = None, wait: float = 0) -> Iterator[None]:
        """Makes the folder, and keeps other processes out of it while the block runs.

        Args:
            busy: raised where another one is at work there; without it this one waits until that has ended.
            wait: seconds before it is raised.

        Raises:
            OutputError: the folder cannot be made.
        """
        from filelock import FileLock, Timeout  # costs a command that writes nothing some time to start

        lock = FileLock(self._lock, timeout=-1 if busy is None else wait)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout as error:
            raise busy from error
        except OSError as error:
            raise OutputError(f"{self.path}: the folder cannot be made ({first_line(error)})") from error
        try:
            yield
        finally:
            lock.release()

    def claim(self, identity: Mapping[str, Any], name: str) -> list[str]:
        """Marks a folder that is new with what its job is, or compares it with the mark that stands there.

        Args:
            identity: what makes the job this one and no other, as JSON has it.
            name: of the file.

        Returns:
            The keys in which they differ: none where the job may go on.

        Raises:
            ValueError: the mark is damaged.
        """
        mark = self.path / name
        if not mark.exists():
            write_json(mark, identity)
            return []
        stored = parse_json(mark.read_bytes())
        if not isinstance(stored, dict):
            raise ValueError("not an object")
        return [key for key in {**identity, **stored} if stored.get(key) != identity.get(key)]

    def remove_leftovers(self, *patterns: str) -> None:
        """Removes what a process that was killed left half written."""
        for pattern in patterns:
            for path in self.path.glob(pattern):
                remove(path)

    def clear(self, keep: str = "") -> None:
        """Removes all that lies in the folder, but for the lock and a file to keep."""
        for path in self.path.iterdir():
            if path not in (self._lock, self.path / keep):
                remove(path)


def remove(path: Path) -> None:
    """Removes a file, a link or a folder with all that is in it; nothing where nothing is."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _locked(folder: Path) -> int:
    """A file in a folder that stays locked until what is returned is closed, or this process ends in any way.

    Locks hold between the machines that share a file system; where there are none, nobody takes the folder away.
    """
    lock = os.open(folder / _PARTIAL_LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    with suppress(OSError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return lock


def _remove_leftovers(path: Path) -> None:
    """Removes the temporary folders beside a path whose process is gone, also where they were to become another."""
    for folder in path.parent.glob(".*.partial"):
        if folder.is_dir() and not folder.is_symlink() and _is_forgotten(folder, path.name):
            shutil.rmtree(folder, ignore_errors=True)


def _is_forgotten(folder: Path, name: str) -> bool:
    """Whether nobody writes a temporary folder any more."""
    try:
        lock = os.open(folder / _PARTIAL_LOCK, os.O_RDWR)  # does not make it: it may be about to be put in its place
    except FileNotFoundError:
        with suppress(OSError):
            return folder.name.startswith(f".{name}.") and time.time() - folder.stat().st_mtime > _FORGOTTEN
        return False
    except OSError:  # another user's
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(lock)


def write_text(path: str | Path, content: str) -> None:
    """Writes UTF-8 text under a temporary name and renames it.

    Raises:
        OutputError: it cannot be written there, or no space is left.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(content, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise OutputError(f"{path}: cannot be written ({first_line(error)})") from error


def write_json(path: str | Path, content: Any) -> None:
    """Writes JSON the same way; what is not finite becomes null, for JSON has no NaN."""
    write_text(path, to_json(content, indent=2) + "\n")


def to_json(content: Any, indent: int | None = None) -> str:
    """Valid JSON of any content: NaN and infinity, which JSON does not have, become null."""
    try:
        return json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(content), indent=indent, ensure_ascii=False, allow_nan=False)


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def parse_json(text: str | bytes) -> Any:
    """The content of JSON as others wrote it.

    Raises:
        ValueError: not JSON, nested too deeply, or with NaN or infinity, which JSON does not have.
    """

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no JSON value")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_shipped(
    folder: Path, name: str | Path, what: str, error: type[KeepFITError], read: Callable[[Path], Any] | None = None
) -> tuple[Any, Path]:
    """The content of a file that ships with the library, by its name, or of one's own, by its path; and the path.

    Args:
        folder: where the shipped ones lie, as JSON.
        name: of one of them, or a path.
        what: it is, for the error.
        error: to be raised.
        read: from a path to its content; `read_json` by default.

    Raises:
        error: there is none, or it is not JSON.
    """
    shipped = sorted(path.stem for path in folder.glob("*.json"))
    path = folder / f"{name}.json" if str(name) in shipped else Path(name)
    try:
        return (read or read_json)(path), path
    except OSError as problem:
        known = ", ".join(shipped)
        raise error(f"{name}: no such {what} ({first_line(problem)}); shipped are {known}") from problem
    except (ValueError, RecursionError) as problem:
        kind = "not JSON" if read is None else "neither JSON nor YAML"
        raise error(f"{path}: {kind} ({' '.join(str(problem).split())})") from problem


def read_json(path: str | Path, largest: int = _LARGEST_JSON) -> Any:
    """The content of a JSON file, see `parse_json`.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no JSON, or larger than `largest` bytes.
    """
    with open(path, "rb") as file:
        content = file.read(largest + 1)
    if len(content) > largest:
        raise ValueError(f"larger than {largest >> 20} MiB")
    return parse_json(content.decode("utf-8-sig"))


def printable(text: str) -> str:
    """The text without halves of characters, which names of files may hold and no file in UTF-8 may."""
    return text.encode("utf-8", "replace").decode("utf-8")


def cache_folder() -> Path:
    """Where this library keeps what it converted: KEEPFIT_CLIP_CACHE, or keepfit_clip in the user's own cache."""
    chosen = os.environ.get("KEEPFIT_CLIP_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "keepfit_clip"


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
