"""`keepfit-clip run`: any program that imports open_clip, with our models registered.

open_clip has no hook for plug-ins, so a program that only imports open_clip does not know them.

    keepfit-clip run -- clip_benchmark eval --model keepfit-v2-lite ...
    keepfit-clip run -- -m open_clip_train.main --model keepfit-v2-lite ...
"""

import importlib.util
import runpy
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path

import typer

from keepfit_clip.cli.options import USE
from keepfit_clip.errors import ConfigError

_PASS_ALL = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def add_commands(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(name="run", rich_help_panel=USE, context_settings=_PASS_ALL)(run)


def run(context: typer.Context) -> None:
    """Run a program that imports open_clip, with our models registered: run -- clip_benchmark eval ...

    After `--` comes the name of a console script, -m MODULE or a Python file, then its arguments.
    """
    words = context.args
    if words[:1] in (["-h"], ["--help"]):
        typer.echo(context.get_help())
        return
    run_program(words[1:] if words[:1] == ["--"] else words)


def run_program(words: Sequence[str]) -> None:
    """Registers our models with open_clip and runs a program in this process, as if it had been called itself.

    Args:
        words: the name of a console script, `-m` and a module, or a Python file; then the program's arguments.

    Raises:
        ConfigError: nothing is given, or there is no such program.
    """
    if not words:
        raise ConfigError("say what to run: keepfit-clip run -- PROGRAM ARGUMENT..., or -m MODULE, or a Python file")
    import keepfit_clip

    keepfit_clip.register()
    name, *arguments = words
    if name == "-m":
        _run_module(arguments)
    elif name.endswith(".py"):
        if not Path(name).is_file():
            raise ConfigError(f"{name}: no such Python file")
        sys.argv = [name, *arguments]
        sys.path.insert(0, str(Path(name).resolve().parent))
        runpy.run_path(name, run_name="__main__")
    else:
        scripts = entry_points(group="console_scripts", name=name)
        if not scripts:
            raise ConfigError(f"{name!r} is no console script of this Python's packages; -m MODULE runs a module")
        sys.argv = [name, *arguments]
        sys.exit(next(iter(scripts)).load()())


def _run_module(words: Sequence[str]) -> None:
    if not words:
        raise ConfigError("-m needs the name of a module")
    module, *arguments = words
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        raise ConfigError(f"this Python has no module {module!r}")
    sys.argv = [spec.origin or module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
