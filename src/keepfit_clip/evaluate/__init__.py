"""A model over labelled images: `table` classifies, `pairs` retrieves and captions.

`features` are computed once and kept, also for `sklearn`; `metrics` holds the figures.
"""

from keepfit_clip._faces import face

__getattr__, __all__ = face(
    __name__,
    {
        "evaluate.features": ["image_features"],
        "evaluate.sklearn": ["KeepFITFeatures"],
        "evaluate.table": ["evaluate_table", "image_batches"],
    },
)
