"""Retrieval and captions over tables: what is right for what, what is counted, what is kept between runs."""

import csv
import io
import json
import math
import tarfile

import pytest
import torch
from typer.testing import CliRunner

from keepfit_clip.cli import app
from keepfit_clip.errors import ConfigError, KeepFITError, TableError
from keepfit_clip.evaluate.features import FeatureCache
from keepfit_clip.evaluate.metrics.retrieval import score_retrieval
from keepfit_clip.evaluate.pairs import evaluate_captions, evaluate_retrieval, read_pairs
from keepfit_clip.folders.loaded import LoadedModel
from keepfit_clip.folders.loading import load_model
from keepfit_clip.images.reading import open_image
from tests.pictures import write_table

TEXTS = ("glaucoma", "cataract", "normal")


@pytest.fixture
def loaded(exported):
    return load_model(exported)


def command(*words):
    return CliRunner().invoke(app, list(map(str, words)))


def test_images_without_a_caption_have_a_text_for_each_category(loaded, pictures, tmp_path):
    files = sorted((pictures / "public").glob("*.png"))[:6]
    rows = [{"image": str(f), "categories": repr([TEXTS[n % 3]])} for n, f in enumerate(files)]
    rows[5]["categories"] = "['glaucoma', 'cataract']"
    found = evaluate_retrieval(loaded, read_pairs(write_table(tmp_path / "t.csv", rows), "/"), modality="CFP")
    assert found.texts == 3
    images = torch.stack([loaded.preprocess(open_image(f)) for f in files])
    texts = [f"A fundus photograph of {name}" for name in TEXTS]
    with torch.no_grad():
        image_features = loaded.model.encode_image(images, normalize=True)
        text_features = loaded.model.encode_text(loaded.tokenizer(texts), normalize=True)
    ids = torch.tensor([[0, -1], [1, -1], [2, -1], [0, -1], [1, -1], [0, 1]])
    expected = score_retrieval(image_features, text_features, ids, torch.arange(3))
    assert {name: found.scores[name] for name in expected} == pytest.approx(expected)
    assert found.scores["image_to_text_chance@1"] == pytest.approx((5 / 3 + 2 / 3) / 6)
    assert found.scores["image_to_image_queries"] == 5  # the only normal one has nothing like it


def test_a_table_of_captions(loaded, pictures, tmp_path):
    table = read_pairs(pictures / "elite.csv", pictures)
    found = evaluate_retrieval(loaded, table, cache=None)
    assert found.texts == len({text for texts in table.captions for text in texts})
    assert found.cut_texts == 0
    assert all(0 <= value <= 1 for name, value in found.scores.items() if "@" in name)


def test_captions_are_scored_and_kept(loaded, exported, pictures, tmp_path, monkeypatch):
    table = read_pairs(pictures / "elite.csv", pictures, captions_only=True)
    truth = {id(record): texts[0] for record, texts in zip(table.records, table.captions, strict=True)}
    monkeypatch.setattr(LoadedModel, "decode", lambda self, ids: list(truth.values())[: len(ids)])
    cache = FeatureCache(tmp_path, loaded)
    found = evaluate_captions(loaded, table, cache=cache, num_beams=1)
    assert found.written == list(truth.values())
    assert found.scores["bleu_4"] == pytest.approx(1)
    assert found.scores["condition_exact"] == 1
    monkeypatch.setattr(loaded.model, "generate", None)  # all are there
    assert evaluate_captions(loaded, table, cache=cache, num_beams=1).written == found.written
    with pytest.raises(TypeError):
        evaluate_captions(loaded, table, cache=cache, num_beams=2)  # written otherwise, so they are not


def test_commands_write_what_they_print(exported, pictures, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    with open(pictures / "elite.csv", newline="") as file:
        rows = [{**row, "image": str(pictures / row["image"])} for row in csv.DictReader(file)]
    rows.append({**rows[0], "image": str(tmp_path / "broken.png")})
    rows.append({**rows[1], "caption": ""})
    table = write_table(tmp_path / "t.csv", rows)
    common = ["--images", "/", "--model", exported, "--cache", tmp_path / "cache"]
    result = command("evaluate-retrieval", table, *common, "--json", tmp_path / "r.json")
    assert result.exit_code == 0, result.exception
    scores = json.loads((tmp_path / "r.json").read_text())
    assert scores["images"] == 17  # the one without a caption has categories
    assert scores["not_used"] == [{"row": 17, "reason": "not an image (JPEG, PNG, TIFF, WEBP, BMP, PPM, DICOM)"}]
    assert "image to image" in result.output
    result = command(
        "evaluate-captions", table, *common, "--json", tmp_path / "c.json", "--captions", tmp_path / "c.csv",
        "--max-length", 12,
    )  # fmt: skip
    assert result.exit_code == 0, result.exception
    scores = json.loads((tmp_path / "c.json").read_text())
    assert scores["images"] == 16
    assert {entry["row"]: entry["reason"] for entry in scores["not_used"]}[18] == "it has no caption"
    assert scores["max_length"] == 12
    with open(tmp_path / "c.csv", newline="") as file:
        written = list(csv.DictReader(file))
    assert [row["expert"] for row in written] == [row["caption"] for row in rows[:16]]
    for file in ("r.json", "c.json", "c.csv"):
        assert "Jane" not in (tmp_path / file).read_text()
        assert "Doe" not in (tmp_path / file).read_text()


def test_a_damaged_image_in_shards_is_counted(loaded, shards, tmp_path):
    with tarfile.open(shards / "elite" / "000000.tar") as source, tarfile.open(tmp_path / "000000.tar", "w") as target:
        for number, member in enumerate(source.getmembers()):
            content = source.extractfile(member).read()
            if not number:
                content = b"x" * len(content)
            target.addfile(member, io.BytesIO(content))
    found = evaluate_retrieval(loaded, read_pairs(tmp_path / "000000.tar", None))
    assert [left_out.reason for left_out in found.table.left_out] == [
        "not an image (JPEG, PNG, TIFF, WEBP, BMP, PPM, DICOM)"
    ]


def test_tables_and_models_that_cannot_be_used(loaded, pictures, tmp_path, monkeypatch):
    with pytest.raises(TableError, match="none of its rows can be used"):
        read_pairs(pictures / "public.csv", pictures, captions_only=True)
    one = write_table(
        tmp_path / "one.csv", [{"image": str(next((pictures / "public").glob("*.png"))), "label": "drusen"}]
    )
    with pytest.raises(TableError, match="at least two different texts"):
        evaluate_retrieval(loaded, read_pairs(one, "/"))
    elite = read_pairs(pictures / "elite.csv", pictures)
    loaded.model.visual.proj.weight.data[:] = math.nan
    with pytest.raises(KeepFITError, match="not finite"):
        evaluate_retrieval(loaded, elite)
    monkeypatch.setattr(loaded.model, "text_decoder", None)
    with pytest.raises(ConfigError, match="need a model with a decoder"):
        evaluate_captions(loaded, elite)
