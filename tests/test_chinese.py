"""Chinese: names and findings, texts, places, reports, corrections of machine-translated English."""

import csv
import json
import random
from pathlib import Path

import open_clip
import pytest
from typer.testing import CliRunner

import keepfit_clip  # noqa: F401 - registers the models
from keepfit_clip.cli import app
from keepfit_clip.data.tars import read_shards
from keepfit_clip.errors import ConfigError
from keepfit_clip.knowledge.chinese import has_chinese
from keepfit_clip.knowledge.conditions import Knowledge
from keepfit_clip.knowledge.corrections import corrections_of
from keepfit_clip.knowledge.mentions import STATUSES, Mention, find_mentions
from keepfit_clip.knowledge.templates import draw_text, knowledge_sentences, mentions_place, sentences_of
from tests.pictures import write_public

KNOWLEDGE = Knowledge.load()
SENTENCES = Path(__file__).with_name("report_sentences") / "chinese.jsonl"


def test_there_are_names_for_200_entries_and_findings_for_60():
    wordings = [c.languages["zh"] for c in KNOWLEDGE.conditions.values() if "zh" in c.languages]
    assert sum(bool(wording.names) for wording in wordings) >= 200
    assert sum(bool(wording.findings) for wording in wordings) >= 60
    assert sum(bool(wording.absent) for wording in wordings) >= 25
    for wording in wordings:
        texts = [
            *wording.names,
            *(t for part in (wording.findings, wording.absent) for ts in part.values() for t in ts),
        ]
        assert all(has_chinese(text) and text.strip("。；， ") == text for text in texts), wording.names
    for name in ("diabetic retinopathy", "glaucoma", "drusen", "normal", "late phase", "intraretinal fluid"):
        assert KNOWLEDGE.conditions[name].languages["zh"].names, name


def test_texts_in_chinese_state_and_deny():
    rng = random.Random(0)
    drawn = {draw_text(["glaucoma"], "CFP", KNOWLEDGE, rng, eye="left", languages=("zh",))[0] for _ in range(100)}
    assert all(has_chinese(text) for text in drawn)
    assert any(text == "眼底彩照示青光眼" for text in drawn)
    assert any(text.startswith("左眼") for text in drawn)
    denied = {draw_text(["no glaucoma"], "OCT", KNOWLEDGE, rng, languages=("zh",))[0] for _ in range(100)}
    assert "光学相干断层扫描未见青光眼" in denied
    both = [draw_text(["drusen"], "CFP", KNOWLEDGE, rng, languages=("en", "zh"))[0] for _ in range(100)]
    assert 25 < sum(map(has_chinese, both)) < 75
    assert not has_chinese(draw_text(["something new"], "CFP", KNOWLEDGE, rng, languages=("zh",))[0])


def test_sentences_for_the_first_stage():
    lines = knowledge_sentences(KNOWLEDGE, ("zh",))
    assert len(lines) > 400
    assert all(has_chinese(line) and line.endswith("。") for line in lines)
    assert sentences_of("glaucoma", KNOWLEDGE, ("en", "zh"))[-1].endswith("。")


@pytest.mark.parametrize(
    ("text", "placed"),
    [
        ("左眼视网膜脱离", True),
        ("双眼底未见异常", True),
        ("黄斑颞侧见硬性渗出", True),
        ("视盘上方出血", True),
        ("3点钟位裂孔", True),
        ("视网膜色素上皮萎缩", False),
        ("视网膜下液", False),
        ("黄斑水肿", False),
    ],
)
def test_place_words(text, placed):
    assert mentions_place(text) == placed


def chinese_sentences():
    return [json.loads(line) for line in SENTENCES.read_text(encoding="utf-8").splitlines()]


def test_reports_in_chinese(capsys):
    right = found = true = 0
    for sentence in chinese_sentences():
        named = find_mentions(sentence["text"], KNOWLEDGE)
        wanted = {Mention(*mention) for mention in sentence["mentions"]}
        right, found, true = right + len(named & wanted), found + len(named), true + len(wanted)
    with capsys.disabled():
        print(f"\nChinese: {true} mentions, precision {right / found:.3f}, recall {right / true:.3f}")
    assert len(chinese_sentences()) >= 50
    assert min(right / found, right / true) >= 0.95
    assert {mention[1] for sentence in chinese_sentences() for mention in sentence["mentions"]} <= set(STATUSES)


def test_the_multilingual_model_needs_no_network():
    config = open_clip.get_model_config("keepfit-v2-multilingual")
    assert config["text_cfg"]["hf_model_config"]["vocab_size"] == 119547
    assert config["text_cfg"]["hf_model_name"].endswith("bert-base-multilingual-cased")


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        (
            "Branch retinal vein obstruction with weak fluorescence",
            "Branch retinal vein occlusion with hypofluorescence",
        ),
        ("Vitreous warts at the macula", "Drusen at the macula"),
        ("Strong fluorescence of microangiomas", "Hyperfluorescence of microaneurysms"),
        ("plasma retinal detachment", "serous retinal detachment"),
        ("airway obstruction", "airway obstruction"),
    ],
)
def test_known_mistranslations(wrong, right):
    assert corrections_of("mm-retinal").apply(wrong) == right


def test_shards_with_corrected_captions_say_how_many(tmp_path):
    with open(write_public(tmp_path, 3), newline="") as file:
        images = [row["image"] for row in csv.DictReader(file)]
    captions = ["Vitreous warts.", "Central vein obstruction.", "Drusen."]
    with open(tmp_path / "elite.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "caption"), *zip(images, captions, strict=True)])
    arguments = [
        "shards",
        "build",
        str(tmp_path / "elite.csv"),
        "--out",
        str(tmp_path / "shards"),
        "--images",
        str(tmp_path),
    ]
    arguments += ["--kind", "elite", "--modality", "CFP", "--correct-terms", "mm-retinal", "--workers", "1"]
    output = CliRunner().invoke(app, arguments, catch_exceptions=False).output
    assert "in the captions of 2 samples" in output
    samples = read_shards([str(path) for path in (tmp_path / "shards").glob("*.tar")])
    texts = {caption.text for sample in samples for caption in sample.description.captions}
    assert texts == {"Drusen.", "Central vein occlusion."}
    with pytest.raises(ConfigError, match="mm-retinal"):
        corrections_of("mmretinal")
