"""KeepFIT V2 for open_clip: vision-language pretraining for retinal images (arXiv 2501.15798).

Importing this package makes every KeepFIT config known to open_clip:

    import open_clip, keepfit_clip
    model, preprocess_train, preprocess = open_clip.create_model_and_transforms("keepfit-v2-lite")
"""

from importlib import import_module
from typing import TYPE_CHECKING

from wrapt import when_imported

from keepfit_clip import _former
from keepfit_clip._faces import face
from keepfit_clip._version import __version__

if TYPE_CHECKING:  # what a type checker and an editor see of the names below
    from keepfit_clip.errors import KeepFITError, KeepFITWarning
    from keepfit_clip.evaluate.sklearn import KeepFITFeatures
    from keepfit_clip.folders.loading import load_model
    from keepfit_clip.knowledge.conditions import Knowledge
    from keepfit_clip.model.keepfit import KeepFIT
    from keepfit_clip.model.loss import HybridLoss
    from keepfit_clip.model.pretrained import allow_source
    from keepfit_clip.model.zero_shot import ZeroShotClassifier
    from keepfit_clip.registry import list_keepfit_models, register

# Loaded on first use, so that the import stays light.
_name_of, _names = face(
    __name__,
    {
        "errors": ["KeepFITError", "KeepFITWarning"],
        "evaluate.sklearn": ["KeepFITFeatures"],
        "folders.loading": ["load_model"],
        "knowledge.conditions": ["Knowledge"],
        "model.keepfit": ["KeepFIT"],
        "model.loss": ["HybridLoss"],
        "model.pretrained": ["allow_source"],
        "model.zero_shot": ["ZeroShotClassifier"],
        "registry": ["list_keepfit_models", "register"],
    },
)
__all__ = ["__version__", *_names]
_ROOMS = ("data", "drawing", "evaluate", "explain", "folders", "images", "knowledge", "model", "training", "transfer")


def __getattr__(name: str):
    return import_module(f"{__name__}.{name}") if name in _ROOMS else _name_of(name)


def __dir__():
    return sorted([*__all__, *_ROOMS])


_former.install()


@when_imported("open_clip")
def _register(_):
    """At once where open_clip is there already, else when somebody imports it: what needs no model starts quickly."""
    import_module("keepfit_clip.registry")
