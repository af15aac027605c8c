"""NaN and infinity get no score: what is not finite is an error, or is left out and counted."""

import numpy as np
import torch
from torch import Tensor

from keepfit_clip.errors import NonFiniteError

__all__ = ["NOT_FINITE", "finite_rows", "is_finite", "require_finite"]

NOT_FINITE = "the model's answer for the image is not finite"


def is_finite(value: Tensor) -> bool:
    """Whether a tensor of any dtype holds neither NaN nor infinity."""
    return not value.is_floating_point() or bool(torch.isfinite(value).all())


def finite_rows(values: Tensor | np.ndarray) -> np.ndarray:
    """(N,) bool: which rows of (N, ...) values hold neither NaN nor infinity."""
    values = values.detach().float().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    return np.isfinite(values).reshape(len(values), -1).all(axis=1)


def require_finite(values: Tensor | np.ndarray, what: str) -> None:
    """Makes sure that values can be scored.

    Args:
        values: (N, ...).
        what: they are, for the error.

    Raises:
        NonFiniteError: some are NaN or infinite.
    """
    if isinstance(values, Tensor) and bool(torch.isfinite(values).all()):  # one look, without a copy
        return
    bad = ~finite_rows(values)
    if bad.any():
        raise NonFiniteError(
            f"{int(bad.sum())} of {len(bad)} {what} are not finite (NaN or infinity), so nothing can be said of them: "
            "look at the model's weights, its preprocessing values and its precision"
        )
