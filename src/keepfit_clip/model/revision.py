"""Text revision: what elite data says of similar images pulls the text features of public images.

KeepFIT's image-similarity-guided attention: query = public image feature, keys = elite image features, values = elite
text features. `TextRevision` only projects; `revised_text_features` attends, because the elite keys and values of all
ranks are known in the loss only. KeepFIT v1's published code normalises over the heads; here it is over the elite keys
of the same modality.
"""

import torch
from torch import Tensor, nn

from keepfit_clip.errors import ConfigError
from keepfit_clip.model.config import RevisionConfig

__all__ = ["TextRevision", "revised_text_features"]


class TextRevision(nn.Module):
    """The projections of a multi-head attention without biases, its output projection folded into the values.

    Args:
        embed_dim: D, width of the joint space.
        config: number of heads H.

    Raises:
        ConfigError: embed_dim does not divide by the heads.
    """

    def __init__(self, embed_dim: int, config: RevisionConfig):
        super().__init__()
        if embed_dim % config.heads:
            raise ConfigError(f"keepfit_cfg.revision.heads {config.heads} does not divide embed_dim {embed_dim}")
        self.heads = config.heads
        self.query = nn.Linear(embed_dim, embed_dim, bias=False)
        self.key = nn.Linear(embed_dim, embed_dim, bias=False)
        self.value = nn.Linear(embed_dim, embed_dim, bias=False)
        self.out = nn.Linear(embed_dim, embed_dim, bias=False)

    def forward(self, image_features: Tensor, text_features: Tensor) -> dict[str, Tensor]:
        """Projects the features (B, D) of a batch.

        Returns:
            `revision_query` and `revision_key` (B, H, D/H) of the images, `revision_value` (B, H, D) of the texts.
        """
        value = self.value(text_features).unflatten(-1, (self.heads, -1))  # (B, H, D/H)
        out = self.out.weight.unflatten(1, (self.heads, -1))  # (D, H, D/H)
        return {
            "revision_query": self.query(image_features).unflatten(-1, (self.heads, -1)),
            "revision_key": self.key(image_features).unflatten(-1, (self.heads, -1)),
            "revision_value": torch.einsum("bhc,dhc->bhd", value, out.to(value.dtype)),
        }


def revised_text_features(
    query: Tensor, key: Tensor, value: Tensor, query_modality: Tensor, key_modality: Tensor
) -> tuple[Tensor, Tensor]:
    """Attends from public images to the elite pairs of the same modality.

    Args:
        query: (P, H, d) of the public images.
        key: (E, H, d) of the elite images.
        value: (E, H, D) of the elite texts, output projection folded in.
        query_modality, key_modality: (P,) and (E,) modality numbers; a negative one matches every modality.

    Returns:
        Revised text features (P, D), and (P,) bool: false (with a feature of zeros) where no elite pair has the
        modality.
    """
    same = query_modality[:, None] == key_modality[None, :]
    same |= (query_modality[:, None] < 0) | (key_modality[None, :] < 0)  # (P, E)
    scores = torch.einsum("phc,ehc->hpe", query, key).float() / query.shape[-1] ** 0.5  # (H, P, E)
    scores = scores.masked_fill(~same, torch.finfo(scores.dtype).min)
    attention = scores.softmax(dim=-1) * same  # rows without any key become zero
    return torch.einsum("hpe,ehd->pd", attention.to(value.dtype), value), same.any(dim=1)
