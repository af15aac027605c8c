"""What a model was trained with, for programs: `training.json` of a model folder.

    {"schema": 1, "categories": ["normal", ...], "held_out": ["cataract", ...], "data": ["public", "elite"]}

The categories are those that the manifests of the shards count, without those that training held out. What experts'
captions name beside them is not looked into.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HFValidationError, HTTPError
from typing_extensions import Self

from keepfit_clip.errors import CategoryError
from keepfit_clip.files import read_json
from keepfit_clip.knowledge.conditions import Knowledge
from keepfit_clip.knowledge.held_out import HeldOut

__all__ = ["TRAINING_NAME", "TrainingRecord", "record_of_model", "record_of_run"]

TRAINING_NAME = "training.json"
_SCHEMA = 1
_DATA = ("public_data", "elite_data")
_SHOWN = 12  # categories on the card


@dataclass(frozen=True)
class TrainingRecord:
    """What a training saw.

    Args:
        categories: of its samples, canonical.
        held_out: categories that it was kept from (`--hold-out-categories`).
        data: names of its data sets.
    """

    categories: tuple[str, ...]
    held_out: tuple[str, ...] = ()
    data: tuple[str, ...] = ()

    @classmethod
    def of_json(cls, content: Any) -> Self | None:
        """The record in the content of a file, None where it is none."""
        if not isinstance(content, dict) or content.get("schema") != _SCHEMA:
            return None
        lists = [content.get(name) for name in ("categories", "held_out", "data")]
        whole = all(isinstance(one, list) and all(isinstance(text, str) for text in one) for one in lists)
        return cls(*map(tuple, lists)) if whole else None

    def to_json(self) -> dict[str, Any]:
        """As it stands in a file."""
        return {"schema": _SCHEMA, **{name: list(values) for name, values in asdict(self).items()}}

    def after(self, earlier: Self) -> Self:
        """This training after an earlier one of the same weights: what either saw; held out is what neither saw."""
        categories = tuple(sorted({*self.categories, *earlier.categories}))
        held_out = tuple(name for name in self.held_out if name in earlier.held_out)
        return type(self)(categories, held_out, tuple(dict.fromkeys((*earlier.data, *self.data))))

    @property
    def lines(self) -> dict[str, str]:
        """Labels and values for the model card."""
        more = f" and {len(self.categories) - _SHOWN} more" if len(self.categories) > _SHOWN else ""
        lines = {"categories seen in training": ", ".join(self.categories[:_SHOWN]) + more}
        if self.held_out:
            lines["categories held out of training"] = ", ".join(self.held_out)
        return lines | ({"data trained on": ", ".join(self.data)} if self.data else {})


def record_of_run(settings: Mapping[str, Any], knowledge: Knowledge) -> TrainingRecord | None:
    """What a run saw, None where nobody can tell.

    Args:
        settings: of `RUN/settings.json`: the flags, the counts of the shards' manifests, and what the weights that it
            began with had seen (`trained_before`: None without such weights, "unknown" where they do not say).
        knowledge: tells the forms of what was held out.
    """
    manifests, names = settings.get("manifests") or {}, []
    categories: set[str] = set()
    for flag in _DATA:
        if settings.get(flag):
            names += settings[flag].split("::")
            for counts in manifests.get(flag) or [None]:
                if not isinstance(counts, dict) or not isinstance(counts.get("categories"), dict):
                    return None
                categories |= counts["categories"].keys()
    held_out = tuple(filter(None, (name.strip() for name in (settings.get("hold_out_categories") or "").split(","))))
    try:
        left_out = HeldOut(held_out, knowledge)
    except CategoryError:  # the run had a knowledge file of its own
        return None
    seen = tuple(sorted(name for name in categories if not left_out.named_in(name)))
    record = TrainingRecord(seen, held_out, tuple(names))
    earlier = settings.get("trained_before")
    if earlier is None:
        return record
    before = TrainingRecord.of_json(earlier)
    return record.after(before) if before else None


def record_of_model(name: str) -> TrainingRecord | None:
    """What the model of a name was trained with, None where it does not say.

    Args:
        name: see `keepfit_clip.folders.loading.load_model`.
    """
    scheme, colon, rest = name.partition(":")
    try:
        if scheme == "hf-hub" and colon:
            return TrainingRecord.of_json(read_json(hf_hub_download(rest, TRAINING_NAME)))
        return TrainingRecord.of_json(read_json(Path(name.removeprefix("local-dir:")) / TRAINING_NAME))
    except (OSError, ValueError, HTTPError, HFValidationError):  # there is none, it is damaged, or out of reach
        return None
