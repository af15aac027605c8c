"""Where a model looks: `maps` of similarity, Grad-CAM and attention, and the `report` of them."""

from importlib import import_module

# Name -> module, loaded on first use.
_LAZY = {
    "Explainer": "keepfit_clip.explain.maps",
    "heat_overlay": "keepfit_clip.explain.maps",
}

__all__ = sorted(_LAZY)


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
