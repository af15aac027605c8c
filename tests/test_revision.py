"""The text revision: guided by how alike images are, from the start and in any dimension; v1's arithmetic beside it."""

import math

import pytest
import torch
from torch.nn import functional as F

from keepfit_clip.errors import ConfigError
from keepfit_clip.model.config import RevisionConfig
from keepfit_clip.model.loss import HybridLoss
from keepfit_clip.model.revision import TextRevision, attention_entropy, revised_text_features, revision_attention

DIM = 64


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def features_of_kinds(kinds, spread=0.3, seed=0):
    """Image features of some kinds: near to the feature of their kind."""
    centres = unit(4, DIM)
    return F.normalize(centres[list(kinds)] + spread * unit(len(kinds), DIM, seed=seed + 1), dim=-1)


def modalities(count):
    return torch.zeros(count, dtype=torch.long)


def revise(revision, public, elite, texts):
    query = revision(public, unit(len(public), DIM))["revision_query"]
    of_elite = revision(elite, texts)
    same = modalities(len(public)), modalities(len(elite))
    return revised_text_features(query, of_elite["revision_key"], of_elite["revision_value"], *same)[0]


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_at_the_start_a_text_is_revised_to_those_of_the_images_that_are_alike(heads):
    torch.manual_seed(0)
    revision = TextRevision(DIM, RevisionConfig(heads, "cosine"))
    kinds = [0, 1, 2, 3]
    elite, texts = features_of_kinds(kinds * 4), unit(4, DIM, seed=9)[kinds * 4]
    revised = revise(revision, features_of_kinds(kinds, seed=5), elite, texts)
    nearest = (F.normalize(revised, dim=1) @ texts[:4].T).argmax(dim=1)
    assert nearest.tolist() == kinds
    assert (F.normalize(revised, dim=1) * texts[:4]).sum(dim=1).min() > 0.9


def test_one_head_is_a_softmax_over_cosines_at_the_logit_scale():
    torch.manual_seed(0)
    revision = TextRevision(DIM, RevisionConfig(1, "cosine"))
    public, elite, texts = unit(3, DIM, seed=1), unit(5, DIM, seed=2), unit(5, DIM, seed=3)
    expected = (public @ elite.T / 0.07).softmax(dim=1) @ texts
    torch.testing.assert_close(revise(revision, public, elite, texts), expected, rtol=1e-4, atol=1e-5)


def test_with_v1s_arithmetic_the_attention_does_not_tell_images_apart():
    torch.manual_seed(0)
    revision = TextRevision(512, RevisionConfig(2, "dot"))
    images = unit(40, 512)
    projected = revision(images, images)
    attention, same = revision_attention(
        projected["revision_query"], projected["revision_key"], modalities(40), modalities(40)
    )
    assert attention_entropy(attention, same) > 0.99999
    assert hasattr(revision, "key")


def test_no_gradient_moves_the_features_and_every_parameter_has_one():
    torch.manual_seed(0)
    revision = TextRevision(DIM, RevisionConfig(2, "cosine"))
    image, text = unit(8, DIM).requires_grad_(), unit(8, DIM, seed=4).requires_grad_()
    projected = revision(image, text)
    is_elite = torch.tensor([False] * 4 + [True] * 4)
    ids = torch.arange(8)
    loss = HybridLoss(contrastive_weight=0.0)
    terms = loss(
        image_features=image.detach(),
        text_features=text,
        logit_scale=torch.tensor(10.0),
        is_elite=is_elite,
        modality=modalities(8),
        text_id=ids,
        category_ids=torch.cat([ids[:, None], torch.full((8, 15), -1)], dim=1),
        **projected,
    )
    terms["revision_loss"].backward()
    assert image.grad is None
    assert text.grad[~is_elite].abs().sum() > 0
    assert not text.grad[is_elite].any()
    assert all(parameter.grad.abs().sum() > 0 for parameter in revision.parameters())
    assert 0 < loss.figures["revision_entropy"] < 1


def test_the_entropy_is_a_share_of_the_largest_there_can_be():
    even, same = torch.full((2, 3, 4), 0.25), torch.ones(3, 4, dtype=torch.bool)
    assert attention_entropy(even, same) == pytest.approx(1)
    sure = torch.zeros(2, 3, 4)
    sure[..., 0] = 1
    assert attention_entropy(sure, same) == 0
    half = torch.tensor([[[0.5, 0.5, 0.0, 0.0]]])
    assert attention_entropy(half, same[:1]) == pytest.approx(math.log(2) / math.log(4))
    only_two = torch.tensor([[True, True, False, False]])
    assert attention_entropy(half, only_two) == pytest.approx(1)
    assert attention_entropy(torch.ones(1, 1, 1), torch.ones(1, 1, dtype=torch.bool)) is None


def test_other_attentions_are_refused():
    with pytest.raises(ConfigError, match="it can be cosine or dot"):
        RevisionConfig(2, "sparse")
