"""A page about a run: what it shows of each kind of run, and what it must not."""

import hashlib
import json
import re
import shutil

import pytest
from typer.testing import CliRunner

from keepfit_clip._version import __version__
from keepfit_clip.cli import app
from keepfit_clip.errors import ConfigError, KeepFITError
from keepfit_clip.training.hybrid.record import RunRecord
from keepfit_clip.training.report import build_report, find_parts


def command(*words):
    return CliRunner().invoke(app, list(map(str, words)))


def without_charts(page):
    return re.sub(r"<svg[\s\S]*?</svg>", "", page)


def test_a_training_run_with_the_answers_of_its_model(run, exported, shards, pictures, tmp_path):
    words = ["report", run, "--out", tmp_path / "r.html", "--data", shards / "public", "--data", shards / "elite",
             "--model", exported, "--table", pictures / "public.csv", "--images", pictures,
             "--modality", "cfp"]  # fmt: skip
    result = command(*words)
    assert result.exit_code == 0, result.exception
    page = (tmp_path / "r.html").read_text()
    for words in ("Settings of run", "keepfit-v2-test", "Losses of run", "Evaluations while training", "public",
                  "Captions of held-out images", "Right and wrong answers", "24 images of 4 classes: ACA"):  # fmt: skip
        assert words in page, words
    settings = json.loads((run / "settings.json").read_text())
    assert settings["elite_data"] == "elite"  # our flags too, which open_clip's params.txt has not
    assert settings["lr"] == 1e-3
    manifest = json.loads((shards / "public" / "manifest.json").read_text())
    assert f">{manifest['samples']}</td>" in page
    assert all(category in page for category in manifest["categories"])
    assert page.count("data:image/jpeg;base64,") >= 8  # captions and answers beside their pictures
    assert "Jane" not in page
    assert str(shards) not in page
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", without_charts(page))  # one self-contained file


def test_no_path_stands_in_what_a_run_writes_down(run, shards):
    for name in ("settings.json", "params.txt", "out.log", "debug.log", "record.jsonl"):
        text = (run / name).read_text()
        for place in (str(run), str(shards), str(run.parent)):
            assert place not in text, (name, place)
    params = (run / "params.txt").read_text()
    assert "name: run\n" in params
    assert "lr: 0.001\n" in params
    log = (run / "debug.log").read_text()
    assert re.search(r"Train Epoch: 0 \[ *\d+/\d+ \(", log)  # fractions are no paths
    assert "/s, " in log


def test_transfer_and_text_results_are_found_below(run, exported, pictures, tmp_path):
    words = ["transfer", pictures / "public.csv", "--images", pictures, "--model", exported, "--modality", "CFP",
             "--method", "zero-shot,linear-probe", "--shots", "1", "--folds", 3, "--out", tmp_path / "all" / "four",
             "--cache", tmp_path / "cache", "--no-plots"]  # fmt: skip
    assert command(*words).exit_code == 0
    (tmp_path / "all" / "tower").mkdir()
    held_out = {name: {"perplexity": 9.0, "accuracy": 0.5, "tokens": 7} for name in ("frozen", "trained")}
    (tmp_path / "all" / "tower" / "textual_pretraining.json").write_text(json.dumps({"held_out": held_out}))
    page = build_report(tmp_path / "all")
    assert "Transfer: public" in page
    assert "linear-probe" in page
    assert "Stage 1: textual pretraining" in page
    assert page.count("<svg") == 2 * 4  # of each method confusion, ROC, reliability and abstention
    assert "whose ACA is highest" in page
    assert '<td data-name="sensitivity">' in page
    ece = json.loads((tmp_path / "all" / "four" / "results.json").read_text())["outcomes"][0]["ece"]["mean"]
    assert f">{100 * ece:.1f}" in page  # the table's and the chart's are one number
    assert f"(ECE {ece:.3f}, mean of the folds)" in page
    (tmp_path / "all" / "four" / "predictions.npz").unlink()
    assert build_report(tmp_path / "all").count("<svg") == 2 * 3  # no ROC without the answers
    shutil.copytree(tmp_path / "all" / "four", tmp_path / "again" / "four")
    page = build_report([tmp_path / "all", tmp_path / "again"])
    assert "Transfers to public" in page
    assert '<td data-name="all/four">' in page


