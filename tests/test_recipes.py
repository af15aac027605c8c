"""Every recipe runs as it stands on drawn retinas, with its own model."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from keepfit_clip.folders.loading import load_model

ROOT = Path(__file__).parents[1]
RECIPES = sorted(path.stem for path in (ROOT / "training" / "recipes").glob("*.sh") if path.stem != "common")


def bash(*words, folder):
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PROCESSES": "1"}
    return subprocess.run(["bash", *words], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_on_drawn_retinas(name, tmp_path):
    result = bash(str(ROOT / "training" / "recipes" / f"{name}.sh"), "--smoke", folder=tmp_path)
    assert result.returncode == 0, result.stderr[-1000:]
    run = "laptop" if name == "slurm" else name
    assert load_model(tmp_path / "runs" / "recipes" / f"{run}-model").model.text_decoder is not None


@pytest.mark.parametrize("name", [*RECIPES, "common"])
def test_a_recipe_is_valid_bash(name):
    result = bash("-n", str(ROOT / "training" / "recipes" / f"{name}.sh"), folder=ROOT)
    assert result.returncode == 0, result.stderr


def test_without_data_a_recipe_says_what_to_set(tmp_path):
    result = bash(str(ROOT / "training" / "recipes" / "laptop.sh"), folder=tmp_path)
    assert result.returncode != 0
    assert "set PUBLIC to shards of public samples, or give --smoke" in result.stderr
