"""Several models on a suite: what a suite is, jobs that are kept, ranks, paired differences, marks, tables."""

import csv
import json
import math
from dataclasses import asdict

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from keepfit_clip.benchmark import run as benchmark_run
from keepfit_clip.benchmark.compare import mean_ranks, paired_difference
from keepfit_clip.benchmark.page import write_benchmark
from keepfit_clip.benchmark.protocols import PROTOCOLS
from keepfit_clip.benchmark.results import MethodResult
from keepfit_clip.benchmark.run import BenchmarkOptions, ModelChoice, run_benchmark
from keepfit_clip.benchmark.seen import standing
from keepfit_clip.benchmark.suites import list_suites, read_suite
from keepfit_clip.benchmark.tables import Comparison
from keepfit_clip.cli import app
from keepfit_clip.data.downstream import ClassFile, read_downstream
from keepfit_clip.data.sources import SourceOptions
from keepfit_clip.errors import ConfigError, KeepFITError, OutputError
from keepfit_clip.evaluate.metrics.classification import Answers, score_classification
from keepfit_clip.files import WorkFolder
from keepfit_clip.folders.loading import load_model
from keepfit_clip.folders.model_folder import write_model
from keepfit_clip.folders.training_record import TrainingRecord
from keepfit_clip.knowledge.conditions import Knowledge
from keepfit_clip.model.config import ModelConfig
from keepfit_clip.model.preprocess import resolve_preprocess
from keepfit_clip.transfer.protocol import TransferOptions, encode_set, run_transfer
from tests.conftest import MODEL
from tests.test_layouts import unpack
from tests.test_transfer import COLOURS, write_table

KNOWLEDGE = Knowledge.load()
SECRET = "Jane_Doe_1961"


# ---- suites


def test_the_shipped_suites():
    assert list_suites() == ["flair", "keepfit", "oct", "quick", "retcop"]
    names = {suite: [one.name for one in read_suite(suite).sets] for suite in list_suites()}
    assert names["retcop"] == ["MPOS", "Angiographic", "OCTID", "OCTDL"]
    assert {one.name for one in read_suite("keepfit").sets if one.novel} == {"ODIR200x3", "20x3"}
    assert not read_suite("quick").needs_root


@pytest.mark.parametrize("suite", list_suites())
def test_its_class_files_fit_its_layouts(suite, tmp_path):
    for one in read_suite(suite).sets:
        if one.layout:
            content = unpack(one.layout, tmp_path / one.folder)
            source, images = one.below(tmp_path)
            options = SourceOptions(layout=one.layout)
            found = read_downstream(source, images, one.classes, KNOWLEDGE, options, empty_classes=True)
            assert len(found.labels) == len(content["records"]), one.name
            assert found.left_out == []


def test_published_figures_are_those_of_the_papers():
    figures = {
        (one.name, f.model, f.method, f.shots, f.metric): f.value for one in read_suite("keepfit").sets
        for f in one.published
    }  # fmt: skip
    assert figures["REFUGE", "FLAIR", "zero-shot", "", "auc"] == 0.926
    assert figures["FIVES", "KeepFIT v1", "zero-shot", "", "aca"] == 0.731
    assert figures["ODIR200x3", "KeepFIT v1", "clip-adapter", "10", "aca"] == 0.893
    assert len(figures) == 12
    assert all(f.paper for one in read_suite("flair").sets for f in one.published)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sets": []}, "sets: .*"),
        ({"sets": [{"name": "a", "classes": "fives"}]}, "the set a has one of layout, table and drawn"),
        ({"sets": [{"name": "a", "classes": "nope", "table": "a.csv"}]}, "no such class file"),
        ({"sets": [{"name": "a", "classes": "fives", "layout": "nope"}]}, "no such layout"),
        ({"sets": [{"name": "a", "classes": "fives", "table": "../a.csv"}]}, "leads out of --root"),
        ({"sets": [{"name": "a", "classes": "fives", "table": "a"}] * 2}, "two of the sets are called the same"),
        ({"sets": [{"name": "a", "classes": ["drusen", "normal"], "modality": "CFP", "drawn": {"count": 3}}]},
         "drusen cannot be drawn"),
        ({"sets": [{"name": "a", "classes": "fives", "table": "a", "published": {"M": {"zero-shot": {"0": {}}}}}]},
         "the figures of M are of no paper"),
        ({"shots": ["many"]}, "--shots 'many'"),
        ({"more": 1}, "'more' was unexpected"),
    ],
)  # fmt: skip
def test_suites_that_cannot_be_used(tmp_path, change, message):
    good = {"schema": 1, "title": "t", "methods": ["zero-shot"],
            "sets": [{"name": "a", "classes": "fives", "table": "a.csv"}]}  # fmt: skip
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({**good, **change}))
    with pytest.raises(KeepFITError, match=message):
        read_suite(path)
    with pytest.raises(ConfigError, match=r"no such suite.*shipped are flair"):
        read_suite("flare")


