"""The English of generated texts, over every name of the knowledge file and every modality."""

import re

import pytest

from keepfit_clip.knowledge.conditions import MODALITIES, Knowledge
from keepfit_clip.knowledge.grammar import article, in_image, is_plural, listed, statement
from keepfit_clip.knowledge.templates import category_text, class_texts, knowledge_sentences

KNOWLEDGE = Knowledge.load()
NAMES = list(KNOWLEDGE.conditions)
PLURAL = [
    "hemorrhages",
    "exudates",
    "spots",
    "drusen",
    "microaneurysms",
    "foci",
    "veins",
    "vessels",
    "opacities",
    "folds",
    "cracks",
    "scars",
]
SINGULAR = [
    "edema",
    "glaucoma",
    "cataract",
    "retinopathy",
    "disease",
    "hole",
    "atrophy",
    "dystrophy",
    "detachment",
    "occlusion",
]
# What no sentence of good English holds.
WRONG = [
    (r"\b(?:of|without|showing) (?:no|absent|absence of|within|image)\b|\bof normal$", "of no X"),
    (r"\b(\w+) \1\b", "a word twice"),
    (r"\babsence\b|\bwithout .*\bwithout\b(?! pressure)", "denied twice"),
    (r"\b[Aa] (?=[aeio])", "a before a vowel"),
    (r"\b[Aa]n (?=[bcdfgjklmnpqrstvwxyz])", "an before a consonant"),
    (r"  |\s[.,]|^\s|\s$", "spaces"),
    (rf"\b(?:{'|'.join(PLURAL)}) is\b", "plural is"),
    (rf"\b(?:{'|'.join(SINGULAR)}) are\b", "singular are"),
]  # fmt: skip


def wrong(text):
    return [problem for pattern, problem in WRONG if re.search(pattern, text)]


@pytest.mark.parametrize("modality", [*MODALITIES, None])
def test_every_text_of_every_category(modality):
    bad = []
    for name in NAMES:
        denial = KNOWLEDGE.look_up(f"no {name}").name
        for category in (name, denial):
            bad += [(t, wrong(t)) for t in class_texts(category, modality, KNOWLEDGE) if wrong(t)]
    assert bad == []


def test_every_sentence_of_the_knowledge():
    bad = [(line, wrong(line)) for line in knowledge_sentences(KNOWLEDGE) if wrong(line)]
    assert bad == []


def test_findings_say_what_is_there():
    denial = re.compile(r"\b(?:no|not|without|free of|lacking|absence of|devoid of|never)\b")
    bad = [f for c in KNOWLEDGE.conditions.values() for texts in c.findings.values() for f in texts if denial.search(f)]
    assert bad == []


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["glaucoma"], "A fundus photograph of glaucoma"),
        (["glaucoma", "cataract"], "A fundus photograph of glaucoma and cataract"),
        (["normal"], "A fundus photograph of a normal retina"),
        (["normal macula", "drusen"], "A fundus photograph of a normal macula and drusen"),
        (["normal retinal vessels"], "A fundus photograph of normal retinal vessels"),
        (["no glaucoma"], "A fundus photograph without glaucoma"),
        (["drusen", "no glaucoma", "no cataract"], "A fundus photograph of drusen, without glaucoma or cataract"),
        (["ungradable image"], "An ungradable fundus photograph"),
        (["good image quality"], "A fundus photograph of good image quality"),
        (["late phase", "macular edema"], "A fundus photograph of macular edema in the late phase"),
        (["no late phase"], "A fundus photograph without late phase"),
    ],
)  # fmt: skip
def test_images(names, text):
    assert category_text(names, "CFP") == text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("glaucoma", "glaucoma is present"),
        ("hard exudates", "hard exudates are present"),
        ("no hard exudates", "hard exudates are absent"),
        ("no glaucoma", "glaucoma is absent"),
        ("normal", "the retina is normal"),
        ("normal optic disc", "the optic disc is normal"),
        ("normal retinal vessels", "the retinal vessels are normal"),
        ("ungradable image", "the image is ungradable"),
        ("good image quality", "the image quality is good"),
        ("arterial phase", "the arterial phase is shown"),
        ("no arterial phase", "the arterial phase is not shown"),
        ("no ungradable image", "the image is not ungradable"),
    ],
)
def test_statements(name, text):
    assert statement(name) == text


def test_number_and_articles():
    assert [name for name in ("drusen", "hyperreflective foci", "angioid streaks") if not is_plural(name)] == []
    singular = ("optic neuritis", "choroidal nevus", "disorganization of retinal inner layers", "lens dislocation")
    assert [name for name in singular if is_plural(name)] == []
    assert [article(word) for word in ("OCT", "eye", "uveitis", "ungradable image", "unilateral scar")] == [
        "an", "an", "a", "an", "a"]  # fmt: skip
    assert listed(["a", "b", "c"]) == "a, b and c"
    assert in_image(["x"], "old image") == "An old image of x"
