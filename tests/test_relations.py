"""What follows from what is known of an image, and that it is no negative of it."""

import pytest
import torch
from torch.nn import functional as F

from keepfit_clip.data.stream.batch import stable_id
from keepfit_clip.errors import ConfigError
from keepfit_clip.knowledge.conditions import Knowledge
from keepfit_clip.model.loss import HybridLoss
from keepfit_clip.model.pairs import implied_pairs

KNOWLEDGE = Knowledge.load()


@pytest.mark.parametrize(
    ("text", "seen", "true"),
    [
        ("macular edema", ["diabetic macular edema"], True),
        ("diabetic macular edema", ["macular edema"], False),
        ("retinal disease", ["glaucoma"], True),
        ("retinal disease", ["normal"], False),
        ("retinal disease", ["arterial phase"], False),
        ("no glaucoma", ["normal"], True),
        ("no arterial phase", ["normal"], False),
        ("no glaucoma", ["cataract"], False),
        ("no diabetic macular edema", ["no macular edema"], True),
        ("no macular edema", ["no diabetic macular edema"], False),
        ("normal", ["no glaucoma"], False),
        ("DME", ["glaucoma", "diabetic macular oedema"], True),
        ("something new", ["something new"], True),
    ],
)
def test_what_follows(text, seen, true):
    assert KNOWLEDGE.follows(text, seen) == true


def test_what_was_seen_comes_first():
    assert KNOWLEDGE.image_codes(["glaucoma", "diabetic macular edema"])[:2] == ["glaucoma", "diabetic macular edema"]
    assert KNOWLEDGE.text_codes("no DME")[0] == "no diabetic macular edema"


def padded(rows, width):
    return torch.tensor([[stable_id(code) for code in row] + [-1] * (width - len(row)) for row in rows])


def test_pairs_share_a_code():
    images = padded([["a", "b"], ["c"], []], 3)
    texts = padded([["b"], ["x", "c"], []], 2)
    assert implied_pairs(images, texts).tolist() == [[True, False, False], [False, True, False], [False, False, False]]


def output(is_elite, own, images, texts):
    """Model output of samples that say `own`, with codes of their images and texts."""
    torch.manual_seed(0)
    count = len(own)
    image, text = (F.normalize(torch.randn(count, 8), dim=1) for _ in range(2))
    return {
        "image_features": image,
        "text_features": text,
        "logit_scale": torch.tensor(3.0),
        "is_elite": torch.tensor(is_elite),
        "modality": torch.zeros(count, dtype=torch.long),
        "text_id": torch.tensor([stable_id(name) for name in own]),
        "category_ids": padded([[name] for name in own], 16),
        "image_codes": padded(images, 4),
        "text_codes": padded(texts, 4),
        "revision_query": image[:, None],
        "revision_key": image[:, None],
        "revision_value": text[:, None],
    }


def by_hand(image, text, positive, allowed):
    def rows(logits, true, part):
        logits = logits.masked_fill(~part, float("-inf")).log_softmax(dim=1)
        return -torch.stack([logits[row][true[row]].mean() for row in range(len(logits))]).sum()

    logits = 3.0 * image @ text.T
    return (rows(logits, positive, allowed) + rows(logits.T, positive.T, allowed.T)) / 2 / len(image)


def test_a_public_text_that_follows_is_positive_or_takes_no_part_or_is_a_negative():
    made = output(
        [False] * 2, ["normal", "no glaucoma"], [["normal"], ["no glaucoma"]], [["normal"], ["no glaucoma", "normal"]]
    )
    own, every = torch.eye(2, dtype=torch.bool), torch.ones(2, 2, dtype=torch.bool)
    with_it = own.clone()
    with_it[0, 1] = True  # the normal image, the text "no glaucoma"
    without = every.clone()
    without[0, 1] = False
    image, text = made["image_features"], made["text_features"]
    for implied, positive, allowed in (("positive", with_it, every), ("mask", own, without), ("negative", own, every)):
        term = HybridLoss(revision_weight=0, implied=implied)(**made)["public_contrastive_loss"]
        assert term.item() == pytest.approx(by_hand(image, text, positive, allowed).item(), rel=1e-5)


