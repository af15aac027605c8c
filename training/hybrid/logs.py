"""What a run logs, and where: what people read on the terminal and in `RUN/out.log`, everything in `RUN/debug.log`.

Files hold names of files and folders only; the terminal shows whole paths.
"""

import logging
import re
from pathlib import Path

from transformers.utils import logging as transformers_logging

from keepfit_clip.files import write_text
from keepfit_clip.folders.weightless import warns_of_no_weights

__all__ = ["DEBUG_LOG", "LEVELS", "set_up_logs", "strip_folders", "without_folders"]

DEBUG_LOG = "debug.log"
LEVELS = ("debug", "info", "warning", "error")

_OUT_LOG = re.compile(r"^out(?=\b)")  # open_clip_train's log file, out.log, or out-RANK with --log-local
_LOCAL = "local-dir:"
_CLOCK = "%m-%d %H:%M"
# The folders before a name: of absolute paths and those with a scheme, and of any path in quotes.
_FOLDERS = re.compile(
    r"(?<![\w./])(?:[a-z][a-z0-9+]{1,9}://|\.{0,2}/)(?:[^\s/'\"`:,()]{1,255}/)*(?=[^\s/'\"`:,()])|"
    r"(?<=['\"`])[^\s'\"`]{1,4096}/(?=[^\s/'\"`]{1,255}['\"`])"
)
_SETTING = re.compile(r"  (\w+): (\S.*)")  # as open_clip_train logs each
# Of open_clip_train's own lines: the model's layers, all parameters, and the metrics that `Pace` tells in short.
_DETAILS = re.compile(
    r"Model:|Params:|\w+\(\n|  \w+: |Train Epoch: |Start epoch |No latest resume checkpoint|Created \w+ \("
)


def set_up_logs(level: str) -> None:
    """Sorts what the root logger's handlers show, as open_clip_train has just set them up.

    Args:
        level: one of LEVELS, of what the terminal shows; with "debug" everything.
    """
    if level != "debug":
        _quiet_transformers()
    for handler in list(logging.getLogger().handlers):
        if isinstance(handler, logging.FileHandler):
            _add_debug_log(Path(handler.baseFilename), handler.formatter)
            handler.setFormatter(_NamesOnly(_Line()))
            handler.addFilter(_is_for_people)
        elif level != "debug":
            handler.setFormatter(_Line())
            handler.addFilter(_is_for_people)
            handler.setLevel(level.upper())


def _quiet_transformers() -> None:
    """Its loggers print by themselves what else only the debug log has; open_clip_train raises each one's level."""
    for name in logging.root.manager.loggerDict:
        if name.startswith("transformers."):
            logging.getLogger(name).setLevel(logging.NOTSET)
    transformers_logging.set_verbosity_warning()
    transformers_logging.disable_progress_bar()


def _add_debug_log(log: Path, formatter: logging.Formatter | None) -> None:
    everything = logging.FileHandler(log.with_name(_OUT_LOG.sub(Path(DEBUG_LOG).stem, log.name)), encoding="utf-8")
    everything.setFormatter(_NamesOnly(formatter or logging.Formatter()))
    logging.getLogger().addHandler(everything)


def _is_for_people(record: logging.LogRecord) -> bool:
    """Whether a line is news of the run, and no detail of how a library works."""
    message = record.getMessage()
    if record.levelno >= logging.WARNING:
        return not warns_of_no_weights(record)  # a run begins with such a folder
    ours = record.name.startswith("keepfit_clip") or "open_clip_train" in Path(record.pathname).parts
    return ours and not _DETAILS.match(message)


class _Line(logging.Formatter):
    """Day, time and message; the level only where it is no mere information."""

    def __init__(self):
        super().__init__("%(asctime)s %(message)s", _CLOCK)

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line, without a traceback that belongs to it."""
        if record.levelno > logging.INFO:
            return f"{record.asctime} {record.levelname}: {record.message}"
        return super().formatMessage(record)


class _NamesOnly(logging.Formatter):
    """Another formatter's lines, without the folders of paths."""

    def __init__(self, own: logging.Formatter):
        super().__init__()
        self.own = own

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        setting = _SETTING.fullmatch(record.getMessage())
        if setting is None:
            return _FOLDERS.sub("", self.own.format(record))
        shortened = logging.makeLogRecord(
            {**record.__dict__, "msg": f"  {setting[1]}: {without_folders(setting[2])}", "args": None}
        )
        return self.own.format(shortened)


def without_folders(value):
    """A setting with only the last name of every path, also in a list and of several joined by "::"."""
    if isinstance(value, (list, tuple)):
        return [without_folders(part) for part in value]
    if not isinstance(value, str) or value.startswith("hf-hub:"):
        return value
    return "::".join(_last_name(part) for part in value.split("::"))


def _last_name(location: str) -> str:
    prefix, _, path = location.rpartition(_LOCAL)
    return prefix + (_LOCAL if location.startswith(_LOCAL) else "") + (path.rstrip("/").rpartition("/")[2] or path)


def strip_folders(run: Path) -> None:
    """Leaves only names in open_clip's `RUN/params.txt`."""
    path = run / "params.txt"
    if path.exists():
        lines = (line.partition(": ") for line in path.read_text(encoding="utf-8").splitlines())
        write_text(path, "".join(f"{name}{colon}{without_folders(value)}\n" for name, colon, value in lines))
