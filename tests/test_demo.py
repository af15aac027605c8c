"""The demo: its judge, its report, its steps, and what it does with interruptions and bad folders."""

import json
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock

from keepfit_clip._version import __version__
from keepfit_clip.data.sources import read_records
from keepfit_clip.drawing import CONDITIONS, KINDS, DrawOptions, draw_dataset
from keepfit_clip.errors import KeepFITError, MissingExtraError, OutputError
from keepfit_clip.page.charts import confusion_chart, loss_charts
from keepfit_clip.page.report import Card, Figure, Section, picture_uri, render_report
from keepfit_clip.training.demo import run as demo
from keepfit_clip.training.demo.display import StepDisplay
from keepfit_clip.training.demo.judge import judge_captions, judge_drawn, named_condition
from keepfit_clip.training.demo.measuring import peak_memory, timed
from keepfit_clip.training.demo.report import build_page, collect_metrics
from keepfit_clip.training.demo.run import FULL, QUICK, DemoSettings, run_demo
from keepfit_clip.training.hybrid.loss_log import LossLog, read_losses
from tests.programs import Program


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Four pictures of each kind."""
    folder = tmp_path_factory.mktemp("drawn") / "test"
    draw_dataset(folder, DrawOptions(4 * len(KINDS), size=64, seed=9))
    return folder


@pytest.fixture(scope="module")
def records(drawn):
    return list(read_records(drawn / "retina.csv", drawn))


@pytest.fixture(scope="module")
def scores(exported, drawn):
    """What the judge says of a model that has seen next to nothing."""
    steps = []
    scores = judge_drawn(exported, drawn, lambda *step: steps.append(step))
    assert steps[-1] == (3 * 4 * len(KINDS),) * 2
    return scores


def test_perfect_captions_are_right_and_their_controls_are_not(records):
    rates = judge_captions([record.caption_texts[0].lower() for record in records], records)
    assert rates["condition_rate"] == rates["eye_rate"] == rates["quadrant_rate"] == rates["side_rate"] == 1
    assert rates["count_rate"] == 1
    assert rates["condition_rate_best_constant"] == pytest.approx(3 / 16)  # normal, in three modalities
    for what in ("eye", "quadrant", "side", "count"):
        assert rates[f"{what}_rate_other_picture"] < 0.8


def test_a_constant_caption_is_right_as_often_as_its_condition_occurs(records):
    rates = judge_captions(["color fundus photograph of the left eye: glaucoma."] * len(records), records)
    assert rates["condition_rate"] == pytest.approx(1 / 16)
    assert rates["quadrant_rate"] == 0
    assert rates["eye_rate"] == np.mean([record.eye == "left" for record in records])


def test_conditions_are_found_in_generated_words():
    assert named_condition("fluorescein angiogram: capillary non - perfusion with 1 unfilled area") == (
        "capillary non-perfusion"
    )
    assert named_condition("Normal retina with no lesion") == "normal"
    assert named_condition("a retina") is None
    assert named_condition("macular hole and glaucoma") is None  # a caption that says everything says nothing
    assert named_condition("an abnormal retina") is None


def test_the_judge_holds_its_controls_beside_the_model(scores):
    zero_shot, captions = scores["zero_shot"], scores["captions"]
    assert zero_shot["classes"] == list(CONDITIONS)
    assert zero_shot["images"] == 4 * len(KINDS)
    assert 0 < zero_shot["aca_shuffled_images"] < 0.25
    assert set(zero_shot["accuracy_by_kind"]) == {" ".join(kind) for kind in KINDS}
    recall = np.diag(zero_shot["confusion"]) / np.sum(zero_shot["confusion"], axis=1)
    assert zero_shot["aca"] == pytest.approx(recall.mean())
    blind = named_condition(captions["no_image"]["caption"])
    named = [picture["condition"] == blind for picture in scores["pictures"]]
    assert captions["no_image"]["condition_rate"] == pytest.approx(np.mean(named))
    assert len(scores["pictures"]) == 4 * len(KINDS)


@pytest.mark.long
def test_judge_as_a_program(drawn, tmp_path):
    failed = Program("keepfit_clip.training.demo.judge", ["/no/model", str(drawn), str(tmp_path / "a.json")])
    failed.wait(60)
    assert failed.returncode == 1
    assert "/no/model is no model folder" in failed.output.read_text().splitlines()[-1]


def test_metrics_and_page_of_a_finished_demo(scores, run, held_out, drawn, tmp_path):
    (tmp_path / "shards").symlink_to(Path(held_out.split("::")[0]).parent)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "test").symlink_to(drawn)
    (tmp_path / "stage2").symlink_to(run)
    (tmp_path / "text_tower").mkdir()
    held_out = {name: {"perplexity": 9.0, "accuracy": 0.5, "tokens": 7} for name in ("frozen", "trained")}
    (tmp_path / "text_tower" / "textual_pretraining.json").write_text(json.dumps({"held_out": held_out}))
    (tmp_path / "evaluation.json").write_text(json.dumps(scores))
    (tmp_path / "clock.json").write_text(json.dumps({"draw pictures": 1.5, "export": 2.0, "peak_memory_gib": 1.25}))
    metrics = collect_metrics(tmp_path, asdict(QUICK))
    assert metrics["seconds"] == 3.5
    assert metrics["peak_memory_gib"] == 1.25
    assert metrics["zero_shot_aca"] == scores["zero_shot"]["aca"]
    assert metrics["caption_condition_rate_no_image"] == scores["captions"]["no_image"]["condition_rate"]
    assert set(metrics["losses"]) == {"contrastive", "caption"}
    answers = Section("Where it looked", cards=[Card(picture_uri(drawn / "images" / "000000.png"), [("a", "b")], True)])
    page = build_page(tmp_path, metrics, answers)
    assert page.count("<svg") == 1 + 4  # the confusion, and each loss term
    captioned = page.count("the expert&#39;s</dt>")  # of the last evaluation, from the validation shards
    assert captioned > 0
    assert page.count("<img") == page.count("data:image/jpeg;base64,") == 2 * len(KINDS) + 1 + captioned
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", re.sub(r"<svg[\s\S]*?</svg>", "", page))
    assert scores["pictures"][0]["image"] not in page  # file names stay out


def test_loss_log_keeps_what_an_interrupted_epoch_did_not_finish_out(tmp_path):
    for epoch, steps_done in ((0, 4), (1, 2), (1, 4)):
        log = LossLog(tmp_path, epoch, steps=4, every=2)
        for step in range(1, steps_done + 1):
            if log.due(step):
                log.write(step, {"caption_loss": torch.tensor(epoch + step / 10)})
    with open(log.file, "a") as file:
        file.write('{"epoch": 1, "st')  # killed while writing
    lines = read_losses(tmp_path)
    assert [(line["epoch"], line["step"]) for line in lines] == [(0, 1), (0, 2), (0, 4), (1, 1), (1, 2), (1, 4)]
    assert lines[-1]["terms"]["caption_loss"] == pytest.approx(1.4)


def test_training_writes_every_term_down(run):
    lines = read_losses(run)
    assert [(line["epoch"], line["step"]) for line in lines] == [(e, s) for e in (0, 1) for s in (1, 2, 3, 4)]
    assert {"public_contrastive_loss", "elite_contrastive_loss", "revision_loss", "caption_loss"} == set(
        lines[0]["terms"]
    )


def test_time_and_memory_add_up_over_attempts(tmp_path):
    clock = tmp_path / "clock.json"
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), peak_memory(clock, "peak"), timed(clock, "step"):
            raise KeyboardInterrupt
    kept = json.loads(clock.read_text())
    assert 0 <= kept["step"] < 5
    assert 0.05 < kept["peak"] < 64


def test_display_without_a_terminal_writes_plain_lines(capsys, monkeypatch):
    monkeypatch.setattr("keepfit_clip.training.demo.display._PLAIN_EVERY", 0.0)
    with StepDisplay([3, 1]) as display:
        with display.step("draw [x]") as on_step:
            on_step(0, 4)
            on_step(1, 4)
        with display.step("export", done_before=True):
            pass
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "[1/2] draw [x]"
    assert re.fullmatch(r"\[1/2\] draw \[x\]: 25%, about \d+ s left, \d+ of all", lines[1])
    assert "done in" in lines[2] or "100%" in lines[2]
    assert lines[-1].startswith("[2/2] export (done before)")


def test_report_escapes_everything_but_charts(drawn):
    chart = confusion_chart([[3, 1], [0, 4]], ["a < b", "glaucoma"])
    card = Card(picture_uri(drawn / "images" / "000000.png"), [("written", "<q4>")], right=True)
    page = render_report("<q1>", "s", [Figure("<q2>", "1")], [Section("<q3>", chart=chart, cards=[card])])
    for mark in ("<q1>", "<q2>", "<q3>", "<q4>"):
        assert mark not in page
    assert "<svg" in page
    assert "a &lt; b" in chart


def test_charts_are_the_same_every_time():
    lines = [{"epoch": 0, "step": s, "steps": 9, "terms": {"caption_loss": 1 / s}} for s in range(1, 10)]
    assert loss_charts({"a": lines}) == loss_charts({"a": lines})
    assert loss_charts({"a": lines[:1]}).startswith("<svg")
    two = loss_charts(
        {"first": lines, "second": [line | {"terms": line["terms"] | {"revision_loss": 2.0}} for line in lines]}
    )
    assert two.count("<svg") == 2
    assert two.count("first") == 1  # the other term it does not have


def test_missing_extras_are_one_error(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"pip install matplotlib"):
        run_demo(tmp_path / "demo")
    assert not (tmp_path / "demo").exists()


def test_folders_of_something_else_are_left_alone(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="holds something already"):
        run_demo(tmp_path / "other")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="holds something already"):
        run_demo(tmp_path / "file")
    (tmp_path / "demo").mkdir()
    for content in ('{"pictures": 1}', "not json"):
        (tmp_path / "demo" / "demo.json").write_text(content)
        with pytest.raises(OutputError, match="other settings"):
            run_demo(tmp_path / "demo")
    assert (tmp_path / "other" / "thesis.txt").read_text() == (tmp_path / "file").read_text() == "mine"


SMALL = DemoSettings(pictures=32, test_pictures=16, size=32)


def test_started_again_it_goes_on_where_it_was(tmp_path, monkeypatch):
    def interrupt(self, on_step):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo._Demo, "stage1", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_demo(tmp_path / "demo", SMALL)
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "demo").rglob("*.*") if path.name != "clock.json"}
    assert {path.name for path in made} >= {"retina.csv", "manifest.json", "000015.png"}
    with pytest.raises(KeyboardInterrupt):
        run_demo(tmp_path / "demo", SMALL)
    assert all(path.stat().st_mtime_ns == time for path, time in made.items())


def finished(folder):
    """A demo folder in which every step has left its results, as empty files."""
    folder.mkdir()
    (folder / "demo.json").write_text(json.dumps({"keepfit_clip": __version__, **asdict(SMALL)}))
    for step in demo._Demo(folder, SMALL).steps:
        for result in step.results:
            result.parent.mkdir(parents=True, exist_ok=True)
            result.write_text("")
    return folder


@pytest.mark.parametrize(
    "lost", ["pictures/training/retina.csv", "text_tower/model.safetensors", "stage2/losses.jsonl"]
)
def test_what_was_made_from_a_lost_result_is_made_again(tmp_path, monkeypatch, lost):
    folder = finished(tmp_path / "demo")
    (folder / "report.html").write_text("old")
    (folder / lost).unlink()
    steps = demo._Demo(folder, SMALL).steps
    first = next(number for number, step in enumerate(steps) if not step.done)

    def stop(self, on_step):
        raise KeyboardInterrupt

    for name in ("draw", "build", "stage1", "stage2", "export", "evaluate"):
        monkeypatch.setattr(demo._Demo, name, stop)
    with pytest.raises(KeyboardInterrupt):
        run_demo(folder, SMALL)
    assert [step.done for step in steps] == [number < first for number in range(len(steps))]
    assert not any(step.own.exists() for step in steps[first + 1 :])
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize(
    "damaged", ["evaluation.json", "clock.json", "text_tower/textual_pretraining.json", "metrics.json"]
)
def test_damaged_results_are_named(tmp_path, damaged):
    folder = finished(tmp_path / "demo")
    for name in ("evaluation.json", "text_tower/textual_pretraining.json", "clock.json"):
        (folder / name).write_text('{"zero_shot": {}, "captions": {"no_image": {}}, "peak_memory_gib": 1.0}')
    if damaged == "metrics.json":
        (folder / "report.html").write_text("")
    (folder / damaged).write_text('{"cut')
    with pytest.raises(KeepFITError, match=rf"{damaged}: missing or damaged"):
        run_demo(folder, SMALL)


def test_two_demos_do_not_share_a_folder(tmp_path):
    folder = finished(tmp_path / "demo")
    with FileLock(folder / ".lock"), pytest.raises(OutputError, match="another demo is at work"):
        run_demo(folder, SMALL)


def test_a_program_ends_with_the_one_that_started_it(tmp_path):
    """Even when that one was gone before the program had started up."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    command = [sys.executable, "-m", "keepfit_clip.training.demo.launch", str(ended.pid), "http.server", "0"]
    assert subprocess.run(command, timeout=60, capture_output=True).returncode == 1


