"""How well a model knows drawn retinas: zero-shot classes and captions, each beside controls that know nothing.

    python -m keepfit_clip.drawing.judging MODEL DRAWN SCORES.json

MODEL is a folder made by `keepfit-clip export`, DRAWN one made by `keepfit-clip draw`. On standard output it tells how
far it is, "done/all" a line.
"""

import argparse
import os
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from keepfit_clip.data.records import Record
from keepfit_clip.drawing.content import LESIONS
from keepfit_clip.drawing.fundus import QUADRANTS
from keepfit_clip.drawing.retina import CONDITIONS
from keepfit_clip.errors import exit_code
from keepfit_clip.evaluation import TableScores, evaluate_table, image_batches
from keepfit_clip.files import write_json
from keepfit_clip.loading import LoadedModel, load_model
from keepfit_clip.metrics import score_classification

__all__ = ["judge_captions", "judge_drawn", "named_condition"]

_SHUFFLES = 20
_SIDES = ("nasal to the fovea", "temporal to the fovea")


def judge_drawn(model: str | Path, drawn: str | Path, on_step: Callable[[int, int], None] | None = None) -> dict:
    """Scores a model on a folder of drawn pictures.

    Zero-shot: every picture is compared with all of CONDITIONS, in the words of its modality. The controls deal the
    labels out anew: over all pictures (chance), and within each modality (what knowing the modality alone gives).

    Captions: written greedily; the controls are the same decoder looking at an empty grey picture, the best answer
    that is always the same, and, for eye and place, the captions of other pictures of the same kind.

    Args:
        model: a model folder.
        drawn: a folder made by `draw_dataset`.
        on_step: called with the pictures done and all there are to do.

    Returns:
        `zero_shot`, `captions` (dicts of figures) and `pictures` (a list of what was said of each).
    """
    loaded = load_model(model)
    table = Path(drawn) / "retina.csv"
    done = 0

    def step(paths: Sequence[Path]) -> Iterator[Path]:
        nonlocal done
        for path in paths:
            yield path
            done += 1
            if on_step:
                on_step(done, 2 * len(paths))

    result = evaluate_table(loaded, table, drawn, CONDITIONS, progress=step)
    records = [item.record for item in result.labelled]
    captions: list[str] = []
    for _, batch in image_batches(step([record.image for record in records]), loaded.preprocess):
        captions += loaded.decode(loaded.model.generate(batch.to(loaded.device)))
    blind = _caption_of_nothing(loaded)
    return {
        "zero_shot": _zero_shot(result),
        "captions": {**judge_captions(captions, records), "no_image": judge_captions([blind] * len(records), records)},
        "pictures": [
            {
                "image": Path(os.path.relpath(record.image, drawn)).as_posix(),
                "modality": record.modality,
                "condition": result.classes[item.label],
                "predicted": result.classes[int(row.argmax())],
                "probability": float(row.max()),
                "truth": record.captions[0],
                "written": caption,
            }
            for item, record, row, caption in zip(result.labelled, records, result.probabilities, captions, strict=True)
        ],
    }


def _zero_shot(result: TableScores) -> dict:
    labels = np.array([item.label for item in result.labelled])
    modalities = np.array([item.record.modality for item in result.labelled])
    right = result.probabilities.argmax(axis=1) == labels
    kinds = {(m, int(k)) for m, k in zip(modalities, labels, strict=True)}
    rng = np.random.default_rng(0)
    dealt, within = [], []
    for _ in range(_SHUFFLES):
        dealt.append(score_classification(rng.permutation(labels), result.probabilities).aca)
        same_modality = labels.copy()
        for modality in set(modalities):
            members = np.flatnonzero(modalities == modality)
            same_modality[members] = labels[rng.permutation(members)]
        within.append(score_classification(same_modality, result.probabilities).aca)
    return {
        "images": result.images,
        "classes": result.classes,
        "aca": result.scores.aca,
        "aca_shuffled_images": float(np.mean(dealt)),
        "aca_shuffled_within_modality": float(np.mean(within)),
        "accuracy_by_kind": {
            f"{modality} {result.classes[label]}": float(right[(modalities == modality) & (labels == label)].mean())
            for modality, label in sorted(kinds)
        },
        "confusion": result.scores.confusion.tolist(),
    }


