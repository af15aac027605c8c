"""Transfer: data sets and their classes, folds and shots, features computed once, methods, scores, tables."""

import csv
import json
import math
import pickle
from dataclasses import replace
from xml.dom import minidom

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.model_selection import cross_val_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from typer.testing import CliRunner

from keepfit_clip.cli import app
from keepfit_clip.data.downstream import ClassFile, list_class_files, read_class_file, read_downstream
from keepfit_clip.data.duplicates import both_views, copies_of, with_copies
from keepfit_clip.drawing import draw_retina
from keepfit_clip.errors import CategoryError, ConfigError, ImageError, KeepFITError, OutputError, TableError
from keepfit_clip.evaluate.features import FeatureCache, ImageRow, image_features
from keepfit_clip.evaluate.metrics.classification import (
    Answers,
    _weighted_aca_and_auc,
    abstention_curve,
    bootstrap_intervals,
    reliability,
    score_classification,
    score_multi_label,
    tuned_thresholds,
)
from keepfit_clip.evaluate.metrics.conformal import conformal_level, conformal_sets, measured_over_folds
from keepfit_clip.evaluate.sklearn import KeepFITFeatures
from keepfit_clip.folders.loading import load_model
from keepfit_clip.knowledge.conditions import Knowledge
from keepfit_clip.model.zero_shot import ZeroShotClassifier
from keepfit_clip.transfer.classifiers import Features
from keepfit_clip.transfer.finetune import FinetuneOptions
from keepfit_clip.transfer.methods import METHODS, Fold, TextClasses, linear_head
from keepfit_clip.transfer.protocol import TransferOptions, encode_set, run_transfer
from keepfit_clip.transfer.splits import Shots, choose_shots, folds_of, parse_shots
from keepfit_clip.transfer.tables import as_json, pooled_lines
from tests.programs import forkserver

CLASS_FILES = {
    **dict.fromkeys(("messidor", "fives", "refuge", "odir200x3", "20x3", "acrima", "deepdrid", "amd", "taop", "mmac"),
                    "CFP"),
    **dict.fromkeys(("mpos", "angiographic"), "FFA"),
    **dict.fromkeys(("octid", "octdl", "oct2017", "oct-c8"), "OCT"),
}  # fmt: skip
COLOURS = {"normal": (200, 60, 30), "glaucoma": (30, 60, 200), "cataract": (60, 200, 30)}


@pytest.fixture(scope="module")
def coloured(tmp_path_factory):
    """45 pictures of three classes that a colour tells apart, of 15 patients; one file is no image."""
    folder = tmp_path_factory.mktemp("coloured")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(45):
        name = list(COLOURS)[number % 3]
        noise = rng.integers(-25, 25, (40, 40, 3))
        Image.fromarray(np.clip(np.array(COLOURS[name]) + noise, 0, 255).astype(np.uint8)).save(
            folder / f"{number}.png"
        )
        rows.append((f"{number}.png", name, f"patient{number // 3}"))
    (folder / "broken.png").write_bytes(b"no image")
    rows.append(("broken.png", "normal", "patient99"))
    write_table(folder / "table.csv", ("image", "label", "patient"), rows)
    return folder


def write_table(path, header, rows):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


# ---- data sets


def test_every_shipped_class_file_is_known_to_the_knowledge_file_or_says_it_has_no_names():
    knowledge = Knowledge.load()
    assert {name: read_class_file(name).modality for name in list_class_files()} == CLASS_FILES
    for name in list_class_files():
        spec = read_class_file(name)
        assert spec.source
        if spec.named:
            unknown = {"unremarkable changes", "other"} if name == "angiographic" else set()
            assert {c for c in spec.classes if not knowledge.resolve(c)} == unknown, name
    assert read_class_file("messidor").ordinal
    assert not read_class_file("taop").named


def test_labels_are_matched_by_name_synonym_and_the_class_file(tmp_path):
    rows = [("1.png", "['normal']"), ("2.png", "['ARMD']"), ("3.png", "['age related macular degeneration']"),
            ("4.png", "['glaucoma']"), ("5.png", "['2c']"), ("6.png", "['cataract']"),
            ("7.png", "['normal','glaucoma']"), ("8.png", "['diabetic retinopathy']")]  # fmt: skip
    for image, _ in rows:
        Image.new("RGB", (4, 4)).save(tmp_path / image)
    table = write_table(tmp_path / "t.csv", ("image", "categories"), rows)
    (tmp_path / "c.json").write_text(
        json.dumps({"classes": {"normal": [], "age-related macular degeneration": [], "glaucoma": ["2c"],
                                "diabetic retinopathy": []}})
    )  # fmt: skip
    found = read_downstream(table, tmp_path, read_class_file(tmp_path / "c.json"))
    assert found.labels.tolist() == [0, 1, 1, 2, 2, 3]
    reasons = {row: reason for row, reason, _ in found.left_out}
    assert reasons == {
        6: "a label of it is not in the class file",
        7: "it belongs to several classes",
    }
    assert "cataract" in found.left_out[0].message
    assert found.groups is None


