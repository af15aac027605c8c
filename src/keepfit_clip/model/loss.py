"""The objective of hybrid pretraining (stage 2).

    loss = w_con · [soft-CLIP(public) + soft-CLIP(elite)] + w_rev · MSE(text revision) + w_cap · caption NLL

`HybridLoss` takes the model's output on a training batch, gathers what all ranks have (with gradient), computes the
rows of its own rank and scales them so that the average over ranks is the loss of the global batch. DDP averages
gradients over ranks, so 1 rank and N ranks learn the same.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from keepfit_clip.errors import ConfigError
from keepfit_clip.model.pairs import implied_pairs, positive_pairs
from keepfit_clip.model.revision import attention_entropy, revision_attention

__all__ = ["IMPLIED", "HybridLoss", "soft_clip_loss_sum"]


IMPLIED = ("positive", "mask", "negative")


def soft_clip_loss_sum(logits: Tensor, positive: Tensor, allowed: Tensor) -> Tensor:
    """Cross-entropy of each row against its positives, all positives weighing the same; summed over rows.

    Args:
        logits: (R, C).
        positive: (R, C) bool.
        allowed: (C,) or (R, C) bool, the columns, or the pairs, that take part.

    Returns:
        (), the sum over the R rows; rows without a positive count zero.
    """
    logits = logits.masked_fill(~allowed, float("-inf"))
    log_probability = logits.log_softmax(dim=1)
    positive = positive & allowed
    target = positive / positive.sum(dim=1, keepdim=True).clamp(min=1)
    return -(target * log_probability.masked_fill(~positive, 0)).sum()


class HybridLoss(nn.Module):
    """The hybrid objective, `loss(**model_output, output_dict=True)` as open_clip's loop calls it.

    Args:
        contrastive_weight: w_con.
        revision_weight: w_rev; KeepFIT v1 uses 100 on an element-mean MSE.
        caption_weight: w_cap, on elite captions.
        public_caption_weight: the same on public texts (0: they are not captioned).
        joint_contrast: contrast public and elite pairs in one matrix. An expert's caption that names what a public
            image has is no negative of it.
        implied: what becomes of a public text that follows from what is known of another image, such as "no glaucoma"
            of a normal one: it is as positive as the image's own, it takes no part (mask), or it is a negative as any.

    Every term of the result is a scalar, already weighted, whose name ends in `_loss`; the loss is their sum.

    Attributes:
        figures: of the last batch, what is no part of the loss: `revision_entropy`, see `attention_entropy`.
    """

    def __init__(
        self,
        contrastive_weight: float = 1.0,
        revision_weight: float = 100.0,
        caption_weight: float = 1.0,
        public_caption_weight: float = 0.0,
        joint_contrast: bool = False,
        implied: str = "positive",
    ):
        super().__init__()
        if implied not in IMPLIED:
            raise ConfigError(f"implied is {implied!r}; it can be {', '.join(IMPLIED)}")
        self.implied = implied
        self.contrastive_weight = contrastive_weight
        self.revision_weight = revision_weight
        self.caption_weight = caption_weight
        self.public_caption_weight = public_caption_weight
        self.joint_contrast = joint_contrast
        self.figures: dict[str, Tensor | None] = {}

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor,
        is_elite: Tensor,
        modality: Tensor,
        text_id: Tensor,
        category_ids: Tensor,
        revision_query: Tensor,
        revision_key: Tensor,
        revision_value: Tensor,
        caption_nll_sum: Tensor | None = None,
        caption_tokens: Tensor | None = None,
        image_codes: Tensor | None = None,
        text_codes: Tensor | None = None,
        sample_key: Tensor | None = None,
        output_dict: bool = True,
    ) -> dict[str, Tensor] | Tensor:
        """Computes the terms.

        Args:
            image_features, text_features: (B, D), L2-normalised.
            logit_scale: ().
            is_elite: (B,) bool.
            modality: (B,) modality numbers, negative for unknown.
            text_id, category_ids: (B,) and (B, 16), see `keepfit_clip.data.stream.batch`.
            revision_query, revision_key, revision_value: see `TextRevision`.
            caption_nll_sum, caption_tokens: (B,) nats and token counts; absent without a decoder.
            image_codes, text_codes: (B, 48) and (B, 8), see there; without them nothing is implied.
            sample_key: (B, 32) names of the samples; the training programs use them to report trouble.
            output_dict: False gives the sum instead of the terms.
        """
        ranks = _Ranks()
        image_features, text_features = image_features.float(), text_features.float()
        revision = (revision_query.float(), revision_key.float(), revision_value.float())
        # In float32 whatever the run's precision: at a scale of 100 bfloat16 logits are half a unit apart.
        with torch.autocast(image_features.device.type, enabled=False):
            pairs = self._pairs(ranks, is_elite, text_id, category_ids, image_codes, text_codes)
            terms = self._contrastive(ranks, image_features, text_features, logit_scale, is_elite, pairs)
            terms["revision_loss"] = self.revision_weight * self._revision(
                ranks, text_features, is_elite, modality, *revision
            )
        if caption_nll_sum is not None:
            terms["caption_loss"] = self.caption_weight * _mean_nll(ranks, caption_nll_sum, caption_tokens, is_elite)
            if self.public_caption_weight:
                nll = _mean_nll(ranks, caption_nll_sum, caption_tokens, ~is_elite)
                terms["public_caption_loss"] = self.public_caption_weight * nll
        return terms if output_dict else sum(terms.values())

    def _pairs(self, ranks, is_elite, text_id, category_ids, image_codes, text_codes) -> "_Pairs":
        all_elite, all_text_id = ranks.gather(is_elite), ranks.gather(text_id)
        image_positive = positive_pairs(category_ids, all_text_id)  # (B, G)
        text_positive = positive_pairs(ranks.gather(category_ids), text_id).T
        if image_codes is None or self.implied == "negative":
            return _Pairs(image_positive, text_positive, None, None)
        of_images = implied_pairs(image_codes, ranks.gather(text_codes))  # (B, G)
        of_texts = implied_pairs(ranks.gather(image_codes), text_codes)  # (G, B)
        image_positive, image_allowed = self._with_implied(image_positive, of_images, is_elite, all_elite)
        text_positive, text_allowed = self._with_implied(text_positive.T, of_texts, all_elite, is_elite)
        return _Pairs(image_positive, text_positive.T, image_allowed, text_allowed.T)

    def _with_implied(
        self, positive: Tensor, implied: Tensor, image_is_elite: Tensor, text_is_elite: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Which of the pairs of images and texts (I, T) are positive, and which take part.

        What a caption names may be true of another patient and the whole of it not: it is no positive, and no negative
        of a public image either. Captions are told from each other by their own images alone.
        """
        implied = implied & ~positive
        unknown = implied & text_is_elite[None, :] & ~image_is_elite[:, None]
        true = implied & ~text_is_elite[None, :]
        return (positive | true, ~unknown) if self.implied == "positive" else (positive, ~(unknown | true))

    def _contrastive(
        self, ranks, image_features, text_features, logit_scale, is_elite, pairs: "_Pairs"
    ) -> dict[str, Tensor]:
        all_image, all_text = ranks.gather(image_features), ranks.gather(text_features)  # (G, D)
        all_elite = ranks.gather(is_elite)
        image_logits = logit_scale * image_features @ all_text.T  # (B, G)
        text_logits = logit_scale * text_features @ all_image.T  # (B, G)
        if self.joint_contrast:
            groups = {"contrastive_loss": (torch.ones_like(is_elite), torch.ones_like(all_elite))}
        else:
            groups = {
                "public_contrastive_loss": (~is_elite, ~all_elite),
                "elite_contrastive_loss": (is_elite, all_elite),
            }
        terms = {}
        for name, (rows, columns) in groups.items():
            if not columns.any():  # e.g. training on public data alone
                continue
            image_allowed = columns if pairs.image_allowed is None else pairs.image_allowed[rows] & columns
            text_allowed = columns if pairs.text_allowed is None else pairs.text_allowed[rows] & columns
            image_term = soft_clip_loss_sum(image_logits[rows], pairs.image_positive[rows], image_allowed)
            text_term = soft_clip_loss_sum(text_logits[rows], pairs.text_positive[rows], text_allowed)
            mean = ranks.mean_of_sum((image_term + text_term) / 2, columns.sum())
            terms[name] = self.contrastive_weight * mean
        return terms

    def _revision(self, ranks, text_features, is_elite, modality, query, key, value) -> Tensor:
        """Mean squared error (element mean) between public text features and what the elite pairs say of them."""
        all_elite, all_modality = ranks.gather(is_elite), ranks.gather(modality)
        all_key, all_value = ranks.gather(key), ranks.gather(value)
        public = ~is_elite
        attention, same = revision_attention(
            query[public], all_key[all_elite], modality[public], all_modality[all_elite]
        )
        self.figures["revision_entropy"] = attention_entropy(attention, same)
        revised, matched = torch.einsum("hpe,ehd->pd", attention, all_value[all_elite]), same.any(dim=1)
        error = F.mse_loss(revised, text_features[public], reduction="none").mean(dim=1) * matched
        # Every parameter of the revision takes part in every step, as DDP waits for its gradients.
        anchor = 0.0 * (query.sum() + key.sum() + value.sum())
        return ranks.mean_of_sum(error.sum(), ranks.sum(matched.sum())) + anchor


