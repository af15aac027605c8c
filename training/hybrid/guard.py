"""What happens when a loss term becomes NaN or infinite: the run stops and says why, or skips the step.

All ranks decide together, so that none waits for another that has stopped.
"""

import logging
import math

import torch
import torch.distributed as dist
from torch import Tensor, nn

from keepfit_clip.data.stream.batch import sample_keys
from keepfit_clip.errors import NonFiniteLossError

__all__ = ["NonFiniteGuard"]

_log = logging.getLogger(__name__)

_KEYS_SHOWN = 8
_PER_SAMPLE = ("image_features", "text_features", "caption_nll_sum")


class NonFiniteGuard:
    """Looks at the terms of every step and keeps a step that is not finite away from the weights.

    Args:
        model: whose running statistics a skipped step must not spoil.
        optimizer: of the run; a skipped step never reaches it.
        allowed: steps that may be skipped in the run.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, allowed: int = 0):
        self.allowed = allowed
        self.skipped = 0
        self._dropping = False
        self._optimizer = optimizer
        self._statistics = [b for b in model.buffers() if b.is_floating_point()] if allowed else []
        self._last_good = [b.clone() for b in self._statistics]
        if allowed:
            optimizer.register_step_pre_hook(lambda *_: self._withhold())
            optimizer.register_step_post_hook(lambda *_: self._remember())

    def end_step(self) -> None:
        """To be called after each step: where a gradient scaler left the optimizer's out, nobody else does."""
        if self._dropping:
            self._remember()

    def check(self, terms: dict[str, Tensor], outputs: dict[str, Tensor], where: str) -> dict[str, Tensor]:
        """The terms, if all of them are finite on every rank.

        Args:
            terms: of the loss.
            outputs: of the model, whose `sample_key` names the samples.
            where: the step, for the message.

        Returns:
            The terms; those of a step that is skipped without what is not finite in them.

        Raises:
            NonFiniteLossError: one is not, and no more steps may be skipped. Every rank raises it.
        """
        finite = torch.isfinite(torch.stack([term.detach().float() for term in terms.values()])).all()
        if _distributed():
            finite = finite.to(torch.uint8)
            dist.all_reduce(finite, op=dist.ReduceOp.MIN)
        if finite:
            return terms
        message = f"{where}: {_describe(terms, outputs)}"
        if self._dropping:  # another part of a step that is skipped already
            pass
        elif self.skipped < self.allowed:
            self.skipped += 1
            _log.warning(f"skipped ({self.skipped} of at most {self.allowed}) {message}")
        else:
            raise NonFiniteLossError(
                f"{message}. The last checkpoint is good: look at these samples (`keepfit-clip shards show`), lower "
                "--lr, or go on past a few such steps with --skip-nonfinite N"
            )
        self._dropping = True
        return {name: term.nan_to_num(0.0, 0.0, 0.0) for name, term in terms.items()}

    def _withhold(self) -> None:
        """Before the optimizer's step: without gradients it does nothing."""
        if self._dropping:
            for group in self._optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None

    def _remember(self) -> None:
        """After it: the statistics are those of the last good step again, or these are now."""
        kept, current = self._last_good, self._statistics
        for target, source in zip(*((current, kept) if self._dropping else (kept, current)), strict=True):
            target.copy_(source)
        self._dropping = False


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _describe(terms: dict[str, Tensor], outputs: dict[str, Tensor]) -> str:
    """The terms of all ranks that are not finite, and whose samples are to blame."""
    own = ({name: float(term.detach()) for name, term in terms.items()}, *_nonfinite_samples(outputs))
    ranks = [own]
    if _distributed():
        ranks = [None] * dist.get_world_size()
        dist.all_gather_object(ranks, own)
    values: dict[str, float] = {}
    for rank_terms, _, _ in ranks:
        for name, value in rank_terms.items():
            if math.isfinite(values.get(name, 0.0)):
                values[name] = value
    listed = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
    keys = [key for _, blamed, _ in ranks for key in blamed]
    total = sum(count for _, _, count in ranks)
    if not keys:
        return f"the loss is not finite ({listed}), though the features of every sample are"
    if len(keys) == total:
        return (
            f"the loss is not finite ({listed}), nor are the features of any of the {total} samples: the weights "
            "broke, or a BatchNorm spread what one sample brought"
        )
    more = f" and {len(keys) - _KEYS_SHOWN} more" if len(keys) > _KEYS_SHOWN else ""
    return f"the loss is not finite ({listed}) because of the samples {', '.join(keys[:_KEYS_SHOWN])}{more}"


def _nonfinite_samples(outputs: dict[str, Tensor]) -> tuple[list[str], int]:
    """Keys of this rank's samples whose features or caption NLL are not finite, and how many samples it has."""
    count = len(outputs["image_features"])
    bad = torch.zeros(count, dtype=torch.bool, device=outputs["image_features"].device)
    for name in _PER_SAMPLE:
        if name in outputs:
            bad |= ~torch.isfinite(outputs[name].detach().float().reshape(count, -1)).all(dim=1)
    return sample_keys(outputs["sample_key"][bad]), count
