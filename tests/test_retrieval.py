"""Recall of retrieval on matrices small enough to check by hand."""

import pytest
import torch

from keepfit_clip.retrieval import first_positive_ranks, score_retrieval
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
