"""Text revision: what elite data says of similar images pulls the text features of public images.

KeepFIT's image-similarity-guided attention: query = public image feature, keys = elite image features, values = elite
text features. `TextRevision` only projects; `revision_attention` attends, because the elite keys and values of all
ranks are known in the loss only. KeepFIT v1's published code normalises over the heads; here it is over the elite keys
of the same modality.

Of unit features, Linear's own initialisation and 1/sqrt(d) make scores that hardly differ (standard deviation
0.0007): the attention of KeepFIT v1 is uniform, and stays so, for its gradient is below AdamW's epsilon. So with
"cosine", as the shipped configs have it, query and key are one orthogonal map, whose cosines are taken times a learnt
temperature that starts at the logit scale's, and value and output start as a map and its inverse: at the start a text
is revised to the mean of the elite texts, weighted by how alike the images are. "dot" is v1's arithmetic.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keepfit_clip.errors import ConfigError
from keepfit_clip.model.config import RevisionConfig

__all__ = ["TextRevision", "attention_entropy", "revised_text_features", "revision_attention"]

_START = math.log(1 / 0.07)  # as CLIP's logit scale
_LARGEST = 100.0  # temperature, as open_clip clamps the logit scale


class TextRevision(nn.Module):
    """The projections of a multi-head attention without biases, its output projection folded into the values.

    With cosine attention no gradient goes to the features: the images are what guides and the elite texts what is
    taught, and neither is to move towards the texts that are revised.

    Args:
        embed_dim: D, width of the joint space.
        config: number of heads H, and what attention.

    Raises:
        ConfigError: embed_dim does not divide by the heads.
    """

    def __init__(self, embed_dim: int, config: RevisionConfig):
        super().__init__()
        if embed_dim % config.heads:
            raise ConfigError(f"keepfit_cfg.revision.heads {config.heads} does not divide embed_dim {embed_dim}")
        self.heads = config.heads
        self.by_cosine = config.attention == "cosine"
        self.query = nn.Linear(embed_dim, embed_dim, bias=False)  # by cosine the keys' map too
        self.value = nn.Linear(embed_dim, embed_dim, bias=False)
        self.out = nn.Linear(embed_dim, embed_dim, bias=False)
        if self.by_cosine:
            self.log_temperature = nn.Parameter(torch.tensor(_START))
            nn.init.orthogonal_(self.query.weight)
            nn.init.orthogonal_(self.value.weight)
            self.out.weight.data.copy_(self.value.weight.data.T)
        else:
            self.key = nn.Linear(embed_dim, embed_dim, bias=False)

    def forward(self, image_features: Tensor, text_features: Tensor) -> dict[str, Tensor]:
        """Projects the features (B, D) of a batch.

        Returns:
            `revision_query` and `revision_key` (B, H, D/H) of the images, `revision_value` (B, H, D) of the texts.
        """
        if self.by_cosine:
            image_features, text_features = image_features.detach(), text_features.detach()
            key = F.normalize(self._by_head(self.query(image_features)), dim=-1)
            query = key * self.log_temperature.exp().clamp(max=_LARGEST) * key.shape[-1] ** 0.5
        else:
            query, key = self._by_head(self.query(image_features)), self._by_head(self.key(image_features))
        value = self._by_head(self.value(text_features))  # (B, H, D/H)
        out = self._by_head(self.out.weight)  # (D, H, D/H)
        folded = torch.einsum("bhc,dhc->bhd", value, out.to(value.dtype))
        return {"revision_query": query, "revision_key": key, "revision_value": folded}

    def _by_head(self, projected: Tensor) -> Tensor:
        return projected.unflatten(-1, (self.heads, -1))


def revision_attention(
    query: Tensor, key: Tensor, query_modality: Tensor, key_modality: Tensor
) -> tuple[Tensor, Tensor]:
    """Attention from public images to the elite images of the same modality.

    Args:
        query: (P, H, d) of the public images.
        key: (E, H, d) of the elite images.
        query_modality, key_modality: (P,) and (E,) modality numbers; a negative one matches every modality.

    Returns:
        Attention (H, P, E), whose rows sum to 1, or to 0 where no key has the modality; and (P, E) bool: which keys
        each query may attend to.
    """
    same = query_modality[:, None] == key_modality[None, :]
    same |= (query_modality[:, None] < 0) | (key_modality[None, :] < 0)  # (P, E)
    scores = torch.einsum("phc,ehc->hpe", query, key).float() / query.shape[-1] ** 0.5  # (H, P, E)
    scores = scores.masked_fill(~same, torch.finfo(scores.dtype).min)
    return scores.softmax(dim=-1) * same, same


def revised_text_features(
    query: Tensor, key: Tensor, value: Tensor, query_modality: Tensor, key_modality: Tensor
) -> tuple[Tensor, Tensor]:
    """What the elite pairs say of public images, see `revision_attention`.

    Args:
        query, key, query_modality, key_modality: see there.
        value: (E, H, D) of the elite texts, output projection folded in.

    Returns:
        Revised text features (P, D), and (P,) bool: false (with a feature of zeros) where no elite pair has the
        modality.
    """
    attention, same = revision_attention(query, key, query_modality, key_modality)
    return torch.einsum("hpe,ehd->pd", attention.to(value.dtype), value), same.any(dim=1)


@torch.no_grad()
def attention_entropy(attention: Tensor, same: Tensor) -> Tensor | None:
    """How even an attention is: 1 where every elite image counts the same, whatever the public image shows.

    Args:
        attention, same: see `revision_attention`.

    Returns:
        (), the mean over heads and queries of the entropy as a share of its largest value, the logarithm of the
        number of keys; None where no query has two keys.
    """
    keys = same.sum(dim=1)
    entropy = torch.special.entr(attention).sum(dim=-1)[:, keys > 1]  # (H, P')
    return (entropy / keys[keys > 1].log()).mean() if entropy.numel() else None
