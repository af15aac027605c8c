"""Options that several commands have, under the same names, and how their texts are read."""

from pathlib import Path
from typing import Annotated

import typer

from keepfit_clip.cli.console import console
from keepfit_clip.errors import CategoryError, ConfigError
from keepfit_clip.training.flags import listed

__all__ = [
    "DATA",
    "HELP",
    "MEASURE",
    "TRAIN",
    "USE",
    "WEIGHTS",
    "AllowMissing",
    "Cache",
    "Classes",
    "Crop",
    "Device",
    "Findings",
    "Images",
    "JsonFile",
    "KnowledgeFile",
    "Modality",
    "Model",
    "NamesOnly",
    "Pool",
    "PoolBy",
    "Root",
    "class_spec",
    "path_or_url",
    "require_names",
    "upper",
    "write_result",
]

# The groups of commands in --help, in order.
DATA, TRAIN, WEIGHTS, USE, MEASURE, HELP = "Data", "Training", "Weights", "Use", "Measuring", "Help"


def path_or_url(text: str):
    """A local path, or one in object storage: for what commands read."""
    if "://" not in text:
        return Path(text)
    from keepfit_clip.remote.paths import place  # takes its time

    return place(text)


def _tables_to_stderr(file: Path | None) -> Path | None:
    """Where the result itself goes to standard output, everything else goes to standard error.

    Raises:
        ConfigError: it is a folder, such as '' is.
    """
    if file is not None and file.is_dir():
        raise ConfigError(f"--json {str(file)!r}: is a folder; give a file, or - for standard output")
    console.stderr = file == Path("-")
    return file


Model = Annotated[
    str,
    typer.Option(
        "--model",
        help="folder made by `export` or `import`, or a name: hf-hub:OWNER/NAME, open_clip:ViT-B-32/openai, "
        "timm:resnet50.a1_in1k (`keepfit-clip models`)",
    ),
]
Modality = Annotated[str | None, typer.Option(help="CFP, FFA or OCT; it words the texts")]
Cache = Annotated[Path, typer.Option(help="folder where what a model says of images is kept")]
Root = Annotated[
    Path | None,
    typer.Option(
        "--images",
        help="folder the image paths are relative to; shards and folders hold theirs themselves",
        parser=path_or_url,
    ),
]
AllowMissing = Annotated[
    bool, typer.Option("--allow-missing-classes", help="go on where a class has no image; scores say nothing of it")
]
Classes = Annotated[
    str | None,
    typer.Option(
        help='class file, name of a shipped one (messidor, fives, ...) or "normal,glaucoma" (the shipped one that is '
        "called as the table; else all there are)"
    ),
]
Crop = Annotated[
    bool | None,
    typer.Option(
        "--crop/--no-crop",
        help="cut the black border off colour photographs (as the model was trained)",
        show_default=False,
    ),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ... (CUDA where there is one)")]
Images = Annotated[list[Path], typer.Argument(help="image files", show_default=False)]
JsonFile = Annotated[
    Path | None,
    typer.Option("--json", help="write the result for machines; - is standard output", callback=_tables_to_stderr),
]
KnowledgeFile = Annotated[Path | None, typer.Option("--knowledge", help="knowledge file instead of the shipped one")]
NamesOnly = Annotated[bool, typer.Option(help="compare with the canonical names alone")]
Pool = Annotated[str | None, typer.Option(help="score volumes, eyes or patients too: volume, eye or patient")]
PoolBy = Annotated[str, typer.Option(help="mean, max, or top-K: the mean of the K largest of a class")]
Findings = Annotated[
    bool, typer.Option("--findings", help="compare with what is visible of each class too, where each has some")
]


def class_spec(asked: str | None, table: Path):
    """What `--classes` asks for: a class file, names, or None for all that a table has.

    Raises:
        CategoryError: there is no such class file, or it does not say what it should.
    """
    from keepfit_clip.data.downstream import list_class_files, read_class_file

    shipped = list_class_files()
    asked = asked or (table.stem if table.stem in shipped else None)
    if asked is None:
        return None
    return read_class_file(asked) if asked in shipped or asked.endswith(".json") else require_names(asked)


def require_names(text: str) -> list[str]:
    """The names of a text such as "glaucoma,normal", which must name something.

    Raises:
        CategoryError: it names nothing.
    """
    names = list(listed(text))
    if not names:
        raise CategoryError('no category given: write them as "glaucoma,normal"')
    return names


def upper(modality: str | None) -> str | None:
    """A modality in capitals, if there is one.

    Raises:
        CategoryError: it is none.
    """
    from keepfit_clip.knowledge.conditions import modality_named

    try:
        return modality_named(modality or None)
    except CategoryError as error:
        raise CategoryError(f"--modality {modality}: {error}") from error


def write_result(file: Path | None, content) -> None:
    """Writes what `--json` asked for, if it did."""
    from keepfit_clip.files import to_json, write_json

    if file == Path("-"):
        typer.echo(to_json(content, indent=2))
    elif file is not None:
        write_json(file, content)
