"""Using a trained model: zero-shot, evaluation, metrics, and every command of the command line with bad input."""

import json
import math

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score, roc_auc_score

from keepfit_clip import ZeroShotClassifier, load_model
from keepfit_clip.errors import CategoryError
from keepfit_clip.evaluate.metrics.classification import score_classification
from keepfit_clip.evaluate.table import evaluate_table
from tests.pictures import CONDITIONS, write_table
from tests.programs import Program, call


@pytest.fixture(scope="module")
def loaded(exported):
    return load_model(exported, "cpu")


@pytest.fixture
def command(monkeypatch):
    """Runs `keepfit-clip ...`; returns exit code and what it printed."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words):
        result = call(*words)
        return result.returncode, result.stdout, result.stderr

    return run


def test_class_feature_is_the_normalised_mean_over_its_texts(loaded):
    from keepfit_clip.knowledge.conditions import Knowledge
    from keepfit_clip.knowledge.templates import class_texts

    classifier = ZeroShotClassifier(
        loaded.model, loaded.tokenizer, ["glaucoma", "normal"], modality="CFP", findings=True
    )
    texts = class_texts("glaucoma", "CFP", Knowledge.load())
    assert len(texts) > 3
    with torch.no_grad():
        mean = loaded.model.encode_text(loaded.tokenizer(texts), normalize=True).mean(dim=0)
    torch.testing.assert_close(classifier.class_features[0], mean / mean.norm(), atol=1e-5, rtol=1e-4)


def test_probabilities(loaded):
    classifier = ZeroShotClassifier(loaded.model, loaded.tokenizer, CONDITIONS, modality="CFP")
    images = torch.randn(3, 3, 64, 64)
    probabilities = classifier.predict_proba(images)
    assert probabilities.shape == (3, 4)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(3))
    assert classifier.predict(images)[0] == CONDITIONS[int(probabilities[0].argmax())]


def test_the_usual_open_clip_snippet_gives_the_same_as_ours_with_names_alone(loaded):
    ours = ZeroShotClassifier(loaded.model, loaded.tokenizer, ["glaucoma", "cataract"], "CFP", descriptions=False)
    weights = open_clip.build_zero_shot_classifier(
        loaded.model, loaded.tokenizer, ["glaucoma", "cataract"], ["A fundus photograph of {}"]
    )
    torch.testing.assert_close(weights.T, ours.class_features, atol=1e-5, rtol=1e-4)


def test_bad_categories(loaded):
    for categories, message in (
        ([], "at least two"),
        (["glaucoma"], "at least two"),
        (["DR", "diabetic retinopathy"], "stand twice"),
    ):
        with pytest.raises(CategoryError, match=message):
            ZeroShotClassifier(loaded.model, loaded.tokenizer, categories)
    with pytest.raises(CategoryError, match="MRI"):
        ZeroShotClassifier(loaded.model, loaded.tokenizer, ["a", "b"], modality="MRI")


def test_metrics_agree_with_scikit_learn():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(3), 60)
    labels = rng.integers(0, 3, 60)
    scores = score_classification(labels, probabilities)
    predicted = probabilities.argmax(axis=1)
    assert scores.aca == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert scores.auc == pytest.approx(roc_auc_score(labels, probabilities, multi_class="ovr"))
    assert scores.kappa == pytest.approx(cohen_kappa_score(labels, predicted, weights="quadratic"))
    assert scores.confusion.sum() == 60


def test_metrics_with_a_class_that_has_no_images():
    probabilities = np.array([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.1, 0.2, 0.7]])
    scores = score_classification([0, 1, 1], probabilities)
    assert scores.aca == pytest.approx((1 + 0.5) / 2)
    assert scores.auc == pytest.approx((1 + 0.5) / 2)  # class 0 is ranked right, class 1 half right
    assert math.isnan(score_classification([0, 0], probabilities[:2]).auc)


def test_evaluation_scores_every_usable_row_and_counts_the_others(loaded, pictures, tmp_path):
    rows = [
        {"image": f"public/Jane_Doe_1961-03-05_{i}.png", "categories": repr([name])}
        for i, name in enumerate(["normal", "DR", "glaucoma", "cataract", "glaucomatous optic neuropathy", "odd sign"])
    ]
    rows += [{"image": "missing.png", "categories": "['normal']"}, {**rows[0], "categories": "['normal', 'DR']"}]
    table = write_table(tmp_path / "table.csv", rows)
    result = evaluate_table(loaded, table, pictures, ["normal", "diabetic retinopathy", "glaucoma"], modality="CFP")
    assert result.classes == ["normal", "diabetic retinopathy", "glaucoma"]
    assert result.images + len(result.left_out) == 8
    assert {4, 6, 7, 8} <= {left_out.row for left_out in result.left_out}
    assert result.scores.confusion.sum() == result.images
    with pytest.raises(CategoryError, match=r"no row belongs.*the table has"):
        evaluate_table(loaded, table, pictures, ["drusen", "asteroid hyalosis"])


def test_evaluate_prints_and_writes_json(command, exported, pictures, tmp_path):
    code, out, _ = command(
        "evaluate", pictures / "public.csv", "--images", pictures, "--model", exported, "--modality", "cfp",
        "--classes", "normal,DR,glaucoma", "--json", tmp_path / "scores.json",
    )  # fmt: skip
    assert code == 0
    assert "ACA" in out
    assert "kappa" not in out  # these classes are no grades
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["classes"] == ["normal", "diabetic retinopathy", "glaucoma"]
    assert scores["images"] == 18
    assert len(scores["not_scored"]) == 6
    assert "Jane" not in (tmp_path / "scores.json").read_text()


def test_classify_and_caption_go_on_over_a_bad_image_and_say_so(command, exported, pictures, tmp_path):
    good = sorted((pictures / "public").glob("*.png"))[0]
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:99])
    code, out, err = command(
        "classify", good, tmp_path / "cut.png", "--model", exported, "--categories", "glaucoma,odd sign"
    )
    assert code == 1
    assert out.count(good.name) == 1
    assert "cut.png: the image is truncated" in err
    assert "odd sign" in err  # not in the knowledge file
    code, out, err = command("caption", good, good, "--model", exported, "--max-length", "8")
    assert code == 0
    assert out.count(good.name) == 2


def test_export_command(command, run, tmp_path):
    code, out, _ = command("export", run, "--out", tmp_path / "model")
    assert code == 0
    assert "epoch_2.pt" in out
    assert (tmp_path / "model" / "open_clip_model.safetensors").exists()


def test_shards_build_command(command, pictures, tmp_path):
    table = tmp_path / "mixed.csv"
    table.write_text((pictures / "public.csv").read_text() + "missing.png,[],['normal']\n")
    code, out, err = command(
        "shards", "build", table, "--images", pictures, "--out", tmp_path / "out", "--kind", "public", "--size", "32"
    )
    assert code == 0
    assert "24 samples in 1 shards" in out
    assert "1 rows left out" in err
    assert "row 25: the image file is missing" in err


def test_models_command(command):
    code, out, _ = command("models")
    assert code == 0
    assert "keepfit-v2-lite" in out.split()


BAD = {
    "no model": (["classify", "IMAGE", "--model", "/no/such", "--categories", "a,b"], "is no model folder"),
    "no category": (["classify", "IMAGE", "--model", "MODEL", "--categories", " , "], "no category given"),
    "one category": (["classify", "IMAGE", "--model", "MODEL", "--categories", "a"], "at least two"),
    "long text": (["classify", "IMAGE", "--model", "MODEL", "--categories", "a," + "b " * 200], "context of 77 tokens"),
    "no run": (["export", "/no/such", "--out", "OUT"], "no such run folder"),
    "no table": (["evaluate", "/no.csv", "--images", ".", "--model", "MODEL"], "cannot be read"),
    "bad kind": (["shards", "build", "TABLE", "--images", ".", "--out", "OUT", "--kind", "x"], "kind of shards"),
    "no corpus": (["pretrain-text", "--corpus", "/no.txt", "--init", "x", "--out", "OUT"], "cannot be read"),
    "no data": (["train", "--model", "keepfit-v2-test"], "nothing to train on"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_1(command, exported, pictures, tmp_path, case):
    words, message = BAD[case]
    names = {
        "MODEL": exported,
        "OUT": tmp_path / "out",
        "IMAGE": next((pictures / "public").glob("*.png")),
        "TABLE": pictures / "public.csv",
    }
    code, _, err = command(*(names.get(word, word) for word in words))
    assert code == 1
    assert message in err
    assert len([line for line in err.splitlines() if "error" in line]) == 1
    assert not (tmp_path / "out").exists()


def test_wrong_usage_is_exit_code_2(command):
    assert command("classify")[0] == 2
    assert command("nonsense")[0] == 2


def test_module_entry_point_says_what_is_wrong():
    program = Program("keepfit_clip.training.main", ["--public-data", "/no/such", "--preset", "contrastive"])
    program.wait(60)
    assert program.returncode == 1
    assert program.output.read_text().strip().splitlines()[-1].startswith("keepfit-clip train: /no/such")


def test_grey_and_large_images_are_classified(loaded, tmp_path):
    from keepfit_clip.evaluate.table import image_batches

    Image.linear_gradient("L").resize((300, 100)).save(tmp_path / "grey.png")
    ((_, batch),) = image_batches([tmp_path / "grey.png"], loaded.preprocess)
    assert batch.shape == (1, 3, 64, 64)
