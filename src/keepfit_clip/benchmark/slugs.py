"""Names as they may stand in file names."""

import re

__all__ = ["slug_of"]


def slug_of(name: str) -> str:
    """A name with what file systems and shells may trip over replaced.

    >>> slug_of("hf-hub:OWNER/NAME")
    'hf-hub-OWNER-NAME'
    """
    return re.sub(r"[^\w.+]+", "-", name).strip("-.") or "unnamed"