class _Pairs(NamedTuple):
    """Pairs of this rank's rows with all columns, (B, G) bool: which are positive, and which take part (None: all)."""

    image_positive: Tensor
    text_positive: Tensor
    image_allowed: Tensor | None
    text_allowed: Tensor | None


class _Ranks:
    """The ranks of the run, or this process alone. All sums and gathers carry gradients to every rank."""

    def __init__(self):
        self.distributed = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self.world_size = dist.get_world_size() if self.distributed else 1

    def gather(self, tensor: Tensor) -> Tensor:
        """(B, ...) of each rank to (G, ...), ranks in order."""
        if not self.distributed:
            return tensor
        return _GatherWithGradient.apply(tensor)

    def sum(self, count: Tensor) -> Tensor:
        """Sum of a count over the ranks; no gradient."""
        if self.distributed:
            count = count.clone()
            dist.all_reduce(count)
        return count

    def mean_of_sum(self, own_sum: Tensor, global_count: Tensor) -> Tensor:
        """This rank's share of a global mean, scaled so that the average over ranks is the global mean."""
        return own_sum * self.world_size / global_count.clamp(min=1)


class _GatherWithGradient(torch.autograd.Function):
    """All ranks' rows; in the backward pass each rank gets the sum of all ranks' gradients of its own rows."""

    @staticmethod
    def forward(ctx, tensor: Tensor) -> Tensor:
        ctx.rows = len(tensor)
        plain = tensor.to(torch.uint8) if tensor.dtype == torch.bool else tensor.contiguous()
        gathered = [torch.empty_like(plain) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, plain)
        return torch.cat(gathered).to(tensor.dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.narrow(0, dist.get_rank() * ctx.rows, ctx.rows)


def _mean_nll(ranks: _Ranks, nll_sum: Tensor, tokens: Tensor, rows: Tensor) -> Tensor:
    """Global NLL per token, nats, over the samples in `rows`."""
    return ranks.mean_of_sum((nll_sum * rows).sum(), ranks.sum((tokens * rows).sum()))
