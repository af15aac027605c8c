"""What a KeepFIT model is made of: `keepfit` puts the image tower, text tower, decoder and revision together.

`config` says what may stand in a model config, `loss` is the hybrid objective, `zero_shot` classifies by texts,
`pretrained` and `state_dicts` say where weights come from.
"""

from keepfit_clip._faces import face

__getattr__, __all__ = face(
    __name__,
    {
        "model.keepfit": ["KeepFIT"],
        "model.loss": ["HybridLoss"],
        "model.pretrained": ["allow_source"],
        "model.zero_shot": ["ZeroShotClassifier"],
    },
)
