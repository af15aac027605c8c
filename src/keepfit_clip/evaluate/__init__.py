"""A model over labelled images: `table` classifies, `pairs` retrieves and captions.

`features` are computed once and kept, also for `sklearn`; `metrics` holds the figures.
"""

from importlib import import_module

# Name -> module, loaded on first use.
_LAZY = {
    "KeepFITFeatures": "keepfit_clip.evaluate.sklearn",
    "evaluate_table": "keepfit_clip.evaluate.table",
    "image_batches": "keepfit_clip.evaluate.table",
    "image_features": "keepfit_clip.evaluate.features",
}

__all__ = sorted(_LAZY)


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
