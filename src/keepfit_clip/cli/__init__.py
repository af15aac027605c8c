"""The command line: `keepfit-clip`. Each command imports what it needs when it runs, so that --help is quick."""

import os
import signal
import sys
from typing import Annotated

import typer
from rich.markup import escape

from keepfit_clip._version import __version__
from keepfit_clip.cli import (
    app_page,
    benchmark,
    caption,
    classify,
    datasets,
    demo,
    doctor,
    draw,
    evaluate,
    explain,
    export,
    import_weights,
    knowledge,
    models,
    predict,
    quickstart,
    report,
    run,
    segment,
    shards,
    train,
    transfer,
)
from keepfit_clip.cli.console import error_console, warnings_shown
from keepfit_clip.cli.examples import add_examples
from keepfit_clip.cli.options import DATA
from keepfit_clip.errors import KeepFITError, ordinary_trouble
from keepfit_clip.processor import keep_freed_memory

__all__ = ["app", "main"]

_debug = False  # whether errors show their traceback
app = typer.Typer(
    name="keepfit-clip",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(shards.app, name="shards", rich_help_panel=DATA)
app.add_typer(datasets.app, name="datasets", rich_help_panel=DATA)
app.add_typer(knowledge.app, name="knowledge", rich_help_panel=DATA)
_IN_ORDER = (quickstart, draw, demo, train, import_weights, export, models, predict, classify, caption, explain,
             app_page, evaluate, transfer, segment, benchmark, report, run, doctor)  # fmt: skip
for part in _IN_ORDER:
    part.add_commands(app)
add_examples(app)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"keepfit_clip {__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="show the whole traceback of an error")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="show the version and exit", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """KeepFIT V2 for open_clip: vision-language pretraining for retinal images. Research use, not a diagnosis."""
    global _debug
    _debug = debug
    context.with_resource(warnings_shown())
    if context.invoked_subcommand != app_page.COMMAND:  # a page shall give back what a large picture took
        keep_freed_memory()


def main() -> None:
    """Runs a command: exit code 0, 1 with one red line after an error, 2 where the command was written wrongly."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that nothing half written stays
    try:
        app()
    except KeepFITError as error:
        if _debug:
            raise
        error_console.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(1)
    except BrokenPipeError:  # who reads our output has seen enough, as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if _debug:
            raise
        ordinary = ordinary_trouble(error)
        if ordinary is not None:
            error_console.print(f"[bold red]error:[/] {escape(ordinary)}", soft_wrap=True)
            sys.exit(1)
        description = escape(" ".join(f"{type(error).__name__}: {error}".split())[:500])
        error_console.print(f"[bold red]unexpected error:[/] {description}", soft_wrap=True)
        error_console.print("This is a bug of the library; keepfit-clip --debug ... shows where.", soft_wrap=True)
        sys.exit(1)
