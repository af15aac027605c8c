"""The protocol: every method, every number of shots, every fold of a data set, from features computed once."""

import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np
import torch

from keepfit_clip.data.downstream import ClassFile, DownstreamSet
from keepfit_clip.data.duplicates import copies_of, with_copies
from keepfit_clip.data.records import LeftOut
from keepfit_clip.errors import CategoryError, ConfigError
from keepfit_clip.evaluate.features import FeatureCache, image_features, unreadable_rows
from keepfit_clip.evaluate.metrics.classification import (
    Answers,
    ClassificationScores,
    abstention_curve,
    bootstrap_intervals,
    reliability,
    tuned_thresholds,
)
from keepfit_clip.evaluate.metrics.conformal import ConformalScores, measured_over_folds
from keepfit_clip.evaluate.pooling import PooledScores, check_pooling, keys_of
from keepfit_clip.folders.loaded import LoadedModel
from keepfit_clip.knowledge.conditions import Knowledge, modality_named
from keepfit_clip.model.zero_shot import ZeroShotClassifier
from keepfit_clip.transfer.classifiers import Classifier, Features
from keepfit_clip.transfer.finetune import FINETUNE, FinetuneOptions, LabelledImages, TowerImages, TunedTower
from keepfit_clip.transfer.methods import METHODS, Fold, Method, TextClasses, probe_out_of_fold
from keepfit_clip.transfer.splits import Shots, choose_shots, folds_of, given_fold

__all__ = [
    "METRICS",
    "Encoded",
    "Outcome",
    "Transfer",
    "TransferOptions",
    "encode_set",
    "learning_methods",
    "obstacle",
    "run_transfer",
]

METRICS = ("aca", "auc", "kappa", "f1", "ece")
_METHODS = {**METHODS, FINETUNE.name: FINETUNE}
_KNOWN = "its image, or a near copy, is in the set that is learnt from"


@dataclass(frozen=True)
class TransferOptions:
    """What is measured.

    Args:
        methods: names out of `METHODS`, or "finetune".
        shots: how much each method that learns may learn from; also as texts and numbers: "80%", 5.
        folds: number of parts, each of which is tested once.
        pool: "volume", "eye" or "patient", which are scored beside the images; None scores images alone.
        pool_by: how their answers come from those of their images, see `pool_answers`.
        given_split: whether the split that comes with the set is the only fold.
        modality: CFP, FFA or OCT, instead of what class file and table tell.
        descriptions: classes are compared with all that the knowledge file says of them, not their names alone.
        thresholds: from which probability on an image has a class, where it may have several: one for all, or one
            for each; None chooses one for each on images of the fold that are not tested.
        seed: of folds, shots and adapters.
        resamples: of the bootstrap.
        finetune: how the tower is fine-tuned.
        cache_scale: factor of the similarities in Tip-Adapter's logits; None is the model's own.
    """

    methods: tuple[str, ...] = ("zero-shot",)
    shots: tuple[Shots | str | int, ...] = (Shots(share=0.8),)
    folds: int = 5
    modality: str | None = None
    descriptions: bool = True
    thresholds: tuple[float, ...] | None = (0.5,)
    seed: int = 0
    resamples: int = 500
    finetune: FinetuneOptions = field(default_factory=FinetuneOptions)
    given_split: bool = False
    pool: str | None = None
    pool_by: str = "mean"
    cache_scale: float | None = None

    def __post_init__(self):
        object.__setattr__(self, "shots", tuple(Shots.of(shots) for shots in self.shots))
        object.__setattr__(self, "modality", modality_named(self.modality))
        check_pooling(self.pool, self.pool_by)
        unknown = [name for name in self.methods if name not in _METHODS]
        if unknown or not self.methods:
            raise ConfigError(f"--method {','.join(unknown) or '(none)'} is none of {', '.join(_METHODS)}")
        if self.folds < 2:
            raise ConfigError(f"--folds {self.folds}: at least two are needed")
        if self.thresholds is not None and not all(0 < value < 1 for value in self.thresholds):
            raise ConfigError(f"--threshold {','.join(map(str, self.thresholds))}: between 0 and 1")
        left = 1.0 if self.given_split else 1 - 1 / self.folds
        too_many = [str(shots) for shots in self.shots if shots.share and shots.share > left + 1e-9]
        if too_many and any(_METHODS[name].learns for name in self.methods):
            raise ConfigError(
                f"--shots {','.join(too_many)}: {self.folds} folds leave {100 * left:.0f}% to learn from, "
                "use more --folds or smaller --shots"
            )


