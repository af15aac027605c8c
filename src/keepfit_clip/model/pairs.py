"""Which texts are true of which images."""

import torch
from torch import Tensor

__all__ = ["implied_pairs", "positive_pairs"]


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


def implied_pairs(image_codes: Tensor, text_codes: Tensor) -> Tensor:
    """Which texts follow from what is known of which images, see `keepfit_clip.knowledge.Knowledge.implied`.

    Args:
        image_codes: (I, W) ids of what is true of each image; unused slots hold -1.
        text_codes: (T, V) ids of what makes each text true; unused slots hold -1.

    Returns:
        (I, T) bool: the two have an id in common.
    """
    ids, index = torch.unique(torch.cat([image_codes.flatten(), text_codes.flatten()]), return_inverse=True)
    of_images, of_texts = index.split([image_codes.numel(), text_codes.numel()])
    images, texts = (
        torch.zeros(len(codes), len(ids), device=ids.device).scatter_(1, own.view_as(codes), 1.0)
        for codes, own in ((image_codes, of_images), (text_codes, of_texts))
    )
    return images * (ids >= 0) @ texts.T > 0
