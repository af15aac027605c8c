"""Retrieval and captions over a table of images with experts' captions or categories."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from keepfit_clip.data.downstream import groups_of, require_images
from keepfit_clip.data.duplicates import with_copies
from keepfit_clip.data.records import LeftOut, Record
from keepfit_clip.data.sources import SourceNotes, SourceOptions, nothing_usable, read_records
from keepfit_clip.data.stream.batch import stable_id
from keepfit_clip.errors import ConfigError, ImageError, TableError
from keepfit_clip.evaluate.features import FeatureCache, image_features, once_each, unreadable_rows
from keepfit_clip.evaluate.metrics.captions import score_captions, score_mentions
from keepfit_clip.evaluate.metrics.retrieval import score_image_retrieval, score_retrieval
from keepfit_clip.extras import require_extra
from keepfit_clip.folders.loaded import LoadedModel
from keepfit_clip.knowledge.conditions import Knowledge
from keepfit_clip.knowledge.labels import read_label
from keepfit_clip.knowledge.templates import category_text
from keepfit_clip.model.tokenization import Tokenizer

__all__ = ["CaptionResult", "PairTable", "RetrievalResult", "evaluate_captions", "evaluate_retrieval", "read_pairs"]

_TEXTS = 64  # through the text tower at a time


@dataclass
class PairTable:
    """Images with what is said of them.

    Args:
        records: of the images, in the table's order.
        captions: of each image, the experts' captions in the language asked for, maybe none.
        left_out: rows that could not be used.
        notes: which columns were taken for what.
    """

    records: list[Record]
    captions: list[list[str]]
    left_out: list[LeftOut] = field(default_factory=list)
    notes: SourceNotes = field(default_factory=SourceNotes)

    def without(self, unreadable: dict[int, ImageError]) -> "PairTable":
        """The table without some of its images, which are counted."""
        kept = [number for number in range(len(self.records)) if number not in unreadable]
        return PairTable(
            [self.records[number] for number in kept],
            [self.captions[number] for number in kept],
            self.left_out + unreadable_rows(self.records, unreadable),
            self.notes,
        )


@dataclass
class RetrievalResult:
    """What `evaluate_retrieval` found.

    Args:
        table: what was used.
        texts: number of texts.
        cut_texts: how many of them were cut to the model's context.
        scores: see `score_retrieval` and `score_image_retrieval`.
    """

    table: PairTable
    texts: int
    cut_texts: int
    scores: dict[str, float]


@dataclass
class CaptionResult:
    """What `evaluate_captions` found.

    Args:
        table: what was used.
        written: the model's caption of each image.
        scores: see `score_captions` and `score_mentions`.
    """

    table: PairTable
    written: list[str]
    scores: dict[str, float]


def read_pairs(
    table: str | Path,
    images: str | Path | None,
    options: SourceOptions | None = None,
    language: str = "en",
    captions_only: bool = False,
) -> PairTable:
    """Reads images with captions or categories.

    Args:
        table, images: see `read_records`.
        options: names of columns and the like.
        language: of the captions that count.
        captions_only: rows without a caption are left out and counted.

    Raises:
        TableError: no row can be used.
    """
    rejected: list[TableError] = []
    pairs, options = PairTable([], []), options or SourceOptions()
    if images is None:
        require_images(table, options)
    for record in read_records(table, images, on_reject=rejected.append, options=options, notes=pairs.notes):
        captions = [caption.text for caption in record.captions if caption.lang == language]
        if not captions and (captions_only or not record.categories):
            rejected.append(TableError(f"{table}, row {record.row}: no caption", record.row, "it has no caption"))
            continue
        pairs.records.append(record)
        pairs.captions.append(captions)
    pairs.left_out = list(map(LeftOut.of, rejected))
    if not pairs.records:
        raise nothing_usable(table, rejected)
    return pairs


def evaluate_retrieval(
    loaded: LoadedModel,
    table: PairTable,
    knowledge: Knowledge | None = None,
    modality: str | None = None,
    cache: FeatureCache | None = None,
    progress: Callable = iter,
) -> RetrievalResult:
    """Retrieval between images and texts, and among images.

    The texts of an image are its captions; of an image without one, a text for each of its categories. Images that
    share a category are right for each other, or a caption where no image of the table has a category; an image's own
    patient and near copies of it are not to be found.

    Args:
        loaded: the model.
        table: images with captions or categories.
        knowledge: canonical names of the categories.
        modality: words the texts of categories, instead of what the table says.
        cache, progress: see `image_features`.

    Raises:
        KeepFITError: no image can be read, or features are not finite.
        TableError: there is one text only, so that nothing can be retrieved.
    """
    knowledge = knowledge or Knowledge.load()
    features = image_features(loaded, table.records, cache, progress)
    table = table.without(features.unreadable)
    pairs = zip(table.records, table.captions, strict=True)
    image_texts = [_texts(record, captions, knowledge, modality) for record, captions in pairs]
    texts = {stable_id(*key): text for row in image_texts for key, text in row}
    if len(texts) < 2:
        raise TableError("retrieval needs at least two different texts, and the table has one")
    images, image_ids = torch.from_numpy(features.projected), _padded([[key for key, _ in row] for row in image_texts])
    text_features, cut = _encode(loaded, list(texts.values()))
    scores = score_retrieval(images, text_features, image_ids, torch.tensor(list(texts)), chance=True)
    shown = [[(name,) for name in _categories(record, knowledge)] for record in table.records]
    if not any(shown):
        shown = [[(text,) for text in captions] for captions in table.captions]
    groups = with_copies(groups_of(table.records), features.perceptual_hashes)
    scores |= score_image_retrieval(images, _padded(shown), None if groups is None else torch.from_numpy(groups))
    return RetrievalResult(table, len(texts), cut, scores)


def evaluate_captions(
    loaded: LoadedModel,
    table: PairTable,
    knowledge: Knowledge | None = None,
    cache: FeatureCache | None = None,
    progress: Callable = iter,
    batch_size: int = 32,
    **options,
) -> CaptionResult:
    """Writes a caption for each image and scores it against the experts'.

    Args:
        loaded: the model.
        table: images with captions.
        knowledge: which conditions and signs there are.
        cache: where captions are kept, so that an interrupted run goes on where it was.
        progress: wraps the list of images for which a caption is written.
        batch_size: images in a batch.
        **options: transformers' generation options.

    Raises:
        ConfigError: the model has no decoder, or an option cannot be used.
        MissingExtraError: there is nothing to score captions with.
        KeepFITError: no image can be read.
    """
    require_extra("captions")
    if loaded.model.text_decoder is None:
        raise ConfigError("captions need a model with a decoder; this one has none (its multimodal_cfg is empty)")
    how = json.dumps(options, sort_keys=True)
    result = once_each(
        table.records,
        loaded.preprocess,
        lambda batch, _: loaded.decode(loaded.model.generate(batch.to(loaded.device), **options)),
        partial(cache.get_captions, how=how) if cache else None,
        partial(cache.put_captions, how=how) if cache else None,
        progress,
        batch_size,
    )
    table = table.without(result.unreadable)
    scores = score_captions(result.values, table.captions)
    scores |= score_mentions(result.values, table.captions, knowledge or Knowledge.load())
    return CaptionResult(table, result.values, scores)


def _texts(
    record: Record, captions: Sequence[str], knowledge: Knowledge, modality: str | None
) -> list[tuple[tuple[str | None, ...], str]]:
    """What may rightly be said of an image: what names the text, and the text."""
    if captions:
        return [((text,), text) for text in captions]
    modality = modality or record.modality
    names = _categories(record, knowledge)
    return [((modality, name), category_text([name], modality)) for name in names]


def _categories(record: Record, knowledge: Knowledge) -> list[str]:
    """What the labels of a record stand for."""
    return list(dict.fromkeys(name for label in record.categories for name in read_label(label, knowledge)))


def _padded(keys: Sequence[Sequence[tuple]]) -> Tensor:
    """Ids (N, W) of what names something, -1 where unused."""
    width = max(1, max(map(len, keys)))
    ids = np.full((len(keys), width), -1, dtype=np.int64)
    for row, names in enumerate(keys):
        ids[row, : len(names)] = [stable_id(*name) for name in names]
    return torch.from_numpy(ids)


@torch.no_grad()
def _encode(loaded: LoadedModel, texts: Sequence[str]) -> tuple[Tensor, int]:
    """Features (T, D) of texts, and how many of these were cut to the context."""
    tokenizer = Tokenizer.of_model(loaded.model, loaded.tokenizer)
    cut: list[int] = []
    parts = [texts[start : start + _TEXTS] for start in range(0, len(texts), _TEXTS)]
    ids = [tokenizer(part, on_too_long=cut.append).to(loaded.device) for part in parts]
    features = [loaded.model.encode_text(batch, normalize=True).float().cpu() for batch in ids]
    return torch.cat(features), sum(cut)