def learning_methods(options: TransferOptions) -> list[str]:
    """Those of the methods that learn from images."""
    return [name for name in options.methods if _METHODS[name].learns]


@dataclass
class Encoded:
    """A downstream set of readable images, with their features, content hashes and perceptual hashes.

    `computed` of them were not in the cache.
    """

    downstream: DownstreamSet
    features: Features
    keys: list[str]
    perceptual_hashes: np.ndarray
    computed: int = 0

    def images(self, rows: np.ndarray) -> LabelledImages:
        """Some of the images."""
        groups = np.arange(len(self.labels)) if self.groups is None else self.groups
        return LabelledImages(self.downstream.records, self.keys, self.labels, groups)[rows]

    def shifted_from(self, source: "Encoded") -> "Encoded":
        """The set as one to test on after learning from another: without images of that one or near copies of them.

        Raises:
            CategoryError: a class has no other image.
        """
        known = copies_of(self.perceptual_hashes, source.perceptual_hashes)
        kept = np.flatnonzero(~known)
        whole = self.downstream
        rows = [whole.records[number].row for number in np.flatnonzero(known)]
        downstream = replace(
            whole,
            records=[whole.records[number] for number in kept],
            labels=whole.labels[kept],
            groups=None if whole.groups is None else whole.groups[kept],
            learnt_from=source.downstream.spec.title,
            left_out=whole.left_out + [LeftOut(row, _KNOWN, f"row {row}: {_KNOWN}") for row in rows],
        )
        if not len(kept) or downstream.empty_classes:
            names = ", ".join(downstream.empty_classes) if len(kept) else "any class"
            raise CategoryError(f"no image of {names} is left that does not stand in {downstream.learnt_from} too")
        keys = [self.keys[number] for number in kept]
        return Encoded(downstream, self.features[kept], keys, self.perceptual_hashes[kept], self.computed)

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
        answers: for the test images of all folds, in order.
        pooled: what `TransferOptions.pool` asks for, or None.
        conformal: how often sets that shall hold the true class nine times in ten do; None where folds share images, or
            an image may have several classes.
        parts: the answers of each fold, with groups.
        seconds: that learning and answering took.
    """

    method: str
    shots: Shots | None
    folds: list[ClassificationScores]
    overall: ClassificationScores
    interval: dict[str, tuple[float, float]]
    answers: Answers
    pooled: PooledScores | None = None
    conformal: ConformalScores | None = None
    parts: Sequence[Answers] = ()
    seconds: float = 0.0

    @property
    def name(self) -> str:
        """Method and shots."""
        return f"{self.method} {self.shots or ''}".strip()

    @property
    def abstention(self) -> list[tuple[float, float]]:
        """See `abstention_curve`; empty where an image may have several classes."""
        several = self.answers.labels.ndim == 2
        return [] if several else abstention_curve(self.answers.labels, self.answers.probabilities)

    @property
    def reliability(self) -> list[tuple[float, float]]:
        """See `reliability`; empty where an image may have several classes."""
        several = self.answers.labels.ndim == 2
        return [] if several else reliability(self.answers.labels, self.answers.probabilities)

    def mean(self, metric: str) -> tuple[float, float]:
        """Mean and standard deviation of a metric over the folds in which it is defined."""
        values = np.array([getattr(scores, metric) for scores in self.folds], dtype=float)
        values = values[~np.isnan(values)]
        if not len(values):
            return math.nan, math.nan
        return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else math.nan


def encode_set(
    loaded: LoadedModel,
    downstream: DownstreamSet,
    cache: FeatureCache | None = None,
    progress: Callable = iter,
    copies_together: bool = True,
) -> Encoded:
    """Computes the features of a downstream set; images that cannot be read are counted in its `left_out`.

    Args:
        loaded: the model.
        downstream: what is encoded.
        cache, progress: see `image_features`.
        copies_together: near duplicates belong to one group, so that none is learnt from while another is tested.

    Raises:
        KeepFITError: no image can be read, or features are not finite.
        CategoryError: a class has no readable image.
    """
    features = image_features(loaded, downstream.records, cache, progress)
    downstream.left_out += unreadable_rows(downstream.records, features.unreadable)
    kept = features.kept
    groups = None if downstream.groups is None else downstream.groups[kept]
    readable = replace(
        downstream,
        records=[downstream.records[number] for number in kept],
        labels=downstream.labels[kept],
        groups=with_copies(groups, features.perceptual_hashes) if copies_together else groups,
        copies_together=copies_together,
    )
    if readable.empty_classes:
        names, last = ", ".join(readable.empty_classes), readable.left_out[-1].message
        raise CategoryError(f"no image of {names} can be read: {last}")
    arrays = Features(features.pooled, features.projected)
    return Encoded(readable, arrays, features.keys, features.perceptual_hashes, features.computed)


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
    _check(loaded, options, encoded, shifted)
    target = encoded if shifted is None else shifted
    run = Transfer(loaded, encoded, options, target, knowledge or Knowledge.load(), cache)
    planned = [
        (_METHODS[name], shots if _METHODS[name].learns else None)
        for name, shots in product(options.methods, options.shots)
        if _METHODS[name].learns or shots == options.shots[0]
    ]
    folds = list(_folds(encoded, options))
    keys = keys_of(target.downstream.records, options.pool) if options.pool else []
    outcomes = []
    for number, (method, shots) in enumerate(planned):
        parts, began = [], time.perf_counter()
        for fold, (pool, held_out) in enumerate(folds):
            on_step(f"{method.name} {shots or ''}".strip(), number * len(folds) + fold, len(planned) * len(folds))
            tested = held_out if shifted is None else np.arange(len(shifted.labels))
            parts.append(run.fold(method, shots, fold, pool, tested))
        seconds = time.perf_counter() - began
        interval = bootstrap_intervals(parts, shifted is not None, options.resamples, options.seed)
        answers = Answers.joined(parts)
        scores = [part.score() for part in parts]
        pooled = None
        if options.pool:
            tests = [held_out if shifted is None else np.arange(len(keys)) for _, held_out in folds]
            of_fold = [(fold, keys[row]) for fold, tested in enumerate(tests) for row in tested]
            pooled = PooledScores.of(answers.labels, answers.probabilities, of_fold, options.pool, options.pool_by)
        conformal = measured_over_folds(parts) if shifted is None else None
        overall = answers.score()
        outcomes.append(
            Outcome(method.name, shots, scores, overall, interval, answers, pooled, conformal, parts, seconds)
        )
    on_step("done", len(planned) * len(folds), len(planned) * len(folds))
    return outcomes


class Transfer:
    """What the folds of a run share: features with the wording of each image, and the classes' texts in each wording.

    Args:
        loaded, encoded, options, knowledge, cache: see `run_transfer`.
        target: where the test images come from; may be `encoded` itself.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        encoded: Encoded,
        options: TransferOptions,
        target: Encoded,
        knowledge: Knowledge,
        cache: FeatureCache | None,
    ):
        self.loaded, self.options, self.knowledge, self.cache = loaded, options, knowledge, cache
        self.encoded, self.target = encoded, target
        self.modalities = sorted({*self._modalities(encoded), *self._modalities(target)}, key=str)
        self.source_features, self.target_features = (self._worded(part) for part in (encoded, target))
        self._texts: dict[bool, TextClasses] = {}

    def fold(self, method: Method, shots: Shots | None, fold: int, pool: np.ndarray, tested: np.ndarray) -> Answers:
        """The answers of a method for one fold.

        Args:
            method: of classifying.
            shots: what it may learn from; None if it learns nothing.
            fold: number of the fold.
            pool: rows of `encoded` that it may learn from.
            tested: rows of `target`.
        """
        encoded, seed = self.encoded, self.options.seed + fold
        train = pool
        if shots is not None:
            classes = encoded.downstream.classes
            train = choose_shots(encoded.labels, pool, shots, len(encoded.labels), seed, classes)
        images = self._images(train, self.target.images(tested)) if method.trains_tower else None
        probabilities = method.run(self._fold(method, train, self.target_features[tested], seed, images))
        groups = None if self.target.groups is None else self.target.groups[tested]
        return Answers(self.target.labels[tested], probabilities, groups, self._thresholds(method, train, seed))

    def learn(self, name: str) -> Classifier | TunedTower:
        """What a method learns from all images of the set."""
        method, every = _METHODS[name], np.arange(len(self.encoded.labels))
        images = self._images(every, self.encoded.images(every[:0])) if method.trains_tower else None
        return method.learn(self._fold(method, every, self.source_features[every[:0]], self.options.seed, images))

    def _images(self, train: np.ndarray, test: LabelledImages) -> TowerImages:
        kept = self.cache.folder if self.cache else None
        return TowerImages(self.loaded, self.encoded.images(train), test, self.options.finetune, kept)

    def _fold(self, method: Method, train: np.ndarray, test: Features, seed: int, images=None) -> Fold:
        texts = None
        if method.texts:
            texts = self._text_classes(method.texts if self.options.descriptions else "names")
        return Fold(self.source_features[train], self.encoded.labels[train], test, texts, seed, images)

    def _thresholds(self, method: Method, train: np.ndarray, seed: int) -> float | np.ndarray:
        if self.options.thresholds is not None:
            return np.array(self.options.thresholds)
        labels = self.encoded.labels[train]
        if not method.learns:
            fold = self._fold(method, train, self.source_features[train], seed)
            return tuned_thresholds(labels, method.run(fold))
        groups = None if self.encoded.groups is None else self.encoded.groups[train]
        return tuned_thresholds(labels, probe_out_of_fold(self.source_features[train], labels, groups, seed))

    def _modalities(self, part: Encoded) -> list[str | None]:
        given = self.options.modality or part.downstream.spec.modality
        return [given or record.modality for record in part.downstream.records]

    def _worded(self, part: Encoded) -> Features:
        number = {modality: index for index, modality in enumerate(self.modalities)}
        return replace(part.features, wording=np.array([number[modality] for modality in self._modalities(part)]))

    def _text_classes(self, kind: str) -> TextClasses:
        """The classes' texts of a kind, see `Method`; where an image may have several classes, of their absence too."""
        if kind not in self._texts:
            downstream = self.encoded.downstream

            def features(names: Sequence[str]) -> np.ndarray:
                parts = [
                    ZeroShotClassifier(
                        self.loaded.model,
                        self.loaded.tokenizer,
                        names,
                        modality,
                        self.knowledge,
                        descriptions=kind != "names",
                        findings=kind == "findings",
                    ).class_features
                    for modality in self.modalities
                ]
                return torch.stack(parts).float().cpu().numpy()  # (M, K, D)

            if downstream.spec.multi_label:
                pairs = np.stack(
                    [features([name, f"no {name}"]) for name in downstream.classes], axis=1
                )  # (M, K, 2, D)
                present, absent = pairs[:, :, 0], pairs[:, :, 1]
            else:
                present, absent = features(downstream.classes), None
            with torch.no_grad():
                scale = float(self.loaded.model.logit_scale.exp())
            self._texts[kind] = TextClasses(present, scale, absent, self.options.cache_scale)
        return self._texts[kind]


