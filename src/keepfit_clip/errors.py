"""Every exception the library raises on purpose.

    KeepFITError
    ├── ConfigError           a model config or an option cannot be used
    ├── MissingWeightsError   a tower's weights or tokenizer are out of reach (no extra, no hub, wrong file)
    ├── MissingExtraError     an optional dependency is not installed
    ├── CheckpointError       a checkpoint or run folder cannot be read, or is of another architecture
    ├── TableError            a table, or one row of it, cannot be read
    ├── ImageError            one image cannot be read
    ├── ShardError            a shard folder or a tar cannot be read or written
    │   └── WorkerError       a process or machine that worked on it is gone; what was finished is kept
    ├── KnowledgeError        the knowledge file is not valid
    ├── CategoryError         no category, or none that matches
    ├── TextTooLongError      a text does not fit into the model's context
    ├── CorpusError           a text corpus cannot be used for textual pretraining
    ├── OutputError           a result cannot be written: something stands there, no space, no permission
    └── NonFiniteError        features or scores are NaN or infinite; NonFiniteLossError, below it: a loss term is

`KeepFITWarning` is the one kind of warning: the command line prints it as a yellow line.

Errors about single images and rows carry `reason`, a sentence without any name out of the input: only `reason` may
enter a manifest or a report. The full message, which may name the user's own file, is for the terminal.
"""

import errno
from collections.abc import Sequence

__all__ = [
    "CategoryError",
    "CheckpointError",
    "ConfigError",
    "CorpusError",
    "ImageError",
    "KeepFITError",
    "KeepFITWarning",
    "KnowledgeError",
    "MissingExtraError",
    "MissingWeightsError",
    "NonFiniteError",
    "NonFiniteLossError",
    "OutputError",
    "ShardError",
    "TableError",
    "TextTooLongError",
    "WorkerError",
    "first_line",
    "ordinary_trouble",
]


class KeepFITError(Exception):
    """Base class: one sentence that says what is wrong, where, and what to do."""


class KeepFITWarning(UserWarning):
    """Something goes on, and not quite as its user may think."""


class ConfigError(KeepFITError, ValueError):
    """A model config or an option cannot be used."""


class MissingWeightsError(KeepFITError, OSError):
    """Weights or a tokenizer are out of reach: a missing extra, an unreachable hub, or not the known file."""


class MissingExtraError(KeepFITError, ImportError):
    """An optional dependency is not installed."""


class CheckpointError(KeepFITError):
    """A checkpoint or run folder cannot be read, or holds another architecture."""


class TableError(KeepFITError):
    """A table or one of its rows cannot be read.

    Args:
        message: the whole sentence, for the person at the terminal.
        row: 1-based number of the data row (the header is not counted), or None for the table as a whole.
        reason: the same without names out of the input; defaults to the message.
        looked_for: the files of which one would have done, where the row's image is missing.
        remedy: the end of the sentence, where it names options that only commands with a table of their own have.
    """

    def __init__(
        self,
        message: str,
        row: int | None = None,
        reason: str | None = None,
        looked_for: Sequence[str] = (),
        remedy: str = "",
    ):
        super().__init__(f"{message}{remedy}")
        self.statement = message
        self.remedy = remedy
        self.row = row
        self.looked_for = tuple(looked_for)
        self.reason = reason or message


class ImageError(KeepFITError):
    """One image cannot be read.

    Args:
        name: the user's own name of the image (path), for the terminal.
        reason: what is wrong, free of names.
    """

    def __init__(self, name: str, reason: str):
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason

    def __reduce__(self):
        return type(self), (self.name, self.reason)  # also comes whole out of another process


class ShardError(KeepFITError):
    """A shard folder or a tar cannot be read or written."""


class WorkerError(ShardError):
    """A process or machine of a parallel job is gone; what was finished is kept, and a second try goes on."""


class KnowledgeError(KeepFITError):
    """The knowledge file is not valid."""


class CategoryError(KeepFITError):
    """No category was given, or none of the given ones matches."""


class MissingClassesError(CategoryError):
    """A class has no image."""


class TextTooLongError(KeepFITError):
    """A text does not fit into the model's context."""


class CorpusError(KeepFITError):
    """A text corpus cannot be used for textual pretraining."""


class OutputError(KeepFITError, OSError):
    """A result cannot be written: something else stands there, no space is left, or it is not allowed."""


class NonFiniteError(KeepFITError):
    """Features or scores are NaN or infinite."""


class NonFiniteLossError(NonFiniteError):
    """A loss term became NaN or infinite."""


def first_line(error: BaseException) -> str:
    """What an exception of another library says, in one line: the system's reason, its first line, or its kind."""
    if isinstance(error, OSError) and error.strerror:
        return str(error.strerror)
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


def ordinary_trouble(error: BaseException) -> str | None:
    """One line for what no program can help: files, disks, memory, devices. None for anything else, a bug perhaps."""
    if isinstance(error, OSError) and error.errno is not None:
        where = f"{error.filename}: " if error.filename else ""
        more = " (no space, or no room for more files)" if error.errno == errno.ENOSPC else ""
        return f"{where}{first_line(error)}{more}"
    if isinstance(error, MemoryError):
        return "there is not enough memory: take fewer --workers or a smaller --batch-size"
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which need not be imported for this
        return f"the device has not enough memory ({first_line(error)[:120]}): take a smaller --batch-size"
    return None
