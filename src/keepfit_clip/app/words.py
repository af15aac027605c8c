"""Which words of a caption say something: where the page's attention map opens, and which it folds away."""

import re
from collections.abc import Sequence

from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from keepfit_clip.knowledge.conditions import Knowledge
from keepfit_clip.knowledge.mentions import find_mentions

__all__ = ["content_words", "opening_word"]

# The list is for search in general; of a retina these say how it looks, and where.
_SAYING = {"above", "around", "below", "beside", "between", "bottom", "empty", "few", "full", "many", "no", "not",
           "several", "side", "thick", "thin", "throughout", "top", "within", "without"}  # fmt: skip
_FUNCTION_WORDS = ENGLISH_STOP_WORDS - _SAYING
_MARKS = re.compile(r"^\W+|\W+$")


def content_words(words: Sequence[str]) -> list[int]:
    """The places of those words that are no function words; of all words where there is no other."""
    return [place for place, word in enumerate(words) if _bare(word) not in _FUNCTION_WORDS] or list(range(len(words)))


def opening_word(caption: str, words: Sequence[str], knowledge: Knowledge) -> int:
    """The place of the first word that names a condition or sign; else of the first that is no function word.

    Args:
        caption: the whole of it.
        words: of it.
        knowledge: names of conditions and signs.
    """
    named = {
        part for mention in find_mentions(caption, knowledge) for name in knowledge.names(mention.name)
        for part in name.casefold().split()
    }  # fmt: skip
    places = content_words(words)
    return next((place for place in places if _bare(words[place]) in named), places[0])


def _bare(word: str) -> str:
    return _MARKS.sub("", word).casefold()
