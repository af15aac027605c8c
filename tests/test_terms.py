"""One form for all spellings of a name, and what a label says around it."""

import os
import tempfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keepfit_clip.knowledge.conditions import Knowledge
from keepfit_clip.knowledge.terms import normal_form

os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", os.path.join(tempfile.gettempdir(), "hypothesis"))
KNOWLEDGE = Knowledge.load()
NAMES = [term for c in KNOWLEDGE.conditions.values() for term in (*c.terms, *c.labels)]
AROUND = st.sampled_from(
    ["{}", "no {}", "non-{}", "{} (x)", "0.1.{}", "No signs of {}", "{} negative", "presence of {}", "{}: none", "No{}",
     "absence of {}", "[{}]", "without any evidence of {}", "\u2019{}\u2019", "not {}", "{}\uff0c"]
)  # fmt: skip


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("intraretinal haemorrhages", "retinal hemorrhages"),
        ("Coats\u2019 disease", "Coats disease"),
        ("optic disk oedema", "optic disc edema"),
        ("choroidal naevi", "choroidal nevus"),
        ("central serous retinopathy (csr)", "central serous chorioretinopathy"),
        ("0.0.Normal", "normal"),
        ("29.1.Macular hole", "macular hole"),
        ("non-glaucoma", "no glaucoma"),
        ("NoDR", "no diabetic retinopathy"),
        ("no signs of AMD", "no age-related macular degeneration"),
        ("no apparent diabetic retinopathy", "no diabetic retinopathy"),
        ("glaucoma negative", "no glaucoma"),
        ("DR: none", "no diabetic retinopathy"),
        ("presence of drusen", "drusen"),
        ("Macular Edema present", "macular edema"),
        ("no retinopathy", "normal"),
        ("no retinal disease", "normal"),
        ("not normal", "retinal disease"),
        ("non-proliferative diabetic retinopathy", "non-proliferative diabetic retinopathy"),
        ("AMD-", "no age-related macular degeneration"),
        ("DR +", "diabetic retinopathy"),
        ("drusen (-)", "no drusen"),
        ("glaucoma (no)", "no glaucoma"),
        ("macular edema (resolved)", "no macular edema"),
        ("AMD (wet)", "neovascular age-related macular degeneration"),
        ("macular hole (stage 2)", "stage 2 macular hole"),
        ("non-arteritic AION", "non-arteritic anterior ischemic optic neuropathy"),
        ("non-infectious uveitis", "uveitis"),
        ("non-rhegmatogenous retinal detachment", "retinal detachment"),
        ("non-referable DR", "no referable diabetic retinopathy"),
        ("nonreferable DR", "no referable diabetic retinopathy"),
        ("non-center involving DME", "non-center-involved diabetic macular edema"),
        ("PEDs", "pigment epithelial detachment"),
        ("no normal macula", "maculopathy"),
    ],
)
def test_labels_resolve(label, name):
    assert KNOWLEDGE.resolve(label) == name


@pytest.mark.parametrize("label", ["DR (suspected)", "glaucoma (?)", "-1", "POH", "nonsense", "(", ")", "", "non", "-"])
def test_what_says_nothing_sure_is_not_resolved(label):
    assert KNOWLEDGE.resolve(label) is None


def test_a_word_of_a_label_alone_is_none_in_a_sentence():
    from keepfit_clip.knowledge.mentions import find_mentions

    conditions = [c for c in KNOWLEDGE.conditions.values() if c.name != "normal"]  # that word has a rule of its own
    labels = [(word, c.name) for c in conditions for word in c.labels]
    assert {"disease", "abnormal", "scar"} <= {word for word, _ in labels}
    assert [word for word, name in labels if KNOWLEDGE.resolve(word) != name] == []
    for word, name in ((word, name) for word, name in labels if len(word.split()) == 1):
        assert name not in {m.name for m in find_mentions(f"the {word} of the patient", KNOWLEDGE)}, word


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(NAMES) | st.text(max_size=40), AROUND)
def test_resolving_twice_is_resolving_once_and_nothing_breaks(name, around):
    label = around.replace("{}", name)
    term = KNOWLEDGE.look_up(label)
    assert KNOWLEDGE.look_up(term.name).name == term.name
    assert normal_form(normal_form(label)) == normal_form(label)
    if term.condition is not None:
        assert term.condition.name in KNOWLEDGE.conditions
        KNOWLEDGE.image_codes([label])
        KNOWLEDGE.text_codes(label)
        assert KNOWLEDGE.names(label)[0] == term.name
