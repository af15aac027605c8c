"""Fine-tuning of the whole image tower with a linear head, by transformers' Trainer.

The head begins as the linear probe of the same images (LP-FT, arXiv 2202.10054), so that what is learnt first does not
tear the tower's features apart. As in the probe, each class counts alike, however many images it has.
"""

import copy
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.model_selection import GroupShuffleSplit
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainingArguments

from keepfit_clip.data.records import Record
from keepfit_clip.errors import ConfigError
from keepfit_clip.files import writing
from keepfit_clip.folders.loaded import LoadedModel
from keepfit_clip.images.reading import open_image
from keepfit_clip.model.image_tower import ImageTower
from keepfit_clip.transfer.classifiers import Features, LinearClassifier
from keepfit_clip.transfer.methods import Fold, Method, linear_head

__all__ = ["FINETUNE", "FinetuneOptions", "LabelledImages", "TowerImages", "TunedTower", "finetune"]

_PATIENCE = 3  # epochs without a better one before the training stops


@dataclass(frozen=True)
class FinetuneOptions:
    """How the tower is fine-tuned: AdamW, a tenth of the steps warm-up, then cosine; flips, no other augmentation.

    Args:
        epochs: passes over the training images.
        batch_size: images in a step.
        lr: highest learning rate.
        weight_decay: AdamW's.
        balanced: whether images weigh by how rare their class is, so that all classes weigh alike.
        layer_decay: factor of the learning rate from each of timm's layer groups to the one before it.
        early_stop: share of the training images that choose the epoch and stop the training; 0 trains to the end.
        precision: fp32, bf16 (autocast), or auto: bf16 on a GPU.
    """

    epochs: int = 10
    batch_size: int = 16
    lr: float = 1e-4
    weight_decay: float = 0.05
    balanced: bool = True
    layer_decay: float = 1.0
    early_stop: float = 0.0
    precision: str = "auto"

    def __post_init__(self):
        for name in ("epochs", "batch_size", "lr"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"--{name.replace('_', '-')} must be above 0")
        if not 0 < self.layer_decay <= 1:
            raise ConfigError(f"--layer-decay {self.layer_decay}: above 0 and at most 1")
        if not 0 <= self.early_stop <= 0.5:
            raise ConfigError(f"--early-stop {self.early_stop}: a share of the training images, at most 0.5")
        if self.precision not in ("auto", "fp32", "bf16"):
            raise ConfigError(f"--precision {self.precision}: auto, fp32 or bf16")


@dataclass(frozen=True)
class LabelledImages:
    """Some images of a data set: records, content hashes, labels (N,) or (N, K), and what belongs together (N,)."""

    records: Sequence[Record]
    keys: Sequence[str]
    labels: np.ndarray
    groups: np.ndarray

    def __getitem__(self, rows: np.ndarray) -> "LabelledImages":
        records, keys = ([part[row] for row in rows] for part in (self.records, self.keys))
        return LabelledImages(records, keys, self.labels[rows], self.groups[rows])


@dataclass(frozen=True)
class TowerImages:
    """What fine-tuning wants of a fold beside its features.

    Args:
        loaded: the model whose image tower is copied.
        train: what is learnt from.
        test: what is answered, never augmented.
        options: see there.
        kept: folder where finished probabilities are kept, so that an interrupted run does not train them again.
    """

    loaded: LoadedModel
    train: LabelledImages
    test: LabelledImages
    options: FinetuneOptions
    kept: Path | None = None


@dataclass(frozen=True)
class TunedTower:
    """A fine-tuned image tower and the linear layer over it.

    Args:
        tower: the tower.
        classifier: over its pooled features.
    """

    tower: ImageTower
    classifier: LinearClassifier

    @torch.inference_mode()
    def pooled(self, pixels: Tensor) -> np.ndarray:
        """(B, C) of preprocessed images (B, 3, H, W)."""
        device = next(self.tower.parameters()).device
        return self.tower.encode(pixels.to(device)).pooled.float().cpu().numpy()

    def answer(self, images: LabelledImages, preprocess: Callable, batch_size: int) -> np.ndarray:
        """Probabilities (N, K) of images."""
        batches = DataLoader(_Images(images, preprocess), batch_size)
        pooled = np.concatenate([self.pooled(batch["pixels"]) for batch in batches])
        return self.classifier.answer(Features(pooled, np.empty((len(pooled), 0), np.float32)))