# ---- comparing


def one_hot(predicted, classes=2):
    return np.eye(classes)[predicted] * 0.8 + 0.1


def test_a_difference_by_hand():
    labels = np.array([0, 0, 1, 1])
    first, other = (Answers(labels, one_hot(p)) for p in ([0, 1, 1, 0], [0, 0, 1, 0]))
    found = paired_difference([first], [other], resamples=50, seed=3)
    assert found["aca"].mean == pytest.approx(0.25)  # 0.75 - 0.5

    rng, differences = np.random.default_rng(3), []
    for _ in range(50):
        drawn = rng.integers(4, size=4)
        scores = [np.nanmean([(a.probabilities[drawn].argmax(1) == k)[labels[drawn] == k].mean()
                              if (labels[drawn] == k).any() else np.nan for k in (0, 1)])
                  for a in (first, other)]  # fmt: skip
        differences.append(scores[1] - scores[0])
    low, high = np.percentile(differences, [2.5, 97.5])
    assert (found["aca"].low, found["aca"].high) == pytest.approx((low, high))
    assert low >= 0  # the same images for both: one more right is never worse


def test_folds_are_drawn_apart_and_groups_whole():
    labels = np.array([0, 1, 0, 1])
    groups = np.array([0, 0, 1, 1])  # a group has both classes, so its score is 1 for one model and 0 for the other
    first = Answers(labels, one_hot(np.array([0, 1, 1, 0])), groups)
    other = Answers(labels, one_hot(np.array([1, 0, 0, 1])), groups)
    found = paired_difference([first, first], [other, other], resamples=200)
    assert found["aca"].mean == 0.0
    assert (found["aca"].low, found["aca"].high) == (-1.0, 1.0)
    same = paired_difference([first], [first])["auc"]
    assert (same.mean, same.low, same.high, same.clear) == (0, 0, 0, False)


def test_a_metric_without_a_value_has_no_difference():
    lonely = Answers(np.array([0, 0]), one_hot(np.array([0, 1])))
    with np.errstate(invalid="ignore"):
        assert "auc" not in paired_difference([lonely], [lonely], resamples=20)


def test_ranks_by_hand():
    scores = {
        "a": {"x": 0.9, "y": 0.5, "z": 0.1, "w": 0.3},
        "b": {"x": 0.8, "y": 0.5, "z": 0.2, "w": math.nan},
        "c": {"x": 0.7, "y": 0.6, "z": 0.3, "w": 0.9},
    }
    ranks, sets = mean_ranks(scores)
    assert sets == ["x", "y", "z"]
    assert ranks == pytest.approx({"a": (1 + 2.5 + 3) / 3, "b": (2 + 2.5 + 2) / 3, "c": (3 + 1 + 1) / 3})
    assert mean_ranks({"a": {"x": 1.0}, "b": {"y": 1.0}}) == ({}, [])


@pytest.mark.parametrize(
    ("classes", "record", "mark"),
    [
        (["normal", "glaucoma"], (["normal", "glaucoma"], []), "seen"),
        (["normal", "diabetic retinopathy"], (["normal", "mild diabetic retinopathy"], []), "seen"),
        (["no glaucoma", "glaucoma"], (["normal", "glaucoma"], []), "seen"),
        (["normal", "cataract"], (["normal", "glaucoma"], []), "unseen"),
        (["normal", "nuclear cataract"], (["normal", "nuclear cataract"], ["cataract"]), "unseen"),
        (["normal", "glaucoma"], None, "unknown"),
        (["0c", "1c"], (["normal"], []), "unknown"),
    ],
)
def test_marks(classes, record, mark):
    spec = ClassFile("t", dict.fromkeys(classes, ()))
    assert standing(spec, record and TrainingRecord(*map(tuple, record)), KNOWLEDGE) == mark


def test_the_deviation_is_the_protocols():
    result = MethodResult("zero-shot", "", {"aca": [0.2, 0.4, None]}, {}, 0.0)
    assert result.mean("aca") == pytest.approx((0.3, math.sqrt(0.02)))
    assert result.mean("aca", ddof=0) == pytest.approx((0.3, 0.1))
    assert all(map(math.isnan, result.mean("kappa")))


