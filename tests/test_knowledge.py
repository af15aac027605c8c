"""The knowledge file is valid and found by every name; texts come out of it as promised."""

import json
import random

import pytest

from keepfit_clip.errors import KnowledgeError
from keepfit_clip.knowledge import MODALITIES, Knowledge
from keepfit_clip.templates import category_text, class_texts, draw_text, mentions_place

KNOWLEDGE = Knowledge.load()
RETINA_SETS = (
    "normal", "diabetic retinopathy", "glaucoma", "cataract", "pathologic myopia", "high myopia",
    "branch retinal vein occlusion", "capillary non-perfusion", "no capillary non-perfusion", "arterial phase",
    "venous phase", "diabetic macular edema", "no diabetic macular edema", "no diabetic retinopathy",
    "non-proliferative diabetic retinopathy", "proliferative diabetic retinopathy",
)  # fmt: skip


def test_shipped_file_covers_the_usual_conditions_with_sources_and_findings():
    assert len(KNOWLEDGE.conditions) >= 15
    for condition in KNOWLEDGE.conditions.values():
        assert condition.source, condition.name
        assert any(condition.findings.get(m) for m in MODALITIES), condition.name
        for findings in condition.findings.values():
            for finding in findings:
                assert 3 <= len(finding.split()) <= 18
                assert finding[0].islower(), finding
                assert not finding.endswith(".")


@pytest.mark.parametrize("name", RETINA_SETS)
def test_categories_of_the_usual_tables_resolve(name):
    assert KNOWLEDGE.resolve(name) == name


@pytest.mark.parametrize(
    ("term", "canonical"),
    [
        ("NPDR", "non-proliferative diabetic retinopathy"),
        ("Diabetic  Retinopathy", "diabetic retinopathy"),
        ("diabetic macular oedema", "diabetic macular edema"),
        ("no DME", "no diabetic macular edema"),
        ("absence of glaucoma", "no glaucoma"),
        ("non proliferative diabetic retinopathy", "non-proliferative diabetic retinopathy"),
        ("no abnormality", "normal"),
        ("flying saucer", None),
    ],
)
def test_lookup(term, canonical):
    assert KNOWLEDGE.resolve(term) == canonical


def test_draws_speak_of_the_drawn_category_and_use_names_and_findings():
    rng, seen = random.Random(0), set()
    for _ in range(200):
        text, category = draw_text(["glaucoma", "cataract"], "CFP", KNOWLEDGE, rng, ["noisy"])
        possible = [*KNOWLEDGE.names(category), *KNOWLEDGE.findings(category, "CFP"), f": {category} is present"]
        assert any(text.endswith(part) for part in possible)
        assert text.startswith(("A fundus photograph", "A noisy fundus photograph"))
        seen.add(text)
    assert len(seen) > 10


def test_negations_have_names_but_no_findings():
    assert KNOWLEDGE.names("no glaucoma")[0] == "no glaucoma"
    assert KNOWLEDGE.findings("no glaucoma", "CFP") == []
    assert class_texts("no glaucoma", "CFP", KNOWLEDGE)[-1] == "A fundus photograph: glaucoma is absent"


def test_class_texts_start_with_the_canonical_name():
    texts = class_texts("DR", "FFA", KNOWLEDGE)
    assert texts[0] == "A fluorescein angiogram of diabetic retinopathy"
    assert len(texts) > 3
    assert class_texts("DR", "OCT", KNOWLEDGE, descriptions=False) == [
        "An optical coherence tomography scan of diabetic retinopathy"
    ]


def test_category_text_lists_and_picks_the_article():
    assert category_text(["a", "b", "c"], None, ["old"]) == "An old retinal image of a, b and c"


@pytest.mark.parametrize(
    ("text", "placed"),
    [
        ("the left eye", True),
        ("flame hemorrhages in the inferotemporal arcade", True),
        ("in all four quadrants", True),
        ("OD: normal", True),
        ("a bright foveal reflex", False),
        ("the leftover was normal", False),
    ],
)
def test_place_words(text, placed):
    assert mentions_place(text) == placed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a JSON file"),
        ("[]", '"schema" must be 1'),
        ('{"schema": 1, "conditions": []}', "at least one condition"),
        ('{"schema": 1, "conditions": [{"name": ""}]}', 'condition 1 has no "name"'),
        ('{"schema": 1, "conditions": [{"name": "a", "colour": 1}]}', r"unknown keys \['colour'\]"),
        ('{"schema": 1, "conditions": [{"name": "a", "findings": {"MRI": []}}]}', '"findings" must map CFP'),
        ('{"schema": 1, "conditions": [{"name": "a", "synonyms": "b"}]}', "must be a list of texts"),
        ('{"schema": 1, "conditions": [{"name": "a", "parent": "b"}]}', "unknown parent 'b'"),
        ('{"schema": 1, "conditions": [{"name": "a"}, {"name": "b", "synonyms": ["A"]}]}', "names both"),
    ],
)
def test_broken_files_are_one_clear_error(tmp_path, content, message):
    path = tmp_path / "mine.json"
    path.write_text(content)
    with pytest.raises(KnowledgeError, match=message) as caught:
        Knowledge.load(path)
    assert "mine.json" in str(caught.value)


def test_a_users_file_replaces_the_shipped_one(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(
        json.dumps({"schema": 1, "conditions": [{"name": "snowflake", "findings": {"CFP": ["white star"]}}]})
    )
    mine = Knowledge.load(path)
    assert mine.findings("snowflake", "CFP") == ["white star"]
    assert mine.resolve("glaucoma") is None
