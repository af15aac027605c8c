"""Shards as they are made and looked at: `build` makes a `plan`, then lets `writer` write.

`inspection` checks and counts, `statistics_page` shows the counts.
"""

from importlib import import_module

# Name -> module, loaded on first use.
_LAZY = {
    "ShardOptions": "keepfit_clip.data.shards.options",
    "build_shards": "keepfit_clip.data.shards.build",
}

__all__ = sorted(_LAZY)


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
