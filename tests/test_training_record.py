"""What a model was trained with stands in its folder, on its card, and goes with it into what is trained from it."""

import json

import pytest

from keepfit_clip.folders.hub import push_to_hub
from keepfit_clip.folders.training_record import TRAINING_NAME, TrainingRecord, record_of_model, record_of_run
from keepfit_clip.knowledge.conditions import Knowledge
from keepfit_clip.training.hybrid.run_folder import SETTINGS_NAME, write_settings
from tests.test_hub import Api

KNOWLEDGE = Knowledge.load()
COUNTS = {"samples": 4, "modalities": {"CFP": 4}, "categories": {"normal": 2, "cataract": 1, "nuclear cataract": 1}}


def settings(**more):
    return {"public_data": "one::two", "elite_data": None, "manifests": {"public_data": [COUNTS, COUNTS]}, **more}


def test_an_export_says_what_the_run_was_trained_with(exported, run):
    record = record_of_model(str(exported))
    assert set(record.categories) >= {"normal", "diabetic retinopathy", "glaucoma", "cataract"}
    assert (record.held_out, record.data) == ((), ("public", "elite"))
    assert record_of_model(f"local-dir:{exported}") == record
    card = (exported / "README.md").read_text()
    assert "| categories seen in training |" in card
    assert "| data trained on | public, elite |" in card
    assert str(run.parent) not in (exported / TRAINING_NAME).read_text()


def test_the_record_goes_to_the_hub(exported, monkeypatch):
    monkeypatch.setattr("keepfit_clip.folders.hub.HfApi", Api)
    push_to_hub(exported, "owner/name")
    assert any((exported / TRAINING_NAME).match(pattern) for pattern in Api.uploaded["allow_patterns"])


def test_what_was_held_out_was_not_seen_in_any_form():
    record = record_of_run(settings(hold_out_categories="Cataracts, pathologic myopia"), KNOWLEDGE)
    assert record == TrainingRecord(("normal",), ("Cataracts", "pathologic myopia"), ("one", "two"))
    assert TrainingRecord.of_json(json.loads(json.dumps(record.to_json()))) == record


@pytest.mark.parametrize(
    "unclear",
    [
        {"manifests": {"public_data": [COUNTS, None]}},
        {"manifests": {}},
        {"trained_before": "unknown"},
        {"hold_out_categories": "a name of one's own knowledge file"},
    ],
)
def test_what_nobody_can_tell_is_not_told(unclear):
    assert record_of_run(settings(**unclear), KNOWLEDGE) is None


def test_weights_bring_what_they_saw(tmp_path, exported):
    for model, expected in ((f"local-dir:{exported}", "glaucoma"), ("keepfit-v2-test", None), ("hf-hub:a/b", "")):
        write_settings(tmp_path, {"model": model})
        before = json.loads((tmp_path / SETTINGS_NAME).read_text())["trained_before"]
        assert (before == "unknown") if expected == "" else (before is None) if expected is None else (
            expected in before["categories"])  # fmt: skip
    earlier = TrainingRecord(("glaucoma",), ("cataract", "drusen"), ("first",)).to_json()
    record = record_of_run(settings(hold_out_categories="cataract", trained_before=earlier), KNOWLEDGE)
    assert record == TrainingRecord(("glaucoma", "normal"), ("cataract",), ("first", "one", "two"))


@pytest.mark.parametrize("content", ["", "[]", '{"schema": 2}', '{"schema": 1, "categories": "normal"}'])
def test_a_damaged_record_is_none(tmp_path, content):
    (tmp_path / TRAINING_NAME).write_text(content)
    assert record_of_model(str(tmp_path)) is None
    assert record_of_model(str(tmp_path / "nowhere")) is None
