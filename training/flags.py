"""Flags of a program, from the fields of its settings: each is written once, with its kind, default, help and marks."""

import argparse
import dataclasses
import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

__all__ = ["FlagParser", "add_flags", "flag_of", "listed", "marked", "no_flag", "setting"]


class FlagParser(argparse.ArgumentParser):
    """A parser that ends with one line, and with the flag that was meant, and whose flags a file may give.

    Args:
        examples: command lines for the end of the help.
        **options: argparse's.
    """

    def __init__(self, examples: Sequence[str], **options: Any):
        super().__init__(
            usage=f"{options['prog']} [--FLAG VALUE ...]",
            epilog="\n".join(("examples:", *(f"  {line}" for line in examples))),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **options,
        )
        self.add_argument("--config", metavar="FILE", help="YAML or JSON of flags; those given beside it win")

    def error(self, message: str) -> NoReturn:
        """Ends the program with 2."""
        self.exit(2, f"{self.prog}: {message}; {self.prog} --help lists the flags\n")

    def defaults(self) -> dict[str, Any]:
        """Name of each field that a flag sets -> its default."""
        return {action.dest: action.default for action in self._actions if action.dest not in ("help", "config")}

    def require_known(self, words: Iterable[str], others: Collection[str] = ()) -> None:
        """Ends the program where a word looks like a flag and is none.

        Args:
            words: of a command line.
            others: flags beside the parser's own; of these a beginning will do, as argparse allows.
        """
        known = sorted({*self._option_string_actions, *others})
        for flag in (word.partition("=")[0] for word in words if word.startswith("--") and word != "--"):
            if flag not in known and not any(other.startswith(flag) for other in others):
                self.error(no_flag(flag, known))


def setting(
    default: Any,
    help_text: str,
    *,
    metavar: str | None = None,
    choices: Iterable[str] | None = None,
    group: str = "",
    marks: Sequence[str] = (),
) -> Any:
    """A field of a dataclass of settings that becomes a flag.

    Args:
        default: its value where the flag is not given; the help shows it, unless it is empty or None.
        help_text: for the terminal.
        metavar: what stands for the value in the help.
        choices: the values there are.
        group: title under which the help shows it.
        marks: what else holds for it, see `marked`.
    """
    if default not in (None, "", ()) and default is not False and choices is None:
        help_text += f" ({default:g})" if isinstance(default, float) else f" ({default})"
    metadata = {"help": help_text, "metavar": metavar, "choices": choices, "group": group, "marks": tuple(marks)}
    return dataclasses.field(default=default, metadata=metadata)


def add_flags(parser: argparse.ArgumentParser, settings: type) -> None:
    """Adds a flag for each field that `setting` made; those of a tuple may be given several times."""
    kinds, groups = get_type_hints(settings), {"": parser}
    for field in dataclasses.fields(settings):
        if "help" not in field.metadata:
            continue
        title = field.metadata["group"]
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        groups[title].add_argument(flag_of(field.name), help=field.metadata["help"], **_options(field, kinds))


def no_flag(name: str, known: Iterable[str]) -> str:
    """That there is no such flag, and which of those known may have been meant."""
    near = difflib.get_close_matches(name, known, n=2)
    return f"there is no flag {name}" + (f"; did you mean {' or '.join(near)}?" if near else "")


def flag_of(name: str) -> str:
    """The flag of a field."""
    return f"--{name.replace('_', '-')}"


def listed(value: str | None) -> tuple[str, ...]:
    """The names in a value that joins them by commas."""
    return tuple(filter(None, (name.strip() for name in (value or "").split(","))))


def marked(settings: type, mark: str) -> list[str]:
    """Names of the fields with a mark, in order."""
    return [field.name for field in dataclasses.fields(settings) if mark in field.metadata.get("marks", ())]


def _options(field: dataclasses.Field, kinds: Mapping[str, Any]) -> dict[str, Any]:
    """What argparse is told of a field: its kind, default and choices."""
    kind = kinds[field.name]
    if kind is bool:
        return {"action": "store_true"}
    options = {"default": field.default}
    if get_origin(kind) is UnionType:  # "or None"
        kind = next(part for part in get_args(kind) if part is not NoneType)
    if get_origin(kind) is tuple:
        kind, options = get_args(kind)[0], {"action": "append", "default": []}
    options |= {name: field.metadata[name] for name in ("metavar", "choices") if field.metadata[name]}
    return options if kind is str else {**options, "type": kind}
