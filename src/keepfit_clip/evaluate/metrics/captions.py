"""How good captions are: BLEU, ROUGE-L, CIDEr and chrF, and whether they name the right conditions and signs.

The first three come from pycocoevalcap, the code of the COCO captions (extra `captions`), chrF from torchmetrics.
COCO's tokenizer is a Java program; here words are runs of letters and digits in small letters, punctuation is left out.
METEOR needs Java too, so chrF stands in its place.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from keepfit_clip.errors import ConfigError
from keepfit_clip.extras import require_extra
from keepfit_clip.knowledge.conditions import Knowledge
from keepfit_clip.knowledge.mentions import find_mentions

__all__ = ["score_captions", "score_mentions"]

_WORD = re.compile(r"[^\W_]+")


def score_captions(written: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Scores captions against the experts'.

    Args:
        written: N captions.
        references: of each, the experts' captions, at least one.

    Returns:
        `bleu_1` to `bleu_4`, `rouge_l` and `chrf` between 0 and 1, `cider` between 0 and 10. CIDEr weighs words by
        in how few images' references they stand; of one image, or where all references are the same, it is NaN.

    Raises:
        MissingExtraError: pycocoevalcap is not installed.
        ConfigError: nothing is to be scored, or a caption has no reference.
    """
    require_extra("captions")
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from torchmetrics.functional.text import chrf_score

    if len(written) != len(references) or not written or not all(references):
        raise ConfigError("there must be captions to score, and an expert's caption for each")
    hypotheses = {number: [_words(text)] for number, text in enumerate(written)}
    truth = {number: [_words(text) for text in texts] for number, texts in enumerate(references)}
    distinct = {frozenset(texts) for texts in truth.values()}  # CIDEr counts in how many images a word stands
    bleu, _ = Bleu(4).compute_score(truth, hypotheses, verbose=0)
    return {
        **{f"bleu_{n}": float(value) for n, value in enumerate(bleu, start=1)},
        "rouge_l": float(Rouge().compute_score(truth, hypotheses)[0]),
        "cider": float(Cider().compute_score(truth, hypotheses)[0]) if len(distinct) > 1 else math.nan,
        "chrf": float(chrf_score([texts[0] for texts in hypotheses.values()], list(truth.values()), n_word_order=0)),
    }


def score_mentions(
    written: Sequence[str], references: Sequence[Sequence[str]], knowledge: Knowledge
) -> dict[str, float]:
    """Whether captions name the conditions and signs that the experts name, and deny those that they deny.

    Args:
        written: N captions.
        references: of each, the experts' captions, which are taken together.
        knowledge: the names, and which of them are signs.

    Returns:
        For `condition` and `sign` each: `_exact`, the share of images of which all are named and no other, of those
        whose expert names any; `_constant`, what the best answer that is always the same would reach of it;
        `_precision`, `_recall` and `_f1` of all mentions; `_images`, how many images these are. NaN where there is
        nothing to judge.
    """
    pairs = [
        (_said(text, knowledge), set().union(*(_said(truth, knowledge) for truth in truths)))
        for text, truths in zip(written, references, strict=True)
    ]
    scores = {}
    for kind in ("condition", "sign"):
        of_kind = [
            tuple({said for said in mentions if knowledge.conditions[said[0]].kind == kind} for mentions in pair)
            for pair in pairs
        ]
        judged = [(pred, true) for pred, true in of_kind if true]
        named = sum(len(pred) for pred, _ in of_kind)
        wanted = sum(len(true) for _, true in of_kind)
        right = sum(len(pred & true) for pred, true in of_kind)
        scores[f"{kind}_exact"] = float(np.mean([pred == true for pred, true in judged])) if judged else math.nan
        commonest = max(Counter(frozenset(true) for _, true in judged).values(), default=0)
        scores[f"{kind}_constant"] = commonest / len(judged) if judged else math.nan
        scores[f"{kind}_precision"] = right / named if named else math.nan
        scores[f"{kind}_recall"] = right / wanted if wanted else math.nan
        scores[f"{kind}_f1"] = 2 * right / (named + wanted) if wanted else math.nan
        scores[f"{kind}_images"] = len(judged)
    return scores


def _said(text: str, knowledge: Knowledge) -> set[tuple[str, str]]:
    """Names that a text has, each with its status."""
    return {(mention.name, mention.status) for mention in find_mentions(text, knowledge)}


def _words(text: str) -> str:
    return " ".join(_WORD.findall(text.casefold()))
