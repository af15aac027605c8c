"""Evaluation inside training, over held-out shards: the caption NLL, and zero-shot classes per modality."""

import argparse
import json
import logging
import os
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import torch
from open_clip import get_input_dtype
from open_clip_train.distributed import is_master
from open_clip_train.precision import get_autocast
from open_clip_train.train import unwrap_model
from torch import Tensor

from keepfit_clip.data.batch import ImageBatch, collate
from keepfit_clip.data.decoding import make_letterbox
from keepfit_clip.data.shard_reader import ShardSample, read_shards
from keepfit_clip.data.stream import draw_sample, usable_captions
from keepfit_clip.errors import ImageError, ShardError
from keepfit_clip.knowledge import Knowledge
from keepfit_clip.metrics import score_classification
from keepfit_clip.templates import class_texts
from keepfit_clip.tokenization import Tokenizer

__all__ = ["ValidationData", "evaluate"]


class ValidationData:
    """Held-out samples in batches, each with its sample of the shard, read in order and never augmented.

    Args:
        shards: paths of tars.
        batch_size: samples in a batch.
        tokenizer: of the model.
        knowledge: words the texts.
        preprocess_cfg: values of the image tower.
        languages: of the captions that are used.
    """

    def __init__(
        self,
        shards: Sequence[str],
        batch_size: int,
        tokenizer: Tokenizer,
        knowledge: Knowledge,
        preprocess_cfg: dict,
        languages: Sequence[str] = ("en",),
    ):
        self.shards = list(shards)
        self.batch_size = batch_size
        self.letterbox = make_letterbox(preprocess_cfg, exact=True)
        self.languages = languages
        self.tokenizer = tokenizer
        self.knowledge = knowledge
        self.mean, self.std = preprocess_cfg["mean"], preprocess_cfg["std"]
        self.cut_texts = 0
        self.num_samples = sum(1 for _ in self._usable())  # what open_clip's wandb hook reads
        if not self.num_samples:
            raise ShardError(f"the validation shards hold no sample, e.g. {self.shards[0]}")

    def __iter__(self) -> Iterator[tuple[list[ShardSample], ImageBatch, dict]]:
        rng = random.Random(0)
        samples = self._decoded(rng)
        while batch := list(islice(samples, self.batch_size)):
            images, texts = collate(
                [sample for _, sample in batch], self.tokenizer, self.mean, self.std, on_too_long=self.count_cut
            )
            yield [shard_sample for shard_sample, _ in batch], images, texts

    def count_cut(self, number: int) -> None:
        """Counts texts cut to the context; the first time it says so."""
        if not self.cut_texts:
            logging.warning("validation: texts longer than the context are cut")
        self.cut_texts += number

    def _usable(self) -> Iterator[ShardSample]:
        for sample in read_shards(self.shards):
            if sample.description["kind"] == "public" or usable_captions(sample.description, self.languages):
                yield sample

    def _decoded(self, rng: random.Random):
        for sample in self._usable():
            try:
                pixels = self.letterbox(sample.image_bytes, f"sample {sample.key}")
            except ImageError as error:
                logging.warning(f"validation: left out: {error}")
                continue
            yield sample, draw_sample(sample, pixels, self.knowledge, rng, augmented=False, languages=self.languages)


def evaluate(model, data, epoch: int, args: argparse.Namespace, tb_writer=None, tokenizer=None) -> dict:
    """Takes the place of open_clip_train's `evaluate`: same arguments, metrics logged and saved the same way.

    Metrics: `caption_nll` (nats per token of elite captions) and per modality `zero_shot_aca_<modality>` over the
    held-out public samples of one category.
    """
    if not is_master(args) or "val" not in data or not args.val_frequency:
        return {}
    if epoch % args.val_frequency and epoch != args.epochs:
        return {}
    validation: ValidationData = data["val"].dataloader
    model = unwrap_model(model)
    model.eval()
    with torch.inference_mode(), get_autocast(args.precision, device_type=torch.device(args.device).type)():
        metrics = _measure(model, validation, torch.device(args.device), get_input_dtype(args.precision))
    logging.info(f"Eval Epoch: {epoch} " + "\t".join(f"{name}: {value:.4f}" for name, value in metrics.items()))
    if args.save_logs:
        if tb_writer is not None:
            for name, value in metrics.items():
                tb_writer.add_scalar(f"val/{name}", value, epoch)
        with open(os.path.join(args.checkpoint_path, "results.jsonl"), "a", encoding="utf-8") as file:
            file.write(json.dumps({"epoch": epoch, **metrics}) + "\n")
    if args.wandb:
        import wandb

        wandb.log({f"val/{name}": value for name, value in metrics.items()} | {"epoch": epoch})
    return metrics


def _measure(model, validation: ValidationData, device: torch.device, dtype) -> dict[str, float]:
    nll, tokens = 0.0, 0
    features: dict[str, list[Tensor]] = defaultdict(list)
    categories: dict[str, list[str]] = defaultdict(list)
    for shard_samples, images, texts in validation:
        images, texts = images.to(device=device, dtype=dtype), texts.to(device)
        output = model(images, texts)
        if "caption_nll_sum" in output:
            nll += float(output["caption_nll_sum"][texts["is_elite"]].sum())
            tokens += int(output["caption_tokens"][texts["is_elite"]].sum())
        for sample, feature in zip(shard_samples, output["image_features"].float().cpu(), strict=True):
            description = sample.description
            if description["kind"] == "public" and len(description["categories"]) == 1:
                features[description["modality"]].append(feature)
                categories[description["modality"]].append(description["categories"][0])
    metrics = {"caption_nll": nll / tokens} if tokens else {}
    for modality, labels in categories.items():
        if len(Counter(labels)) > 1:
            aca = _zero_shot_aca(model, validation, modality, torch.stack(features[modality]), labels)
            metrics[f"zero_shot_aca_{modality or 'unknown'}"] = aca
    return metrics


def _zero_shot_aca(model, validation, modality, features: Tensor, labels: list[str]) -> float:
    classes = sorted(set(labels))
    device = model.logit_scale.device
    class_features = []
    for name in classes:
        ids = validation.tokenizer(class_texts(name, modality, validation.knowledge), on_too_long=validation.count_cut)
        class_features.append(model.encode_text(ids.to(device), normalize=True).float().mean(dim=0))
    class_features = torch.nn.functional.normalize(torch.stack(class_features), dim=-1).cpu()
    logits = model.logit_scale.exp().float().cpu() * features @ class_features.T
    probabilities = logits.softmax(dim=1).numpy().astype(np.float64)
    return score_classification([classes.index(label) for label in labels], probabilities).aca
