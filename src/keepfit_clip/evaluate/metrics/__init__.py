"""Figures of merit: of `classification`, of `retrieval`, of written `captions`."""

from keepfit_clip._faces import face

__getattr__, __all__ = face(
    __name__,
    {
        "evaluate.metrics.classification": ["score_classification"],
        "evaluate.metrics.retrieval": ["score_retrieval"],
    },
)
