"""What is measured inside training. Each evaluator is called with a model and gives named values and samples."""

import logging
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from keepfit_clip.data.downstream import read_downstream
from keepfit_clip.data.sources import plain_tables_only
from keepfit_clip.data.stream.batch import ImageBatch, collate
from keepfit_clip.data.stream.decoding import make_resizer
from keepfit_clip.data.stream.mixed import draw_sample
from keepfit_clip.data.tars.reader import ShardSample, count_samples, read_shards
from keepfit_clip.errors import ConfigError, ImageError, ShardError
from keepfit_clip.evaluate.metrics.classification import score_classification
from keepfit_clip.evaluate.metrics.retrieval import score_retrieval
from keepfit_clip.evaluate.table import evaluate_table
from keepfit_clip.folders.loaded import LoadedModel
from keepfit_clip.knowledge.conditions import MODALITIES, Knowledge
from keepfit_clip.knowledge.templates import classes_texts
from keepfit_clip.model.tokenization import Tokenizer
from keepfit_clip.model.zero_shot import ClassTexts

__all__ = ["Evaluation", "Evaluator", "HeldOutShards", "WrittenCaption", "ZeroShotTable"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WrittenCaption:
    """A caption of a held-out image.

    Args:
        key: of the sample.
        truth: the expert's caption.
        written: the model's.
        pixels: (H, W, 3) uint8, the image as the tower sees it.
    """

    key: str
    truth: str
    written: str
    pixels: np.ndarray


@dataclass
class Evaluation:
    """What an evaluator found.

    Args:
        values: name -> value.
        captions: samples of what the model writes.
    """

    values: dict[str, float] = field(default_factory=dict)
    captions: list[WrittenCaption] = field(default_factory=list)


class Evaluator(Protocol):
    """Measures a model in eval mode; called under inference mode and the run's autocast, on one process."""

    num_samples: int

    def __call__(self, model: nn.Module, device: torch.device, dtype: torch.dtype) -> Evaluation:
        """The values of a model on a device, whose images are given in `dtype`."""


@dataclass
class _Features:
    """Features of the samples of one kind, in order."""

    image: list[Tensor] = field(default_factory=list)
    text: list[Tensor] = field(default_factory=list)
    text_id: list[Tensor] = field(default_factory=list)
    category_ids: list[Tensor] = field(default_factory=list)


class HeldOutShards:
    """Held-out samples, read in order and never augmented.

    Values: `caption_nll` (nats per token of elite captions), recalls of retrieval over the elite pairs, and per
    modality `zero_shot_aca_<modality>` over the public samples of one category.

    Args:
        shards: paths of tars.
        batch_size: samples in a batch.
        tokenizer: of the model.
        knowledge: words the texts.
        preprocess_cfg: values of the image tower.
        languages: of the captions that are used.
        captions: number of captions to write.

    Raises:
        ShardError: the shards hold no sample.
    """

    def __init__(
        self,
        shards: Sequence[str],
        batch_size: int,
        tokenizer: Tokenizer,
        knowledge: Knowledge,
        preprocess_cfg: dict,
        languages: Sequence[str] = ("en",),
        captions: int = 4,
    ):
        self.shards = list(shards)
        self.batch_size = batch_size
        self.resize = make_resizer(preprocess_cfg, exact=True)
        self.languages = languages
        self.tokenizer = tokenizer
        self.knowledge = knowledge
        self.mean, self.std = preprocess_cfg["mean"], preprocess_cfg["std"]
        self.captions = captions
        self.cut_texts = 0
        self.num_samples = _count(self.shards)
        if next(self._usable(), None) is None:
            raise ShardError(f"the validation shards hold no sample, e.g. {self.shards[0]}")

    def __call__(self, model: nn.Module, device: torch.device, dtype: torch.dtype) -> Evaluation:
        """See `Evaluator`."""
        nll, tokens = 0.0, 0
        elite = _Features()
        features: dict[str, list[Tensor]] = defaultdict(list)
        categories: dict[str, list[str]] = defaultdict(list)
        captions: list[WrittenCaption] = []
        for shard_samples, images, texts in self._batches():
            pixels, texts = images.to(device=device, dtype=dtype), texts.to(device)
            output = model(pixels, texts)
            is_elite = texts["is_elite"]
            if "caption_nll_sum" in output:
                nll += float(output["caption_nll_sum"][is_elite].sum())
                tokens += int(output["caption_tokens"][is_elite].sum())
                captions += self._write(model, shard_samples, images, pixels, is_elite, self.captions - len(captions))
            elite.image.append(output["image_features"][is_elite].float().cpu())
            elite.text.append(output["text_features"][is_elite].float().cpu())
            elite.text_id.append(texts["text_id"][is_elite].cpu())
            elite.category_ids.append(texts["category_ids"][is_elite].cpu())
            for sample, feature in zip(shard_samples, output["image_features"].float().cpu(), strict=True):
                description = sample.description
                if not description.is_elite and len(description.categories) == 1:
                    features[description.modality].append(feature)
                    categories[description.modality].append(description.categories[0])
        values = {"caption_nll": nll / tokens} if tokens else {}
        with torch.autocast("cpu", enabled=False):  # where the features lie
            values |= _retrieval(elite)
            for modality, labels in categories.items():
                if len(Counter(labels)) > 1:
                    aca = self._zero_shot_aca(model, modality, torch.stack(features[modality]), labels)
                    values[f"zero_shot_aca_{modality or 'unknown'}"] = aca
        return Evaluation(values, captions)

    def _batches(self) -> Iterator[tuple[list[ShardSample], ImageBatch, dict]]:
        samples = self._decoded(random.Random(0))
        while batch := list(islice(samples, self.batch_size)):
            images, texts = collate(
                [sample for _, sample in batch], self.tokenizer, self.mean, self.std, on_too_long=self._count_cut
            )
            yield [shard_sample for shard_sample, _ in batch], images, texts

    def _count_cut(self, number: int) -> None:
        if not self.cut_texts:
            _log.warning("validation: texts longer than the context are cut")
        self.cut_texts += number

    def _usable(self) -> Iterator[ShardSample]:
        for sample in read_shards(self.shards):
            if not sample.description.is_elite or sample.description.captions_in(self.languages):
                yield sample

    def _decoded(self, rng: random.Random):
        for sample in self._usable():
            try:
                pixels = self.resize(sample.image_bytes, f"sample {sample.key}")
            except ImageError as error:
                _log.warning(f"validation: left out: {error}")
                continue
            yield (
                sample,
                draw_sample(sample, pixels, self.knowledge, rng, augmentation="none", languages=self.languages),
            )

    def _write(self, model, shard_samples, images: ImageBatch, pixels: Tensor, is_elite: Tensor, count: int):
        """Captions of the first `count` elite images of a batch."""
        rows = is_elite.nonzero().squeeze(1)[: max(0, count)]
        if not len(rows):
            return []
        ids = model.generate(pixels[rows])
        written = self.tokenizer.decode(ids.cpu())
        samples = [shard_samples[row] for row in rows.tolist()]
        return [
            WrittenCaption(sample.key, sample.description.captions_in(self.languages)[0], text, image.numpy())
            for sample, text, image in zip(samples, written, images.pixels[rows.cpu()], strict=True)
        ]

    def _zero_shot_aca(self, model, modality: str | None, features: Tensor, labels: list[str]) -> float:
        classes = sorted(set(labels))
        texts = classes_texts(classes, modality, self.knowledge)
        known = ClassTexts(model, self.tokenizer, texts, self._count_cut)
        probabilities = known.probabilities(features).numpy().astype(np.float64)
        return score_classification([classes.index(label) for label in labels], probabilities).aca


def _count(shards: Sequence[str]) -> int:
    """Samples in shards, as what lies beside them says; 0 where it does not."""
    try:
        return count_samples(shards)
    except ShardError:
        return 0


def _retrieval(elite: _Features) -> dict[str, float]:
    parts = (elite.image, elite.text, elite.category_ids, elite.text_id)
    image, text, category_ids, text_id = (torch.cat(part) for part in parts)
    return score_retrieval(image, text, category_ids, text_id) if len(set(text_id.tolist())) > 1 else {}


class ZeroShotTable:
    """A table of labelled images, classified by texts.

    Values: `<name>_aca` and `<name>_auc`.

    Args:
        spec: NAME=TABLE.csv:ROOT, or NAME@MODALITY=TABLE.csv:ROOT where the table does not tell the modality.
        tokenizer: of the model.
        preprocess: from a PIL image to a tensor (3, H, W).
        knowledge: words the texts.

    Raises:
        ConfigError: the specification cannot be read.
        TableError, CategoryError: the table cannot be used.
        TextTooLongError: what is said of a class does not fit into the model's context.
    """

    def __init__(
        self,
        spec: str,
        tokenizer: Tokenizer,
        preprocess: Callable,
        knowledge: Knowledge,
    ):
        name, has_name, data = spec.partition("=")
        table, has_root, root = data.rpartition(":")
        self.name, _, modality = name.partition("@")
        if not (has_name and has_root and self.name and table and root):
            raise ConfigError(f"--zeroshot-table {spec!r} is not of the form NAME[@MODALITY]=TABLE.csv:ROOT")
        self.modality = modality.upper() or None
        if self.modality is not None and self.modality not in MODALITIES:
            raise ConfigError(f"--zeroshot-table {spec!r}: {modality!r} is none of {', '.join(MODALITIES)}")
        self.table, self.root = Path(table), Path(root)
        self.tokenizer, self.preprocess, self.knowledge = tokenizer, preprocess, knowledge
        # Rather fail now than after an epoch.
        with plain_tables_only("--zeroshot-table"):
            downstream = read_downstream(self.table, self.root, None, knowledge)
        self.classes = downstream.classes
        for used in {self.modality or record.modality for record in downstream.records}:
            tokenizer([text for of_class in classes_texts(self.classes, used, knowledge) for text in of_class])
        self.num_samples = len(downstream.records)

    def __call__(self, model: nn.Module, device: torch.device, dtype: torch.dtype) -> Evaluation:
        """See `Evaluator`."""
        loaded = LoadedModel(model, lambda image: self.preprocess(image).to(dtype), self.tokenizer)
        scores = evaluate_table(loaded, self.table, self.root, self.classes, self.modality, self.knowledge)
        if scores.left_out:
            row, reason, _ = scores.left_out[0]
            _log.warning(f"{self.name}: {len(scores.left_out)} rows could not be used, e.g. row {row}: {reason}")
        return Evaluation({f"{self.name}_{name}": value for name, value in scores.figures.items()})
