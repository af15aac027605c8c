"""`keepfit-clip import`: weights of other projects."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from keepfit_clip.cli.console import console, quiet_libraries
from keepfit_clip.cli.options import WEIGHTS, JsonFile, write_result
from keepfit_clip.folders.imports.kinds import BOTH, IMAGE, KINDS, import_weights

_TOWER, _DUAL = f"Kinds that give an {IMAGE}", f"Kinds that give {BOTH}"
_KINDS = "; ".join(f"{name}: {kind.what} ({kind.gives})" for name, kind in KINDS.items())
_SHOWN = 20


def add_commands(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(name="import", rich_help_panel=WEIGHTS)(import_checkpoint)


def import_checkpoint(
    file: Annotated[Path, typer.Argument(help="PyTorch state dict or safetensors")],
    origin: Annotated[str, typer.Option("--from", metavar="KIND", help=_KINDS)],
    out: Annotated[Path, typer.Option(help="new folder for the model")],
    partial: Annotated[bool, typer.Option("--partial", help="take what fits, list the rest")] = False,
    backbone: Annotated[str | None, typer.Option(help="timm's name of the image tower, if not the kind's own")] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="hub name or folder of the tokenizer (the kind's own)", rich_help_panel=_DUAL)
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="config to build around the image tower", rich_help_panel=_TOWER)
    ] = None,
    text_tower: Annotated[Path | None, typer.Option(help="text tower of pretrain-text", rich_help_panel=_TOWER)] = None,
    random_text: Annotated[
        bool, typer.Option("--random-text", help="text tower without pretrained weights", rich_help_panel=_TOWER)
    ] = False,
    json_file: JsonFile = None,
) -> None:
    """Make a model folder of the weights of another project."""
    quiet_libraries()
    imported = import_weights(
        origin,
        file,
        out,
        partial=partial or None,
        tokenizer=tokenizer,
        model=model,
        backbone=backbone,
        text_tower=text_tower,
        random_text=random_text or None,
    )
    table = Table("", "tensors", title=f"{file.name} -> {out}", title_justify="left")
    table.add_row("taken over", str(imported.taken))
    for why, count in imported.left_out.items():
        table.add_row(f"left out: {why}", str(count))
    console.print(table)
    for note in imported.notes:
        console.print(f"- {escape(note)}", soft_wrap=True)
    problems = imported.fit.problems
    for problem in problems[:_SHOWN]:
        console.print(f"[yellow]not taken:[/] the file {escape(problem)}", soft_wrap=True)
    if len(problems) > _SHOWN:
        console.print(f"... and {len(problems) - _SHOWN} more")
    figures = {"taken": imported.taken, "left_out": imported.left_out, "not_taken": problems, "notes": imported.notes}
    write_result(json_file, figures)