def _folds(encoded: Encoded, options: TransferOptions) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images to learn from and to test, for each fold."""
    if options.given_split:
        yield given_fold([record.split for record in encoded.downstream.records])
    else:
        classes = encoded.downstream.classes
        yield from folds_of(encoded.labels, options.folds, encoded.groups, options.seed, classes)


def _check(loaded: LoadedModel, options: TransferOptions, encoded: Encoded, shifted: Encoded | None) -> None:
    spec = encoded.downstream.spec
    for name in options.methods:
        if problem := obstacle(name, loaded, spec):
            raise ConfigError(f"--method {name} {problem}")
    if spec.multi_label and options.pool:
        raise ConfigError(f"--pool is for images of one class each, and {spec.title} has several")
    if spec.multi_label:
        _check_thresholds(options, spec.classes)
    elif options.thresholds != (0.5,):
        raise ConfigError(f"--threshold is for images that may have several classes; those of {spec.title} have one")
    if shifted is not None and list(shifted.downstream.spec.classes) != list(spec.classes):
        raise CategoryError("the data set of the domain shift must have the same classes in the same order")


def obstacle(name: str, loaded: LoadedModel, spec: ClassFile) -> str:
    """Why a method cannot be had of a model on a data set, "" where it can."""
    method = _METHODS[name]
    if method.texts and not loaded.has_text:
        return f"needs a text tower, and {loaded.name} has none"
    if spec.multi_label and not method.several:
        return f"takes images of one class each, and {spec.title} has several"
    if not spec.named and method.texts:
        return f"needs classes with names, and those of {spec.title} have none"
    return ""


def _check_thresholds(options: TransferOptions, classes: Collection[str]) -> None:
    slow = [name for name in options.methods if _METHODS[name].trains_tower]
    if options.thresholds is None and slow:
        raise ConfigError(
            f"--threshold tuned would train a fine-tuned tower several times a fold: leave {', '.join(slow)} out"
        )
    if options.thresholds is not None and len(options.thresholds) not in (1, len(classes)):
        raise ConfigError(f"--threshold gives {len(options.thresholds)} values, for {len(classes)} classes")
