"""What is not finite gets no score and no file."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from keepfit_clip.cli import app
from keepfit_clip.errors import CheckpointError, KeepFITError, NonFiniteError
from keepfit_clip.evaluate.metrics.classification import score_classification, score_multi_label
from keepfit_clip.evaluate.metrics.retrieval import score_image_retrieval, score_retrieval
from keepfit_clip.evaluate.table import evaluate_table
from keepfit_clip.files import parse_json, read_json, to_json, write_json
from keepfit_clip.folders.loading import load_model
from keepfit_clip.model.zero_shot import ClassTexts, ZeroShotClassifier

NAN = float("nan")


@pytest.mark.parametrize("bad", [NAN, math.inf])
def test_retrieval_with_features_that_are_not_finite_has_no_score(bad):
    features, ids = torch.eye(4), torch.arange(1, 5)
    perfect = score_retrieval(features, features, ids[:, None], ids)
    assert perfect["image_to_text_recall@1"] == 1
    broken = features.clone()
    broken[1, 0] = bad
    for images, texts in ((broken, features), (features, broken)):
        with pytest.raises(NonFiniteError, match="1 of 4"):
            score_retrieval(images, texts, ids[:, None], ids)
    with pytest.raises(NonFiniteError, match="1 of 4 image features"):
        score_image_retrieval(broken, ids[:, None])


def test_probabilities_that_are_not_finite_have_no_score():
    probabilities = np.array([[0.5, 0.5], [NAN, NAN], [0.1, 0.9]])
    with pytest.raises(NonFiniteError, match="1 of 3"):
        score_classification([0, 1, 1], probabilities)
    with pytest.raises(NonFiniteError, match="1 of 3"):
        score_multi_label(np.array([[0, 1], [1, 0], [1, 1]]), probabilities)


def test_an_image_without_a_finite_answer_is_counted_and_a_model_without_any_is_an_error(
    exported, pictures, monkeypatch
):
    loaded = load_model(exported)
    table, classes = pictures / "public.csv", ["normal", "diabetic retinopathy", "glaucoma", "cataract"]
    whole = evaluate_table(loaded, table, pictures, classes, "CFP")
    real = ZeroShotClassifier.logits

    def first_is_broken(self, images):
        logits = real(self, images)
        logits[0] = NAN
        return logits

    monkeypatch.setattr(ZeroShotClassifier, "logits", first_is_broken)
    found = evaluate_table(loaded, table, pictures, classes, "CFP")
    assert found.images == whole.images - 1
    assert [left_out.reason for left_out in found.left_out] == ["the model's answer for the image is not finite"]
    np.testing.assert_allclose(found.probabilities, whole.probabilities[1:])
    with pytest.raises(NonFiniteError, match="1 of 2"):
        ZeroShotClassifier(loaded.model, loaded.tokenizer, classes).predict_proba(torch.rand(2, 3, 64, 64))
    monkeypatch.setattr(ZeroShotClassifier, "logits", lambda self, images: real(self, images) * NAN)
    with pytest.raises(NonFiniteError, match="finite for none of its images"):
        evaluate_table(loaded, table, pictures, classes, "CFP")
    probabilities = ClassTexts.probabilities
    monkeypatch.setattr(ClassTexts, "probabilities", lambda self, features: probabilities(self, features) * NAN)
    result = CliRunner().invoke(
        app,
        ["classify", str(next((pictures / "public").glob("*.png"))), "--model", str(exported), "--categories", "a,b"],
    )
    assert result.exit_code == 1
    assert "not finite" in result.output


def test_a_model_with_broken_weights_is_not_loaded(exported, tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(exported, folder)
    state = load_file(folder / "open_clip_model.safetensors")
    state["text.proj.weight"][0, 0] = NAN
    save_file(state, folder / "open_clip_model.safetensors")
    with pytest.raises(CheckpointError, match=r"1 of its tensors hold NaN or infinity, e\.g\. text\.proj\.weight"):
        load_model(folder)


def test_images_whose_tokens_are_not_finite_are_not_captioned(model):
    with pytest.raises(KeepFITError, match="1 of 2 images' tokens"):
        model.generate(torch.stack([torch.rand(3, 64, 64), torch.full((3, 64, 64), NAN)]), max_length=4)


def test_json_is_valid_whatever_it_holds(tmp_path):
    content = {"a": [1.5, NAN, math.inf], "b": {"c": (-math.inf, "NaN")}, "d": 3}
    plain = {"a": [1.5, None, None], "b": {"c": [None, "NaN"]}, "d": 3}
    assert json.loads(to_json(content)) == plain
    write_json(tmp_path / "t.json", content)
    assert read_json(tmp_path / "t.json") == plain
    for bad in ("NaN", "[Infinity]", "[" * 10**5, "{"):
        with pytest.raises(ValueError, match=r".+"):
            parse_json(bad)