def test_several_classes_of_an_image(tmp_path):
    rows = [("1.png", "['drusen','exudates']"), ("2.png", "['drusen']"), ("3.png", "['exudates']")]
    for image, _ in rows:
        Image.new("RGB", (4, 4)).save(tmp_path / image)
    table = write_table(tmp_path / "t.csv", ("image", "categories"), rows)
    spec = ClassFile("lesions", {"drusen": (), "exudates": ()}, multi_label=True)
    assert read_downstream(table, tmp_path, spec).labels.tolist() == [[1, 1], [1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "not JSON"),
        ("[]", "is an object"),
        ('{"classes": ["a"]}', "at least two"),
        ('{"classes": ["a", ""]}', "must be texts"),
        ('{"classes": ["a", "b"], "colour": 1}', "unknown keys"),
        ('{"classes": ["a", "b"], "ordinal": 1}', "true or false"),
        ('{"classes": ["a", "b"], "modality": "MRI"}', "none of CFP"),
        ('{"title": "t"}', 'no "classes"'),
    ],
)
def test_class_files_that_cannot_be_used(tmp_path, content, message):
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(CategoryError, match=message):
        read_class_file(tmp_path / "c.json")


def test_data_sets_that_cannot_be_used(coloured, tmp_path):
    with pytest.raises(CategoryError, match="shipped are 20x3"):
        read_class_file("messidro")
    with pytest.raises(CategoryError, match="has no image of macular hole"):
        read_downstream(coloured / "table.csv", coloured, ["normal", "glaucoma", "macular hole"])
    with pytest.raises(CategoryError, match="means both"):
        read_downstream(coloured / "table.csv", coloured, ClassFile("t", {"normal": (), "glaucoma": ("normal",)}))
    one = write_table(tmp_path / "one.csv", ("image", "label"), [(str(coloured / "0.png"), "normal")])
    with pytest.raises(CategoryError, match="at least two classes"):
        read_downstream(one, coloured)
    with pytest.raises(CategoryError, match=r"no row belongs to exactly one .* the table has \['normal'\]"):
        read_downstream(one, coloured, ["glaucoma", "cataract"])
    with pytest.raises(TableError, match="none of its rows can be used"):
        read_downstream(one, coloured, ["glaucoma", "cataract"], rows=[7])


# ---- folds and shots


def test_every_image_is_tested_once_and_no_patient_stands_on_both_sides():
    labels = np.arange(60) % 3
    groups = np.arange(60) // 4
    tested = []
    for train, test in folds_of(labels, 5, groups):
        assert not set(groups[train]) & set(groups[test])
        assert set(labels[test]) == {0, 1, 2}
        tested += test.tolist()
    assert sorted(tested) == list(range(60))
    again = [test.tolist() for _, test in folds_of(labels, 5, groups)]
    assert again == [test.tolist() for _, test in folds_of(labels, 5, groups)]
    assert again != [test.tolist() for _, test in folds_of(labels, 5, groups, seed=1)]


def test_more_shots_contain_fewer_ones():
    labels, names = np.arange(60) % 3, ["a", "b", "c"]
    pool = np.arange(10, 60)
    few, many = (choose_shots(labels, pool, Shots(n), 60, 3, names) for n in (1, 5))
    assert np.bincount(labels[few]).tolist() == [1, 1, 1]
    assert np.bincount(labels[many]).tolist() == [5, 5, 5]
    assert set(few) < set(many) <= set(pool)
    assert len(choose_shots(labels, pool, Shots(share=0.2), 60, 3, names)) == 12
    assert set(choose_shots(labels, pool, Shots(share=50 / 60), 60, 3, names)) == set(pool)


def test_near_copies_and_patients_stay_together():
    looks = np.random.default_rng(0).integers(0, 256, (6, 2, 32), dtype=np.uint8)
    looks[4, 0] = looks[1, 1]  # one of them without its border is the other
    looks[4, 0, 31] ^= 1
    assert with_copies(None, looks).tolist() == [0, 1, 2, 3, 1, 4]
    assert with_copies(np.array([7, 7, 8, 9, 6, 5]), looks).tolist() == [0, 0, 1, 2, 0, 3]
    assert with_copies(None, looks[:4]) is None
    assert with_copies(np.array([1, 2, 3, 4]), looks[:4]).tolist() == [0, 1, 2, 3]


def test_a_copy_without_its_black_border_is_a_copy():
    picture = draw_retina("CFP", "glaucoma", 3, 200).image
    framed = ImageOps.expand(picture, (60, 10), (0, 0, 0))
    other = draw_retina("CFP", "glaucoma", 4, 200).image
    looks = np.stack([both_views(image) for image in (picture, framed, other)])
    assert with_copies(None, looks).tolist() == [0, 0, 1]
    assert copies_of(looks[1:], looks[:1]).tolist() == [True, False]


