"""Image features as a scikit-learn transformer."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin

from keepfit_clip.data.records import Record
from keepfit_clip.loading import load_model
from keepfit_clip.transfer.features import FeatureCache, image_features

__all__ = ["KeepFITFeatures"]


class KeepFITFeatures(TransformerMixin, BaseEstimator):
    """Turns image files into features of a model; it learns nothing.

        make_pipeline(KeepFITFeatures("runs/model", cache="runs/features"), LogisticRegression())

    Args:
        model: folder made by `keepfit-clip export` or `import`.
        cache: folder where features are kept between runs; None keeps none.
        projected: the normalised features of the joint space instead of the backbone's own.
        batch_size: images in a batch.
        device: CUDA where there is one by default.
    """

    def __init__(
        self,
        model: str,
        cache: str | None = None,
        projected: bool = False,
        batch_size: int = 32,
        device: str | None = None,
    ):
        self.model = model
        self.cache = cache
        self.projected = projected
        self.batch_size = batch_size
        self.device = device

    def fit(self, X: Sequence[str | Path], y=None) -> "KeepFITFeatures":
        """Loads the model.

        Raises:
            CheckpointError: there is none in the folder.
        """
        self.loaded_ = load_model(self.model, self.device)
        return self

    def transform(self, X: Sequence[str | Path]) -> np.ndarray:
        """Features (N, C), or (N, D) where `projected`, of N image files, in float32.

        Raises:
            ImageError: one cannot be read.
        """
        if not hasattr(self, "loaded_"):
            self.fit(X)
        records = [Record(number, Path(path)) for number, path in enumerate(X, start=1)]
        cache = None if self.cache is None else FeatureCache(self.cache, self.model)
        found = image_features(self.loaded_, records, cache, batch_size=self.batch_size)
        for error in found.unreadable.values():  # a row that is missing would shift all others
            raise error
        return found.projected if self.projected else found.pooled

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __getstate__(self) -> dict:
        """Without the model, which is loaded anew where it is needed: pickles and copies stay small."""
        return {key: value for key, value in super().__getstate__().items() if key != "loaded_"}
