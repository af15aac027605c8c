"""`keepfit-clip models`: what open_clip can build with this library."""

import typer

from keepfit_clip.cli.console import console
from keepfit_clip.cli.options import USE, JsonFile, write_result


def add_commands(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(rich_help_panel=USE)(models)


def models(json_file: JsonFile = None) -> None:
    """List the model configs this library registers with open_clip."""
    from keepfit_clip.registry import list_keepfit_models

    for name in list_keepfit_models():
        console.print(name)
    write_result(json_file, list_keepfit_models())
