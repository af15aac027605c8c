"""A kept head as a scikit-learn classifier of images."""

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin

from keepfit_clip.folders.loading import load_model
from keepfit_clip.model.inputs import batch_of
from keepfit_clip.predict.answers import Predictor
from keepfit_clip.transfer.heads import head_folder, load_head

__all__ = ["HeadClassifier"]

_BATCH = 32


class HeadClassifier(ClassifierMixin, BaseEstimator):
    """Classifies images by a head that `transfer --keep` made; it learns nothing anew.

        HeadClassifier("runs/model", "myopia").predict(["a.jpg", "b.jpg"])

    Args:
        model: a folder or a name, see `load_model`.
        head: its name in the model's folder, or its own folder.
        modality: of the images.
        device: CUDA where there is one by default.

    Attributes:
        classes_: names of the classes.
    """

    def __init__(self, model: str, head: str, modality: str | None = None, device: str | None = None):
        self.model = model
        self.head = head
        self.modality = modality
        self.device = device

    def fit(self, X: Any = None, y: Any = None) -> "HeadClassifier":
        """Loads model and head.

        Raises:
            CheckpointError: there is none, or the head belongs to another model.
        """
        loaded = load_model(self.model, self.device)
        self.predictor_ = Predictor(loaded, head=load_head(head_folder(self.model, self.head), loaded))
        self.classes_ = np.array(self.predictor_.classes, dtype=object)
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Calibrated probabilities (N, K).

        Args:
            X: images, see `keepfit_clip.model.inputs.batch_of`.

        Raises:
            ImageError: one cannot be read.
        """
        if not hasattr(self, "predictor_"):
            self.fit()
        images, _ = batch_of(X, self.predictor_.loaded.preprocess)
        parts = [self.predictor_.ask(part, [self.modality] * len(part)) for part in images.split(_BATCH)]
        return np.stack([answer.probabilities for part in parts for answer in part])

    def predict(self, X: Any) -> np.ndarray:
        """The likeliest class of each image (N,), or (N, K) of 0 and 1 where an image may have several."""
        probabilities = self.predict_proba(X)
        facts = self.predictor_.head.facts
        if facts.several:
            return (probabilities >= np.array(facts.thresholds)).astype(int)
        return self.classes_[probabilities.argmax(axis=1)]

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __getstate__(self) -> dict:
        """Without the model, which is loaded anew where it is needed."""
        return {key: value for key, value in super().__getstate__().items() if key != "predictor_"}
