"""`keepfit-clip draw`: retinas to practise on."""

from pathlib import Path
from typing import Annotated

import typer

from keepfit_clip.cli.console import console, with_progress
from keepfit_clip.cli.options import DATA
from keepfit_clip.training.flags import listed


def add_commands(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(rich_help_panel=DATA)(draw)


def draw(
    out: Annotated[Path, typer.Option(help="new folder for the pictures and tables")],
    count: Annotated[int, typer.Option(help="number of pictures")],
    modality: Annotated[str | None, typer.Option(help="CFP, FFA or OCT (all three)")] = None,
    conditions: Annotated[str | None, typer.Option(help='e.g. "normal,glaucoma" (all)')] = None,
    size: Annotated[int, typer.Option(help="width and height, pixels")] = 128,
    seed: Annotated[int, typer.Option(help="the same seed draws the same pictures")] = 0,
    elite: Annotated[float, typer.Option(help="share of the pictures that gets captions, in elite.csv")] = 0.1,
) -> None:
    """Draw retinal pictures of known content, with captions, lesion masks and the tables `shards build` reads."""
    from keepfit_clip.drawing.dataset import DrawOptions, draw_dataset
    from keepfit_clip.drawing.retina import chosen_kinds
    from keepfit_clip.knowledge.conditions import Knowledge

    names = None
    if conditions is not None:
        knowledge = Knowledge.load()
        names = [knowledge.canonical(name) for name in listed(conditions)]
    kinds = chosen_kinds(modality.upper() if modality is not None else None, names)
    options = DrawOptions(count, size, seed, elite, kinds)
    draw_dataset(out, options, with_progress("Drawing"))
    console.print(f"{count} pictures of {len(kinds)} kinds -> {out}", soft_wrap=True)
