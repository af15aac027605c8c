"""How well a model knows drawn retinas: zero-shot classes and captions, each beside controls that know nothing.

    python -m keepfit_clip.training.demo.judge MODEL DRAWN SCORES.json

MODEL is a folder made by `keepfit-clip export`, DRAWN one made by `keepfit-clip draw`. On standard output it tells how
far it is, "done/all" a line.
"""

import argparse
import csv
import os
import re
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from keepfit_clip.data.records import Record
from keepfit_clip.drawing.content import LESIONS
from keepfit_clip.drawing.fundus import QUADRANTS
from keepfit_clip.drawing.retina import CONDITIONS
from keepfit_clip.errors import KeepFITError
from keepfit_clip.evaluate.metrics.classification import score_classification
from keepfit_clip.evaluate.table import TableScores, evaluate_table, image_batches
from keepfit_clip.files import write_json
from keepfit_clip.folders.loaded import LoadedModel
from keepfit_clip.folders.loading import load_model
from keepfit_clip.training.programs import exit_code

__all__ = ["judge_captions", "judge_drawn", "named_condition"]

_SHUFFLES = 20
_SIDES = ("nasal to the fovea", "temporal to the fovea")


def judge_drawn(model: str | Path, drawn: str | Path, on_step: Callable[[int, int], None] | None = None) -> dict:
    """Scores a model on a folder of drawn pictures.

    Zero-shot: every picture is compared with all of CONDITIONS, in the words of its modality. The controls: the same
    evaluation of the same table with its pictures dealt out anew (chance), and the predictions dealt out anew within
    each modality (what knowing the modality alone gives).

    Captions: written greedily. The controls: what the same decoder writes when all it is given is an even grey picture
    (no decoder that is blind can do better than the best answer that is always the same, which stands beside it); and,
    for eye, place and counts, the captions of other pictures of the same kind.

    Args:
        model: a model folder.
        drawn: a folder made by `draw_dataset`.
        on_step: called with the pictures done and all there are to do.

    Raises:
        KeepFITError: a picture is missing or cannot be read.

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
                on_step(done, 3 * len(paths))

    result = evaluate_table(loaded, table, drawn, CONDITIONS, progress=step, allow_missing_classes=True)
    if result.left_out:
        first = result.left_out[0].message
        raise KeepFITError(f"{drawn}: {len(result.left_out)} pictures cannot be used, e.g. {first}")
    shuffled = _evaluate_shuffled(loaded, table, drawn, step)
    records = result.records
    captions: list[str] = []
    for _, batch in image_batches(step([record.image for record in records]), loaded.preprocess):
        captions += loaded.decode(loaded.model.generate(batch.to(loaded.device)))
    blind = _caption_of_nothing(loaded)
    no_image = {"caption": blind, **judge_captions([blind] * len(records), records)}
    return {
        "zero_shot": {**_zero_shot(result), "aca_shuffled_images": shuffled},
        "captions": {**judge_captions(captions, records), "no_image": no_image},
        "pictures": [
            {
                "image": Path(os.path.relpath(record.image, drawn)).as_posix(),
                "modality": record.modality,
                "condition": result.classes[label],
                "predicted": result.classes[int(row.argmax())],
                "probability": float(row.max()),
                "truth": record.caption_texts[0],
                "written": caption,
            }
            for label, record, row, caption in zip(result.labels, records, result.probabilities, captions, strict=True)
        ],
    }


def _evaluate_shuffled(loaded: LoadedModel, table: Path, drawn: str | Path, progress) -> float:
    """ACA over a table whose rows got other rows' pictures, each with its modality."""
    with open(table, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    order = np.random.default_rng(0).permutation(len(rows))
    with tempfile.TemporaryDirectory() as folder:
        shuffled = Path(folder) / table.name
        with open(shuffled, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            for row, other in zip(rows, order, strict=True):
                writer.writerow({**row, "image": rows[other]["image"], "modality": rows[other]["modality"]})
        return evaluate_table(
            loaded, shuffled, drawn, CONDITIONS, progress=progress, allow_missing_classes=True
        ).scores.aca


def _zero_shot(result: TableScores) -> dict:
    labels = result.labels
    modalities = np.array([record.modality for record in result.records])
    right = result.probabilities.argmax(axis=1) == labels
    kinds = {(m, int(k)) for m, k in zip(modalities, labels, strict=True)}
    rng = np.random.default_rng(0)
    within = []
    for _ in range(_SHUFFLES):
        same_modality = labels.copy()
        for modality in set(modalities):
            members = np.flatnonzero(modalities == modality)
            same_modality[members] = labels[rng.permutation(members)]
        within.append(score_classification(same_modality, result.probabilities).aca)
    return {
        "images": result.images,
        "classes": result.classes,
        "aca": result.scores.aca,
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
    truths = [record.caption_texts[0] for record in records]
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
    """The condition of CONDITIONS that a caption names; None if it names none, or several."""
    return _named(CONDITIONS, caption)


def _named(phrases: Sequence[str], caption: str) -> str | None:
    """The one phrase that stands in a caption as whole words; None for none or several."""
    text = re.sub(r"\s*-\s*", "-", caption.casefold())
    matches = [phrase for phrase in phrases if re.search(rf"\b{phrase}\b", text)]
    return matches[0] if len(matches) == 1 else None


def _rate(named: Sequence[str | None], wanted: Sequence[str | None]) -> float | None:
    """Share of the pictures with something to say of which it was said; None where there is no such picture."""
    judged = [n == w for n, w in zip(named, wanted, strict=True) if w is not None]
    return float(np.mean(judged)) if judged else None


def _count_rate(captions: Sequence[str], truths: Sequence[str]) -> float | None:
    """Share of the lesions of all true captions that the other ones name with the same number."""
    judged = []
    for caption, truth in zip(captions, truths, strict=True):
        numbers = dict(_counted(caption))
        judged += [numbers.get(lesion) == number for lesion, number in _counted(truth)]
    return float(np.mean(judged)) if judged else None


def _counted(caption: str) -> list[tuple[str, int]]:
    """The kinds of lesions that a caption counts, in the plural, and their numbers."""
    text = caption.casefold()
    return [
        (plural, int(match[1]))
        for plural, singular in LESIONS.items()
        if (match := re.search(rf"\b(\d+) (?:{plural}|{singular})\b", text))
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
    program = "python -m keepfit_clip.training.demo.judge"
    parser = argparse.ArgumentParser(prog=program, description=__doc__.splitlines()[0])
    for name in ("model", "drawn", "scores"):
        parser.add_argument(name, type=Path)
    args = parser.parse_args(argv)
    scores = judge_drawn(args.model, args.drawn, lambda done, total: print(f"{done}/{total}", flush=True))
    write_json(args.scores, scores)


if __name__ == "__main__":
    sys.exit(exit_code("judging", main))
