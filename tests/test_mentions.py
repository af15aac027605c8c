"""What reports say: sentences with the right answer, in two parts.

`development.jsonl` was looked at while the rules were written; `held_out.jsonl` was written before them by somebody
else, and only its scores were looked at. Both are invented.
"""

import json
from pathlib import Path

import pytest

from keepfit_clip.knowledge.conditions import Knowledge
from keepfit_clip.knowledge.mentions import STATUSES, Mention, find_mentions, stated

FOLDER = Path(__file__).with_name("report_sentences")
KNOWLEDGE = Knowledge.load()


def sentences(part):
    lines = (FOLDER / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def answer(sentence):
    return {Mention(KNOWLEDGE.canonical(name), status, eye) for name, status, eye in sentence["mentions"]}


@pytest.mark.parametrize(("part", "least"), [("development", 0.99), ("held_out", 0.97)])
def test_precision_and_recall(part, least, capsys):
    right = found = true = 0
    for sentence in sentences(part):
        named, wanted = find_mentions(sentence["text"], KNOWLEDGE), answer(sentence)
        right, found, true = right + len(named & wanted), found + len(named), true + len(wanted)
    precision, recall = right / found, right / true
    with capsys.disabled():
        print(f"\n{part}: {true} mentions, precision {precision:.3f}, recall {recall:.3f}")
    assert precision >= least
    assert recall >= least


def test_there_are_at_least_300_sentences_of_all_modalities_and_kinds():
    every = sentences("development") + sentences("held_out")
    assert len({sentence["text"] for sentence in every}) >= 300
    for modality in ("CFP", "FFA", "OCT"):
        assert sum(sentence["modality"] == modality for sentence in every) >= 80
    for status in STATUSES:
        assert sum(status == mention[1] for sentence in every for mention in sentence["mentions"]) >= 20
    for eye in ("left", "right", "both"):
        assert sum(eye == mention[2] for sentence in every for mention in sentence["mentions"]) >= 50


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("OD: drusen. OS: no drusen.", {("drusen", "present", "right"), ("drusen", "absent", "left")}),
        ("不能除外脉络膜新生血管", {("choroidal neovascularization", "uncertain", None)}),
        ("并非青光眼", {("glaucoma", "absent", None)}),
        ("否认青光眼家族史", {("glaucoma", "absent", None)}),
        ("Glaucoma in 2015, drusen since 2016.", {("glaucoma", "historical", None), ("drusen", "present", None)}),
        ("DRUSEN ARE PRESENT", {("drusen", "present", None)}),
        ("a 3 mm cord-like strand", set()),
        ("", set()),
        (" .;:? ", set()),
    ],
)  # fmt: skip
def test_by_hand(text, expected):
    assert find_mentions(text, KNOWLEDGE) == {Mention(*mention) for mention in expected}


def test_what_is_stated_is_what_is_there_or_not():
    text = "Macular edema, no drusen; ?CNV, history of CRVO, mother has glaucoma."
    assert stated(text, KNOWLEDGE) == {"macular edema", "no drusen"}
