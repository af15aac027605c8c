"""Categories held out of training: no sample, no text and no sentence of the knowledge names them."""

import pytest

from keepfit_clip.data.stream.batch import stable_id
from keepfit_clip.errors import CategoryError
from keepfit_clip.knowledge.conditions import Knowledge
from keepfit_clip.knowledge.held_out import HeldOut
from keepfit_clip.knowledge.mentions import find_mentions
from keepfit_clip.knowledge.templates import knowledge_sentences
from keepfit_clip.training.hybrid.params import parse_keepfit_args
from keepfit_clip.training.text_stage.corpus import build_corpus

KNOWLEDGE = Knowledge.load()


@pytest.mark.parametrize(
    ("category", "named"),
    [
        ("cataract", True),
        ("Cataracts", True),
        ("no cataract", True),
        ("nuclear cataract", True),
        ("pathologic myopia", True),
        ("high myopia", False),
        ("glaucoma", False),
        ("hazy view, as in cataract", True),
        ("normal", False),
        ("something nobody knows", False),
    ],
)
def test_names_forms_denials_and_descriptions_are_held_out(category, named):
    assert HeldOut(["cataracts", "pathologic myopia"], KNOWLEDGE).named_in(category) == named


def test_no_sentence_that_remains_names_them():
    held_out = HeldOut(["cataract", "diabetic retinopathy"], KNOWLEDGE)
    left = knowledge_sentences(held_out.knowledge, ("en", "zh"))
    assert len(left) > 1000
    named = {mention.name for sentence in left for mention in find_mentions(sentence, KNOWLEDGE)}
    assert not named & held_out.conditions
    assert {"cataract", "diabetic retinopathy", "proliferative diabetic retinopathy"} <= held_out.conditions
    assert held_out.knowledge.look_up("cataract").condition is None


@pytest.mark.parametrize("name", ["catarakt", "no cataract"])
def test_what_is_no_category_is_refused(name):
    with pytest.raises(CategoryError, match=f"--hold-out-categories '{name}' is no category"):
        HeldOut([name], KNOWLEDGE)


def test_a_corpus_loses_the_sentences_that_name_them(tmp_path):
    lines = [f"Eye {n} shows {'glaucoma' if n % 2 else 'drusen'}." for n in range(60)]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    corpus = build_corpus([tmp_path / "a.txt"], tmp_path / "out", 0.2, 0, unnamed=HeldOut(["glaucoma"], KNOWLEDGE))
    assert corpus.figures.named_held_out == 30
    assert corpus.figures.training_sentences + corpus.figures.held_out_sentences == 30
    assert not any("glaucoma" in text for text in [*corpus.training["text"], *corpus.held_out["text"]])


def test_a_stream_leaves_their_public_samples_out_and_counts_them(make_stream):
    everything = make_stream(batches=20)
    stream = make_stream(batches=20, held_out=HeldOut(["glaucoma", "diabetic retinopathy"], KNOWLEDGE))
    seen = [{i for _, texts in s for i in texts["text_id"][~texts["is_elite"]].tolist()} for s in (everything, stream)]
    names = ("normal", "cataract", "glaucoma", "diabetic retinopathy")
    assert seen[0] == {stable_id("CFP", name) for name in names}
    assert seen[1] == {stable_id("CFP", name) for name in names[:2]}
    assert "samples of categories held out left out" in stream.left_out.summary()
    assert any(texts["is_elite"].any() for _, texts in stream)  # experts' captions stay


def test_the_flag_reaches_stream_and_texts():
    argv = ["--public-data", "p", "--preset", "contrastive", "--hold-out-categories", "cataract, glaucoma"]
    assert parse_keepfit_args(argv)[0].held_out_categories == ("cataract", "glaucoma")
