"""`keepfit-clip doctor`: what is there and what is missing for which command."""

from dataclasses import asdict

import typer
from rich.markup import escape
from rich.table import Table

from keepfit_clip.cli.console import console
from keepfit_clip.cli.options import HELP, JsonFile, write_result


def add_commands(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(rich_help_panel=HELP)(doctor)


def doctor(json_file: JsonFile = None) -> None:
    """Tell versions, device, extras and weights at hand, and what is missing for which command."""
    from keepfit_clip.doctor import examine

    checks = examine()
    table = Table("", "", "found", "", box=None, pad_edge=False, show_header=False)
    part = ""
    for check in checks:
        mark = "" if check.fine else "[yellow]![/] "
        table.add_row(
            "" if check.part == part else f"[bold]{check.part}[/]",
            check.name,
            f"{mark}{escape(check.state)}",
            escape(check.advice),
        )
        part = check.part
    console.print(table)
    write_result(json_file, [asdict(check) for check in checks])
