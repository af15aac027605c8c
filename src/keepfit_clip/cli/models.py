"""`keepfit-clip models`: what can be built, and how trained models are named."""

import typer
from rich.markup import escape
from rich.table import Table

from keepfit_clip.cli.console import console, quiet_libraries
from keepfit_clip.cli.options import USE, JsonFile, write_result


def add_commands(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(rich_help_panel=USE)(models)


def models(json_file: JsonFile = None) -> None:
    """List the architectures to train, and the names by which trained models are loaded."""
    from keepfit_clip.folders.loading import SCHEMES
    from keepfit_clip.registry import list_keepfit_models

    quiet_libraries()
    console.print("Architectures to train (train --model, open_clip.create_model):")
    for name in list_keepfit_models():
        console.print(f"  {name}")
    ways = Table(title="Trained models, for every --model", title_justify="left")
    ways.add_column("name", no_wrap=True)
    ways.add_column("what it is")
    for scheme in SCHEMES.values():
        ways.add_row(escape(scheme.example), escape(scheme.what))
    console.print(ways)
    names = {scheme.example: scheme.what for scheme in SCHEMES.values()}
    write_result(json_file, {"architectures": list_keepfit_models(), "names": names})
