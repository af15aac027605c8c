"""Heads that a transfer run keeps, and predictions as a table."""

import csv
import json
import pickle
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.base import clone

from keepfit_clip.app.handlers import Asked, Handlers
from keepfit_clip.app.service import Service
from keepfit_clip.data.downstream import ClassFile, read_downstream
from keepfit_clip.data.sources import SourceOptions
from keepfit_clip.errors import CheckpointError, ConfigError, ImageError, KeepFITError, OutputError, TableError
from keepfit_clip.evaluate.metrics.classification import Answers
from keepfit_clip.folders.loading import load_model
from keepfit_clip.images.reading import open_image
from keepfit_clip.knowledge.conditions import Knowledge
from keepfit_clip.predict import Predictor, find_inputs
from keepfit_clip.predict.exported import export_program
from keepfit_clip.predict.output import OutputOptions, uncertainty, write_predictions
from keepfit_clip.predict.sklearn import HeadClassifier
from keepfit_clip.transfer.finetune import FinetuneOptions
from keepfit_clip.transfer.heads import facts_of, fitted_temperature, head_folder, list_heads, load_head, save_head
from keepfit_clip.transfer.protocol import Transfer, TransferOptions, encode_set, run_transfer
from tests.pictures import write_public
from tests.programs import call
from tests.test_vendor_files import write_vol


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A table of 24 pictures and its folder."""
    folder = tmp_path_factory.mktemp("labelled")
    return write_public(folder, 24), folder


@pytest.fixture(scope="module")
def loaded(exported):
    return load_model(exported)


def learnt(loaded, labelled, method, folder, **options):
    """A kept head of a method, and what the run's own classifier says of all images."""
    table, images = labelled
    encoded = encode_set(loaded, read_downstream(table, images), copies_together=False)
    options = TransferOptions((method,), shots=("50%",), folds=2, resamples=10, **options)
    outcome = run_transfer(loaded, encoded, options)[0]
    run = Transfer(loaded, encoded, options, encoded, Knowledge.load(), None)
    classifier = run.learn(method)
    save_head(folder, facts_of(loaded, run, outcome, classifier), classifier)
    return run, classifier


@pytest.mark.parametrize("method", ["linear-probe", "clip-adapter", "tip-adapter", "tip-adapter-f"])
def test_a_head_says_what_the_run_learnt(loaded, labelled, tmp_path, method):
    run, classifier = learnt(loaded, labelled, method, tmp_path / "head")
    head = load_head(tmp_path / "head", loaded)
    assert head.facts.trained_on["images"] == 24
    assert set(head.facts.measured) >= {"aca", "auc", "shots"}
    logits = classifier.logits_of(run.source_features) / head.facts.temperature
    expected = torch.from_numpy(logits).softmax(dim=1).numpy()
    np.testing.assert_allclose(head.answer(run.source_features), expected, atol=1e-5)
    inputs = find_inputs([labelled[0]], labelled[1])
    answers = dict(Predictor(loaded, head=head).answers([one.record for one in inputs], batch_size=5))
    np.testing.assert_allclose(np.stack([answers[n].probabilities for n in range(24)]), expected, atol=1e-4)


def test_a_fine_tuned_tower_is_kept_whole(loaded, labelled, tmp_path):
    options = FinetuneOptions(epochs=2, batch_size=8, layer_decay=0.8, early_stop=0.25)
    run, tuned = learnt(loaded, labelled, "finetune", tmp_path / "head", finetune=options)
    head = load_head(tmp_path / "head", loaded)
    images = run.encoded.images(np.arange(24))
    expected = tuned.answer(images, loaded.preprocess, 8)
    records = run.encoded.downstream.records
    got = np.stack([answer.probabilities for _, answer in Predictor(loaded, head=head).answers(records)])
    calibrated = expected ** (1 / head.facts.temperature)
    np.testing.assert_allclose(got, calibrated / calibrated.sum(axis=1, keepdims=True), atol=1e-4)
    own = loaded.model.visual.state_dict()
    assert any(not torch.equal(value, own[key]) for key, value in head.tower.items())


