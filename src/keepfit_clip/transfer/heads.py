"""Heads: what a transfer run learnt of a data set, kept beside the model it was learnt with.

A head is a folder of two files, `head.json` and `head.safetensors`: a classifier over the model's features, or a whole
fine-tuned image tower with its linear layer; its classes, thresholds and calibration, what it learnt from and how it
did. It belongs to one model, whose fingerprint it holds. Nothing in it names an image or a patient.
"""

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file, save_file
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit, softmax
from torch import Tensor

from keepfit_clip._version import __version__
from keepfit_clip.errors import CheckpointError, ConfigError, first_line
from keepfit_clip.evaluate.metrics.classification import Answers
from keepfit_clip.files import new_folder, read_json, write_json
from keepfit_clip.folders.loaded import LoadedModel
from keepfit_clip.folders.model_card import note_on_card
from keepfit_clip.transfer.classifiers import CLASSIFIERS, Classifier, Features
from keepfit_clip.transfer.finetune import TunedTower
from keepfit_clip.transfer.protocol import METRICS, Outcome, Transfer

__all__ = [
    "HEADS",
    "Head",
    "HeadFacts",
    "facts_of",
    "fitted_temperature",
    "head_folder",
    "list_heads",
    "load_head",
    "save_head",
]

HEADS = "heads"  # folder of them in a model folder
_FACTS, _TENSORS = "head.json", "head.safetensors"
_SCHEMA = 1
_TOWER = "tower."  # before the names of a fine-tuned tower's tensors
_SMALLEST = 1e-7  # probability


@dataclass(frozen=True)
class HeadFacts:
    """What `head.json` says.

    Args:
        method: of `transfer` that learnt it.
        kind: of its classifier, of `CLASSIFIERS`.
        classes: their names, in the order of the answers.
        several: whether an image may have several of them.
        modalities: of the wordings of the classes' texts, in their order.
        thresholds: from which probability on an image has a class, where it may have several; else empty.
        temperature: by which logits are divided, so that probabilities are as often right as they say.
        trained_on: title, images, groups and images of each class of the data set.
        measured: metric -> mean, standard deviation and interval over the folds, and on how much each fold learnt.
        model: name of the model.
        fingerprint: of the model.
        version: of this library.
    """

    method: str
    kind: str
    classes: tuple[str, ...]
    several: bool
    modalities: tuple[str | None, ...]
    thresholds: tuple[float, ...]
    temperature: float
    trained_on: dict[str, Any]
    measured: dict[str, Any]
    model: str
    fingerprint: str
    version: str = __version__
    schema: int = field(default=_SCHEMA)

    def __post_init__(self):
        for name in ("classes", "modalities", "thresholds"):
            object.__setattr__(self, name, tuple(getattr(self, name)))


@dataclass(frozen=True)
class Head:
    """A head with its tensors.

    Args:
        facts: what is known of it.
        classifier: over features.
        tower: tensors of a fine-tuned image tower; empty where the model's own gives the features.
    """

    facts: HeadFacts
    classifier: Classifier
    tower: dict[str, Tensor] = field(default_factory=dict)

    def answer(self, features: Features) -> np.ndarray:
        """Calibrated probabilities (N, K) of features."""
        logits = self.classifier.logits_of(features) / self.facts.temperature
        return expit(logits) if self.facts.several else softmax(logits, axis=1)

    def wording(self, modality: str | None) -> int:
        """The number of the texts' wording for images of a modality; the first where it knows none of it."""
        known = self.facts.modalities
        return known.index(modality) if modality in known else 0

    def pooled_of(self, loaded: LoadedModel) -> Callable[[Tensor], np.ndarray]:
        """From preprocessed images (B, 3, H, W) to the pooled features (B, C) of its own tower, or of the model's."""
        if self.tower:
            return self.tuned(loaded).pooled
        return lambda batch: loaded.encode_batch(batch)[0].cpu().numpy()

    def tuned(self, loaded: LoadedModel) -> TunedTower:
        """Its own fine-tuned tower, where it has one."""
        tower = copy.deepcopy(loaded.model.visual)
        tower.load_state_dict(self.tower)
        return TunedTower(tower.eval(), self.classifier)


