"""`--config run.yaml`: flags out of a file, or those of an earlier run."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from keepfit_clip.errors import ConfigError
from keepfit_clip.training.flags import flag_of, no_flag

__all__ = ["RunFile", "with_config"]

_FLAG = "--config"


@dataclass(frozen=True)
class RunFile:
    """The file of a run's folder that holds its flags.

    Args:
        name: of the file.
        names_only: flags of which it holds no paths, but the last names there.
        passed_over: keys that are of that run alone, or no flags.
    """

    name: str
    names_only: Collection[str] = ()
    passed_over: Collection[str] = ()


def with_config(argv: Sequence[str], known: Mapping[str, Any], run_file: RunFile | None = None) -> list[str]:
    """A command line with the flags of its `--config FILE` before its own, which therefore win.

    Args:
        argv: the command line.
        known: name of each field that a flag sets -> its default.
        run_file: what of an earlier run can be given too: its folder, or the file in it.

    Raises:
        ConfigError: the file cannot be read, a key is no flag, or an earlier run's file lacks what must be given anew.
    """
    file, words = _taken_out(argv)
    if file is None:
        return words
    if run_file and file.is_dir():
        file /= run_file.name
    content = {str(key).lstrip("-").replace("-", "_"): value for key, value in _read(file).items()}
    given = {word.partition("=")[0] for word in words}
    if run_file and file.name == run_file.name:
        _require_paths(file, content, given, run_file)
        content = {k: v for k, v in content.items() if k not in {*run_file.names_only, *run_file.passed_over}}
    from_file: list[str] = []
    for name, value in content.items():
        if name not in known:
            raise ConfigError(f"{file}: {no_flag(name, known)}")
        if flag_of(name) not in given and value != known[name]:
            from_file += _words(file, name, value, several=isinstance(known[name], list))
    return [*from_file, *words]


def _taken_out(argv: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The file of the last `--config`, and the other words."""
    file, words = None, iter(argv)
    others = []
    for word in words:
        flag, equals, value = word.partition("=")
        if flag != _FLAG:
            others.append(word)
            continue
        file = value if equals else next(words, "")
        if not file:
            raise ConfigError(f"{_FLAG} needs a file")
    return file and Path(file), others


def _read(path: Path) -> Mapping[Any, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{_FLAG} {path}: cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        why = " ".join(str(error).split())[:200]
        raise ConfigError(f"{_FLAG} {path}: is neither YAML nor JSON ({why})") from error
    if not isinstance(content, Mapping):
        raise ConfigError(f"{_FLAG} {path}: holds no flags; write one on each line, such as 'lr: 3e-4'")
    return content


def _require_paths(file: Path, content: Mapping[str, Any], given: Collection[str], run_file: RunFile) -> None:
    """Raises ConfigError where an earlier run read files of which only the names are known."""
    missing = [name for name in run_file.names_only if content.get(name) and flag_of(name) not in given]
    if missing:
        flags = " ".join(flag_of(name) for name in missing)
        raise ConfigError(f"{file} keeps only the names of what that run read: give {flags} anew ('' for none)")


def _words(file: Path, name: str, value: Any, several: bool) -> list[str]:
    """A key and its value as words of a command line.

    Args:
        file: for the error.
        name: the key.
        value: its value.
        several: whether the flag is given once for each value.
    """
    flag = flag_of(name)
    if value is None or value is False:
        return []
    if value is True:
        return [flag]
    if isinstance(value, Mapping):
        raise ConfigError(f"{file}: {name}: a flag has a value or a list of values")
    if not isinstance(value, (list, tuple)):
        return [f"{flag}={value}"]
    return [f"{flag}={one}" for one in value] if several else [flag, *map(str, value)]
