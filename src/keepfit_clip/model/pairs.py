"""Which texts are true of which images."""

import torch
from torch import Tensor

__all__ = ["positive_pairs"]


def positive_pairs(category_ids: Tensor, text_id: Tensor) -> Tensor:
    """Which texts are true of which images.

    Args:
        category_ids: (I, 16) what is true of each image; unused slots hold -1.
        text_id: (T,) what each text says.

    Returns:
        (I, T) bool: text_id[j] is among category_ids[i].
    """
    # One slot at a time: (I, T, 16) would be 16 times the size of the logits.
    positive = torch.zeros(len(category_ids), len(text_id), dtype=torch.bool, device=text_id.device)
    for slot in category_ids.unbind(dim=1):
        positive |= slot[:, None] == text_id[None, :]
    return positive