def fitted_temperature(answers: Answers) -> float:
    """The temperature at which held-out answers have the smallest cross-entropy (Guo et al., arXiv 1706.04599).

    Args:
        answers: of images that were not learnt from; probabilities before calibration.
    """
    probabilities = np.clip(np.float64(answers.probabilities), _SMALLEST, 1 - _SMALLEST)
    several = answers.labels.ndim == 2
    logits = logit(probabilities) if several else np.log(probabilities)

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        if several:
            return float(np.logaddexp(0, np.where(answers.labels == 1, -scaled, scaled)).mean())
        true = np.take_along_axis(scaled, answers.labels[:, None], axis=1)[:, 0]
        return float((np.logaddexp.reduce(scaled, axis=1) - true).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded").x))


def facts_of(loaded: LoadedModel, run: Transfer, outcome: Outcome, learnt: Classifier | TunedTower) -> HeadFacts:
    """What is known of a head that a method learnt from all images of a set, of which an outcome measured it.

    Args:
        loaded: the model.
        run: the set, and how it was worded.
        outcome: the same method over the folds: its held-out answers give the calibration and the figures.
        learnt: what `Transfer.learn` gave.
    """
    encoded = run.encoded
    spec, labels = encoded.downstream.spec, encoded.labels
    counts = labels.sum(axis=0) if labels.ndim == 2 else np.bincount(labels, minlength=len(spec.classes))
    thresholds = np.broadcast_to(outcome.answers.threshold, outcome.answers.probabilities.shape).mean(axis=0)
    classifier = learnt.classifier if isinstance(learnt, TunedTower) else learnt
    figures = {
        metric: dict(zip(("mean", "sd"), outcome.mean(metric), strict=True))
        | {"interval": outcome.interval.get(metric)}
        for metric in METRICS
        if np.isfinite(outcome.mean(metric)[0]) and (metric != "kappa" or spec.ordinal)
    }
    return HeadFacts(
        outcome.method,
        classifier.kind,
        tuple(encoded.downstream.classes),
        spec.multi_label,
        tuple(run.modalities),
        tuple(map(float, thresholds)) if spec.multi_label else (),
        fitted_temperature(outcome.answers),
        {
            "data": spec.title,
            "images": len(labels),
            "groups": None if encoded.groups is None else len(np.unique(encoded.groups)),
            "images_of_class": dict(zip(encoded.downstream.classes, map(int, counts), strict=True)),
        },
        {"folds": run.options.folds, "shots": str(outcome.shots), **figures},
        loaded.name,
        loaded.fingerprint,
    )


def head_folder(model: str | Path, name: str) -> Path:
    """Where a head of a model lies: a name stands in the model's folder, a path (with '/') for itself.

    Raises:
        ConfigError: a name, of a model that is no folder.
    """
    if "/" in name:
        return Path(name)
    folder = Path(str(model).removeprefix("local-dir:"))
    if not folder.is_dir():
        raise ConfigError(
            f"{model} is no folder that could hold the head {name!r}: give a folder for the head itself, ./{name}"
        )
    return folder / HEADS / name


def list_heads(model: str | Path) -> list[str]:
    """Names of the heads in a model's folder, sorted; none of a model that is no folder."""
    folder = Path(str(model).removeprefix("local-dir:")) / HEADS
    return sorted(path.parent.name for path in folder.glob(f"*/{_FACTS}"))


def save_head(folder: Path, facts: HeadFacts, learnt: Classifier | TunedTower) -> None:
    """Writes a head into a new folder.

    Raises:
        OutputError: something stands there already.
    """
    tensors = {}
    if isinstance(learnt, TunedTower):
        tensors = {f"{_TOWER}{key}": value for key, value in learnt.tower.state_dict().items()}
        learnt = learnt.classifier
    tensors = {key: value.detach().cpu().contiguous() for key, value in {**tensors, **learnt.state()}.items()}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(folder) as new:
        save_file(tensors, new / _TENSORS)
        write_json(new / _FACTS, asdict(facts))
    if folder.parent.name == HEADS:
        note_on_card(folder.parent.parent, "Heads", _card_lines(folder.parent))


def load_head(folder: Path, loaded: LoadedModel) -> Head:
    """Reads a head that was learnt with a model.

    Raises:
        CheckpointError: there is none, it is damaged, or it belongs to another model.
    """
    if not (folder / _FACTS).is_file():
        raise CheckpointError(
            f"{folder} holds no head ({_FACTS}): `keepfit-clip transfer --keep NAME` makes one" + _others(folder.parent)
        )
    try:
        facts = HeadFacts(**read_json(folder / _FACTS))
        tensors = load_file(folder / _TENSORS)
        tower = {k.removeprefix(_TOWER): v for k, v in tensors.items() if k.startswith(_TOWER)}
        classifier = CLASSIFIERS[facts.kind].of_state(tensors)
    except Exception as error:  # of JSON, of safetensors, of fields that are missing or of another version
        raise CheckpointError(f"{folder}: the head cannot be read ({first_line(error)[:120]})") from error
    if facts.fingerprint != loaded.fingerprint:
        raise CheckpointError(
            f"{folder}: this head was learnt with other weights or another preprocessing than {loaded.name} has (with "
            f"{facts.model}; --crop changes the preprocessing): learn it anew with `keepfit-clip transfer --keep`"
        )
    return Head(facts, classifier, tower)


def _card_lines(heads: Path) -> list[str]:
    """A line for each head, for the model's card."""
    lines = []
    for name in list_heads(heads.parent):
        facts = HeadFacts(**read_json(heads / name / _FACTS))
        aca = facts.measured.get("aca", {}).get("mean")
        scored = "" if aca is None else f"; ACA {100 * aca:.1f} over {facts.measured['folds']} folds"
        learnt = f"{facts.method} on {facts.trained_on['images']} images of {facts.trained_on['data']}"
        lines.append(f"- `{name}`: {', '.join(facts.classes)} ({learnt}{scored})")
    return lines


def _others(folder: Path) -> str:
    there = sorted(path.parent.name for path in folder.glob(f"*/{_FACTS}"))
    return f"; there are {', '.join(there)}" if there else ""
