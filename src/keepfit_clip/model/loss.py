"""The objective of hybrid pretraining (stage 2).

    loss = w_con · [soft-CLIP(public) + soft-CLIP(elite)] + w_rev · MSE(text revision) + w_cap · caption NLL

`HybridLoss` takes the model's output on a training batch, gathers what all ranks have (with gradient), computes the
rows of its own rank and scales them so that the average over ranks is the loss of the global batch. DDP averages
gradients over ranks, so 1 rank and N ranks learn the same.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from keepfit_clip.model.pairs import positive_pairs
from keepfit_clip.model.revision import revised_text_features

__all__ = ["HybridLoss", "soft_clip_loss_sum"]


def soft_clip_loss_sum(logits: Tensor, positive: Tensor, allowed: Tensor) -> Tensor:
    """Cross-entropy of each row against its positives, all positives weighing the same; summed over rows.

    Args:
        logits: (R, C).
        positive: (R, C) bool.
        allowed: (C,) bool, the columns that take part.

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
        joint_contrast: contrast public and elite pairs in one matrix. Off by default: an elite caption of the same
            disease would be a negative.

    Every term of the result is a scalar, already weighted, whose name ends in `_loss`; the loss is their sum.
    """

    def __init__(
        self,
        contrastive_weight: float = 1.0,
        revision_weight: float = 100.0,
        caption_weight: float = 1.0,
        public_caption_weight: float = 0.0,
        joint_contrast: bool = False,
    ):
        super().__init__()
        self.contrastive_weight = contrastive_weight
        self.revision_weight = revision_weight
        self.caption_weight = caption_weight
        self.public_caption_weight = public_caption_weight
        self.joint_contrast = joint_contrast

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
            sample_key: (B, 32) names of the samples; the training programs use them to report trouble.
            output_dict: False gives the sum instead of the terms.
        """
        ranks = _Ranks()
        image_features, text_features = image_features.float(), text_features.float()
        revision = (revision_query.float(), revision_key.float(), revision_value.float())
        # In float32 whatever the run's precision: at a scale of 100 bfloat16 logits are half a unit apart.
        with torch.autocast(image_features.device.type, enabled=False):
            terms = self._contrastive(
                ranks, image_features, text_features, logit_scale, is_elite, text_id, category_ids
            )
            terms["revision_loss"] = self.revision_weight * self._revision(
                ranks, text_features, is_elite, modality, *revision
            )
        if caption_nll_sum is not None:
            terms["caption_loss"] = self.caption_weight * _mean_nll(ranks, caption_nll_sum, caption_tokens, is_elite)
            if self.public_caption_weight:
                nll = _mean_nll(ranks, caption_nll_sum, caption_tokens, ~is_elite)
                terms["public_caption_loss"] = self.public_caption_weight * nll
        return terms if output_dict else sum(terms.values())

    def _contrastive(
        self, ranks, image_features, text_features, logit_scale, is_elite, text_id, category_ids
    ) -> dict[str, Tensor]:
        all_image, all_text = ranks.gather(image_features), ranks.gather(text_features)  # (G, D)
        all_elite, all_text_id = ranks.gather(is_elite), ranks.gather(text_id)
        all_category_ids = ranks.gather(category_ids)
        image_logits = logit_scale * image_features @ all_text.T  # (B, G)
        text_logits = logit_scale * text_features @ all_image.T  # (B, G)
        image_positive = positive_pairs(category_ids, all_text_id)
        text_positive = positive_pairs(all_category_ids, text_id).T
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
            image_term = soft_clip_loss_sum(image_logits[rows], image_positive[rows], columns)
            text_term = soft_clip_loss_sum(text_logits[rows], text_positive[rows], columns)
            mean = ranks.mean_of_sum((image_term + text_term) / 2, columns.sum())
            terms[name] = self.contrastive_weight * mean
        return terms

    def _revision(self, ranks, text_features, is_elite, modality, query, key, value) -> Tensor:
        """Mean squared error (element mean) between public text features and what the elite pairs say of them."""
        all_elite, all_modality = ranks.gather(is_elite), ranks.gather(modality)
        all_key, all_value = ranks.gather(key), ranks.gather(value)
        public = ~is_elite
        revised, matched = revised_text_features(
            query[public], all_key[all_elite], all_value[all_elite], modality[public], all_modality[all_elite]
        )
        error = F.mse_loss(revised, text_features[public], reduction="none").mean(dim=1) * matched
        # Every parameter of the revision takes part in every step, as DDP waits for its gradients.
        anchor = 0.0 * (query.sum() + key.sum() + value.sum())
        return ranks.mean_of_sum(error.sum(), ranks.sum(matched.sum())) + anchor


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
