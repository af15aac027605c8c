"""The house: no room imports from one above it, and what people import by an old name is still there."""

import ast
from importlib import import_module

import pytest

from keepfit_clip import _former
from tests import imports

_OF_THE_ROOT = ("debug", "info", "warning", "error", "exception", "critical", "log", "basicConfig")


def test_no_room_imports_from_one_above_it():
    assert imports.faults() == []


def test_a_wrong_import_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(imports, "FLOORS", tuple(reversed(imports.FLOORS)))
    assert any("which is not below it" in line for line in imports.faults())


@pytest.mark.parametrize("former", _former.MOVED)
def test_a_module_that_moved_is_the_same_under_both_names(former):
    assert import_module(f"keepfit_clip.{former}") is import_module(f"keepfit_clip.{_former.MOVED[former]}")


@pytest.mark.parametrize(
    "statement",
    [
        "from keepfit_clip import HybridLoss, KeepFIT, KeepFITError, Knowledge, ZeroShotClassifier, allow_source",
        "from keepfit_clip import list_keepfit_models, load_model, register",
        "from keepfit_clip.data import MixedStream, ShardOptions, SourceOptions, build_shards, list_shards, open_image",
        "from keepfit_clip.data import Caption, Record, StreamOptions, read_records, read_shards",
        "from keepfit_clip.data.shards import DATA_SCHEMA, KINDS, ShardOptions, ShardReport, build_shards",
        "from keepfit_clip.data.stream import MixedStream, StreamOptions, draw_sample, usable_captions",
        "from keepfit_clip.drawing import draw_dataset, draw_retina",
        "from keepfit_clip.explain import Explainer, Explanation, WordMap, grad_cam, heat_overlay, similarity_maps",
        "from keepfit_clip.explain import tower_view, word_maps, words_of_tokens",
        "from keepfit_clip.knowledge import MODALITIES, Code, Condition, Knowledge",
        "from keepfit_clip.model import KeepFIT",
        "from keepfit_clip.sklearn import KeepFITFeatures",
        "from keepfit_clip.training.demo import FULL, QUICK, DemoSettings, run_demo",
        "from keepfit_clip.training.main import main",
        "from keepfit_clip.training.text import TextPretraining, pretrain_text",
    ],
)
def test_what_people_import_is_there(statement):
    exec(statement, {})


def test_one_file_knows_open_clip_train():
    found = [
        name
        for name, path in imports.modules().items()
        if any(
            line.lstrip().startswith(("import open_clip_train", "from open_clip_train"))
            for line in path.read_text().splitlines()
        )
    ]
    assert found == ["training.hybrid.upstream"]


def test_messages_go_to_loggers_of_their_own():
    """A call of logging's own functions installs a handler of the root logger in the program that uses the library."""
    found = [
        f"{name}: logging.{node.attr}"
        for name, path in imports.modules().items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "logging" and node.attr in _OF_THE_ROOT
    ]
    assert found == []
