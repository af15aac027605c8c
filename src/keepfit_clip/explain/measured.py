"""How often the hottest point of a map is on a lesion: `python benchmarks/explain.py`, see docs/RESULTS.md.

240 drawn pictures of 12 kinds, whose lesions' places are known, and a model of the demo. Maps of another model on
photographs may be worse.
"""

from dataclasses import dataclass

__all__ = ["CENTRE_GUESS", "POINTING_GAME", "Hits"]


@dataclass(frozen=True)
class Hits:
    """A share of pictures with its standard error."""

    share: float
    error: float

    def better_than(self, other: "Hits") -> bool:
        """Whether it is higher by more than two standard errors of the difference."""
        return self.share - other.share > 2 * (self.error**2 + other.error**2) ** 0.5


POINTING_GAME = {
    "similarity": Hits(0.863, 0.022),
    "Grad-CAM": Hits(0.883, 0.021),
    "attention": Hits(0.188, 0.025),
}
CENTRE_GUESS = Hits(0.421, 0.032)
