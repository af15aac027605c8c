"""Retrieval: how often something right is among the nearest texts of an image, or images of a text or an image."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.stats import hypergeom
from torch import Tensor

from keepfit_clip.finite import require_finite
from keepfit_clip.model.pairs import positive_pairs

__all__ = ["first_positive_ranks", "score_image_retrieval", "score_retrieval"]

_ROWS = 1024  # of the similarity matrix that exist at a time


def first_positive_ranks(
    queries: Tensor, candidates: Tensor, positive: Tensor, allowed: Tensor | None = None
) -> Tensor:
    """The rank of the nearest right candidate of each query, from 1.

    A wrong candidate as near as the nearest right one stands before it, so that equal features earn nothing.

    Args:
        queries: (Q, D).
        candidates: (C, D).
        positive: (Q, C) bool; each row has at least one.
        allowed: (Q, C) bool, the candidates that count, the positive ones among them; None are all.

    Returns:
        (Q,) whole numbers.
    """
    similarity = queries @ candidates.T
    best = similarity.masked_fill(~positive, float("-inf")).amax(dim=1, keepdim=True)
    before = (similarity >= best) & ~positive
    return 1 + (before if allowed is None else before & allowed).sum(dim=1)


def score_retrieval(
    image_features: Tensor,
    text_features: Tensor,
    image_ids: Tensor,
    text_id: Tensor,
    at: Sequence[int] = (1, 5, 10),
    chance: bool = False,
) -> dict[str, float]:
    """Recall at several ranks, in both directions, over images and texts.

    A text that stands for several images is one candidate, and right for all of them.

    Args:
        image_features: (I, D), L2-normalised.
        text_features: (T, D), L2-normalised.
        image_ids: (I, W) ids of what may rightly be said of each image, -1 where unused; see `data.batch`.
        text_id: (T,) what each text says; each image has at least one of its ids among them.
        at: ranks.
        chance: whether to give `..._chance@K` too, the recall of a random order.

    Returns:
        `image_to_text_recall@K` and `text_to_image_recall@K`, each between 0 and 1.

    Raises:
        NonFiniteError: a feature is NaN or infinite; it would be nearer to everything than anything else.
    """
    require_finite(image_features, "image features")
    require_finite(text_features, "text features")
    unique_id, first = _first_of_each(text_id)
    unique_text = text_features[first]  # (T, D)
    ranks: dict[str, list[Tensor]] = {"image_to_text": [], "text_to_image": []}
    right: dict[str, list[Tensor]] = {"image_to_text": [], "text_to_image": []}
    for rows in _parts(len(image_features)):
        positive = positive_pairs(image_ids[rows], unique_id)
        ranks["image_to_text"].append(first_positive_ranks(image_features[rows], unique_text, positive))
        right["image_to_text"].append(positive.sum(dim=1))
    for rows in _parts(len(unique_id)):
        positive = positive_pairs(image_ids, unique_id[rows]).T
        ranks["text_to_image"].append(first_positive_ranks(unique_text[rows], image_features, positive))
        right["text_to_image"].append(positive.sum(dim=1))
    candidates = {"image_to_text": len(unique_id), "text_to_image": len(image_features)}
    scores = {
        f"{direction}_recall@{k}": float((torch.cat(parts) <= k).float().mean())
        for direction, parts in ranks.items()
        for k in at
    }
    if chance:
        for direction, counts in right.items():
            scores |= _chance(direction, torch.cat(counts).numpy(), candidates[direction], at)
    return scores


def _chance(direction: str, right: np.ndarray, candidates: int | np.ndarray, at: Sequence[int]) -> dict[str, float]:
    """Mean recall of a random order, for queries with so many right ones among the candidates (Q,)."""
    return {
        f"{direction}_chance@{k}": float(
            np.mean(1 - hypergeom.pmf(0, candidates, right, np.minimum(k, candidates))) if len(right) else math.nan
        )
        for k in at
    }


def score_image_retrieval(
    features: Tensor, ids: Tensor, groups: Tensor | None = None, at: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Recall at several ranks of images that show the same as an image, the image itself and its group left out.

    Args:
        features: (N, D), L2-normalised.
        ids: (N, W) what each image shows, -1 where unused; two images that share one are right for each other.
        groups: (N,) what must not be found because it is the same eye or picture, such as a patient's images, or None.
        at: ranks.

    Returns:
        `image_to_image_recall@K`, beside it `image_to_image_chance@K`, the recall of a random order, and
        `image_to_image_queries`, the number of images with another right one; recalls are NaN where there is none.
    """
    require_finite(features, "image features")
    groups = torch.arange(len(features)) if groups is None else groups
    ranks, right, others = [], [], []
    for rows in _parts(len(features)):
        allowed = groups[rows, None] != groups[None, :]
        positive = _share_an_id(ids[rows], ids) & allowed
        asked = positive.any(dim=1)
        if asked.any():
            queries = features[rows][asked]
            ranks.append(first_positive_ranks(queries, features, positive[asked], allowed[asked]))
        right.append(positive[asked].sum(dim=1))
        others.append(allowed[asked].sum(dim=1))
    right, others = torch.cat(right).numpy(), torch.cat(others).numpy()
    scores = {"image_to_image_queries": len(right)} | _chance("image_to_image", right, others, at)
    for k in at:
        scores[f"image_to_image_recall@{k}"] = float((torch.cat(ranks) <= k).float().mean()) if ranks else math.nan
    return scores


def _share_an_id(ids: Tensor, others: Tensor) -> Tensor:
    """(Q, N) bool: whether rows of (Q, W) and (N, W) share an id; -1 is none."""
    shared = torch.zeros(len(ids), len(others), dtype=torch.bool)
    for slot in others.unbind(dim=1):
        shared |= positive_pairs(ids, slot) & (slot >= 0)
    return shared


def _parts(count: int) -> list[slice]:
    return [slice(start, start + _ROWS) for start in range(0, count, _ROWS)]


def _first_of_each(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Each id once, and where it stands first."""
    indices: dict[int, int] = {}
    for index, value in enumerate(ids.tolist()):
        indices.setdefault(value, index)
    first = torch.tensor(list(indices.values()), dtype=torch.long)
    return ids[first], first