def finetune(fold: Fold) -> TunedTower:
    """Trains a copy of the tower on a fold's training images; the loaded model stays as it is.

    The head begins as the linear probe of the training images' features; the fold's seed is that of order, flips,
    dropout and of the images that choose the epoch.
    """
    images, seed = fold.images, fold.seed
    learnt, watched = _parted(images.train, images.options.early_stop, seed)
    weights = _class_weights(learnt.labels) if images.options.balanced else None
    start = linear_head(fold.train, images.train.labels)
    network = _Network(copy.deepcopy(images.loaded.model.visual), start, weights)
    with torch.random.fork_rng(), tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            network,
            _arguments(folder, images, seed, watched is not None),
            train_dataset=_Images(learnt, images.loaded.preprocess, flip=True),
            eval_dataset=None if watched is None else _Images(watched, images.loaded.preprocess),
            optimizers=(_optimizer(network, images.options), None),
            callbacks=None if watched is None else [EarlyStoppingCallback(_PATIENCE)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return network.eval().tuned(fold.labels.ndim == 2)


def _arguments(folder: str, images: TowerImages, seed: int, watched: bool) -> TrainingArguments:
    options, device = images.options, images.loaded.device.type
    return TrainingArguments(
        output_dir=folder,
        num_train_epochs=options.epochs,
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=options.batch_size,
        learning_rate=options.lr,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        max_grad_norm=1.0,
        seed=seed,
        bf16=options.precision == "bf16" or (options.precision == "auto" and device == "cuda"),
        use_cpu=device == "cpu",
        eval_strategy="epoch" if watched else "no",
        save_strategy="epoch" if watched else "no",
        save_total_limit=1,
        load_best_model_at_end=watched,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        logging_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=device == "cuda",
        disable_tqdm=True,
        label_names=["labels"],
    )


def _parted(images: LabelledImages, share: float, seed: int) -> tuple[LabelledImages, LabelledImages | None]:
    """Images to learn from, and those of other patients that choose the epoch; every class is learnt from."""
    if not share or len(np.unique(images.groups)) < 2:
        return images, None
    parts = GroupShuffleSplit(1, test_size=share, random_state=seed)
    learnt, watched = next(parts.split(images.labels, groups=images.groups))
    if images.labels.ndim == 1:
        alone = np.setdiff1d(images.labels[watched], images.labels[learnt])
        back = np.isin(images.groups, images.groups[watched][np.isin(images.labels[watched], alone)])
        learnt, watched = np.union1d(learnt, np.flatnonzero(back)), np.setdiff1d(watched, np.flatnonzero(back))
    return (images[learnt], images[watched]) if len(watched) else (images, None)


def _class_weights(labels: np.ndarray) -> np.ndarray | None:
    """(K,), by which all classes weigh alike (scikit-learn's rule); None where an image may have several."""
    if labels.ndim == 2:
        return None
    counts = np.bincount(labels)
    return np.float32(len(labels) / (len(np.unique(labels)) * np.maximum(counts, 1)))


def _optimizer(network: "_Network", options: FinetuneOptions) -> torch.optim.Optimizer:
    """AdamW; with the rates of earlier layers smaller by `layer_decay`, and no decay of norms and biases."""
    if options.layer_decay == 1:
        groups = param_groups_weight_decay(network.tower, options.weight_decay)
    elif isinstance(network.tower, ImageTower):
        groups = param_groups_layer_decay(network.tower.trunk, options.weight_decay, layer_decay=options.layer_decay)
    else:
        raise ConfigError("--layer-decay: only of timm's backbones it is known which layer comes before which")
    for group in groups:  # timm gives each its factor
        group["lr"] = options.lr * group.pop("lr_scale", 1.0)
    groups.append({"params": network.head.parameters(), "weight_decay": options.weight_decay, "lr": options.lr})
    return torch.optim.AdamW(groups, lr=options.lr)


class _Images(Dataset):
    def __init__(self, images: LabelledImages, preprocess, flip: bool = False):
        self.images, self.preprocess, self.flip = images, preprocess, flip

    def __len__(self) -> int:
        return len(self.images.records)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        pixels = self.preprocess(open_image(self.images.records[index].image))
        if self.flip and torch.rand(()) < 0.5:
            pixels = pixels.flip(-1)
        return {"pixels": pixels, "labels": torch.as_tensor(self.images.labels[index])}


class _Network(nn.Module):
    """An image tower and a linear head, and what each class weighs (K,) in the loss."""

    def __init__(self, tower: ImageTower, start: LinearClassifier, class_weights: np.ndarray | None):
        super().__init__()
        device = next(tower.parameters()).device
        self.tower = tower.requires_grad_(True)
        self.head = nn.Linear(start.weight.shape[1], len(start.weight), device=device)
        with torch.no_grad():
            self.head.weight.copy_(start.weight)
            self.head.bias.copy_(start.bias)
        self.class_weights = None if class_weights is None else torch.from_numpy(class_weights).to(device)

    def tuned(self, several: bool) -> TunedTower:
        """What was learnt."""
        weight, bias = (part.detach().cpu().double() for part in (self.head.weight, self.head.bias))
        return TunedTower(self.tower, LinearClassifier(weight, bias, torch.tensor(several)))

    def forward(self, pixels: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.head(self.tower.encode(pixels).pooled)
        if labels.ndim == 2:
            loss = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        else:
            loss = F.cross_entropy(logits, labels, self.class_weights)
        return {"loss": loss, "logits": logits}


def _name(train: LabelledImages, test: LabelledImages, options: FinetuneOptions, seed: int) -> str:
    content = [list(train.keys), train.labels.tolist(), list(test.keys), asdict(options), seed]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


class _Finetuning(Method):
    """Fine-tuning, whose answers are kept."""

    def run(self, fold: Fold) -> np.ndarray:
        """See `Method`."""
        images = fold.images
        name = _name(images.train, images.test, images.options, fold.seed)
        path = None if images.kept is None else images.kept / f"finetune-{name}.npy"
        if path is not None and path.exists():
            return np.load(path)
        tuned = self.learn(fold)
        probabilities = tuned.answer(images.test, images.loaded.preprocess, images.options.batch_size)
        if path is not None:
            partial = path.with_suffix(".partial.npy")
            with writing(path):
                np.save(partial, probabilities)
            os.replace(partial, path)
        return probabilities


FINETUNE = _Finetuning("finetune", finetune, texts="", several=True, trains_tower=True)
