"""Image features as a scikit-learn transformer."""

import io
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image
from sklearn.base import BaseEstimator, TransformerMixin

from keepfit_clip.data.records import Record
from keepfit_clip.errors import TableError
from keepfit_clip.evaluate.features import FeatureCache, image_features
from keepfit_clip.folders.loading import load_model
from keepfit_clip.model.inputs import picture_of

__all__ = ["KeepFITFeatures"]


class KeepFITFeatures(TransformerMixin, BaseEstimator):
    """Turns images into features of a model; it learns nothing.

        make_pipeline(KeepFITFeatures("runs/model", cache="runs/features"), LogisticRegression())

    Args:
        model: a folder or a name, see `load_model`.
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

    def fit(self, X: ArrayLike, y=None) -> "KeepFITFeatures":
        """Loads the model.

        Raises:
            KeepFITError: there is none of this name.
        """
        self._load()
        return self

    def transform(self, X: ArrayLike) -> np.ndarray:
        """Features (N, C), or (N, D) where `projected`, of N images, in float32.

        Args:
            X: paths, as a list, a Series, or an array or frame of one column; or pictures, as a list of PIL images or
                arrays, or an array (N, H, W, 3).

        Raises:
            TableError: more than one column.
            ImageError: an image cannot be read.
        """
        self._load()
        images = list(X) if _are_pictures(X) else _paths(X)
        records = [Record(number, _source(image, number)) for number, image in enumerate(images, start=1)]
        cache = None if self.cache is None else FeatureCache(self.cache, self.loaded_)
        features = image_features(self.loaded_, records, cache, batch_size=self.batch_size)
        for error in features.unreadable.values():  # a row that is missing would shift all others
            raise error
        return features.projected if self.projected else features.pooled

    def get_feature_names_out(self, input_features=None) -> np.ndarray:
        """Names of the features: keepfit0, keepfit1, ...

        Args:
            input_features: scikit-learn's; the names do not depend on it.
        """
        self._load()
        count = self.loaded_.widths[1 if self.projected else 0]
        return np.array([f"keepfit{number}" for number in range(count)], dtype=object)

    def _load(self) -> None:
        if not hasattr(self, "loaded_"):
            self.loaded_ = load_model(self.model, self.device)

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __getstate__(self) -> dict:
        """Without the model, which is loaded anew where it is needed: pickles and copies stay small."""
        return {key: value for key, value in super().__getstate__().items() if key != "loaded_"}


def _are_pictures(X: ArrayLike) -> bool:
    if isinstance(X, np.ndarray):
        return X.ndim == 4
    return isinstance(X, Sequence) and any(isinstance(image, (Image.Image, np.ndarray)) for image in X)


def _source(image: Any, number: int) -> Path | bytes:
    """The path of an image, or a picture as PNG: its content is what the cache knows it by."""
    if isinstance(image, (str, PathLike)):
        return Path(image)
    buffer = io.BytesIO()
    picture_of(image, f"image {number}").save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _paths(X: ArrayLike) -> list[str | Path]:
    """The paths in a list, a Series, or an array or frame of one column; a frame's own iteration gives its names."""
    values = np.asarray(X, dtype=object)
    if values.ndim > 2 or (values.ndim == 2 and values.shape[1] != 1):
        raise TableError(f"the images must be one column of paths, not an array of shape {values.shape}")
    return values.reshape(-1).tolist()