def test_a_run_whose_shards_are_gone_is_still_told(run, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    page = build_report(moved, data=[tmp_path / "nowhere"])
    assert ">24</td>" in page  # the manifests' counts stand in the settings
    assert "nowhere" not in page
    assert "data:image/jpeg" not in page
    settings = json.loads((moved / "settings.json").read_text())
    settings["manifests"]["val_data"] = [None, None]
    (moved / "settings.json").write_text(json.dumps(settings))
    assert "no manifest" in build_report(moved)
    (moved / "settings.json").unlink()  # of an older run
    assert "Losses of moved" in build_report(moved)


def test_results_come_first_and_settings_are_folded(run, shards):
    page = build_report(run)
    order = [page.index(words) for words in ("run: caption nll", "Evaluations while training", "Losses of run",
                                             "<summary>Settings of run", "<summary>How run was made")]  # fmt: skip
    assert order == sorted(order)
    assert len(re.findall("control: written for another image", page)) > 1
    manifest = json.loads((shards / "public" / "manifest.json").read_text())
    line = "".join(f"{name} {shard['sha256']}\n" for name, shard in sorted(manifest["shards"].items()))
    assert hashlib.sha256(line.encode()).hexdigest()[:16] in page
    assert "--public-data public --elite-data elite" in page
    record = [json.loads(line) for line in (run / "record.jsonl").read_text().splitlines()]
    assert [line["event"] for line in record] == ["begin", "end"]
    assert record[0]["date"][:10] in page
    assert f"keepfit-clip {__version__}" in page


def test_the_time_of_a_run_is_that_of_all_its_attempts():
    begin = {"event": "begin", "versions": {"torch": "2"}, "hardware": "2 CPU cores", "command": ["--lr", "1"]}
    lines = [begin | {"date": "2026-01-01T00:00:00Z"}, begin | {"date": "2026-01-01T01:00:00Z"},
             {"event": "end", "date": "2026-01-01T01:02:03Z"}]  # fmt: skip
    facts = RunRecord(lines).facts
    assert facts["duration"] == "2m03s and 1 attempt without an end"
    assert facts["began"] == "2026-01-01 00:00:00 UTC"
    assert facts["command"] == "keepfit-clip train --lr 1"
    assert RunRecord([]).facts == {}
    assert RunRecord([]).headline == ""


def test_several_runs_stand_beside_each_other(run, tmp_path):
    other = tmp_path / "elsewhere" / "run"
    shutil.copytree(run, other)
    settings = json.loads((other / "settings.json").read_text())
    (other / "settings.json").write_text(json.dumps(settings | {"lr": 0.5}))
    result = command("report", run, other, "--out", tmp_path / "two.html")
    assert result.exit_code == 0, result.exception
    page = (tmp_path / "two.html").read_text()
    names = [f"{run.parent.name}/run", "elsewhere/run"]
    differing = page[page.index("Settings that differ") :]
    assert re.findall(r'<td data-name="[^"]*">([^<]*)</td>', differing)[:3] == ["lr", "0.001", "0.5"]
    assert page.index("Last evaluation of each run") < page.index("Losses of the runs") < page.index("Settings that")
    losses = page[page.index("Losses of the runs") : page.index("Settings that differ")]
    assert all(losses.count(name) == losses.count("<svg") for name in names)
    same = build_report([run, run])
    assert "Settings that differ" not in same  # it is one run


def test_what_cannot_be_reported(run, exported, tmp_path):
    with pytest.raises(KeepFITError, match="no such folder"):
        find_parts(tmp_path / "no")
    with pytest.raises(KeepFITError, match="nothing to report"):
        find_parts(tmp_path)
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(KeepFITError, match="damaged"):
        find_parts(tmp_path)
    result = command("report", run, "--out", tmp_path / "r.html", "--model", exported)
    assert isinstance(result.exception, ConfigError)
    assert not (tmp_path / "r.html").exists()


def test_a_page_says_which_categories_were_held_out(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    settings = json.loads((copy / "settings.json").read_text())
    for held_out in (None, "glaucoma,cataract"):
        (copy / "settings.json").write_text(json.dumps(settings | {"hold_out_categories": held_out}))
        page = tmp_path / f"{held_out}.html"
        assert command("report", copy, "--out", page).exit_code == 0
        assert ("samples of glaucoma,cataract were held out" in page.read_text()) == (held_out is not None)
