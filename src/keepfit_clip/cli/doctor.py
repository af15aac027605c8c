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

    found = examine()
    table = Table("", "", "found", "", box=None, pad_edge=False, show_header=False)
    part = ""
    for finding in found:
        mark = "" if finding.fine else "[yellow]![/] "
        table.add_row(
            "" if finding.part == part else f"[bold]{finding.part}[/]",
            finding.name,
            f"{mark}{escape(finding.state)}",
            escape(finding.advice),
        )
        part = finding.part
    console.print(table)
    write_result(json_file, [asdict(finding) for finding in found])