def test_time_left_after_a_resume_counts_this_attempt_only(capsys, monkeypatch):
    clock = iter([0.0, 0.0, 0.0, 10.0, 20.0, 20.0])
    monkeypatch.setattr("keepfit_clip.training.demo.display.time.monotonic", lambda: next(clock))
    monkeypatch.setattr("keepfit_clip.training.demo.display._PLAIN_EVERY", 5.0)
    display = StepDisplay([5])
    with display.step("train") as on_step:
        on_step(80, 100)
        on_step(90, 100)
    assert "90%, about 10 s left" in capsys.readouterr().err


@pytest.mark.long
def test_a_step_that_fails_is_quoted(tmp_path, monkeypatch):
    monkeypatch.setattr(demo._Demo, "stage1", lambda self, on_step: (self.out / "text_tower").mkdir())
    with pytest.raises(KeepFITError, match=r"stage 2 failed .*stage2\.log.*holds no text tower"):
        run_demo(tmp_path / "demo", SMALL)


def test_full_and_quick_differ_only_in_size():
    assert asdict(FULL).keys() == asdict(QUICK).keys()
    assert FULL.pictures > QUICK.pictures


@pytest.mark.slow
def test_quick_demo(tmp_path):
    metrics = run_demo(tmp_path / "demo", QUICK)
    assert all(last < first for first, last in metrics["losses"].values())
    assert run_demo(tmp_path / "demo", QUICK) == metrics
