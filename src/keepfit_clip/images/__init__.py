"""From an encoded image of any kind to upright 8-bit RGB: `reading`, with one rule of `depth`, and pages of `tiff`.

`field_of_view` finds the retina in a picture, `metadata` takes everything but the pixels away.
"""

from importlib import import_module

# Name -> module, loaded on first use.
_LAZY = {
    "open_image": "keepfit_clip.images.reading",
}

__all__ = sorted(_LAZY)


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
