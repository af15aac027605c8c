"""Known mistranslations in the captions of a data set, and the right terms."""

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from keepfit_clip.errors import ConfigError

__all__ = ["TermCorrections", "corrections_of"]


@dataclass(frozen=True)
class TermCorrections:
    """What to write in the place of what.

    Args:
        title: of the data set.
        lang: of the captions that they are for.
        pairs: pattern -> replacement; the longest patterns stand first where one holds another.
    """

    title: str
    lang: str
    pairs: tuple[tuple[re.Pattern, str], ...]

    def apply(self, text: str) -> str:
        """The text with the right terms; a capital at the head of a term stays one."""
        for pattern, right in self.pairs:
            text = pattern.sub(lambda match, right=right: _like(match[0], match.expand(right)), text)
        return text


def _like(wrong: str, right: str) -> str:
    return right[0].upper() + right[1:] if wrong[0].isupper() else right


@lru_cache(maxsize=8)
def corrections_of(name: str) -> TermCorrections:
    """Those of a data set, by its name.

    Raises:
        ConfigError: there are none for it.
    """
    known = json.loads(Path(__file__).with_name("term_corrections.json").read_text(encoding="utf-8"))
    if name not in known:
        raise ConfigError(f"--correct-terms {name}: there are corrections of {', '.join(known)} only")
    pairs = tuple(
        (re.compile(rf"\b(?:{wrong})\b", re.IGNORECASE), right) for wrong, right in known[name]["corrections"]
    )
    return TermCorrections(known[name]["title"], known[name]["lang"], pairs)
