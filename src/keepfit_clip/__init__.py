"""KeepFIT V2 for open_clip: vision-language pretraining for retinal images (arXiv 2501.15798).

Importing this package makes every KeepFIT config known to open_clip:

    import open_clip, keepfit_clip
    model, preprocess_train, preprocess = open_clip.create_model_and_transforms("keepfit-v2-lite")
"""

from importlib import import_module

from wrapt import when_imported

from keepfit_clip import _former
from keepfit_clip._version import __version__

# Name -> module. Loaded on first use, so that the import stays light.
_LAZY = {
    "HybridLoss": "keepfit_clip.model.loss",
    "KeepFIT": "keepfit_clip.model.keepfit",
    "KeepFITError": "keepfit_clip.errors",
    "Knowledge": "keepfit_clip.knowledge.conditions",
    "ZeroShotClassifier": "keepfit_clip.model.zero_shot",
    "allow_source": "keepfit_clip.model.pretrained",
    "list_keepfit_models": "keepfit_clip.registry",
    "load_model": "keepfit_clip.folders.loading",
    "register": "keepfit_clip.registry",
}

__all__ = ["__version__", *sorted(_LAZY)]


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return __all__


_former.install()


@when_imported("open_clip")
def _register(_):
    """At once where open_clip is there already, else when somebody imports it: what needs no model starts quickly."""
    import_module("keepfit_clip.registry")
