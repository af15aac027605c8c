"""The command line as a whole: light, grouped, the same words everywhere, errors in one line, results for machines."""

import json
import os
import subprocess
import sys
import typing
from collections import defaultdict
from pathlib import Path

import pytest
import typer

from keepfit_clip.cli import app
from tests.programs import call


def every_command(group=app, prefix=""):
    """Name, registration and function of every command."""
    for command in group.registered_commands:
        yield f"{prefix}{command.name or command.callback.__name__}", command
    for below in group.registered_groups:
        yield from every_command(below.typer_instance, f"{prefix}{below.name} ")


def options_of(function):
    """Option and type, None aside, of a command's function."""
    for name, hint in typing.get_type_hints(function, include_extras=True).items():
        for info in getattr(hint, "__metadata__", ()):
            if isinstance(info, typer.models.OptionInfo):
                words = (info.default, *(info.param_decls or ()))  # where a type is annotated, the first is the default
                declared = [word for word in words if isinstance(word, str) and word.startswith("--")]
                kind = typing.get_args(hint)[0]
                parts = tuple(sorted(str(part) for part in typing.get_args(kind) or (kind,) if part is not type(None)))
                yield (declared[0].partition("/")[0] if declared else f"--{name.replace('_', '-')}"), parts


LIGHT = (["--help"], ["--version"], ["shards", "--help"], ["knowledge", "lookup", "glaucoma"])


@pytest.mark.parametrize("words", LIGHT, ids="".join)
def test_what_needs_no_model_starts_without_the_libraries_of_models(words):
    program = """if True:
        import sys
        from keepfit_clip.cli import main
        try:
            main()
        finally:
            heavy = {"torch", "open_clip", "transformers", "numpy"} & set(sys.modules)
            print(*heavy, file=sys.stderr)
    """
    result = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True)
    assert result.stderr.strip() == ""


@pytest.mark.parametrize(
    ("typed", "offered"), [("sh", "shards"), ("shards st", "stats"), ("evaluate --allow", "--allow-missing-classes")]
)
def test_a_shell_completes_commands_and_options(typed, offered):
    script = Path(sys.executable).with_name("keepfit-clip")
    words = f"keepfit-clip {typed}"
    environment = {
        "_KEEPFIT_CLIP_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(typed.count(" ") + 1),
    }
    result = subprocess.run([script], env={**os.environ, **environment}, capture_output=True, text=True)
    assert offered in result.stdout.split()


def test_every_command_is_in_a_group_and_says_what_it_does():
    for name, command in every_command():
        assert command.callback.__doc__, name
        assert " " in name or isinstance(command.rich_help_panel, str), name


def test_the_same_option_is_the_same_everywhere():
    kinds = defaultdict(lambda: defaultdict(list))
    for name, command in every_command():
        for option, kind in options_of(command.callback):
            kinds[option][kind].append(name)
    differing = {option: dict(found) for option, found in kinds.items() if len(found) > 1}
    assert not differing
    spelled = {option.replace("-", "").replace("_", "") for option in kinds}
    assert len(spelled) == len(kinds)  # no two spellings of one option
    for option in ("--model", "--images", "--out", "--knowledge", "--device", "--modality", "--json", "--cache"):
        assert option in kinds


def test_json_goes_to_a_file_or_alone_to_standard_output(exported, pictures, tmp_path):
    picture = next((pictures / "public").glob("*.png"))
    result = call("classify", picture, "--model", exported, "--categories", "glaucoma,normal", "--json", "-")
    assert result.returncode == 0, result.stderr
    (entry,) = json.loads(result.stdout)
    assert entry["glaucoma"] + entry["normal"] == pytest.approx(1, abs=1e-5)
    assert entry["image"] == 1  # by its number: no file name goes into a result
    assert "Jane" not in result.stdout
    assert "glaucoma" in result.stderr  # the table
    call("models", "--json", tmp_path / "models.json")
    models = json.loads((tmp_path / "models.json").read_text())
    assert "keepfit-v2-lite" in models["architectures"]
    assert "hf-hub:OWNER/NAME" in models["names"]


def test_knowledge_and_shards_speak_json_too(shards):
    told = json.loads(call("knowledge", "lookup", "no NPDR", "--json", "-").stdout)
    assert told["name"] == "no non-proliferative diabetic retinopathy"
    assert told["denied"]
    told = json.loads(call("shards", "stats", shards / "public", "--json", "-").stdout)
    assert told["samples"] == 24
    assert sum(told["categories"].values()) == 24
    assert json.loads(call("shards", "check", shards / "public", "--json", "-").stdout) == []


def test_errors_are_one_red_line_and_debug_shows_the_traceback(tmp_path):
    quiet = call("export", tmp_path / "no", "--out", tmp_path / "out")
    assert quiet.returncode == 1
    assert "Traceback" not in quiet.stderr
    assert quiet.stderr.startswith("error: ")
    loud = call("--debug", "export", tmp_path / "no", "--out", tmp_path / "out")
    assert loud.returncode == 1
    assert "Traceback" in loud.stderr
    assert call("export").returncode == 2
    assert call("--nonsense").returncode == 2


def test_what_nobody_foresaw_is_told_as_a_bug(monkeypatch):
    def broken():
        raise ZeroDivisionError("by [nothing]")

    monkeypatch.setattr("keepfit_clip.registry.list_keepfit_models", broken)
    result = call("models")
    assert result.returncode == 1
    assert "unexpected error: ZeroDivisionError: by [nothing]" in result.stderr
    assert "--debug" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_doctor_looks_at_everything_without_a_network():
    result = call("doctor", "--json", "-")
    assert result.returncode == 0
    found = json.loads(result.stdout)
    by_name = {entry["name"]: entry for entry in found}
    assert {entry["part"] for entry in found} == {"libraries", "device", "extras", "weights"}
    assert by_name["open_clip_torch"]["fine"]
    assert by_name["keepfit-v2-lite, image tower"]["state"].startswith("installed")
    assert "pip install ray" in by_name["ray"]["advice"] or by_name["ray"]["fine"]
