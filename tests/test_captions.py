"""What a caption names, and the scores of captions."""

import math

import pytest

from keepfit_clip.errors import ConfigError, MissingExtraError
from keepfit_clip.evaluate.metrics.captions import score_captions, score_mentions
from keepfit_clip.knowledge.conditions import Knowledge
from keepfit_clip.knowledge.mentions import Mention, find_mentions

KNOWLEDGE = Knowledge.load()


def named(text):
    """Names of a text, those denied with a minus."""
    return {("-" if mention.status == "absent" else "") + mention.name for mention in find_mentions(text, KNOWLEDGE)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A fundus photograph of glaucoma", {"glaucoma"}),
        ("Moderate NPDR.", {"moderate non-proliferative diabetic retinopathy"}),  # the longest term, not its parts
        ("Macular edema is absent; no diabetic retinopathy.", {"-macular edema", "-diabetic retinopathy"}),
        ("no hemorrhages, hard exudates or drusen", {"-retinal hemorrhages", "-hard exudates", "-drusen"}),
        ("No drusen, but microaneurysms", {"-drusen", "microaneurysms"}),
        ("no drusen. Microaneurysms", {"-drusen", "microaneurysms"}),
        ("macular hole is not seen, drusen are present", {"-macular hole", "drusen"}),
        ("drusen and glaucoma were ruled out", {"-drusen", "-glaucoma"}),
        ("without cotton-wool spots", {"-cotton-wool spots"}),
        ("no drusen are seen, glaucoma is present", {"-drusen", "glaucoma"}),
        ("no abnormality detected", {"normal"}),  # a name that begins with "no" is no denial
        ("Colour fundus photograph: normal.", {"normal"}),
        ("a normal foveal reflex", set()),
        ("DR", {"diabetic retinopathy"}),
        ("ask dr smith", set()),
        ("pseudoglaucomas", set()),
        ("", set()),
    ],
)  # fmt: skip
def test_mentions(text, expected):
    assert named(text) == expected


def test_every_name_of_the_knowledge_file_is_found_in_a_sentence():
    for condition in KNOWLEDGE.conditions.values():
        text = f"A fundus photograph of {condition.name}."
        assert Mention(condition.name) in find_mentions(text, KNOWLEDGE), condition.name


def test_scores_of_captions_by_hand():
    perfect = score_captions(
        ["some words of a caption", "and b-scan words"], [["Some words: of a CAPTION."], ["and b scan, words"]]
    )
    assert [perfect[f"bleu_{n}"] for n in (1, 2, 3, 4)] == pytest.approx([1, 1, 1, 1])
    assert (perfect["rouge_l"], perfect["chrf"]) == pytest.approx((1, 1))
    assert perfect["cider"] == pytest.approx(10)
    half = score_captions(["a b x y", "f g h i"], [["a b c d"], ["f g h i"]])
    assert half["bleu_1"] == pytest.approx(6 / 8)
    assert half["bleu_2"] == pytest.approx(math.sqrt(6 / 8 * 4 / 6))
    assert half["rouge_l"] == pytest.approx((0.5 + 1) / 2)
    assert score_captions(["a b c d"], [["x y z", "a b c d"]])["bleu_4"] == pytest.approx(
        1
    )  # the best reference counts


def test_chrf_looks_at_letters_alone():
    assert score_captions(["vessels and macula", "disc"], [["macula and vessels"], ["disc"]])["chrf"] > 0.6


def test_captions_that_cannot_be_scored(monkeypatch):
    assert math.isnan(score_captions(["a b"], [["a b", "c d"]])["cider"])  # one image: no word is rare
    assert math.isnan(score_captions(["a b", "c"], [["a b"], ["A b."]])["cider"])
    for written, references in [([], []), (["a"], [[]]), (["a", "b"], [["a"]])]:
        with pytest.raises(ConfigError, match="an expert's caption for each"):
            score_captions(written, references)
    monkeypatch.setitem(__import__("sys").modules, "pycocoevalcap", None)
    with pytest.raises(MissingExtraError, match=r"pip install pycocoevalcap"):
        score_captions(["a"], [["a"]])


def test_clinical_scores_by_hand():
    truths = [["glaucoma with drusen"], ["no glaucoma"], ["cataract", "glaucoma is absent"], ["a fundus photograph"]]
    written = ["glaucoma, hard exudates", "glaucoma", "cataract; no glaucoma", "drusen"]
    scores = score_mentions(written, truths, KNOWLEDGE)
    assert scores["condition_images"] == 3
    assert scores["condition_exact"] == pytest.approx(2 / 3)
    assert scores["condition_constant"] == pytest.approx(1 / 3)
    assert (scores["condition_precision"], scores["condition_recall"]) == (pytest.approx(3 / 4), pytest.approx(3 / 4))
    assert scores["sign_images"] == 1
    assert scores["sign_exact"] == scores["sign_f1"] == scores["sign_recall"] == 0
    nothing = score_mentions(["glaucoma"], [["glaucoma"]], KNOWLEDGE)
    assert math.isnan(nothing["sign_exact"])
    assert math.isnan(nothing["sign_f1"])
