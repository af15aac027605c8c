"""The options that say how a table of labelled pictures is read: the same for every command that reads one."""

import inspect
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Annotated

import typer

from keepfit_clip.cli.console import error_console
from keepfit_clip.errors import ConfigError

__all__ = ["name_value_pairs", "reads_tables", "tell_lines", "tell_notes"]

_PANEL = "How the table is read"
_OFF = "'none' takes no column"


def _option(help: str, *names: str):
    return typer.Option(*names, help=help, rich_help_panel=_PANEL)


# Name of the parameter -> its annotation and default.
_OPTIONS = {
    "source_kind": (
        Annotated[str, _option("table, jsonl, studies, parquet, folder, shards or layout", "--source")],
        "auto",
    ),
    "layout": (
        Annotated[
            str, _option("the source is the unpacked folder of this data set: `datasets list`, or a layout file")
        ],
        "",
    ),
    "image_column": (Annotated[str | None, _option("column of the images")], None),
    "caption_column": (Annotated[list[str] | None, _option("column of captions; may be repeated")], None),
    "category_column": (Annotated[list[str] | None, _option("column of labels; may be repeated")], None),
    "attribute_column": (Annotated[str | None, _option(f"words about the image itself; {_OFF}")], None),
    "modality_column": (Annotated[str | None, _option(f"CFP, FFA or OCT; {_OFF}")], None),
    "patient_column": (Annotated[str | None, _option(f"whose images belong together; {_OFF}")], None),
    "eye_column": (Annotated[str | None, _option(f"left or right; {_OFF}")], None),
    "volume_column": (Annotated[str | None, _option(f"of which volume an image is a slice; {_OFF}")], None),
    "visit_column": (Annotated[str | None, _option(f"at which visit the image was taken; {_OFF}")], None),
    "slice_column": (Annotated[str | None, _option(f"number of the image in its volume; {_OFF}")], None),
    "dataset_column": (Annotated[str | None, _option(f"name of the data set of each row; {_OFF}")], None),
    "label_name": (
        Annotated[
            list[str] | None,
            _option("what a label stands for, 0=normal, or of one column 'COLUMN:0=normal'; may be repeated"),
        ],
        None,
    ),
    "labels": (
        Annotated[
            str, _option("what the labels of a data set mean: rfmid, odir, octdl, ... (`knowledge labels`) or a file")
        ],
        "",
    ),
    "as_written": (
        Annotated[bool, _option("keep the labels of tables that are known to be wrong", "--as-written")],
        False,
    ),
    "frames": (
        Annotated[
            str,
            _option("of a file of several (DICOM, .vol, .e2e, .fda): middle, all, or every:N for every Nth"),
        ],
        "middle",
    ),
    "group_pattern": (
        Annotated[str | None, _option("regular expression: patient or eye in the file name, e.g. '[0-9]+'")],
        None,
    ),
    "encoding": (Annotated[str, _option("of text files")], "utf-8"),
}


def reads_tables(command: Callable) -> Callable:
    """Gives a command these options in place of its parameter `source_options`, which becomes their `SourceOptions`."""
    signature = inspect.signature(command)
    own = [parameter for name, parameter in signature.parameters.items() if name != "source_options"]
    ours = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (annotation, default) in _OPTIONS.items()
    ]

    @wraps(command)
    def with_options(**values):
        from keepfit_clip.data.sources import SourceOptions

        given = {name: values.pop(name) for name in _OPTIONS}
        options = SourceOptions(
            source=given["source_kind"],
            caption_columns=tuple(given["caption_column"] or ()),
            category_columns=tuple(given["category_column"] or ()),
            label_names=name_value_pairs("--label-name", given["label_name"] or (), str),
            **{name: given[name] for name in _OPTIONS if name in SourceOptions.__dataclass_fields__},
        )
        return command(source_options=options, **values)

    keyword_only = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
    with_options.__signature__ = signature.replace(parameters=[*keyword_only, *ours])
    with_options.__annotations__ = {p.name: p.annotation for p in (*keyword_only, *ours)} | {"return": None}
    return with_options


def name_value_pairs(option: str, texts, parse) -> dict:
    """NAME=VALUE texts as a dict; what follows the last `=` is the value.

    Raises:
        ConfigError: another form, a value that cannot be, or a name that stands there twice.
    """
    pairs = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.rpartition("="))
        try:
            parsed = parse(value)
        except ValueError:
            equals = ""
        if not (equals and name and value):
            raise ConfigError(f"{option}: {text!r} is not of the form NAME=VALUE")
        if name in pairs:
            raise ConfigError(f"{option}: {name!r} stands there twice")
        pairs[name] = parsed
    return pairs


def tell_notes(notes) -> None:
    """Says once which columns were taken for what."""
    tell_lines(notes.lines())


def tell_lines(lines: Sequence[str]) -> None:
    """The same of lines that were kept."""
    for line in lines:
        error_console.print(line, markup=False, highlight=False, soft_wrap=True, style="dim")
