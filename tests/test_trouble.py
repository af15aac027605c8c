"""Ordinary trouble is told in one line; only what may be a bug is called one."""

import errno
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from packaging.requirements import Requirement
from typer.testing import CliRunner

from keepfit_clip import cli
from keepfit_clip.errors import ConfigError, KeepFITError, OutputError, first_line, ordinary_trouble
from keepfit_clip.extras import EXTRAS, install_command
from keepfit_clip.page.charts import confusion_chart
from keepfit_clip.training.hybrid.run import main as train
from keepfit_clip.training.programs import exit_code
from keepfit_clip.training.report import build_report
from tests.conftest import train_flags


def told(monkeypatch, capsys, error) -> str:
    """What the command line says of an exception."""

    def fails():
        raise error

    monkeypatch.setattr(cli, "app", fails)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/data/run"), "/data/run: Permission denied"),
        (OSError(errno.EROFS, "Read-only file system", "/mnt/x"), "/mnt/x: Read-only file system"),
        (OSError(errno.ENOSPC, "No space left on device", "y"), "no space, or no room for more files"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "a/b"), "a/b: Not a directory"),
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files"),
        (MemoryError(), "not enough memory"),
    ],
)
def test_trouble_of_the_machine_is_one_line_and_no_bug(monkeypatch, capsys, error, message):
    line = told(monkeypatch, capsys, error)
    assert message in line
    assert "bug" not in line
    assert exit_code("program", lambda: (_ for _ in ()).throw(error)) == 1
    assert message in capsys.readouterr().err


def test_what_may_be_a_bug_is_still_called_one(monkeypatch, capsys):
    assert "This is a bug of the library" in told(monkeypatch, capsys, KeyError("x"))
    assert "This is a bug of the library" in told(monkeypatch, capsys, OSError("without a number of the system's"))
    with pytest.raises(KeyError):
        exit_code("program", lambda: {}["x"])


def test_no_error_has_an_empty_reason():
    assert first_line(ValueError("")) == "ValueError"
    assert first_line(OSError("gone")) == "gone"
    assert first_line(ValueError("\n one \n two")) == "one"
    assert first_line(FileNotFoundError(errno.ENOENT, "No such file", "x")) == "No such file"
    assert ordinary_trouble(ValueError("x")) is None


def test_a_reader_that_has_seen_enough_is_no_error():
    program = f"{sys.executable} -m keepfit_clip knowledge lookup glaucoma | head -c 1"
    result = subprocess.run(["bash", "-c", program], capture_output=True, text=True)
    assert "bug" not in result.stderr
    assert "Traceback" not in result.stderr


def test_logs_that_cannot_be_written_are_one_line(shards, tmp_path):
    (tmp_path / "file").write_text("")
    flags = train_flags(shards, tmp_path / "file", "run")
    assert exit_code("keepfit-clip train", lambda: train(flags)) == 1


@pytest.mark.parametrize("device", ["meta", "toaster", "cuda:99"])
def test_a_device_that_cannot_compute_is_refused_by_its_name(exported, pictures, shards, tmp_path, device):
    image = str(next((pictures / "public").glob("*.png")))
    words = ["classify", image, "--model", str(exported), "--categories", "a,b", "--device", device]
    result = CliRunner().invoke(cli.app, words)
    assert isinstance(result.exception, ConfigError)
    assert f"--device {device}" in str(result.exception)
    with pytest.raises(ConfigError, match=f"--device {device}"):
        train(train_flags(shards, tmp_path, "run", device=device))


@pytest.mark.parametrize("place", ["", "."])
def test_json_into_a_folder_is_refused(place):
    result = CliRunner().invoke(cli.app, ["models", "--json", place])
    assert isinstance(result.exception, (ConfigError, OutputError))
    assert "folder" in str(result.exception)


def test_dollar_signs_in_the_name_of_a_class_are_no_formula():
    chart = confusion_chart(np.eye(2, dtype=int), ["$a_{b$ and $", "cost $5 or $6"])
    assert "cost $5 or $6" in chart


LINES = [
    "", "3", "[]", "{}", '{"epoch": 0}', '{"epoch": 0, "step": 1, "steps": 2, "terms": {}}', '{"epoch": 0, "step": 1, '
    '"steps": 2, "terms": {"a_loss": "x"}}', '{"epoch": 0, "step": 1, "steps": 2, "terms": {"a_loss": NaN}}',
    '{"epoch": "0", "step": 1, "steps": 2, "terms": {"a_loss": 1.0}}', "[" * 9999, "\udcff",
]  # fmt: skip


def test_a_report_passes_over_losses_that_no_run_writes(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    odd = "\n".join(LINES).encode("utf-8", "surrogateescape") + b"\n"
    losses = tmp_path / "run" / "losses.jsonl"
    losses.write_bytes(odd + losses.read_bytes() + odd)
    assert "Losses of run" in build_report(tmp_path / "run")
    losses.write_bytes(odd)
    assert "Losses of run" not in build_report(tmp_path / "run")


@pytest.mark.parametrize("content", ['{"batch_size": []}', "[]", "[" * 99999, '{"val_data": 3}'])
def test_a_report_names_a_file_that_is_damaged(run, tmp_path, content):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "settings.json").write_text(content)
    (tmp_path / "run" / "captions.jsonl").write_text('{"epoch": 1}\n')
    with pytest.raises(KeepFITError, match=re.escape(str(tmp_path / "run"))):
        build_report(tmp_path / "run")


def test_what_installs_an_extra_names_packages_that_the_extra_brings():
    brought = {}
    for line in importlib.metadata.requires("keepfit-clip"):
        requirement = Requirement(line)
        for name in EXTRAS:
            if requirement.marker is not None and requirement.marker.evaluate({"extra": name}):
                brought.setdefault(name, set()).add(requirement.name)
    for name in EXTRAS:
        command = install_command(name)
        assert command.startswith("pip install ")
        assert "keepfit-clip" not in command
        assert {Requirement(word.strip("'")).name for word in command.split()[2:]} == brought[name]


def test_the_doctor_advises_what_can_be_done():
    result = CliRunner().invoke(cli.app, ["doctor", "--json", "-"])
    found = json.loads(result.stdout)
    assert not [finding for finding in found if "keepfit-clip[" in finding["advice"]]
    assert os.environ["HF_HUB_OFFLINE"] == "1"