# ---- running


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two tables of pictures that a colour tells apart, and a suite that names a third."""
    folder = tmp_path_factory.mktemp("root")
    rng = np.random.default_rng(0)
    for name, classes in (("one", ["normal", "glaucoma", "cataract"]), ("two", ["normal", "glaucoma"])):
        (folder / name).mkdir()
        rows = []
        for number in range(12 * len(classes)):
            label = classes[number % len(classes)]
            pixels = np.clip(np.array(COLOURS[label]) + rng.integers(-60, 60, (40, 40, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{SECRET}_{number}.png")
            rows.append((f"{SECRET}_{number}.png", label))
        write_table(folder / f"{name}.csv", ("image", "label"), rows)
    sets = [
        {"name": "One", "table": "one.csv", "folder": "one", "classes": ["normal", "glaucoma", "cataract"],
         "modality": "CFP", "published": {"Theirs": {"zero-shot": {"0": {"aca": 0.5}}}}},
        {"name": "Two", "table": "two.csv", "folder": "two", "classes": ["normal", "glaucoma"], "modality": "CFP",
         "novel": True},
        {"name": "Three", "table": "three.csv", "classes": "fives"},
    ]  # fmt: skip
    suite = {"schema": 1, "title": "Colours", "methods": ["zero-shot", "linear-probe", "tip-adapter"], "shots": [2],
             "folds": 3, "papers": {"Theirs": "Some Paper 2020"}, "sets": sets}  # fmt: skip
    (folder / "suite.json").write_text(json.dumps(suite))
    return folder


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A random model that does not say what it was trained with."""
    torch.manual_seed(5)
    config = ModelConfig.named(MODEL)
    state = open_clip.create_model(MODEL).state_dict()
    out = tmp_path_factory.mktemp("other") / "random"
    write_model(out, config, resolve_preprocess(config), open_clip.get_tokenizer(MODEL), state, {})
    return out


@pytest.fixture(scope="module")
def measured(root, exported, other, tmp_path_factory):
    """A run of two models, one that is not there, and two of three sets; with its folder and what was missing."""
    out, missing = tmp_path_factory.mktemp("benchmark") / "out", []
    run = measure(root, out, [exported, other, root / "nothing"], on_missing=missing.extend)
    write_benchmark(out, run)
    return run, out, missing


def measure(root, out, models, on_missing=lambda missing: None, **options):
    chosen = BenchmarkOptions(tuple(ModelChoice.of(str(model)) for model in models), resamples=40, **options)
    return run_benchmark(read_suite(root / "suite.json"), root, out, chosen, root / "cache", on_missing)


def test_what_is_there_is_measured_and_what_is_not_is_told(measured, root):
    run, _, missing = measured
    assert set(run.results) == {("model", "One"), ("model", "Two"), ("random", "One"), ("random", "Two")}
    assert [(one.name, where) for one, where in missing] == [("Three", root / "three.csv")]
    assert {(f.model, f.set) for f in run.failures} == {("nothing", "One"), ("nothing", "Two")}
    assert all("is no model folder" in f.reason for f in run.failures)
    assert {key: result.mark for key, result in run.results.items()} == {
        ("model", "One"): "seen", ("model", "Two"): "seen", ("random", "One"): "unknown", ("random", "Two"): "unknown",
    }  # fmt: skip


def test_its_numbers_are_those_of_transfer(measured, root, exported):
    run, out, _ = measured
    one = run.sets[0]
    loaded = load_model(exported)
    encoded = encode_set(loaded, read_downstream(*one.below(root), one.classes, KNOWLEDGE))
    options = TransferOptions(("zero-shot", "linear-probe"), (2,), 3, resamples=40)
    expected = {o.name: o for o in run_transfer(loaded, encoded, options, knowledge=KNOWLEDGE)}
    with open(out / "results.csv") as file:
        lines = [line for line in csv.DictReader(file) if (line["model"], line["set"]) == ("model", "One")]
    for line in lines:
        name = f"{line['method']} {line['shots']}".strip()
        if name in expected and line["metric"] == "aca":
            values = [expected[name].mean("aca"), expected[name].interval["aca"]]
            found = [float(line[key]) for key in ("mean", "sd", "low", "high")]
            assert found == pytest.approx([*values[0], *values[1]], abs=1e-6)
            assert line["figures"] == "ours"
    arrays = run.files(run.options.models[0], one)
    parts = arrays.answers("linear-probe 2")
    assert [score_classification(p.labels, p.probabilities).aca for p in parts] == pytest.approx(
        run.results["model", "One"].method("linear-probe", "2").folds["aca"]
    )


