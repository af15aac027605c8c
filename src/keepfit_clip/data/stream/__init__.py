"""From shards to batches: `mixed` draws samples of both kinds, `sampling` says which.

`decoding` and `augment` make pixels, `batch` makes tensors.
"""

from importlib import import_module

# Name -> module, loaded on first use.
_LAZY = {
    "MixedStream": "keepfit_clip.data.stream.mixed",
    "StreamOptions": "keepfit_clip.data.stream.mixed",
}

__all__ = sorted(_LAZY)


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