def test_images_with_several_classes_have_thresholds(loaded, labelled, tmp_path):
    table, images = labelled
    names = tuple(read_downstream(table, images).classes)
    spec = ClassFile("several", {name: (name,) for name in names}, multi_label=True)
    encoded = encode_set(loaded, read_downstream(table, images, spec), copies_together=False)
    options = TransferOptions(("linear-probe",), shots=("50%",), folds=2, resamples=10, thresholds=(0.3,))
    outcome = run_transfer(loaded, encoded, options)[0]
    run = Transfer(loaded, encoded, options, encoded, Knowledge.load(), None)
    classifier = run.learn("linear-probe")
    save_head(tmp_path / "head", facts_of(loaded, run, outcome, classifier), classifier)
    head = load_head(tmp_path / "head", loaded)
    assert head.facts.thresholds == pytest.approx((0.3,) * len(names))
    result = write_predictions(tmp_path / "a.parquet", find_inputs([table], images), Predictor(loaded, head=head))
    rows = pd.read_parquet(tmp_path / "a.parquet")
    assert result.rows == len(rows) == 24
    for row in rows.to_dict("records"):
        above = [name for name in names if row[f"p({name})"] >= 0.3]
        assert row["prediction"] == "; ".join(above)


def test_the_temperature_that_made_answers_too_sure_is_found():
    drawn = np.random.default_rng(0)
    logits = drawn.normal(size=(4000, 3)) * 2
    labels = np.array([drawn.choice(3, p=p) for p in torch.from_numpy(logits).softmax(1).numpy()])
    too_sure = torch.from_numpy(logits * 3).softmax(1).numpy()
    assert fitted_temperature(Answers(labels, too_sure, None)) == pytest.approx(3, rel=0.1)


def test_a_head_of_other_weights_is_refused(loaded, labelled, tmp_path):
    learnt(loaded, labelled, "linear-probe", tmp_path / "head")
    other = load_model("timm:tf_efficientnet_lite0")
    with pytest.raises(CheckpointError, match="other weights or another preprocessing than timm:tf_efficientnet_lite0"):
        load_head(tmp_path / "head", other)
    (tmp_path / "head" / "head.json").write_text("{}")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_head(tmp_path / "head", loaded)
    with pytest.raises(CheckpointError, match="transfer --keep"):
        load_head(tmp_path / "nothing", loaded)
    with pytest.raises(ConfigError, match=r"\./mine"):
        head_folder("timm:tf_efficientnet_lite0", "mine")


