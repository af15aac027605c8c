"""Jobs in parallel: what cannot be used and a killed worker are errors of ours; Ray makes the same bytes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from keepfit_clip.data.engines import require_engine, run_jobs
from keepfit_clip.errors import MissingExtraError, ShardError
from tests.test_building import tree
from tests.test_layouts import unpack


def double(number):
    return 2 * number


def die(_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_one_worker_gives_every_result():
    assert sorted(run_jobs(double, range(5), 1, "processes")) == [0, 2, 4, 6, 8]
    assert list(run_jobs(double, [], 4, "processes")) == []


def test_engines_that_cannot_be_used_say_so(monkeypatch):
    require_engine("processes")
    with pytest.raises(ShardError, match="engine is 'threads'; it can be processes or ray"):
        require_engine("threads")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install ray"):
        require_engine("ray")


@pytest.mark.slow
def test_a_killed_worker_is_one_clear_error():
    with pytest.raises(ShardError, match="a worker process was killed"):
        list(run_jobs(die, range(4), 2, "processes"))


@pytest.mark.slow
def test_ray_makes_the_same_bytes(pictures, tmp_path):
    pytest.importorskip("ray")
    command = [Path(sys.executable).with_name("keepfit-clip"), "shards", "build", str(pictures / "public.csv")]
    common = ["--images", str(pictures), "--kind", "public", "--samples-per-shard", "6", "--workers", "2"]
    for name, more in (("ray", ["--engine", "ray"]), ("processes", [])):
        subprocess.run([*command, *common, "--out", str(tmp_path / name), *more], check=True, capture_output=True)
    made, expected = ({p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("ray", "processes"))
    assert made == expected


@pytest.mark.slow
def test_ray_reads_a_layout_in_place(tmp_path):
    pytest.importorskip("ray")
    unpack("rfmid", tmp_path / "set")
    words = ["--kind", "public", "--split", "given", "--samples-per-shard", "2", "--workers", "2"]
    for source, out, more in ((f"file://{tmp_path}/set", "ray", ["--engine", "ray"]), (tmp_path / "set", "local", [])):
        command = [Path(sys.executable).with_name("keepfit-clip"), "shards", "build", source, "--out", tmp_path / out]
        subprocess.run([*map(str, command), *words, *more], check=True, capture_output=True)
    assert tree(tmp_path / "ray") == tree(tmp_path / "local")
