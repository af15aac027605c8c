"""Recall of retrieval on matrices small enough to check by hand."""

import math

import pytest
import torch

from keepfit_clip.evaluate.metrics.retrieval import first_positive_ranks, score_image_retrieval, score_retrieval
from tests.test_loss import padded


def test_ranks_by_hand():
    queries = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    candidates = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    positive = torch.tensor([[False, True, False], [False, True, True]])
    assert first_positive_ranks(queries, candidates, positive).tolist() == [2, 1]


def test_equal_features_earn_nothing():
    features = torch.ones(12, 4) / 2
    ids = torch.arange(12)
    scores = score_retrieval(features, features, padded(*[[i] for i in range(12)]), ids)
    assert scores["image_to_text_recall@10"] == 0
    assert scores["text_to_image_recall@10"] == 0


def test_a_text_of_several_images_is_one_candidate_and_right_for_all_of_them():
    images = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    texts = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    scores = score_retrieval(images, texts, padded([7], [7], [8]), torch.tensor([7, 7, 8]), at=(1,))
    assert scores == {"image_to_text_recall@1": 1.0, "text_to_image_recall@1": 1.0}


def test_more_rows_than_fit_at_a_time_give_what_all_at_once_would():
    torch.manual_seed(0)
    images, texts = (torch.nn.functional.normalize(torch.randn(2100, 8), dim=1) for _ in range(2))
    ids = torch.arange(2100)
    scores = score_retrieval(images, texts, padded(*[[i] for i in range(2100)]), ids, at=(5,))
    similarity = images @ texts.T
    ranks = 1 + (similarity > similarity.diagonal()[:, None]).sum(dim=1)
    assert scores["image_to_text_recall@5"] == pytest.approx(float((ranks <= 5).float().mean()))


def test_chance_is_what_a_random_order_finds():
    torch.manual_seed(0)
    ids = torch.arange(40) % 8
    image_ids = padded(*[[i] for i in ids.tolist()])
    found = [
        score_retrieval(*(torch.randn(40, 16) for _ in range(2)), image_ids, ids, at=(1, 5), chance=True)
        for _ in range(60)
    ]
    for name in ("image_to_text", "text_to_image"):
        for k in (1, 5):
            mean = sum(scores[f"{name}_recall@{k}"] for scores in found) / len(found)
            assert mean == pytest.approx(found[0][f"{name}_chance@{k}"], abs=0.05)


def test_images_like_an_image_by_hand():
    angles = torch.tensor([0.0, 0.1, 0.3, 0.6, 1.5])
    features = torch.stack([angles.cos(), angles.sin()], dim=1)
    ids = padded([1], [2], [1, 3], [3], [9])
    scores = score_image_retrieval(features, ids, at=(1, 2))
    # 0: 1 before 2. 1 and 4: nothing like them. 2: nearest 1, then 0. 3: nearest 2.
    assert scores["image_to_image_queries"] == 3
    assert scores["image_to_image_recall@1"] == pytest.approx(1 / 3)
    assert scores["image_to_image_recall@2"] == 1
    assert scores["image_to_image_chance@1"] == pytest.approx((1 + 2 + 1) / 4 / 3)
    patients = score_image_retrieval(features, ids, torch.tensor([0, 1, 0, 1, 2]), at=(1,))
    assert patients["image_to_image_queries"] == 2  # 0's only match is of its own patient
    assert patients["image_to_image_recall@1"] == 0.5  # 2 finds 1 before 3, 3 finds 2
    nothing = score_image_retrieval(features, padded([1], [2], [3], [4], [5]), at=(1,))
    assert math.isnan(nothing["image_to_image_recall@1"])
    assert nothing["image_to_image_queries"] == 0


def test_many_images_give_what_all_at_once_would():
    torch.manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(1500, 8), dim=1)
    labels = torch.arange(1500) % 30
    scores = score_image_retrieval(features, labels[:, None], at=(5,))
    similarity = (features @ features.T).fill_diagonal_(-2)
    nearest = similarity.topk(5).indices
    hit = (labels[nearest] == labels[:, None]).any(dim=1).float().mean()
    assert scores["image_to_image_recall@5"] == pytest.approx(float(hit))
