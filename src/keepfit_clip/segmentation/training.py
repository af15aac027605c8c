"""Training of one fold by transformers' Trainer, and the answers for the images that it did not see."""

import copy
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from keepfit_clip.errors import ConfigError, NonFiniteError
from keepfit_clip.finite import is_finite
from keepfit_clip.model.image_tower import ImageTower
from keepfit_clip.segmentation.network import SegmentationNetwork
from keepfit_clip.segmentation.prepared import Prepared

__all__ = ["TOWERS", "TrainingOptions", "answers", "train_fold"]

TOWERS = ("frozen", "finetune")
_SLOWER = 0.1  # the learning rate of a tower, as a part of the decoder's


@dataclass(frozen=True)
class TrainingOptions:
    """How a decoder is trained: AdamW, a tenth of the steps warm-up, then cosine; Dice and cross-entropy; flips.

    Args:
        tower: "frozen", or "finetune" at a tenth of the learning rate.
        epochs: passes over the training images.
        batch_size: images in a step.
        lr: highest learning rate.
        weight_decay: AdamW's.
    """

    tower: str = "frozen"
    epochs: int = 20
    batch_size: int = 8
    lr: float = 1e-3
    weight_decay: float = 0.01

    def __post_init__(self):
        if self.tower not in TOWERS:
            raise ConfigError(f"--tower {self.tower}: {' or '.join(TOWERS)}")
        for name in ("epochs", "batch_size", "lr"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"--{name.replace('_', '-')} must be above 0")


def train_fold(
    tower: ImageTower,
    prepared: Prepared,
    rows: np.ndarray,
    options: TrainingOptions,
    seed: int,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> SegmentationNetwork:
    """A network that has learnt from some images of a set; the tower itself stays as it is.

    Args:
        tower: what it begins with.
        prepared: the set.
        rows: which of its images are learnt from.
        options: of the training.
        seed: of the decoder's first weights, of order and flips.
        on_step: called with the steps done, and how many there are.
    """
    classes = len(prepared.source.classes)
    with torch.random.fork_rng(), tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(seed)
        network = SegmentationNetwork(copy.deepcopy(tower), classes, options.tower == "frozen")
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=options.epochs,
            per_device_train_batch_size=options.batch_size,
            learning_rate=options.lr,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            max_grad_norm=1.0,
            seed=seed,
            bf16=network.mean.is_cuda,
            use_cpu=network.mean.is_cpu,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            remove_unused_columns=False,
            dataloader_pin_memory=network.mean.is_cuda,
            disable_tqdm=True,
            label_names=["masks"],
        )
        trainer = Trainer(
            _Learning(network, classes),
            arguments,
            train_dataset=_Images(prepared, rows),
            optimizers=(_optimizer(network, options), None),
            callbacks=[_Steps(on_step)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return network.eval()


@torch.no_grad()
def answers(
    network: SegmentationNetwork, prepared: Prepared, rows: np.ndarray, batch_size: int
) -> Iterator[np.ndarray]:
    """Label maps (H, W) uint8 of some images of a set, at the images' own size, one by one.

    Raises:
        NonFiniteError: the network has come to scores that are not finite.
    """
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        scores = network(torch.from_numpy(prepared.pixels[batch]).to(network.mean.device)).float()
        if not is_finite(scores):
            raise NonFiniteError("the scores of pixels are not finite: the training has failed, take a smaller --lr")
        for row, own in zip(batch, scores, strict=True):
            yield prepared.views[row].to_image(own)


def _optimizer(network: SegmentationNetwork, options: TrainingOptions) -> torch.optim.Optimizer:
    decoder = [*network.decoder.parameters(), *network.head.parameters()]
    groups = [{"params": decoder, "lr": options.lr}]
    if not network.frozen:
        groups.append({"params": list(network.tower.trunk.parameters()), "lr": _SLOWER * options.lr})
    return torch.optim.AdamW(groups, weight_decay=options.weight_decay)


class _Images(Dataset):
    def __init__(self, prepared: Prepared, rows: np.ndarray):
        self.prepared, self.rows = prepared, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        picture, mask = (
            torch.from_numpy(part[self.rows[index]]) for part in (self.prepared.pixels, self.prepared.masks)
        )
        if torch.rand(()) < 0.5:
            picture, mask = picture.flip(1), mask.flip(1)
        return {"pictures": picture, "masks": mask.long()}


class _Learning(nn.Module):
    """A network with its loss: soft Dice of the classes without the background, and cross-entropy."""

    def __init__(self, network: SegmentationNetwork, classes: int):
        from segmentation_models_pytorch.losses import DiceLoss, SoftCrossEntropyLoss

        super().__init__()
        self.network = network
        self.dice = DiceLoss("multiclass", classes=list(range(1, classes + 1)))
        self.cross_entropy = SoftCrossEntropyLoss(smooth_factor=0.0)

    def forward(self, pictures: Tensor, masks: Tensor) -> dict[str, Tensor]:
        scores = self.network(pictures).float()
        return {"loss": self.dice(scores, masks) + self.cross_entropy(scores, masks), "scores": scores}


class _Steps(TrainerCallback):
    def __init__(self, on_step: Callable[[int, int], None]):
        self.on_step = on_step

    def on_step_end(self, args, state, control, **_):
        self.on_step(state.global_step, state.max_steps)
