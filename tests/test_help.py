"""The help of each command: what every option is, an example that is right, and what a mistake ends in."""

import shlex

import pytest
import typer

from keepfit_clip.cli import app
from keepfit_clip.cli.examples import EXAMPLES


def commands(group=None, above=""):
    group = group or typer.main.get_command(app)
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{above}{name} ")
        else:
            yield f"{above}{name}", command


ALL = dict(commands())
BY_ARGPARSE = {"train", "pretrain-text"}  # see test_flags.py


@pytest.mark.parametrize("name", ALL)
def test_every_option_has_a_text_and_every_command_an_example(name):
    for parameter in ALL[name].params:
        assert parameter.help, parameter.opts
    if name not in BY_ARGPARSE:
        assert EXAMPLES[name]
        assert f"keepfit-clip {name}" in ALL[name].epilog


@pytest.mark.parametrize(("name", "words"), [(name, words) for name, lines in EXAMPLES.items() for words in lines])
def test_the_examples_are_written_as_the_command_takes_them(name, words):
    ALL[name].make_context(name, shlex.split(words))


def test_whatever_gives_figures_gives_them_as_json_too():
    without = {name for name, command in ALL.items() if "--json" not in {o for p in command.params for o in p.opts}}
    writes_a_file = {"draw", "export", "push-to-hub", "explain", "report", "knowledge migrate", "knowledge report",
                     "datasets draft", "datasets check"}  # fmt: skip
    assert without == writes_a_file | BY_ARGPARSE | {"quickstart", "app", "run", "shards show"}
