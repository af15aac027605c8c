"""Evaluation inside training: when it is due, and where its values, captions and pictures go."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from open_clip import get_input_dtype
from torch import nn

from keepfit_clip.errors import KeepFITError
from keepfit_clip.files import to_json, writing
from keepfit_clip.training.hybrid.evaluators import Evaluation, Evaluator, WrittenCaption
from keepfit_clip.training.hybrid.run_folder import RESULTS_NAME
from keepfit_clip.training.hybrid.upstream import get_autocast, is_master, unwrap_model

__all__ = ["CAPTIONS_NAME", "Validation", "evaluate"]

_log = logging.getLogger(__name__)

CAPTIONS_NAME = "captions.jsonl"


class Validation:
    """What stands as `val` among the data of open_clip's main.

    Args:
        shards: measured every --val-frequency epochs.
        tables: measured every --zeroshot-frequency epochs.
    """

    def __init__(self, shards: Sequence[Evaluator], tables: Sequence[Evaluator]):
        self.shards, self.tables = list(shards), list(tables)
        self.num_samples = sum(evaluator.num_samples for evaluator in self.shards)  # open_clip's wandb hook reads it

    def due(self, epoch: int, args: argparse.Namespace) -> list[Evaluator]:
        """The evaluators whose turn it is after so many epochs; after the last one it is everybody's."""

        def is_due(frequency: int) -> bool:
            return bool(frequency) and (epoch % frequency == 0 or epoch == args.epochs)

        return [
            *(self.shards if is_due(args.val_frequency) else []),
            *(self.tables if is_due(args.zeroshot_frequency) else []),
        ]


def evaluate(model, data, epoch: int, args: argparse.Namespace, tb_writer=None, tokenizer=None) -> dict:
    """Takes the place of open_clip_train's `evaluate`: same arguments, values logged and saved the same way.

    Args:
        model: as it is trained: wrapped, compiled, or bare.
        data: of open_clip's main, with a `Validation` under `val`.
        epoch: epochs done.
        args: open_clip_train's flags.
        tb_writer: TensorBoard's, or None.
        tokenizer: unused; the evaluators have theirs.

    Returns:
        Name -> value, on the first rank.
    """
    if not is_master(args) or "val" not in data:
        return {}
    evaluators = data["val"].dataloader.due(epoch, args)
    if not evaluators:
        return {}
    evaluation = _measure(unwrap_model(getattr(model, "_orig_mod", model)), evaluators, args, training="train" in data)
    _log.info(f"evaluation after epoch {epoch}:")
    for name, value in evaluation.values.items():
        _log.info(f"  {name} {value:.4f}")
    for caption in evaluation.captions:
        _log.info(f"sample {caption.key}: written {caption.written!r}, the expert's {caption.truth!r}")
    if args.save_logs:
        _save(evaluation, epoch, args, tb_writer)
    if args.wandb:
        _send_to_wandb(evaluation, epoch)
    return evaluation.values


def _measure(model: nn.Module, evaluators: Sequence[Evaluator], args: argparse.Namespace, training: bool) -> Evaluation:
    """What the evaluators find; one that cannot work ends an evaluation, but not a training."""
    device = torch.device(args.device)
    evaluation = Evaluation()
    model.eval()
    with torch.inference_mode(), get_autocast(args.precision, device_type=device.type)():
        for evaluator in evaluators:
            try:
                one = evaluator(model, device, get_input_dtype(args.precision) or torch.float32)
            except KeepFITError as error:
                if not training:
                    raise
                _log.error(f"not evaluated, the training goes on: {error}")
                continue
            evaluation.values |= one.values
            evaluation.captions += one.captions
    return evaluation


def _save(evaluation: Evaluation, epoch: int, args: argparse.Namespace, tb_writer) -> None:
    _append(Path(args.checkpoint_path) / RESULTS_NAME, [{"epoch": epoch, **evaluation.values}])
    if evaluation.captions:
        lines = [{"epoch": epoch, "key": c.key, "truth": c.truth, "written": c.written} for c in evaluation.captions]
        _append(Path(args.logs) / args.name / CAPTIONS_NAME, lines)
    if tb_writer is not None:
        for name, value in evaluation.values.items():
            tb_writer.add_scalar(f"val/{name}", value, epoch)
        if evaluation.captions:
            pictures = np.stack([c.pixels for c in evaluation.captions])
            tb_writer.add_images("val/captioned", pictures, epoch, dataformats="NHWC")
            tb_writer.add_text("val/captions", _as_markdown(evaluation.captions), epoch)


def _append(path: Path, lines: Sequence[dict]) -> None:
    with writing(path), open(path, "a", encoding="utf-8") as file:
        file.writelines(to_json(line) + "\n" for line in lines)


def _as_markdown(captions: Sequence[WrittenCaption]) -> str:
    rows = [f"| {number} | {c.written} | {c.truth} |" for number, c in enumerate(captions, start=1)]
    return "\n".join(["| picture | written | the expert's |", "| --- | --- | --- |", *rows])


def _send_to_wandb(evaluation: Evaluation, epoch: int) -> None:
    import wandb

    values = {f"val/{name}": value for name, value in evaluation.values.items()}
    pictures = [wandb.Image(c.pixels, caption=f"{c.written} (the expert's: {c.truth})") for c in evaluation.captions]
    wandb.log(values | {"epoch": epoch} | ({"val/captioned": pictures} if pictures else {}))