def test_kept_by_the_command_and_used_by_predict(exported, labelled, tmp_path):
    import shutil

    model = tmp_path / "model"
    shutil.copytree(exported, model)
    table, images = labelled
    words = ["--images", images, "--model", model, "--cache", tmp_path / "cache"]
    result = call("transfer", table, *words, "--method", "linear-probe", "--shots", "50%", "--folds", 2,
                  "--copies-apart", "--keep", "colours")  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert list_heads(model) == ["colours"]
    assert "colours" in (model / "README.md").read_text()
    out = tmp_path / "predictions.csv"
    result = call("predict", table, "--images", images, "--model", model, "--head", "colours", "--out", out)
    assert result.returncode == 0, result.stderr
    with open(out, newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24
    classes = json.loads((model / "heads" / "colours" / "head.json").read_text())["classes"]
    for row in rows:
        probabilities = {name: float(row[f"p({name})"]) for name in classes}
        assert sum(probabilities.values()) == pytest.approx(1, abs=1e-4)
        assert row["prediction"] == max(probabilities, key=probabilities.get)
        assert 0 <= float(row["uncertainty"]) <= 1
    assert (
        call("predict", table, "--images", images, "--model", model, "--head", "colours", "--out", out).returncode == 1
    )


# ---- inputs and output


def test_a_folder_files_and_shards_are_inputs(labelled, shards, tmp_path):
    _, images = labelled
    folder = find_inputs([images])
    assert len(folder) == 24
    assert all(one.name.startswith(str(images)) for one in folder)
    one = folder[3]
    assert find_inputs([one.name])[0].name == one.name
    assert len(find_inputs([shards / "public"])) == 24
    assert len({one.name for one in find_inputs([shards / "public"])}) == 24
    (tmp_path / "empty").mkdir()
    with pytest.raises(TableError, match="holds no image that can be used"):
        find_inputs([tmp_path / "empty"])
    bare = tmp_path / "bare.csv"  # a table without any label
    bare.write_text("image,modality\n" + "".join(f"{one.name},FFA\n" for one in folder[:3]))
    found = find_inputs([bare])
    assert [one.record.modality for one in found] == ["FFA"] * 3


def test_the_pictures_of_a_volume_are_chosen(loaded, tmp_path):
    values = np.random.default_rng(0).uniform(0, 1, (5, 40, 30)).astype(np.float32)
    write_vol(tmp_path / "scan.vol", values)
    middle = find_inputs([tmp_path / "scan.vol"])
    assert [one.name for one in middle] == [f"{tmp_path / 'scan.vol'}#2"]
    every = find_inputs([tmp_path], options=SourceOptions(frames="all"))
    assert len(every) == 5
    assert {one.record.modality for one in every} == {"OCT"}
    answers = dict(Predictor(loaded, features=True).answers([one.record for one in every]))
    assert len({tuple(answers[n].features) for n in range(5)}) == 5
    (tmp_path / "torn.vol").write_bytes(b"HSF-OCT-103" + bytes(20))
    left_out = []
    assert len(find_inputs([tmp_path], on_left_out=left_out.append)) == 1
    assert len(left_out) == 1


def test_rows_hold_what_was_asked(loaded, labelled, tmp_path):
    table, images = labelled
    inputs = find_inputs([table], images)
    predictor = Predictor(loaded, ["normal", "glaucoma"], captions=True, features=True, modality="CFP")
    write_predictions(tmp_path / "a.csv", inputs, predictor)
    write_predictions(tmp_path / "b.parquet", inputs, predictor, OutputOptions(batch_size=7, workers=1, anonymous=True))
    one, other = pd.read_csv(tmp_path / "a.csv"), pd.read_parquet(tmp_path / "b.parquet")
    assert list(one["image"]) == [one.name for one in inputs]
    assert not set(one["image"]) & set(other["image"])
    assert other["image"].str.fullmatch("[0-9a-f]{16}").all()
    width = loaded.widths[1]
    features = one[[f"feature{n}" for n in range(width)]].to_numpy()
    np.testing.assert_allclose(np.stack(other["features"]), features, atol=1e-4)
    np.testing.assert_allclose(features[5], loaded.encode(inputs[5].record.image), atol=1e-4)
    np.testing.assert_allclose(other["p(glaucoma)"], one["p(glaucoma)"], atol=1e-5)
    expected = loaded.classify(inputs[5].record.image, ["normal", "glaucoma"], "CFP")
    assert one["p(glaucoma)"][5] == pytest.approx(expected["glaucoma"], abs=1e-5)
    assert one["caption"].fillna("")[5] == loaded.caption(inputs[5].record.image)
    assert set(one["modality"]) == {"CFP"}


def test_an_interrupted_job_goes_on(loaded, labelled, tmp_path, monkeypatch):
    monkeypatch.setattr("keepfit_clip.predict.output._PART", 10)
    inputs = find_inputs([labelled[0]], labelled[1])
    predictor = Predictor(loaded, features=True)
    asked = []

    def stop(done):
        asked.append(done)
        if done > 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_predictions(tmp_path / "a.parquet", inputs, predictor, OutputOptions(batch_size=4), progress=stop)
    assert not (tmp_path / "a.parquet").exists()
    result = write_predictions(tmp_path / "a.parquet", inputs, predictor, OutputOptions(batch_size=4))
    assert (result.rows, result.resumed) == (24, 10)
    write_predictions(tmp_path / "whole.parquet", inputs, predictor)
    one, other = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("a", "whole"))
    assert list(one["image"]) == list(other["image"])
    np.testing.assert_allclose(np.stack(one["features"]), np.stack(other["features"]), atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "whole.parquet"]


def test_what_cannot_be_read_is_told_with_its_reason(exported, labelled, tmp_path):
    Image.new("RGB", (40, 40)).save(tmp_path / "black.png")
    (tmp_path / "torn.png").write_bytes(b"no image")
    Image.open(next(labelled[1].rglob("*.png"))).save(tmp_path / "good.png")
    out = tmp_path / "out" / "a.csv"
    result = call("predict", tmp_path, "--model", exported, "--categories", "normal,glaucoma", "--out", out)
    assert result.returncode == 1
    assert "1 images" in result.stdout
    reasons = pd.read_csv(tmp_path / "out" / "a.left_out.csv")
    assert sorted(name.rpartition("/")[2] for name in reasons["image"]) == ["black.png", "torn.png"]
    assert "shows nothing" in " ".join(reasons["reason"])
    assert len(pd.read_csv(out)) == 1


