"""Identifiers in captions: found, taken out whole, and medicine left alone; in a time that grows with the text only."""

import json
import sys
import time
from pathlib import Path

import pytest
import regex

from keepfit_clip.data.identifiers.privacy import find_identifiers, redact
from keepfit_clip.knowledge.conditions import Knowledge

CAPTIONS = json.loads(Path(__file__).with_name("identifier_captions.json").read_text(encoding="utf-8"))
MARKED = regex.compile(r"\[\[(.+?)\]\]")


@pytest.mark.parametrize("half", ["tuning", "held-out"])
def test_recall_and_false_alarms(half):
    private, others = ([row for row in CAPTIONS[key] if row["half"] == half] for key in ("with", "without"))
    assert len(private) == len(others) == 100
    assert sum(bool(find_identifiers(MARKED.sub(r"\1", row["text"]))) for row in private) >= 95
    assert sum(bool(find_identifiers(row["text"])) for row in others) <= 3


def test_nothing_is_found_once_it_is_redacted():
    for row in CAPTIONS["with"]:
        redacted = redact(MARKED.sub(r"\1", row["text"]))
        assert find_identifiers(redacted) == [], redacted


@pytest.mark.parametrize(
    ("caption", "redacted"),
    [
        ("Photographer: T. Baxter. Colour fundus.", "Photographer: [redacted]. Colour fundus."),
        ("Jane Doe, 54 years old, soft drusen.", "[redacted], 54 years old, soft drusen."),
        ("Electronically signed by Maria Lopez, MD. Drusen.", "Electronically signed by [redacted]. Drusen."),
        ("Prof. van der Meer saw a macular hole.", "[redacted] saw a macular hole."),
        ("Dr. Young found drusen.", "[redacted] found drusen."),
        ("Image of 2021-06-09 14:32:10, late phase.", "Image of [redacted], late phase."),
        ("NHS number 943 476 5919; retinal detachment.", "[redacted]; retinal detachment."),
        ("Tel. 030 901820, macular hole.", "Tel. [redacted], macular hole."),
        ("Lives at 221B Baker Street, London NW1 6XE, sees floaters.", "Lives at [redacted], sees floaters."),
        ("A 93-year-old with drusen.", "A [redacted] with drusen."),
        ("Imaged at St Mary's Hospital, vasculitis.", "Imaged at [redacted], vasculitis."),
        ("患者张伟，右眼黄斑裂孔。", "患者[redacted]，右眼黄斑裂孔。"),
        ("2019年3月5日眼底照相，硬性渗出。", "[redacted]眼底照相，硬性渗出。"),
    ],
)
def test_the_whole_identifier_goes_and_the_medical_words_stay(caption, redacted):
    assert redact(caption) == redacted


def test_no_word_of_the_knowledge_file_is_an_identifier():
    for condition in Knowledge.load().conditions.values():
        seen = (*condition.findings.values(), *condition.absent.values())
        for text in (*condition.terms, *condition.labels, *(text for texts in seen for text in texts)):
            for form in (text, f"Patient: {text.title()}, 54 years"):
                assert find_identifiers(form) == [], form


ENDLESS = ("a", "1", "A", ".", "1-", "Ab ", "a@", "王医")


@pytest.mark.parametrize("unit", ENDLESS)
def test_the_time_grows_with_the_text_and_no_faster(unit):
    """A pattern that looks from every place to the end would take minutes."""
    text = unit * (200_000 // len(unit))
    start = time.process_time()
    find_identifiers(text)
    assert time.process_time() - start < 10


def test_benchmark_prints_both_figures(capsys):
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    try:
        import identifiers
    finally:
        sys.path.pop(0)
    identifiers.main()
    printed = capsys.readouterr().out
    assert "held-out" in printed
    assert "false alarms" in printed
