"""The protocol: every method, every number of shots, every fold of a data set, from features computed once."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np
import torch

from keepfit_clip.errors import CategoryError, ConfigError
from keepfit_clip.knowledge import Knowledge
from keepfit_clip.loading import LoadedModel
from keepfit_clip.metrics import (
    ClassificationScores,
    abstention_curve,
    bootstrap_intervals,
    score_classification,
    score_multi_label,
)
from keepfit_clip.transfer.downstream import DownstreamSet
from keepfit_clip.transfer.features import FeatureCache, image_features
from keepfit_clip.transfer.finetune import FinetuneOptions, LabelledImages, finetune
from keepfit_clip.transfer.methods import METHODS, Features, TextClasses
from keepfit_clip.transfer.splits import Shots, choose_shots, folds_of
from keepfit_clip.zero_shot import ZeroShotClassifier

__all__ = ["METRICS", "Encoded", "Outcome", "TransferOptions", "encode_set", "run_transfer"]

METRICS = ("aca", "auc", "kappa", "f1", "ece")
ZERO_SHOT = "zero-shot"
FINETUNE = "finetune"
_WITHOUT_TEXTS = ("linear-probe", FINETUNE)
_MULTI_LABEL = (ZERO_SHOT, "linear-probe", FINETUNE)


@dataclass(frozen=True)
class TransferOptions:
    """What is measured.

    Args:
        methods: names out of `METHODS`, or "finetune".
        shots: how much each method that learns may learn from.
        folds: number of parts, each of which is tested once.
        modality: CFP, FFA or OCT where neither class file nor table tells.
        descriptions: classes are compared with all that the knowledge file says of them, not their names alone.
        threshold: from which probability on an image has a class, where it may have several.
        seed: of folds, shots and adapters.
        resamples: of the bootstrap.
        finetune: how the tower is fine-tuned.
    """

    methods: tuple[str, ...] = (ZERO_SHOT,)
    shots: tuple[Shots, ...] = (Shots(share=0.8),)
    folds: int = 5
    modality: str | None = None
    descriptions: bool = True
    threshold: float = 0.5
    seed: int = 0
    resamples: int = 500
    finetune: FinetuneOptions = field(default_factory=FinetuneOptions)

    def __post_init__(self):
        unknown = [name for name in self.methods if name not in (*METHODS, FINETUNE)]
        if unknown or not self.methods:
            raise ConfigError(f"--method {','.join(unknown) or '(none)'} is none of {', '.join((*METHODS, FINETUNE))}")
        if self.folds < 2:
            raise ConfigError(f"--folds {self.folds}: at least two are needed")
        left = 1 - 1 / self.folds
        too_many = [str(shots) for shots in self.shots if shots.share and shots.share > left + 1e-9]
        if too_many and any(method != ZERO_SHOT for method in self.methods):
            raise ConfigError(
                f"--shots {','.join(too_many)}: {self.folds} folds leave {100 * left:.0f}% to learn from, "
                "use more --folds"
            )


@dataclass
class Encoded:
    """A downstream set of readable images, with their features and content hashes.

    `computed` of them were not in the cache.
    """

    downstream: DownstreamSet
    features: Features
    keys: list[str]
    computed: int = 0

    def images(self, rows: np.ndarray) -> LabelledImages:
        """Some of the images."""
        return LabelledImages(
            [self.downstream.records[row] for row in rows], [self.keys[row] for row in rows], self.labels[rows]
        )

    @property
    def labels(self) -> np.ndarray:
        """See `DownstreamSet`."""
        return self.downstream.labels

    @property
    def groups(self) -> np.ndarray | None:
        """See `DownstreamSet`."""
        return self.downstream.groups


@dataclass
class Outcome:
    """What one method reached.

    Args:
        method: its name.
        shots: what it learnt from; None where it learns nothing.
        folds: scores of each fold's test images.
        overall: scores of the test images of all folds together.
        interval: metric -> 95 % bootstrap interval of the mean over the folds.
        abstention: see `abstention_curve`.
        labels, probabilities: of the test images of all folds, in order.
    """

    method: str
    shots: Shots | None
    folds: list[ClassificationScores]
    overall: ClassificationScores
    interval: dict[str, tuple[float, float]]
    abstention: list[tuple[float, float]] = field(default_factory=list)
    labels: np.ndarray | None = None
    probabilities: np.ndarray | None = None

    def mean(self, metric: str) -> tuple[float, float]:
        """Mean and standard deviation of a metric over the folds in which it is defined."""
        values = np.array([getattr(scores, metric) for scores in self.folds], dtype=float)
        values = values[~np.isnan(values)]
        if not len(values):
            return math.nan, math.nan
        return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else math.nan


def encode_set(
    loaded: LoadedModel, downstream: DownstreamSet, cache: FeatureCache | None = None, progress: Callable = iter
) -> Encoded:
    """Computes the features of a downstream set; images that cannot be read are counted in its `unused`.

    Raises:
        KeepFITError: no image can be read, or features are not finite.
        CategoryError: a class has no readable image.
    """
    found = image_features(loaded, downstream.records, cache, progress)
    for number, error in found.unreadable.items():
        row = downstream.records[number].row
        downstream.unused[row] = error.reason
        downstream.messages.append(f"row {row}: {error}")
    kept = found.kept
    readable = replace(
        downstream,
        records=[downstream.records[number] for number in kept],
        labels=downstream.labels[kept],
        groups=None if downstream.groups is None else downstream.groups[kept],
    )
    if readable.empty_classes:
        raise CategoryError(f"no image of {', '.join(readable.empty_classes)} can be read: {readable.messages[-1]}")
    return Encoded(readable, Features(found.pooled, found.projected), found.keys, found.computed)


def run_transfer(
    loaded: LoadedModel,
    encoded: Encoded,
    options: TransferOptions,
    shifted: Encoded | None = None,
    knowledge: Knowledge | None = None,
    on_step: Callable[[str, int, int], None] = lambda step, done, total: None,
    cache: FeatureCache | None = None,
) -> list[Outcome]:
    """Measures every method with every number of shots.

    Args:
        loaded: the model, which words the classes.
        encoded: what is learnt from, and tested where nothing else is given.
        options: what is measured.
        shifted: another data set of the same classes on which every fold's classifier is tested (domain shift).
        knowledge: names and findings of the classes.
        on_step: called with the part at work, how many are done, and of how many.
        cache: where the answers of fine-tuned towers are kept, fold by fold.

    Raises:
        ConfigError: a method that this data set cannot have.
        CategoryError: a class has fewer images than shots or folds; the shifted set has other classes.
    """
    spec = encoded.downstream.spec
    _check(options, encoded, shifted)
    texts = None
    if any(method not in _WITHOUT_TEXTS for method in options.methods):
        texts = _text_classes(loaded, encoded, options, knowledge or Knowledge.load())
    runs = [
        (method, shots)
        for method, shots in product(options.methods, options.shots)
        if method != ZERO_SHOT or shots == options.shots[0]
    ]
    folds = list(folds_of(encoded.labels, options.folds, encoded.groups, options.seed))
    tested = encoded if shifted is None else shifted
    outcomes = []
    for number, (method, shots) in enumerate(runs):
        learns = method != ZERO_SHOT
        parts = []
        for fold, (pool, held_out) in enumerate(folds):
            on_step(f"{method} {shots if learns else ''}".strip(), number * len(folds) + fold, len(runs) * len(folds))
            rows = held_out if shifted is None else np.arange(len(shifted.labels))
            train, seed = None, options.seed + fold
            if learns:
                train = choose_shots(encoded.labels, pool, shots, len(encoded.labels), seed, list(spec.classes))
            if method == FINETUNE:
                probabilities = finetune(
                    loaded,
                    encoded.images(train),
                    encoded.features[train],
                    tested.images(rows),
                    options.finetune,
                    seed,
                    cache.folder if cache else None,
                )
            else:
                known, labels = (encoded.features[train], encoded.labels[train]) if learns else (None, None)
                probabilities = METHODS[method](known, labels, tested.features[rows], texts, seed)
            parts.append((tested.labels[rows], probabilities, None if tested.groups is None else tested.groups[rows]))
        interval = bootstrap_intervals(parts, shifted is not None, options.threshold, options.resamples, options.seed)
        outcomes.append(_outcome(method, shots if learns else None, parts, options, spec.multi_label, interval))
    on_step("done", len(runs) * len(folds), len(runs) * len(folds))
    return outcomes


def _check(options: TransferOptions, encoded: Encoded, shifted: Encoded | None) -> None:
    spec = encoded.downstream.spec
    for method in options.methods:
        if spec.multi_label and method not in _MULTI_LABEL:
            raise ConfigError(f"--method {method} takes images of one class each, and {spec.title} has several")
        if not spec.named and method not in _WITHOUT_TEXTS:
            raise ConfigError(f"--method {method} needs classes with names, and those of {spec.title} have none")
    if shifted is not None and list(shifted.downstream.spec.classes) != list(spec.classes):
        raise CategoryError("the data set of the domain shift must have the same classes in the same order")


def _modality(encoded: Encoded, options: TransferOptions) -> str | None:
    told = {options.modality or encoded.downstream.spec.modality or r.modality for r in encoded.downstream.records}
    if len(told) > 1:
        raise ConfigError(
            f"{encoded.downstream.spec.title} mixes {sorted(map(str, told))}: give --modality, or split it"
        )
    return told.pop()


def _text_classes(loaded: LoadedModel, encoded: Encoded, options: TransferOptions, knowledge: Knowledge) -> TextClasses:
    """Features of the classes' texts; where an image may have several, of each class's absence as well."""
    modality = _modality(encoded, options)

    def features(names: Sequence[str]) -> np.ndarray:
        classifier = ZeroShotClassifier(
            loaded.model, loaded.tokenizer, names, modality, knowledge, options.descriptions
        )
        return classifier.class_features.float().cpu().numpy()

    classes = encoded.downstream.classes
    if encoded.downstream.spec.multi_label:
        present, absent = np.stack([features([name, f"no {name}"]) for name in classes], axis=1)
    else:
        present, absent = features(classes), None
    with torch.no_grad():
        return TextClasses(present, float(loaded.model.logit_scale.exp()), absent)


def _outcome(
    method: str, shots: Shots | None, parts: list[tuple], options: TransferOptions, multi: bool, interval: dict
) -> Outcome:
    def score(labels: np.ndarray, probabilities: np.ndarray) -> ClassificationScores:
        if multi:
            return score_multi_label(labels, probabilities, options.threshold)
        return score_classification(labels, probabilities)

    labels, probabilities = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    return Outcome(
        method,
        shots,
        [score(y, p) for y, p, _ in parts],
        score(labels, probabilities),
        interval,
        [] if multi else abstention_curve(labels, probabilities),
        labels,
        probabilities,
    )
