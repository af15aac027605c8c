"""The command line: `keepfit-clip`. Each command imports what it needs when it runs, so that --help is quick."""

import signal
import sys

import typer
from rich.markup import escape

from keepfit_clip.cli import app as app_command
from keepfit_clip.cli import evaluate, explain, knowledge, practice, report, shards, train, transfer, use, weights
from keepfit_clip.cli.console import error_console
from keepfit_clip.errors import KeepFITError

__all__ = ["app", "main"]

app = typer.Typer(
    name="keepfit-clip",
    help="KeepFIT V2 for open_clip: vision-language pretraining for retinal images. Research use, not a diagnosis.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(shards.app, name="shards")
app.add_typer(knowledge.app, name="knowledge")
practice.add_commands(app)
train.add_commands(app)
weights.add_commands(app)
use.add_commands(app)
explain.add_commands(app)
evaluate.add_commands(app)
transfer.add_commands(app)
report.add_commands(app)
app_command.add_commands(app)


def main() -> None:
    """Runs a command; an error of ours ends in one red line and exit code 1, a request to end in a clean exit."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that nothing half written stays
    try:
        app()
    except KeepFITError as error:
        error_console.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(1)