def test_tables_say_whose_figures_they_are(measured):
    _, out, _ = measured
    table = (out / "table.md").read_text()
    assert "| Theirs (published) | zero-shot |  | 50.0 | - |" in table
    assert "Two (novel)" in table
    assert "- Theirs: Some Paper 2020" in table
    assert "kappa" not in table  # no set of grades
    written = json.loads((out / "results.json").read_text())
    assert written["missing"] == ["Three"]
    assert [f["value"] for f in written["published"]] == [0.5]
    assert {d["model"] for d in written["differences"]} == {"random"}
    ranks = {entry["method"]: entry for entry in written["ranks"]}
    assert ranks["linear-probe 2"]["sets"] == ["One", "Two"]
    assert sum(ranks["linear-probe 2"]["ranks"].values()) == pytest.approx(3)


def test_the_page_names_no_image_and_no_folder(measured, root, exported):
    _, out, _ = measured
    page = (out / "index.html").read_text()
    assert page.count("<svg") == 4  # ACA of three methods, and ranks
    assert "Theirs (published)" in page
    for path in out.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert SECRET.encode() not in content, path
            assert str(root).encode() not in content
            assert str(exported).encode() not in content


def test_a_second_start_does_nothing_again(measured, root, exported, other, monkeypatch):
    run, out, _ = measured
    stamps = {path: path.stat().st_mtime_ns for path in (out / "results").rglob("*.*")}

    def refuse(*_, **__):
        raise AssertionError("it was measured again")

    monkeypatch.setattr(benchmark_run, "encode_set", refuse)
    again = measure(root, out, [exported, other])
    assert again.kept == 4
    assert again.results == run.results
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


def test_what_changed_is_measured_again(measured, root, exported):
    _, out, _ = measured
    assert measure(root, out, [exported], seed=1).kept == 0
    assert measure(root, out, [exported], seed=1).kept == 2
    next((out / "results" / "model").glob("One.npz")).unlink()
    assert measure(root, out, [exported], seed=1).kept == 1
    (out / "results" / "model" / "Two.json").write_text("{")
    assert measure(root, out, [exported], seed=1).kept == 1


def test_flairs_protocol(root, exported, tmp_path):
    ours, theirs = (measure(root, tmp_path / name, [exported], protocol=name) for name in ("ours", "flair"))
    row = next(row for row in Comparison(theirs).rows if row.method == "linear-probe")
    one = theirs.sets[0]
    folds = theirs.results["model", "One"].method("linear-probe", "2").folds["aca"]
    assert Comparison(theirs).mean(row, one, "aca") == pytest.approx((np.mean(folds), np.std(folds)))
    assert ours.results["model", "One"].identity["options"]["cache_scale"] is None
    tip = [run.files(run.options.models[0], one).answers("tip-adapter 2")[0] for run in (ours, theirs)]
    assert not np.allclose(tip[0].probabilities, tip[1].probabilities)  # pictures are square: only the scale differs
    zero = [run.files(run.options.models[0], one).answers("zero-shot")[0] for run in (ours, theirs)]
    assert np.array_equal(zero[0].labels, zero[1].labels)


def test_flairs_resizing_keeps_proportions_on_black(exported):
    loaded = load_model(exported)
    white = Image.new("RGB", (80, 20), "white")
    stretched, framed = loaded.preprocess(white), PROTOCOLS["flair"].image_transform(loaded)(white)
    assert stretched.min() == stretched.max()
    black = (framed == framed.min()).all(dim=0).all(dim=1)  # (H,), rows that are black all over
    assert black.float().mean() == pytest.approx(0.75, abs=0.05)


def test_tip_adapters_scale_is_chosen(root, exported):
    one = read_suite(root / "suite.json").sets[0]
    loaded = load_model(exported)
    encoded = encode_set(loaded, read_downstream(*one.below(root), one.classes, KNOWLEDGE))
    scale = float(loaded.model.logit_scale.detach().exp())
    answers = {
        chosen: run_transfer(loaded, encoded, TransferOptions(("tip-adapter",), (2,), 3, cache_scale=chosen))[0].answers
        for chosen in (None, scale, 100.0)
    }
    assert np.allclose(answers[None].probabilities, answers[scale].probabilities)
    assert not np.allclose(answers[None].probabilities, answers[100.0].probabilities)


