"""Fine-tuning of the whole image tower with a linear head, by transformers' Trainer.

The head begins as the linear probe of the same images (LP-FT, arXiv 2202.10054), so that what is learnt first does not
tear the tower's features apart.
"""

import copy
import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.special import expit, softmax
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainingArguments

from keepfit_clip.data.records import Record
from keepfit_clip.errors import ConfigError
from keepfit_clip.files import writing
from keepfit_clip.folders.loaded import LoadedModel
from keepfit_clip.images.reading import open_image
from keepfit_clip.model.image_tower import ImageTower
from keepfit_clip.transfer.methods import Fold, Method, linear_head

__all__ = ["FINETUNE", "FinetuneOptions", "LabelledImages", "TowerImages", "finetune"]


@dataclass(frozen=True)
class FinetuneOptions:
    """How the tower is fine-tuned: AdamW, a tenth of the steps warm-up, then cosine; flips, no other augmentation.

    Args:
        epochs: passes over the training images.
        batch_size: images in a step.
        lr: highest learning rate.
        weight_decay: AdamW's.
    """

    epochs: int = 10
    batch_size: int = 16
    lr: float = 1e-4
    weight_decay: float = 0.05

    def __post_init__(self):
        for name in ("epochs", "batch_size", "lr"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"--{name.replace('_', '-')} must be above 0")


@dataclass(frozen=True)
class LabelledImages:
    """Some images of a data set: their records, content hashes and labels (N,) or (N, K)."""

    records: Sequence[Record]
    keys: Sequence[str]
    labels: np.ndarray


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


def finetune(fold: Fold) -> np.ndarray:
    """Probabilities (N, K) of the test images after training; the loaded model stays as it is.

    The head begins as the linear probe of the training images' features; the fold's seed is that of order, flips and
    dropout.
    """
    images, features, seed = fold.images, fold.train, fold.seed
    loaded, train, test, options, kept = images.loaded, images.train, images.test, images.options, images.kept
    path = None if kept is None else kept / f"finetune-{_name(train, test, options, seed)}.npy"
    if path is not None and path.exists():
        return np.load(path)
    several = train.labels.ndim == 2
    network = _Network(copy.deepcopy(loaded.model.visual), *linear_head(features, train.labels))
    with torch.random.fork_rng(), tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=options.epochs,
            per_device_train_batch_size=options.batch_size,
            per_device_eval_batch_size=options.batch_size,
            learning_rate=options.lr,
            weight_decay=options.weight_decay,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            max_grad_norm=1.0,
            seed=seed,
            bf16=loaded.device.type == "cuda",
            use_cpu=loaded.device.type == "cpu",
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            remove_unused_columns=False,
            dataloader_pin_memory=loaded.device.type == "cuda",
            disable_tqdm=True,
            label_names=["labels"],
        )
        trainer = Trainer(network, arguments, train_dataset=_Images(train, loaded.preprocess, flip=True))
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        logits = trainer.predict(_Images(test, loaded.preprocess)).predictions
    probabilities = expit(logits) if several else softmax(logits, axis=1)
    if path is not None:
        partial = path.with_suffix(".partial.npy")
        with writing(path):
            np.save(partial, probabilities)
        os.replace(partial, path)
    return probabilities


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
    """An image tower and a linear head of weight (K, C) and bias (K,)."""

    def __init__(self, tower: ImageTower, weight: np.ndarray, bias: np.ndarray):
        super().__init__()
        self.tower = tower.requires_grad_(True)
        self.head = nn.Linear(weight.shape[1], len(weight), device=next(tower.parameters()).device)
        with torch.no_grad():
            self.head.weight.copy_(torch.from_numpy(weight))
            self.head.bias.copy_(torch.from_numpy(bias))

    def forward(self, pixels: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.head(self.tower.encode(pixels).pooled)
        if labels.ndim == 2:
            loss = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        else:
            loss = F.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}


def _name(train: LabelledImages, test: LabelledImages, options: FinetuneOptions, seed: int) -> str:
    content = [list(train.keys), train.labels.tolist(), list(test.keys), asdict(options), seed]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


FINETUNE = Method("finetune", finetune, texts="", several=True, trains_tower=True)