def test_copies_are_not_learnt_from_and_tested(exported, coloured, tmp_path):
    rows = []
    for number in range(12):
        picture = Image.open(coloured / f"{number % 6}.png")
        picture.resize((80, 80)).save(tmp_path / f"{number}.png") if number >= 6 else picture.save(
            tmp_path / f"{number}.png"
        )
        rows.append((f"{number}.png", list(COLOURS)[number % 3]))
    table = write_table(tmp_path / "t.csv", ("image", "label"), rows)
    loaded = load_model(exported)
    together = encode_set(loaded, read_downstream(table, tmp_path))
    assert together.groups.tolist() == [0, 1, 2, 3, 4, 5] * 2
    assert not together.downstream.by_patient
    assert encode_set(loaded, read_downstream(table, tmp_path), copies_together=False).groups is None
    with pytest.raises(CategoryError, match=r"'cataract' has 2 patients \(near copies counted once\)"):
        run_transfer(loaded, together, TransferOptions(folds=3, modality="CFP"))


def test_shots_that_there_are_not():
    labels = np.array([0] * 20 + [1] * 6)
    with pytest.raises(CategoryError, match=r"'b' has 6 images .* 10 are asked for"):
        choose_shots(labels, np.arange(26), Shots(10), 26, 0, ["a", "b"])
    with pytest.raises(CategoryError, match="the class number 1 has 6 images, which is fewer than the 7 folds"):
        next(folds_of(labels, 7))
    several = np.stack([np.arange(8) % 2, np.arange(8) // 4], axis=1)
    with pytest.raises(CategoryError, match=r"there are 3 patients .* fewer than the 5 folds"):
        next(folds_of(several, 5, np.arange(8) % 3))
    few = separable(2, 0.1)[0][np.arange(4)]
    with pytest.raises(CategoryError, match="all of the 4 training images of a fold have class 1"):
        METHODS["linear-probe"].run(Fold(few, np.array([[1, 0], [1, 1], [1, 0], [1, 1]]), few, None))
    with pytest.raises(CategoryError, match="there are 1 patients"):
        next(folds_of(labels, 2, np.zeros(26, dtype=int)))


def test_shots_are_read():
    assert list(map(str, parse_shots("1, 5,20%"))) == ["1", "5", "20%"]
    for text in ("", "0", "ten", "100%", "-1", "5.5"):
        with pytest.raises(ConfigError, match="--shots"):
            parse_shots(text)


# ---- features


def test_features_are_computed_once_and_are_those_of_the_model(exported, coloured, tmp_path):
    loaded = load_model(exported)
    records = read_downstream(coloured / "table.csv", coloured).records
    cache = FeatureCache(tmp_path / "cache", loaded)
    first = image_features(loaded, records, cache)
    again = image_features(loaded, [records[3], *records], FeatureCache(tmp_path / "cache", loaded))
    assert (first.computed, again.computed) == (45, 0)
    assert first.kept.tolist() == list(range(45))
    assert list(first.unreadable) == [45]
    np.testing.assert_array_equal(again.projected, np.concatenate([first.projected[3:4], first.projected]))
    image = loaded.preprocess(Image.open(records[7].image).convert("RGB"))[None]
    with torch.no_grad():
        expected = loaded.model.encode_image(image, normalize=True).numpy()
        pooled = loaded.model.visual.trunk(image).numpy()
    np.testing.assert_allclose(first.projected[7:8], expected, atol=1e-5)
    np.testing.assert_allclose(first.pooled[7:8], pooled, atol=1e-5)
    stored = b"".join(path.read_bytes() for path in (tmp_path / "cache").iterdir())
    assert b"png" not in stored
    assert b"patient" not in stored


def test_other_weights_have_other_features(exported, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    other = tmp_path / "other"
    shutil.copytree(exported, other)
    first = load_model(exported)
    assert load_model(other).fingerprint == load_model(f"local-dir:{exported}").fingerprint == first.fingerprint
    state = load_file(other / "open_clip_model.safetensors")
    state["logit_scale"] += 1
    save_file(state, other / "open_clip_model.safetensors")
    assert FeatureCache(tmp_path, load_model(other)).path != FeatureCache(tmp_path, first).path


def put_many(folder, model, first):
    torch.set_num_threads(1)
    cache = FeatureCache(folder, load_model(model))
    for number in range(first, first + 200):
        pooled, projected, look = (
            np.full(3, number % 250, np.float32),
            np.zeros(2, np.float32),
            np.zeros((2, 32), np.uint8),
        )
        cache.put({f"key{number % 250}": ImageRow(pooled, projected, look)})


def test_two_processes_share_a_cache(exported, tmp_path):
    processes = [forkserver.Process(target=put_many, args=(tmp_path, exported, first)) for first in (0, 100)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    found = FeatureCache(tmp_path, load_model(exported)).get([f"key{number}" for number in range(250)])
    assert len(found) == 250
    assert all(values[0][0] == int(key.removeprefix("key")) for key, values in found.items())


def test_features_that_cannot_be_had(exported, coloured, tmp_path):
    loaded = load_model(exported)
    records = read_downstream(coloured / "table.csv", coloured).records
    with pytest.raises(KeepFITError, match="none of the 1 images can be read"):
        image_features(loaded, records[-1:])
    loaded.model.visual.proj.weight.data[:] = math.nan
    with pytest.raises(KeepFITError, match="features of row 1 are not finite"):
        image_features(loaded, records)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="--cache"):
        FeatureCache(tmp_path / "file", loaded)


# ---- methods


def separable(per_class, noise, seed=0, width=16):
    """Features around three directions."""
    rng = np.random.default_rng(seed)
    centres = np.eye(3, width)
    labels = np.repeat(np.arange(3), per_class)
    features = centres[labels] + noise * rng.standard_normal((len(labels), width))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return Features(features.astype(np.float32), features.astype(np.float32)), labels


@pytest.mark.parametrize("method", METHODS)
def test_methods_tell_classes_apart_and_are_the_same_twice(method):
    train, labels = separable(8, 0.15)
    test, truth = separable(30, 0.15, seed=1)
    texts = TextClasses(np.eye(3, 16, dtype=np.float32)[None], 10.0)
    one, two = (METHODS[method].run(Fold(train, labels, test, texts, 5)) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    np.testing.assert_allclose(one.sum(axis=1), 1, atol=1e-5)
    assert (one.argmax(axis=1) == truth).mean() > 0.9


@pytest.mark.parametrize("method", ["linear-probe", "text-probe", "tip-adapter", "tip-adapter-f"])
def test_learning_mends_texts_that_say_nothing(method):
    train, labels = separable(8, 0.15)
    test, truth = separable(30, 0.15, seed=1)
    useless = TextClasses(np.tile(np.ones(16, dtype=np.float32) / 4, (1, 3, 1)), 2.0)
    assert (METHODS[method].run(Fold(train, labels, test, useless)).argmax(axis=1) == truth).mean() > 0.6


# The probes know the classes by their images too, whatever the words.
@pytest.mark.parametrize("method", [name for name in METHODS if not name.endswith("-probe")])
def test_each_image_is_compared_in_its_own_words(method):
    train, labels = separable(8, 0.1)
    test, truth = separable(20, 0.1, seed=1)
    right = np.eye(3, 16, dtype=np.float32)
    texts = TextClasses(np.stack([right, right[[1, 2, 0]]]), 20.0)  # the second wording means other classes
    wording = np.arange(60) % 2
    worded = (replace(features, wording=words) for features, words in ((train, np.zeros(24, int)), (test, wording)))
    learnt, asked = worded
    answers = METHODS[method].run(Fold(learnt, labels, asked, texts)).argmax(axis=1)
    assert (answers == truth)[wording == 0].mean() > 0.9
    assert (answers == (truth + 2) % 3)[wording == 1].mean() > 0.9


def test_tip_adapter_is_its_formula():
    train, labels = separable(2, 0.2)
    test, _ = separable(1, 0.2, seed=1)
    texts = TextClasses(np.eye(3, 16, dtype=np.float32)[None], 4.0)
    affinity = np.exp(-5 * (1 - test.projected @ train.projected.T))
    logits = 4 * test.projected @ texts.features[0].T + affinity @ np.eye(3)[labels]
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(METHODS["tip-adapter"].run(Fold(train, labels, test, texts)), expected, atol=1e-5)


def test_a_text_probe_knows_the_texts_and_learns_from_images():
    classes = np.eye(3, 16, dtype=np.float32)
    classes[0] += 0.5  # a text that is not quite where its images are
    texts = TextClasses((classes / np.linalg.norm(classes, axis=1, keepdims=True))[None], 10.0)
    test, truth = separable(60, 0.3, seed=99)

    def right(method, shots):
        folds = (separable(shots, 0.3, seed=seed) for seed in range(8))
        answers = [METHODS[method].run(Fold(train, labels, test, texts)) for train, labels in folds]
        return np.mean([(answer.argmax(axis=1) == truth).mean() for answer in answers])

    assert right("text-probe", 1) > right("linear-probe", 1) + 0.05
    assert right("text-probe", 16) > right("zero-shot", 16) + 0.01


# ---- scores


def test_conformal_sets_hold_the_true_class_as_often_as_asked():
    drawn = np.random.default_rng(0)
    logits = drawn.normal(size=(3000, 4)) * 2
    truth = torch.from_numpy(logits).softmax(dim=1).numpy()
    labels = np.array([drawn.choice(4, p=p) for p in truth])
    wrong = torch.from_numpy(logits * 3).softmax(dim=1).numpy()  # far too sure of itself
    for coverage in (0.8, 0.95):
        level = conformal_level(labels[:1500], wrong[:1500], coverage)
        sets = conformal_sets(wrong[1500:], level)
        assert sets[np.arange(1500), labels[1500:]].mean() == pytest.approx(coverage, abs=0.02)
    folds = [Answers(labels[n::3], wrong[n::3]) for n in range(3)]
    measured = measured_over_folds(folds, 0.9)
    assert measured.coverage == pytest.approx(0.9, abs=0.02)
    assert 1 < measured.size < 4
    assert measured_over_folds(folds[:1]) is None
    by_hand = np.array([[0.7, 0.3], [0.4, 0.6], [0.1, 0.9], [0.8, 0.2]])  # scores 0.3, 0.6, 0.1, 0.8 of these labels
    assert conformal_level(np.array([0, 0, 1, 1]), by_hand, 0.6) == pytest.approx(0.4)  # the third of four
    assert conformal_level(np.array([0, 0, 1, 1]), by_hand, 0.9) == 0  # four are too few: all classes belong
    assert conformal_sets(by_hand, 0.4).tolist() == [[True, False], [True, True], [False, True], [True, False]]


def test_shots_as_frequent_as_the_classes_are():
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    rows = choose_shots(labels, np.arange(100), Shots.of("~10"), 100, 0, ["a", "b", "c"])
    assert np.bincount(labels[rows]).tolist() == [18, 9, 3]
    assert str(Shots.of("~10")) == "~10"
    with pytest.raises(ConfigError, match="--shots '~20%'"):
        parse_shots("~20%")


def test_scores_of_several_classes_are_scikit_learns():
    rng = np.random.default_rng(0)
    labels = (rng.random((50, 3)) < [0.2, 0.5, 0.7]).astype(int)
    probabilities = np.clip(labels * 0.4 + rng.random((50, 3)) * 0.6, 0, 1)
    scores = score_multi_label(labels, probabilities)
    each = [balanced_accuracy_score(labels[:, k], probabilities[:, k] >= 0.5) for k in range(3)]
    assert scores.aca == pytest.approx(np.mean(each))
    assert scores.auc == pytest.approx(np.mean([roc_auc_score(labels[:, k], probabilities[:, k]) for k in range(3)]))
    assert math.isnan(scores.kappa)
    labels[:, 0] = 0
    assert math.isnan(score_multi_label(labels, probabilities).sensitivity[0])


def test_thresholds_are_chosen_where_a_class_is_told_best():
    labels = np.array([[0, 1, 1], [0, 0, 1], [1, 0, 1], [1, 1, 1]])
    probabilities = np.array([[0.01, 0.9, 0.2], [0.02, 0.8, 0.3], [0.05, 0.1, 0.4], [0.1, np.nan, 0.5]])
    thresholds = tuned_thresholds(labels, probabilities)
    assert thresholds.tolist() == [0.05, 0.5, 0.5]  # the second has no answer, the third has no other images
    assert score_multi_label(labels[:, :1], probabilities[:, :1], thresholds[:1]).aca == 1.0
    assert score_multi_label(labels[:, :1], probabilities[:, :1]).aca == 0.5


def test_answers_of_folds_are_joined_with_their_own_thresholds():
    labels, probabilities = np.array([[0, 1], [1, 0]]), np.array([[0.2, 0.6], [0.3, 0.1]])
    parts = [Answers(labels, probabilities, threshold=t) for t in (0.25, np.array([0.35, 0.7]))]
    assert [part.score().aca for part in parts] == [1.0, 0.5]
    assert Answers.joined(parts).score().aca == 0.75


def test_reliability_by_hand():
    probabilities = np.array([[0.95, 0.05], [0.91, 0.09], [0.55, 0.45], [0.45, 0.55]])
    assert reliability(np.array([0, 1, 0, 0]), probabilities, bins=10) == [(0.55, 0.5), (pytest.approx(0.93), 0.5)]


def test_sensitivity_specificity_and_calibration_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.2, 0.8]])
    scores = score_classification([0, 0, 1, 1], probabilities)
    assert scores.sensitivity.tolist() == [1.0, 0.5]
    assert scores.specificity.tolist() == [0.5, 1.0]
    assert scores.f1 == pytest.approx((0.8 + 2 / 3) / 2)
    assert scores.ece == pytest.approx(0.75 * abs(2 / 3 - 0.9) + 0.25 * 0.2, abs=1e-6)
    assert abstention_curve(np.array([0, 0, 1, 1]), probabilities)[-1] == (1.0, 0.75)


@pytest.mark.parametrize("several", [False, True])
def test_the_bootstrap_scores_as_the_tables_do(several):
    rng = np.random.default_rng(1)
    probabilities = np.round(rng.dirichlet(np.ones(4), 60), 2)  # with ties
    labels = (rng.random((60, 4)) < 0.4).astype(int) if several else rng.integers(0, 3, 60)  # one class has no image
    if several:
        labels[:, 3] = 0
        probabilities = np.clip(2 * probabilities, 0, 1)
    scores = (score_multi_label if several else score_classification)(labels, probabilities)
    drawn = rng.integers(0, 60, 60)
    weights = np.stack([np.ones(60), np.bincount(drawn, minlength=60)])
    aca, auc = _weighted_aca_and_auc(Answers(labels, probabilities), weights)
    again = Answers(labels[drawn], probabilities[drawn]).score()
    assert aca == pytest.approx([scores.aca, again.aca])
    assert auc == pytest.approx([scores.auc, again.auc])


def test_intervals_hold_the_score_and_are_wider_over_patients():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 10)
    labels = np.arange(200) % 2
    right = np.repeat(rng.random(20) < 0.7, 10)  # a patient's images are all right or all wrong
    probabilities = np.eye(2)[np.where(right, labels, 1 - labels)] * 0.8 + 0.1
    scores = score_classification(labels, probabilities)
    images = bootstrap_intervals([Answers(labels, probabilities)])
    patients = bootstrap_intervals([Answers(labels, probabilities, groups)])
    for interval in (images, patients):
        assert interval["aca"][0] < scores.aca < interval["aca"][1]
    assert np.ptp(patients["aca"]) > 1.5 * np.ptp(images["aca"])
    assert bootstrap_intervals([Answers(labels, probabilities)]) == images
    # Two folds of other images make the mean surer, two looks at the same images do not.
    twice = [Answers(labels, probabilities)] * 2
    assert np.ptp(bootstrap_intervals(twice)["auc"]) < 0.85 * np.ptp(images["auc"])
    assert np.ptp(bootstrap_intervals(twice, shared=True)["auc"]) > 0.85 * np.ptp(images["auc"])