def test_what_cannot_be_run_says_so(root, exported, tmp_path):
    suite = read_suite(root / "suite.json")
    one = BenchmarkOptions((ModelChoice.of(str(exported)),))
    with pytest.raises(ConfigError, match="say below which folder with --root"):
        run_benchmark(suite, None, tmp_path / "a", one)
    with pytest.raises(KeepFITError, match="none of the sets of Colours is below"):
        run_benchmark(suite, tmp_path, tmp_path / "b", one)
    with pytest.raises(KeepFITError, match=r"none of the 2 jobs could be done: .*no model folder"):
        measure(root, tmp_path / "c", [tmp_path / "nothing"])
    with pytest.raises(ConfigError, match="--method nope is none of"):
        measure(root, tmp_path / "d", [exported], methods=("nope",))
    with pytest.raises(ConfigError, match="model, model are called the same; write LABEL=NAME"):
        measure(root, tmp_path / "e", [exported, f"local-dir:{exported}"])
    with pytest.raises(ConfigError, match="--protocol theirs: ours or flair"):
        BenchmarkOptions(one.models, protocol="theirs")
    with WorkFolder(tmp_path / "f").alone(), pytest.raises(OutputError, match="another benchmark is at work"):
        run_benchmark(suite, root, tmp_path / "f", one)


def test_a_method_that_a_model_cannot_have_is_left_out_of_its_row(root, tmp_path, monkeypatch, exported):
    loaded = load_model(exported)
    monkeypatch.setattr(type(loaded), "has_text", False)
    monkeypatch.setattr(benchmark_run, "_loaded", lambda *_: loaded)
    run = measure(root, tmp_path / "out", [f"images={exported}"])
    result = run.results["images", "One"]
    assert [one.method for one in result.methods] == ["linear-probe"]
    assert set(result.not_measured) == {"zero-shot", "tip-adapter"}


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("runs/model", "model"),
        ("local-dir:/a/b/mine/", "mine"),
        ("hf-hub:OWNER/NAME", "hf-hub:OWNER/NAME"),
        ("open_clip:ViT-B-32/openai", "open_clip:ViT-B-32/openai"),
        ("open_clip:ViT-B-32//home/me/weights.pt", "open_clip:ViT-B-32/weights.pt"),
        ("ours=runs/model", "ours"),
    ],
)
def test_a_model_is_called_without_its_folder(text, label):
    assert ModelChoice.of(text).label == label


def without_seconds(result):
    content = asdict(result)
    return {**content, "encoding_seconds": 0, "encoded": 0,
            "methods": [{**one, "seconds": 0} for one in content["methods"]]}  # fmt: skip


@pytest.mark.long
def test_two_processes_give_what_one_gives(root, exported, other, tmp_path):
    one, two = (measure(root, tmp_path / str(jobs), [exported, other], jobs=jobs) for jobs in (1, 2))
    assert list(one.results) == list(two.results)
    for key, result in one.results.items():
        assert without_seconds(result) == without_seconds(two.results[key])
    arrays = list((tmp_path / "1" / "results").rglob("*.npz"))
    assert len(arrays) == 4
    for path in arrays:
        assert path.read_bytes() == (tmp_path / "2" / path.relative_to(tmp_path / "1")).read_bytes()


@pytest.mark.slow
def test_ray_gives_what_processes_give(root, exported, tmp_path):
    pytest.importorskip("ray")
    results = [measure(root, tmp_path / e, [exported], jobs=2, engine=e).results for e in ("ray", "processes")]
    assert results[0].keys() == results[1].keys()
    for key, result in results[0].items():
        assert without_seconds(result) == without_seconds(results[1][key])


def test_the_command_goes_on_and_fails_in_part(root, exported, tmp_path):
    words = ["benchmark", root / "suite.json", "--models", f"ours={exported},{tmp_path / 'nothing'}", "--root", root,
             "--out", tmp_path / "out", "--cache", root / "cache", "--method", "zero-shot", "--no-charts"]  # fmt: skip
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == 1
    assert "1 sets of the suite are not there" in result.stderr
    assert "2 jobs failed" in result.stderr
    assert "2 results" in result.stdout
    assert (tmp_path / "out" / "index.html").is_file()


@pytest.mark.slow
def test_quick_needs_nothing_but_a_model(exported, other, tmp_path):
    words = ["benchmark", "quick", "--models", f"{exported},{other}", "--out", tmp_path / "out", "--cache", tmp_path]
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {entry["set"] for entry in written["results"]} == {"drawn CFP", "drawn FFA", "drawn OCT"}
    assert len(written["differences"]) == 9
    again = CliRunner().invoke(app, list(map(str, words)))
    assert "6 kept from before" in " ".join(again.stdout.split())
