"""What a segmentation run leaves: JSON, a Markdown table and overlays. Nothing names an image."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from keepfit_clip.files import new_folder, write_json, write_text
from keepfit_clip.segmentation.overlays import COLOURS, write_overlays
from keepfit_clip.segmentation.protocol import Segmentation
from keepfit_clip.segmentation.scores import METRICS, Score

__all__ = ["as_json", "as_markdown", "write_results"]

_TITLES = {"dice": "Dice", "iou": "IoU"}
_MEAN = "mean"


def as_markdown(result: Segmentation) -> str:
    """A row for each metric of each class and of their mean: mean ± standard deviation over the folds, in percent."""
    names = [outcome.name for outcome in result.outcomes]
    titles = names if len(names) == 1 else [*names, f"{names[0]} - {names[1]}"]
    lines = [
        _said(result),
        "",
        "| class | images | score | " + " | ".join(titles) + " |",
        "| --- | --- | --- |" + " --- |" * len(titles),
    ]
    columns = {metric: [result.scores(metric, outcome) for outcome in result.outcomes] for metric in METRICS}
    images = [*result.prepared.presence.sum(axis=0).tolist(), len(result.prepared.images)]
    for number, name in enumerate([*result.prepared.source.classes, _MEAN]):
        for metric in METRICS:
            cells = [_cell(scores[number]) for scores in columns[metric]]
            if len(names) > 1:
                cells.append(_cell(result.difference(metric)[number], signed=True))
            lines.append(f"| {name} | {images[number]} | {_TITLES[metric]} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _said(result: Segmentation) -> str:
    prepared, training = result.prepared, result.options.training
    together = [" by patient"] if prepared.by_patient else []
    together += [" near copies together"] if prepared.copies_together else []
    drawn = "images" if prepared.groups is None else "groups of images"
    tower = "frozen" if training.tower == "frozen" else "fine-tuned"
    note = f" NOTE: {result.note}." if result.note else ""
    return (
        f"{prepared.source.title}: {len(prepared.images)} images, {result.options.folds} folds"
        f"{','.join(['', *together])}; U-Net decoder on a {tower} tower, {training.epochs} epochs; scored on the "
        "images' own pixels, in each image the classes that its truth or its answer has; mean ± standard deviation "
        f"over the folds, [95 % interval over {drawn}], in percent.{note}"
    )


def _cell(score: Score, signed: bool = False) -> str:
    if math.isnan(score.mean):
        return "n/a"
    form = "+.1f" if signed else ".1f"
    low, high = (format(100 * value, form) for value in score.interval)
    sd = "" if math.isnan(score.sd) else f" ± {100 * score.sd:.1f}"
    return f"{format(100 * score.mean, form)}{sd} [{low}, {high}]"


def as_json(result: Segmentation, model: str) -> dict:
    """The same for machines, as shares of 1, with counted pixels.

    Args:
        result: of a run.
        model: name of the model, without the path it lies under.
    """
    prepared = result.prepared
    differs = len(result.outcomes) > 1
    return {
        "title": prepared.source.title,
        "model": model,
        "images": len(prepared.images),
        "groups": None if prepared.groups is None else len(np.unique(prepared.groups)),
        "by_patient": prepared.by_patient,
        "classes": prepared.source.classes,
        "images_of_class": prepared.presence.sum(axis=0).tolist(),
        "options": asdict(result.options),
        "scored_on": "the images' own pixels",
        "note": result.note,
        "not_used": [row.without_names() for row in sorted(prepared.source.left_out)],
        "outcomes": [
            {
                "tower": outcome.name,
                **{metric: _named(result, result.scores(metric, outcome)) for metric in METRICS},
                "pixels": dict(zip(prepared.source.classes, _pixels(outcome.counts), strict=True)),
            }
            for outcome in result.outcomes
        ],
        "difference": {metric: _named(result, result.difference(metric)) for metric in METRICS} if differs else None,
    }


def _named(result: Segmentation, scores: Sequence[Score]) -> dict[str, dict]:
    return {name: asdict(s) for name, s in zip([*result.prepared.source.classes, _MEAN], scores, strict=True)}


def _pixels(counts: np.ndarray) -> list[dict[str, int]]:
    return [dict(zip(("right", "wrong", "missed"), row, strict=True)) for row in counts.sum(axis=0).tolist()]


def write_results(out: Path, result: Segmentation, model: str) -> None:
    """Makes a folder of `results.json`, `results.md` and, where images are shown, `overlays`.

    Raises:
        OutputError: it cannot be made.
    """
    with new_folder(out) as folder:
        write_json(folder / "results.json", as_json(result, model))
        text = as_markdown(result)
        if result.outcomes[0].shown:
            write_overlays(folder / "overlays", result)
            text += f"\n{_legend(result)}\n"
        write_text(folder / "results.md", text)


def _legend(result: Segmentation) -> str:
    names = list(COLOURS)
    colours = [f"{name} {names[n % len(names)]}" for n, name in enumerate(result.prepared.source.classes)]
    panels = ", ".join(["the image", "the truth", *(outcome.name for outcome in result.outcomes)])
    return f"overlays/: {panels}, from left to right; {', '.join(colours)}."
