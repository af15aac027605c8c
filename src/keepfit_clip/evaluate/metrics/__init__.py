"""Figures of merit: of `classification`, of `retrieval`, of written `captions`."""

from importlib import import_module

# Name -> module, loaded on first use.
_LAZY = {
    "score_classification": "keepfit_clip.evaluate.metrics.classification",
    "score_retrieval": "keepfit_clip.evaluate.metrics.retrieval",
}

__all__ = sorted(_LAZY)


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
