"""Whether a model's training knew the classes of a data set."""

from keepfit_clip.data.downstream import ClassFile
from keepfit_clip.errors import CategoryError
from keepfit_clip.folders.training_record import TrainingRecord
from keepfit_clip.knowledge.conditions import Knowledge
from keepfit_clip.knowledge.held_out import HeldOut

__all__ = ["SEEN", "UNKNOWN", "UNSEEN", "standing"]

SEEN, UNSEEN, UNKNOWN = "seen", "unseen", "unknown"


def standing(spec: ClassFile, record: TrainingRecord | None, knowledge: Knowledge) -> str:
    """`SEEN` where every class was among the categories of training, `UNSEEN` where one was not or was held out.

    A class was seen in any form of it: "mild diabetic retinopathy" is one of "diabetic retinopathy". Its denial was
    seen with it, or with normal eyes. Classes that the knowledge does not name say nothing.

    Args:
        spec: the classes.
        record: of the training; None where nobody knows.
        knowledge: tells forms and denials.

    Returns:
        `UNKNOWN` without a record, or where no class can be judged.
    """
    if record is None or not spec.named:
        return UNKNOWN
    try:
        held_out = HeldOut(record.held_out, knowledge)
    except CategoryError:  # the training had a knowledge file of its own
        return UNKNOWN
    trained = {name for category in record.categories for name in _with_broader(category, knowledge)}
    terms = {name: knowledge.look_up(name) for name in spec.classes}
    judged = {name: term for name, term in terms.items() if term.condition is not None}
    for name, term in judged.items():
        known = term.condition.name in trained or (term.denies and "normal" in trained)
        if held_out.named_in(name) or not known:
            return UNSEEN
    return SEEN if judged else UNKNOWN


def _with_broader(category: str, knowledge: Knowledge) -> list[str]:
    """A category's condition and those that it is a form of; of a denial the condition that it denies."""
    condition = knowledge.look_up(category).condition
    return [condition.name, *knowledge.ancestors(condition.name)] if condition else [category]