def judge_captions(captions: Sequence[str], records: Sequence[Record]) -> dict:
    """How often captions name the right condition, eye and place.

    Args:
        captions: as a model wrote them.
        records: of drawn pictures, in the same order.

    Returns:
        Rates from 0 to 1; those of places only over pictures whose own caption names one, that of counts over the
        lesions that captions count. `*_other_picture` are the rates when captions are exchanged between pictures of the
        same modality and condition.
    """
    truths = [record.captions[0] for record in records]
    conditions = [named_condition(truth) for truth in truths]
    kinds = [(record.modality, condition) for record, condition in zip(records, conditions, strict=True)]
    exchanged = _exchanged(captions, kinds)
    rates = {
        "images": len(captions),
        "condition_rate": _rate([named_condition(c) for c in captions], conditions),
        "condition_rate_best_constant": max(Counter(conditions).values()) / len(conditions),
    }
    for name, phrases in (("eye", ("left eye", "right eye")), ("quadrant", QUADRANTS), ("side", _SIDES)):
        wanted = [_named(phrases, truth) for truth in truths]
        rates[f"{name}_rate"] = _rate([_named(phrases, c) for c in captions], wanted)
        rates[f"{name}_rate_other_picture"] = _rate([_named(phrases, c) for c in exchanged], wanted)
    rates["count_rate"] = _count_rate(captions, truths)
    rates["count_rate_other_picture"] = _count_rate(exchanged, truths)
    return rates


def named_condition(caption: str) -> str | None:
    """The condition of CONDITIONS that a caption names first; None if it names none."""
    text = re.sub(r"\s*-\s*", "-", caption.casefold())
    found = {text.find(c): c for c in CONDITIONS if c in text}
    return found[min(found)] if found else None


def _named(phrases: Sequence[str], caption: str) -> str | None:
    return next((phrase for phrase in phrases if phrase in caption.casefold()), None)


def _rate(said: Sequence[str | None], wanted: Sequence[str | None]) -> float | None:
    """Share of the pictures with something to say of which it was said; None where there is no such picture."""
    judged = [s == w for s, w in zip(said, wanted, strict=True) if w is not None]
    return float(np.mean(judged)) if judged else None


def _count_rate(captions: Sequence[str], truths: Sequence[str]) -> float | None:
    """Share of the lesions of all true captions that the other ones name with the same number."""
    judged = []
    for said, truth in zip(captions, truths, strict=True):
        numbers = dict(_counted(said))
        judged += [numbers.get(lesion) == number for lesion, number in _counted(truth)]
    return float(np.mean(judged)) if judged else None


def _counted(caption: str) -> list[tuple[str, int]]:
    """The kinds of lesions that a caption counts, in the plural, and their numbers."""
    text = caption.casefold()
    return [
        (plural, int(found[1]))
        for plural, singular in LESIONS.items()
        if (found := re.search(rf"\b(\d+) (?:{plural}|{singular})\b", text))
    ]


def _exchanged(captions: Sequence[str], kinds: Sequence[tuple]) -> list[str]:
    """Each picture gets the caption of the next one of its kind."""
    members = defaultdict(list)
    for index, kind in enumerate(kinds):
        members[kind].append(index)
    given = list(captions)
    for indices in members.values():
        for index, other in zip(indices, [*indices[1:], indices[0]], strict=True):
            given[index] = captions[other]
    return given


def _caption_of_nothing(loaded: LoadedModel) -> str:
    """What the decoder writes when all it sees is an even grey, 0 after normalisation."""
    size = loaded.model.visual.image_size
    height, width = (size, size) if isinstance(size, int) else size
    ids = loaded.model.generate(torch.zeros(1, 3, height, width, device=loaded.device))
    return loaded.decode(ids)[0]


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the scores of a model folder."""
    parser = argparse.ArgumentParser(prog="python -m keepfit_clip.drawing.judging", description=__doc__.splitlines()[0])
    for name in ("model", "drawn", "scores"):
        parser.add_argument(name, type=Path)
    args = parser.parse_args(argv)
    scores = judge_drawn(args.model, args.drawn, lambda done, total: print(f"{done}/{total}", flush=True))
    write_json(args.scores, scores)


if __name__ == "__main__":
    sys.exit(exit_code("judging", main))