def test_together_an_experts_image_has_public_texts_and_its_caption_is_no_negative_of_theirs():
    made = output([False, True], ["dme", "caption"], [["dme"], ["dme"]], [["dme"], ["dme"]])
    image, text = made["image_features"], made["text_features"]
    positive = torch.tensor([[True, False], [True, True]])  # the public text is true of the expert's image
    allowed = torch.tensor([[True, False], [True, True]])  # the caption and the public image: nobody knows
    term = HybridLoss(revision_weight=0, joint_contrast=True)(**made)["contrastive_loss"]
    assert term.item() == pytest.approx(by_hand(image, text, positive, allowed).item(), rel=1e-5)


def test_captions_are_told_from_each_other_as_before():
    made = output([True, True], ["one", "other"], [["dme"], ["dme"]], [["dme"], ["dme"]])
    plain = {key: value for key, value in made.items() if not key.endswith("_codes")}
    for loss in (HybridLoss(revision_weight=0), HybridLoss(revision_weight=0, implied="mask")):
        torch.testing.assert_close(loss(**made)["elite_contrastive_loss"], loss(**plain)["elite_contrastive_loss"])


def test_other_ways_are_refused():
    with pytest.raises(ConfigError, match="positive, mask, negative"):
        HybridLoss(implied="maybe")


@pytest.mark.parametrize(
    ("seen", "implied", "excluded"),
    [
        (["diabetic macular edema"], {"macular edema", "retinal disease"}, {"normal", "no macular edema"}),
        (["normal"], {"no glaucoma", "no drusen", "normal"}, {"glaucoma", "drusen", "retinal disease"}),
        (["no macular edema"], {"no diabetic macular edema"}, {"diabetic macular edema", "macular edema"}),
        (["no diabetic macular edema"], {"no diabetic macular edema"}, {"diabetic macular edema"}),
        (["normal"], {"normal macula", "normal optic disc"}, {"macular hole"}),
        (["normal macula"], {"no macular hole"}, {"macular hole"}),
        (["macular hole"], {"maculopathy"}, {"normal macula", "normal"}),
        (["glaucoma"], {"retinal disease"}, {"normal optic disc"}),
        (["normal", "tessellated fundus"], {"tessellated fundus"}, {"glaucoma"}),
        (["arterial phase"], {"arterial phase"}, set()),
        (["something new"], {"something new"}, set()),
    ],
)
def test_implied_and_excluded(seen, implied, excluded):
    assert KNOWLEDGE.implied(seen) >= implied
    assert KNOWLEDGE.excluded(seen) >= excluded
    assert KNOWLEDGE.implied(seen).isdisjoint(KNOWLEDGE.excluded(seen))


def test_what_is_not_implied_is_not_excluded_either():
    assert KNOWLEDGE.implied(["no diabetic macular edema"]).isdisjoint({"no macular edema", "normal"})
    assert "macular edema" not in KNOWLEDGE.excluded(["no diabetic macular edema"])
    assert "no cataract" not in KNOWLEDGE.implied(["glaucoma"])


def test_what_is_seen_counts_more_than_what_would_follow():
    seen = ["no diabetic retinopathy", "diabetic macular edema"]
    implied, excluded = KNOWLEDGE.implied(seen), KNOWLEDGE.excluded(seen)
    assert {*seen, "macular edema"} <= implied
    assert implied.isdisjoint({"diabetic retinopathy", "no diabetic macular edema"})
    assert excluded.isdisjoint(seen)
    assert implied.isdisjoint(excluded)


def test_a_condition_with_several_parents_follows_to_each():
    assert {"age-related macular degeneration", "choroidal neovascularization"} <= set(
        KNOWLEDGE.ancestors("neovascular age-related macular degeneration")
    )
    assert KNOWLEDGE.follows("diabetic retinopathy", ["diabetic macular edema"])
    assert KNOWLEDGE.follows("macular edema", ["diabetic macular edema"])