# ---- the whole


def test_the_command_is_the_same_twice(exported, coloured, tmp_path):
    words = ["transfer", coloured / "table.csv", "--images", coloured, "--model", exported, "--method",
             "zero-shot,linear-probe,tip-adapter", "--shots", "1,60%", "--folds", 3, "--patient-column", "patient",
             "--modality", "cfp", "--cache", tmp_path / "cache"]  # fmt: skip
    for name in ("one", "two"):
        result = CliRunner().invoke(app, [*map(str, words), "--out", str(tmp_path / name)])
        assert result.exit_code == 0, result.exception
    for file in ("results.json", "results.csv", "table.md"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    results = json.loads((tmp_path / "one" / "results.json").read_text())
    assert [(o["method"], o["shots"]) for o in results["outcomes"]] == [
        ("zero-shot", None),
        ("linear-probe", "1"),
        ("linear-probe", "60%"),
        ("tip-adapter", "1"),
        ("tip-adapter", "60%"),
    ]
    assert results["images"] == 45
    assert results["by_patient"]
    assert results["not_used"] == [{"row": 46, "reason": "not an image (JPEG, PNG, TIFF, WEBP, BMP, PPM, DICOM)"}]
    assert results["outcomes"][2]["aca"]["mean"] > 0.9  # colour alone tells them apart, even for random weights
    plots = {path.name: path.read_text() for path in (tmp_path / "one" / "plots").iterdir()}
    assert plots.keys() == {"zero-shot.svg", "linear-probe-1.svg", "linear-probe-60-percent.svg", "tip-adapter-1.svg",
                            "tip-adapter-60-percent.svg", "shots.svg", "embedding.svg"}  # fmt: skip
    assert all(minidom.parseString(svg) and len(svg) > 5000 for svg in plots.values())
    assert all(name in plots["embedding.svg"] for name in COLOURS)
    written = "".join(path.read_text() for path in (tmp_path / "one").glob("*.[jcm]*")) + "".join(plots.values())
    assert ".png" not in written
    assert str(exported.parent) not in written
    table = (tmp_path / "one" / "table.md").read_text()
    assert "45 images of 3 classes, 3 folds by patient" in table
    assert "kappa" not in table  # the classes are no grades


def test_several_tables_and_the_classes_they_are_called_after(exported, coloured, tmp_path):
    header, *rows = (coloured / "table.csv").read_text().splitlines()
    for name, absent in (("mine", "none"), ("refuge", "no glaucoma")):
        wanted = [row.replace("normal", absent) if name == "refuge" else row for row in rows if "cataract" not in row]
        (tmp_path / f"{name}.csv").write_text("\n".join([header, *wanted]) + "\n")
    words = ["transfer", tmp_path / "mine.csv", tmp_path / "refuge.csv", "--images", coloured, "--model", exported,
             "--folds", 3, "--modality", "CFP", "--cache", tmp_path / "cache", "--out", tmp_path / "out"]  # fmt: skip
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == 0, result.exception
    found = {name: json.loads((tmp_path / "out" / name / "results.json").read_text()) for name in ("mine", "refuge")}
    assert found["mine"]["classes"] == ["glaucoma", "normal"]
    assert found["refuge"]["classes"] == ["no glaucoma", "glaucoma"]
    assert found["refuge"]["data"] == "REFUGE"
    twice = CliRunner().invoke(app, [*map(str, words[:2]), *map(str, words[1:2]), *map(str, words[3:-2])])
    assert "called the same" in str(twice.exception)


def test_domain_shift_learns_here_and_tests_there(exported, coloured, tmp_path):
    loaded = load_model(exported)
    there = tmp_path / "there"
    there.mkdir()
    rows = []
    for number in range(6):
        name = list(COLOURS)[number % 3]
        colour = Image.new("RGB", (30, 30), COLOURS[list(COLOURS)[(number + 1) % 3]])  # all wrong
        Image.blend(colour, Image.linear_gradient("L").resize((30, 30)).convert("RGB"), 0.1).save(
            there / f"{number}.png"
        )
        rows.append((f"{number}.png", name))
    write_table(there / "t.csv", ("image", "label"), rows)
    here = encode_set(loaded, read_downstream(coloured / "table.csv", coloured))
    shifted = encode_set(loaded, read_downstream(there / "t.csv", there, here.downstream.spec))
    options = TransferOptions(("linear-probe",), (Shots(share=0.6),), folds=3, modality="CFP", resamples=20)
    (outcome,) = run_transfer(loaded, here, options, shifted)
    assert outcome.mean("aca")[0] == 0
    alone = shifted.shifted_from(here)
    assert alone.downstream.learnt_from == "table"
    assert len(alone.labels) == 6
    row = write_table(tmp_path / "both.csv", ("image", "label"), [(str(coloured / "0.png"), "normal")] + [
        (str(there / name), label) for name, label in rows])  # fmt: skip
    both = encode_set(loaded, read_downstream(row, "/", here.downstream.spec)).shifted_from(here)
    reasons = {row: reason for row, reason, _ in both.downstream.left_out}
    assert reasons == {1: "its image, or a near copy, is in the set that is learnt from"}
    with pytest.raises(CategoryError, match="no image of any class is left"):
        here.shifted_from(here)
    assert len(outcome.answers.labels) == 18


def test_several_classes_zero_shot_and_probe(exported, coloured, tmp_path):
    rows = [(f"{n}.png", "['drusen','exudates']" if n % 3 == 0 else "['drusen']" if n % 3 == 1 else "['exudates']")
            for n in range(45)]  # fmt: skip
    table = write_table(tmp_path / "t.csv", ("image", "categories"), rows)
    spec = ClassFile("lesions", {"drusen": (), "exudates": ()}, "CFP", multi_label=True)
    loaded = load_model(exported)
    encoded = encode_set(loaded, read_downstream(table, coloured, spec))
    options = TransferOptions(("zero-shot", "linear-probe"), (Shots(share=0.6),), folds=3, resamples=20)
    zero_shot, probe = run_transfer(loaded, encoded, options)
    assert zero_shot.answers.probabilities.shape == (45, 2)
    assert ((zero_shot.answers.probabilities > 0) & (zero_shot.answers.probabilities < 1)).all()
    assert probe.mean("auc")[0] > 0.95
    tuned = replace(options, thresholds=None)
    better, best = run_transfer(loaded, encoded, tuned)
    assert len(np.unique(better.answers.threshold[:, 0])) > 1  # each fold has its own
    assert best.mean("aca")[0] > 0.9
    assert better.mean("auc") == zero_shot.mean("auc")
    low, high = (
        run_transfer(loaded, encoded, replace(options, thresholds=values))[0] for values in [(1e-9, 0.999)] * 2
    )
    assert low.overall.sensitivity.tolist() == [1, 0]
    assert high.overall.specificity.tolist() == [0, 1]
    with pytest.raises(ConfigError, match="gives 3 values, for 2 classes"):
        run_transfer(loaded, encoded, replace(options, thresholds=(0.1, 0.2, 0.3)))
    with pytest.raises(ConfigError, match="leave finetune out"):
        run_transfer(loaded, encoded, TransferOptions(("finetune",), thresholds=None))
    with pytest.raises(ConfigError, match="clip-adapter takes images of one class each"):
        run_transfer(loaded, encoded, TransferOptions(("clip-adapter",)))


def test_names_alone_and_with_descriptions_side_by_side_each_modality_in_its_own_words(exported, coloured, tmp_path):
    rows = [(f"{n}.png", list(COLOURS)[n % 3], ("CFP", "OCT")[n % 2]) for n in range(45)]
    table = write_table(tmp_path / "t.csv", ("image", "label", "modality"), rows)
    loaded = load_model(exported)
    encoded = encode_set(loaded, read_downstream(table, coloured, list(COLOURS)))
    options = TransferOptions(("zero-shot", "zero-shot-names", "zero-shot-findings"), folds=3, resamples=20)
    found = dict(zip(options.methods, run_transfer(loaded, encoded, options), strict=True))
    rows = np.concatenate([held_out for _, held_out in folds_of(encoded.labels, 3, encoded.groups)])
    for method, outcome in found.items():
        for modality in ("CFP", "OCT"):
            classifier = ZeroShotClassifier(
                loaded.model,
                loaded.tokenizer,
                list(COLOURS),
                modality,
                descriptions=method != "zero-shot-names",
                findings=method == "zero-shot-findings",
            )
            members = [i for i, row in enumerate(rows) if encoded.downstream.records[row].modality == modality]
            images = torch.from_numpy(encoded.features.projected[rows[members]])
            expected = (loaded.model.logit_scale.exp() * images @ classifier.class_features.T).softmax(dim=1)
            np.testing.assert_allclose(outcome.answers.probabilities[members], expected.detach(), atol=1e-5)


def test_fine_tuning_beats_the_probe_it_begins_with_and_goes_on_where_it_was(exported, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    rows = []
    for number in range(40):  # stripes, down or across: random weights hardly tell them apart
        stripes = np.kron(np.indices((8, 8))[number % 2] % 2, np.ones((8, 8))) * 200 + rng.integers(0, 50, (64, 64))
        Image.fromarray(stripes.astype(np.uint8)).save(tmp_path / f"{number}.png")
        rows.append((f"{number}.png", ("normal", "glaucoma")[number % 2]))
    table = write_table(tmp_path / "t.csv", ("image", "label"), rows)
    loaded = load_model(exported)
    before = {key: value.clone() for key, value in loaded.model.state_dict().items()}
    cache = FeatureCache(tmp_path / "cache", loaded)
    encoded = encode_set(loaded, read_downstream(table, tmp_path), cache)
    tuned = FinetuneOptions(epochs=8, batch_size=8, lr=1e-3)
    options = TransferOptions(("linear-probe", "finetune"), (Shots(share=0.5),), 2, "CFP", resamples=20, finetune=tuned)
    probe, finetuned = run_transfer(loaded, encoded, options, cache=cache)
    assert finetuned.mean("auc")[0] >= probe.mean("auc")[0]
    assert finetuned.mean("aca")[0] > 0.9
    assert all(torch.equal(value, before[key]) for key, value in loaded.model.state_dict().items())
    monkeypatch.setattr("keepfit_clip.transfer.finetune.Trainer", None)  # both folds are there
    _, again = run_transfer(loaded, encoded, options, cache=cache)
    np.testing.assert_array_equal(again.answers.probabilities, finetuned.answers.probabilities)


def test_a_linear_head_is_the_probe():
    for labels in (np.arange(30) % 2, np.arange(30) % 3, np.stack([np.arange(30) % 2, np.arange(30) // 15], axis=1)):
        features, _ = separable(10, 0.8)
        probe = LogisticRegression(C=0.316, class_weight="balanced", solver="newton-cg", max_iter=1000, random_state=0)
        probe = OneVsRestClassifier(probe) if labels.ndim == 2 else probe
        expected = probe.fit(np.float64(features.pooled), labels).predict_proba(np.float64(features.pooled))
        np.testing.assert_allclose(linear_head(features, labels).answer(features), expected, atol=1e-6)
        found = METHODS["linear-probe"].run(Fold(features, labels, features, None))
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["--method", "magic"], ConfigError, "none of zero-shot"),
        (["--threshold", "0.4"], ConfigError, "have one"),
        (["--threshold", "high"], ConfigError, "neither 'tuned' nor numbers"),
        (["--threshold", "1.5"], ConfigError, "between 0 and 1"),
        (["--folds", "1"], ConfigError, "at least two are needed"),
        (["--lr", "0"], ConfigError, "--lr must be above 0"),
        (["--folds", "3", "--method", "linear-probe"], ConfigError, "3 folds leave 67%"),
        (["--shots", "20", "--method", "linear-probe"], CategoryError, "20 are asked for"),
        (["--modality", "fundus"], CategoryError, "none of CFP, FFA, OCT"),
        (["--domain-shift-images", "."], ConfigError, "without --domain-shift"),
        (["--classes", "no-such.json"], CategoryError, "no such class file"),
    ],
)
def test_commands_that_cannot_work(exported, coloured, tmp_path, words, error, message):
    command = ["transfer", coloured / "table.csv", "--images", coloured, "--model", exported, "--cache", tmp_path]
    result = CliRunner().invoke(app, [*map(str, command), *words])
    assert isinstance(result.exception, error)
    assert message in str(result.exception)


def test_classes_without_names_have_no_texts(exported, coloured, tmp_path):
    spec = ClassFile("t", {"normal": (), "glaucoma": (), "cataract": ()}, named=False)
    encoded = encode_set(load_model(exported), read_downstream(coloured / "table.csv", coloured, spec))
    with pytest.raises(ConfigError, match="needs classes with names"):
        run_transfer(load_model(exported), encoded, TransferOptions())


def test_features_in_a_scikit_learn_pipeline(exported, coloured, tmp_path):
    files = [str(coloured / f"{number}.png") for number in range(45)]
    labels = [list(COLOURS)[number % 3] for number in range(45)]
    features = KeepFITFeatures(str(exported), cache=str(tmp_path / "cache"))
    pipeline = make_pipeline(features, StandardScaler(), LogisticRegression())
    assert cross_val_score(pipeline, files, labels, cv=3).mean() > 0.9
    fitted = clone(pipeline).fit(files, labels)
    again = pickle.loads(pickle.dumps(fitted))
    assert again.predict(files).tolist() == fitted.predict(files).tolist()
    assert len(pickle.dumps(fitted)) < 100_000
    projected = KeepFITFeatures(str(exported), projected=True).fit_transform(files)
    np.testing.assert_allclose(np.linalg.norm(projected, axis=1), 1, atol=1e-5)
    with pytest.raises(ImageError, match="broken"):
        features.fit_transform([*files, str(coloured / "broken.png")])


def test_patients_are_scored_beside_their_images(exported, coloured, tmp_path):
    rows = [(f"{n}.png", list(COLOURS)[n // 3 % 3], f"p{n // 3}") for n in range(45)]
    table = write_table(tmp_path / "t.csv", ("image", "label", "patient"), rows)
    loaded = load_model(exported)
    encoded = encode_set(loaded, read_downstream(table, coloured, list(COLOURS)), copies_together=False)
    options = TransferOptions(folds=3, resamples=20, pool="patient", pool_by="top-2")
    (outcome,) = run_transfer(loaded, encoded, options)
    assert (outcome.pooled.count, outcome.pooled.mixed) == (15, 0)
    assert pooled_lines([outcome])[0].startswith("zero-shot, by patient (top-2): ACA ")
    assert as_json(encoded.downstream, [outcome], options, "m")["outcomes"][0]["pooled"]["count"] == 15


def test_rare_classes_of_several_in_an_image_still_make_folds_by_patient():
    labels = np.eye(6, dtype=int).repeat(2, axis=0)  # each class stands in two images
    folds = list(folds_of(labels, 4, np.arange(12) // 2 % 6))
    assert sorted(row for _, test in folds for row in test) == list(range(12))
