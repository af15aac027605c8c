"""Flags of a program, from the fields of its settings: each is written once, with its kind, default, help and marks."""

import argparse
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

__all__ = ["add_flags", "flag_of", "listed", "marked", "setting"]


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
