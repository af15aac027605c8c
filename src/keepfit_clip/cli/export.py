"""`keepfit-clip export` and `push-to-hub`: weights out."""

from pathlib import Path
from typing import Annotated

import typer

from keepfit_clip.cli.console import console, quiet_libraries
from keepfit_clip.cli.options import WEIGHTS


def add_commands(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command(rich_help_panel=WEIGHTS)(export)
    app.command(name="push-to-hub", rich_help_panel=WEIGHTS)(push_to_hub)


def export(
    run: Annotated[Path, typer.Argument(help="run folder (its latest checkpoint) or a checkpoint in one")],
    out: Annotated[Path, typer.Option(help="new folder for the model")],
) -> None:
    """Write a trained run as a folder that open_clip loads with local-dir:."""
    from keepfit_clip.folders.export import export_model

    quiet_libraries()
    checkpoint = export_model(run, out)
    console.print(f"{checkpoint.name} -> {out}", soft_wrap=True)


def push_to_hub(
    folder: Annotated[Path, typer.Argument(help="folder made by export or import")],
    repository: Annotated[str, typer.Argument(help="OWNER/NAME on the Hugging Face hub")],
    private: Annotated[bool, typer.Option("--private", help="a new repository is private")] = False,
) -> None:
    """Upload a model folder to the Hugging Face hub, from where open_clip loads it with hf-hub:."""
    from keepfit_clip.folders import hub

    address = hub.push_to_hub(folder, repository, private)
    console.print(f"{folder} -> {address}", soft_wrap=True)