@pytest.mark.parametrize(
    ("words", "error", "said"),
    [
        (["--out", "a.txt", "--features"], ConfigError, "must end in .csv or .parquet"),
        (["--out", "a.csv"], ConfigError, "nothing is asked"),
        (["--out", "a.csv", "--categories", "a,b", "--head", "./x"], CheckpointError, "holds no head"),
    ],
)
def test_what_cannot_be_predicted_is_told(exported, labelled, tmp_path, monkeypatch, words, error, said):
    monkeypatch.chdir(tmp_path)
    result = call("predict", labelled[1], "--model", exported, *words)
    assert result.returncode == 1
    assert issubclass(error, KeepFITError)
    assert said in " ".join(result.stderr.split())


def test_uncertainty_goes_from_nothing_to_all():
    assert uncertainty(np.array([1.0, 0, 0])) == pytest.approx(0, abs=1e-9)
    assert uncertainty(np.full(4, 0.25)) == pytest.approx(1)
    assert uncertainty(np.array([0.5, 0.5]), several=True) == pytest.approx(1)
    assert uncertainty(np.array([0.5, 1.0]), several=True) == pytest.approx(0.5)


def test_an_image_error_comes_whole_out_of_another_process():
    error = pickle.loads(pickle.dumps(ImageError("a.png", "torn")))
    assert (str(error), error.reason) == ("a.png: torn", "torn")


# ---- out of the library


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
@pytest.mark.parametrize(
    "method",
    ["linear-probe", *(pytest.param(name, marks=pytest.mark.long) for name in (None, "clip-adapter", "finetune"))],
)
def test_a_program_computes_what_the_model_does(loaded, labelled, tmp_path, method, suffix):
    if suffix == ".onnx":
        pytest.importorskip("onnxruntime")
    head = None
    if method:
        learnt(loaded, labelled, method, tmp_path / "head", finetune=FinetuneOptions(epochs=1, batch_size=8))
        head = load_head(tmp_path / "head", loaded)
    out = tmp_path / f"model{suffix}"
    assert export_program(loaded, out, head) < 1e-4
    images = find_inputs([labelled[0]], labelled[1])[:3]
    batch = torch.stack([loaded.preprocess(Image.open(one.record.image)) for one in images])
    if suffix == ".onnx":
        import onnxruntime

        (answer,) = onnxruntime.InferenceSession(str(out)).run(None, {"images": batch.numpy()})
    else:
        answer = torch.export.load(out).module()(batch).detach().numpy()
    answers = Predictor(loaded, head=head, features=True).ask(batch, [None] * 3)
    expected = [answer.probabilities if head else answer.features for answer in answers]
    np.testing.assert_allclose(answer, np.stack(expected), atol=1e-4)
    facts = json.loads((tmp_path / "model.json").read_text())
    assert facts["output"]["name"] == ("probabilities" if head else "features")
    with pytest.raises(OutputError, match="is there already"):
        export_program(loaded, out)


def test_a_head_is_a_classifier_of_scikit_learn(exported, loaded, labelled, tmp_path):
    run, _ = learnt(loaded, labelled, "linear-probe", tmp_path / "head")
    classifier = HeadClassifier(str(exported), str(tmp_path / "head"))
    paths = [record.image for record in run.encoded.downstream.records]
    again = pickle.loads(pickle.dumps(clone(classifier).fit()))
    expected = load_head(tmp_path / "head", loaded).answer(run.source_features)
    np.testing.assert_allclose(again.predict_proba(paths), expected, atol=1e-4)
    names = np.array(run.encoded.downstream.classes)
    assert classifier.score(paths, names[run.encoded.labels]) == pytest.approx(
        (expected.argmax(axis=1) == run.encoded.labels).mean()
    )


def test_the_page_answers_by_heads_too(loaded, labelled, tmp_path):
    pytest.importorskip("gradio")
    run, _ = learnt(loaded, labelled, "linear-probe", tmp_path / "head")
    service = Service(loaded, Knowledge.load(), heads={"colours": load_head(tmp_path / "head", loaded)})
    picture = run.encoded.downstream.records[0].image
    expected = load_head(tmp_path / "head", loaded).answer(run.source_features)[0]
    answers = service.answer(service.look(open_image(picture)), [], heads=["colours", "gone"]).heads["colours"]
    assert answers == pytest.approx(dict(zip(run.encoded.downstream.classes, expected, strict=True)), abs=1e-4)
    asked = Asked("CFP", ["normal", "glaucoma"], ["colours"])
    page = Handlers(service, tmp_path).uploaded([str(picture)], asked)[2]
    assert "Learnt: colours" in page
    assert "linear-probe on 24 images" in page
    assert "(temperature " in page
    assert "Learnt" not in Handlers(service, tmp_path).uploaded([str(picture)], replace(asked, heads=[]))[2]
