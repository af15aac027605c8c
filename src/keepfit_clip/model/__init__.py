"""What a KeepFIT model is made of: `keepfit` puts the image tower, text tower, decoder and revision together.

`config` says what may stand in a model config, `loss` is the hybrid objective, `zero_shot` classifies by texts,
`pretrained` and `state_dicts` say where weights come from.
"""

from importlib import import_module

# Name -> module, loaded on first use.
_LAZY = {
    "HybridLoss": "keepfit_clip.model.loss",
    "KeepFIT": "keepfit_clip.model.keepfit",
    "ZeroShotClassifier": "keepfit_clip.model.zero_shot",
    "allow_source": "keepfit_clip.model.pretrained",
}

__all__ = sorted(_LAZY)


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
