"""Categories that training is to know nothing of, so that zero-shot can be measured on what was never named."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

from keepfit_clip.errors import CategoryError
from keepfit_clip.knowledge.conditions import Condition, Knowledge
from keepfit_clip.knowledge.mentions import find_mentions

__all__ = ["HeldOut"]


class HeldOut:
    """Conditions held out of training, each with all of its forms.

    Args:
        categories: any names of theirs.
        knowledge: names and forms.

    Raises:
        CategoryError: a category that the knowledge does not name, or a negation.

    Attributes:
        conditions: canonical names of what is held out.
    """

    def __init__(self, categories: Sequence[str], knowledge: Knowledge):
        held_out = {_condition(category, knowledge).name for category in categories}
        forms = {name for name in knowledge.conditions if held_out.intersection(knowledge.ancestors(name))}
        self.conditions = frozenset(held_out | forms)
        self._all = knowledge

    @cached_property
    def knowledge(self) -> Knowledge:
        """What is known beside them: no text of it names one."""
        others = (c for name, c in self._all.conditions.items() if name not in self.conditions)
        return Knowledge(map(self._without, others))

    def named_in(self, text: str) -> bool:
        """Whether a text, such as a category, names one of them, or says that it is not there."""
        return any(mention.name in self.conditions for mention in find_mentions(text, self._all))

    def _without(self, condition: Condition) -> Condition:
        """A condition without the texts that name one of those held out, in any language."""
        languages = {
            language: replace(w, findings=self._kept(w.findings), absent=self._kept(w.absent))
            for language, w in condition.languages.items()
        }
        seen, absent = self._kept(condition.findings), self._kept(condition.absent)
        return replace(condition, findings=seen, absent=absent, languages=languages)

    def _kept(self, by_modality: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        kept = {m: tuple(text for text in texts if not self.named_in(text)) for m, texts in by_modality.items()}
        return {modality: texts for modality, texts in kept.items() if texts}


def _condition(category: str, knowledge: Knowledge) -> Condition:
    term = knowledge.look_up(category)
    if term.condition is None or term.denies:
        near = knowledge.similar(category)
        hint = f" (perhaps {', '.join(near)})" if near else ""
        raise CategoryError(f"--hold-out-categories {category!r} is no category that the knowledge names{hint}")
    return term.condition
