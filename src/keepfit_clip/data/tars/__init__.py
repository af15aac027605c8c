"""Shards as they are read: `locations` opens them wherever they lie.

`members` reads tars and `reader` the samples in them, both within `limits`.
"""

from importlib import import_module

# Name -> module, loaded on first use.
_LAZY = {
    "list_shards": "keepfit_clip.data.tars.reader",
    "read_shards": "keepfit_clip.data.tars.reader",
}

__all__ = sorted(_LAZY)


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
