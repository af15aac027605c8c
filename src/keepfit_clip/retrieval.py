"""Retrieval: how often the right text stands among the nearest ones of an image, and the other way round."""

from collections.abc import Sequence

import torch
from torch import Tensor

from keepfit_clip.loss import positive_pairs

__all__ = ["first_positive_ranks", "score_retrieval"]

_ROWS = 1024  # of the similarity matrix that exist at a time


def first_positive_ranks(queries: Tensor, candidates: Tensor, positive: Tensor) -> Tensor:
    """The rank of the nearest right candidate of each query, from 1.

    A wrong candidate as near as the nearest right one stands before it, so that equal features earn nothing.

    Args:
        queries: (Q, D).
        candidates: (C, D).
        positive: (Q, C) bool; each row has at least one.

    Returns:
        (Q,) whole numbers.
    """
    similarity = queries @ candidates.T
    best = similarity.masked_fill(~positive, float("-inf")).amax(dim=1, keepdim=True)
    return 1 + ((similarity >= best) & ~positive).sum(dim=1)


def score_retrieval(
    image_features: Tensor, text_features: Tensor, image_ids: Tensor, text_id: Tensor, at: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Recall at several ranks, in both directions, over pairs of images and texts.

    A text that stands for several images is one candidate, and right for all of them.

    Args:
        image_features, text_features: (N, D), L2-normalised.
        image_ids: (N, 16) ids of what may rightly be said of each image, -1 where unused; see `data.batch`.
        text_id: (N,) what each text says, among its image's ids.
        at: ranks.

    Returns:
        `image_to_text_recall@K` and `text_to_image_recall@K`, each between 0 and 1.
    """
    unique_id, first = _first_of_each(text_id)
    unique_text = text_features[first]  # (T, D)
    ranks: dict[str, list[Tensor]] = {"image_to_text": [], "text_to_image": []}
    for start in range(0, len(image_features), _ROWS):
        rows = slice(start, start + _ROWS)
        positive = positive_pairs(image_ids[rows], unique_id)
        ranks["image_to_text"].append(first_positive_ranks(image_features[rows], unique_text, positive))
    for start in range(0, len(unique_id), _ROWS):
        rows = slice(start, start + _ROWS)
        positive = positive_pairs(image_ids, unique_id[rows]).T
        ranks["text_to_image"].append(first_positive_ranks(unique_text[rows], image_features, positive))
    return {
        f"{direction}_recall@{k}": float((torch.cat(found) <= k).float().mean())
        for direction, found in ranks.items()
        for k in at
    }


def _first_of_each(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Each id once, and where it stands first."""
    places: dict[int, int] = {}
    for place, value in enumerate(ids.tolist()):
        places.setdefault(value, place)
    first = torch.tensor(list(places.values()), dtype=torch.long)
    return ids[first], first
