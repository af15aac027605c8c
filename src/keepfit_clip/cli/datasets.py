"""`keepfit-clip datasets ...`: the data sets whose layouts are known, and which one a folder is."""

from difflib import SequenceMatcher
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from keepfit_clip.cli.console import console
from keepfit_clip.cli.options import JsonFile, path_or_url, write_result
from keepfit_clip.cli.table_options import reads_tables

_LOOKED_AT = 2000  # files
_ALIKE, _SHORT = 0.85, 6  # a likeness, and letters of a name that says too little

app = typer.Typer(help="Data sets whose layout is known: list, show, find, check, draft.", no_args_is_help=True)


@app.command("list")
def list_sets(json_file: JsonFile = None) -> None:
    """List the data sets that are read as they were unpacked. Nothing is downloaded: look the homes up."""
    from keepfit_clip.data.sources.layout_file import layout_names, read_layout

    layouts = {name: read_layout(name) for name in layout_names()}
    for name, layout in layouts.items():
        size = f"{layout.images:,} images" if layout.images else ""
        facts = ", ".join(filter(None, (layout.modality, size, layout.labels)))
        open_question = " *" if layout.unverified else ""
        console.print(f"[bold]{escape(name)}[/]{open_question}  {escape(layout.title)}: {escape(facts)}")
        console.print(f"    {escape(layout.home)}. Licence: {escape(layout.licence)}", style="dim")
    console.print("* something of the layout could not be verified: `keepfit-clip datasets show NAME`", soft_wrap=True)
    write_result(json_file, {name: _facts(layout) for name, layout in layouts.items()})


def _facts(layout) -> dict:
    names = ("title", "modality", "images", "labels", "licence", "home", "source")
    facts = {name: getattr(layout, name) for name in names}
    return {**facts, "unverified": list(layout.unverified)}


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="of a data set, or a layout file")], json_file: JsonFile = None
) -> None:
    """Show the folder tree that a data set is expected to have, and what is known of it."""
    from keepfit_clip.data.sources.layout_file import read_layout

    layout = read_layout(name)
    table = Table(show_header=False, box=None, pad_edge=False)
    rows = [
        ("data set", layout.title),
        ("modality", layout.modality or ""),
        ("images", f"{layout.images:,}" if layout.images else ""),
        ("labels", layout.labels),
        ("licence", layout.licence),
        ("home", layout.home),
        ("layout after", layout.source),
        ("files", "\n".join(layout.tree())),
        ("not verified", "\n".join(layout.unverified)),
    ]
    for label, value in rows:
        if value:
            table.add_row(f"[bold]{label}[/]", escape(value))
    console.print(table)
    write_result(json_file, {**_facts(layout), "files": layout.tree()})


@app.command()
def find(
    folder: Annotated[Path, typer.Argument(help="that a data set was unpacked into", parser=path_or_url)],
    json_file: JsonFile = None,
) -> None:
    """Say which data set a folder is, or what it lacks of those it resembles."""
    from keepfit_clip.data.sources.layout import missing_files
    from keepfit_clip.data.sources.layout_file import layout_names, read_layout
    from keepfit_clip.errors import TableError
    from keepfit_clip.remote.paths import files_below

    if not folder.is_dir():
        raise TableError(f"{folder}: no such folder")
    layouts = {name: read_layout(name) for name in layout_names()}
    missing = {name: missing_files(layout, folder) for name, layout in layouts.items()}
    whole = [name for name, lacks in missing.items() if not lacks]
    for name in whole:
        console.print(f"{name}: {layouts[name].title}", markup=False, soft_wrap=True)
    if whole:
        write_result(json_file, {"is": whole})
        return
    names = islice(files_below(folder), _LOOKED_AT)
    there = list(dict.fromkeys(part.lower() for name in names for part in name.split("/")))
    likeness = {name: _likeness(layout, there) for name, layout in layouts.items()}
    near = [name for name in sorted(likeness, key=likeness.get, reverse=True) if likeness[name] > _ALIKE][:3]
    for name in near:
        console.print(f"perhaps {name}, but it lacks {', '.join(missing[name])}", markup=False, soft_wrap=True)
    if not near:
        console.print("none of the layouts; write one of your own: docs/DATA.md", markup=False, soft_wrap=True)
    write_result(json_file, {"is": [], "resembles": {name: list(missing[name]) for name in near}})


def _likeness(layout, there: list[str]) -> float:
    """How much a file or folder is called like one of a layout's, from 0 to 1."""
    patterns = [
        pattern for part in layout.parts for pattern in (part.table, part.files, *(i.image for i in part.images))
    ]
    wanted = {step.lower() for pattern in patterns for step in pattern.split("/") if "{" not in step}
    pairs = ((have, want) for have in there for want in wanted if len(want) > _SHORT)
    return max((SequenceMatcher(None, *pair).ratio() for pair in pairs), default=0)


@app.command()
def check(file: Annotated[Path, typer.Argument(help="layout file, JSON or YAML")]) -> None:
    """Check a layout file; exit 1 with what is wrong."""
    from keepfit_clip.data.sources.layout_file import read_layout

    layout = read_layout(str(file))
    console.print(f"{file}: valid, {len(layout.parts)} parts", markup=False, soft_wrap=True)


@app.command()
@reads_tables
def draft(
    source: Annotated[Path, typer.Argument(help="table, JSON lines or folder of classes")],
    out: Annotated[Path, typer.Option("--out", help="layout file to write")],
    source_options,
    images: Annotated[Path | None, typer.Option(help="folder the image paths are relative to")] = None,
) -> None:
    """Write a layout file that reads a table or folder as it is read now, to be corrected and kept beside the data."""
    from keepfit_clip.data.sources.draft import draft_layout
    from keepfit_clip.errors import OutputError
    from keepfit_clip.files import write_json

    if out.exists():
        raise OutputError(f"{out}: is there already; give another --out")
    content, root = draft_layout(source, images, source_options)
    write_json(out, content)
    console.print(f"{out}: read {root} with --layout {out}", markup=False, highlight=False, soft_wrap=True)
