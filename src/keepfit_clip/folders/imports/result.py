"""What an import did."""

from dataclasses import dataclass, field

from keepfit_clip.model.state_dicts import Fit

__all__ = ["Imported"]


@dataclass
class Imported:
    """What an import did.

    Args:
        taken: tensors of the file that stand in the folder now, each for itself or merged with another one.
        left_out: why -> how many tensors of the file are not needed.
        fit: what did not fit, where `partial` let it pass.
        notes: what had to be assumed, and what the folder holds beside the file's weights.
    """

    taken: int
    left_out: dict[str, int] = field(default_factory=dict)
    fit: Fit = field(default_factory=Fit)
    notes: list[str] = field(default_factory=list)
