"""What a text tower has learnt: masked words of held-out sentences, and synonyms of conditions.

Both are asked of the starting encoder and of the trained one, and told in one report.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from keepfit_clip.errors import CorpusError
from keepfit_clip.evaluate.metrics.retrieval import first_positive_ranks
from keepfit_clip.knowledge.conditions import Knowledge
from keepfit_clip.training.text_stage.corpus import CorpusFigures

__all__ = ["MaskedLMScores", "SynonymScores", "TextPretrainingResult", "score_masked_words", "synonym_retrieval"]

_DRAWS = 4  # maskings of each held-out sentence
_TERMS = 64  # terms in a batch


@dataclass(frozen=True)
class MaskedLMScores:
    """Held-out masked-language modelling.

    Args:
        perplexity: exp of the mean negative log-likelihood of a masked token, nats.
        accuracy: share of masked tokens whose likeliest guess is right.
        tokens: number of masked tokens.
    """

    perplexity: float
    accuracy: float
    tokens: int


@dataclass(frozen=True)
class SynonymScores:
    """Canonical names found by their synonyms.

    Args:
        recall_at_1, recall_at_5: share of the queries whose condition is the nearest, or among the five nearest.
        mean_reciprocal_rank: mean of one over the rank of the right condition.
        queries: number of synonyms and abbreviations.
        candidates: number of canonical names.
    """

    recall_at_1: float
    recall_at_5: float
    mean_reciprocal_rank: float
    queries: int
    candidates: int


@dataclass(frozen=True)
class TextPretrainingResult:
    """What stage 1 was fed and what it achieved.

    Args:
        held_out: masked words of held-out sentences, for `trained` and, unless there was no control, `frozen` (a head
            trained on the starting encoder, which already has the new tokens).
        synonyms: synonym retrieval `before` (the starting encoder as it comes) and `after`; None where the
            knowledge has no synonyms.
        corpus: what the corpus held.
        evaluated_sentences: held-out sentences that were measured.
        new_tokens: words added to the vocabulary.
    """

    held_out: dict[str, MaskedLMScores]
    synonyms: dict[str, SynonymScores | None]
    corpus: CorpusFigures
    evaluated_sentences: int
    new_tokens: int

    def table(self, title: str) -> Table:
        """All of it for the terminal."""
        corpus, control = self.corpus, self.held_out.get("frozen")
        table = Table(
            "",
            "before",
            "after",
            title=title,
            caption=f"Trained on {corpus.training_sentences} sentences of {corpus.training_documents} documents. "
            f"Held out {corpus.held_out_documents} documents, and measured {self.evaluated_sentences} of their "
            f"{corpus.held_out_sentences} sentences. Left out: {corpus.duplicates} duplicates, "
            f"{corpus.named_held_out} that name a category held out, {corpus.left_out} unreadable lines or samples. "
            f"New tokens: {self.new_tokens}."
            + (" Masked tokens before: the same head on the frozen start." if control else ""),
        )
        masked = (control, self.held_out["trained"])
        probes = [
            ("masked tokens: perplexity", "perplexity", ".2f", *masked),
            ("masked tokens: accuracy", "accuracy", ".3f", *masked),
        ]
        if self.synonyms["before"]:
            names = {"recall_at_1": "recall at 1", "recall_at_5": "recall at 5", "mean_reciprocal_rank": "mean 1/rank"}
            probes += [
                (f"synonyms: {label}", name, ".3f", self.synonyms["before"], self.synonyms["after"])
                for name, label in names.items()
            ]
        for label, name, digits, before, after in probes:
            cells = (format(getattr(side, name), digits) if side else "" for side in (before, after))
            table.add_row(label, *cells)
        return table


@torch.no_grad()
def score_masked_words(model: PreTrainedModel, examples: Dataset, masking: Callable, batch_size: int) -> MaskedLMScores:
    """Scores a masked-language model.

    Args:
        model: put into eval mode.
        examples: tokenized sentences, of which one batch at a time is in memory.
        masking: makes a masked batch of examples; a fresh one of the same seed asks the next model the same.
        batch_size: sentences in a batch.

    Raises:
        CorpusError: no word was masked.
    """
    model.eval()
    nll, right, tokens = 0.0, 0, 0
    for _ in range(_DRAWS):
        for batch in DataLoader(examples, batch_size, collate_fn=masking):
            labels = batch.pop("labels").to(model.device)  # (B, L)
            logits = model(**{name: tensor.to(model.device) for name, tensor in batch.items()}).logits  # (B, L, V)
            masked = labels != -100
            guesses, targets = logits[masked].float(), labels[masked]  # (M, V), (M,)
            nll += float(F.cross_entropy(guesses, targets, reduction="sum"))
            right += int((guesses.argmax(dim=1) == targets).sum())
            tokens += len(targets)
    if not tokens:
        raise CorpusError("no word of the held-out part was masked: give a larger corpus or a larger --held-out")
    return MaskedLMScores(perplexity=math.exp(nll / tokens), accuracy=right / tokens, tokens=tokens)


def synonym_retrieval(
    encoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, knowledge: Knowledge
) -> SynonymScores | None:
    """Looks for each condition's canonical name by its synonyms and abbreviations, by cosine over all names.

    The sentences of the knowledge are part of the corpus by default, but for the conditions held out: so this tells
    whether what was taught is known, not how well it carries over to other terms.

    Args:
        encoder: without a head; put into eval mode.
        tokenizer: the encoder's.
        knowledge: what to ask.

    Returns:
        None where no condition has another name.
    """
    names = list(knowledge.conditions)
    queries = [
        (term, number)
        for number, condition in enumerate(knowledge.conditions.values())
        for term in dict.fromkeys((*condition.synonyms, *condition.abbreviations))
        if term.casefold() != condition.name.casefold()
    ]
    if not queries:
        return None
    candidates = _embed(encoder, tokenizer, names)  # (C, D)
    asked = _embed(encoder, tokenizer, [term for term, _ in queries])  # (Q, D)
    right = F.one_hot(torch.tensor([number for _, number in queries]), len(names)).bool()  # (Q, C)
    ranks = first_positive_ranks(asked, candidates, right).double()  # (Q,)
    return SynonymScores(
        recall_at_1=float((ranks <= 1).double().mean()),
        recall_at_5=float((ranks <= 5).double().mean()),
        mean_reciprocal_rank=float(ranks.reciprocal().mean()),
        queries=len(queries),
        candidates=len(names),
    )


@torch.no_grad()
def _embed(encoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, terms: Sequence[str]) -> Tensor:
    """Unit-length means of the last hidden states of T terms, pooled as stage 2 does: (T, D)."""
    encoder.eval()
    return torch.cat([_embed_batch(encoder, tokenizer, terms[i : i + _TERMS]) for i in range(0, len(terms), _TERMS)])


def _embed_batch(encoder, tokenizer, terms: Iterable[str]) -> Tensor:
    batch = tokenizer(list(terms), padding=True, return_tensors="pt").to(encoder.device)
    mask = batch["attention_mask"]  # (T, L)
    states = encoder(input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state.float()  # (T, L, D)
    mask = mask.unsqueeze(-1)
    return F.normalize((states * mask).sum(dim=1) / mask.sum(dim=1), dim=-1).cpu()
