"""What a transfer run leaves: JSON, CSV and a Markdown table in the papers' layout. Nothing names an image."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from keepfit_clip.data.downstream import DownstreamSet
from keepfit_clip.files import new_folder, write_json, write_text
from keepfit_clip.page.cells import csv_text
from keepfit_clip.page.provenance import provenance
from keepfit_clip.transfer.plots import write_plots
from keepfit_clip.transfer.protocol import METRICS, Encoded, Outcome, TransferOptions

__all__ = ["MADE_NAME", "as_json", "as_markdown", "conformal_lines", "pooled_lines", "write_results"]

MADE_NAME = "made.json"  # when, with which versions and on what results were made

_TITLES = {"aca": "ACA", "auc": "AUC", "kappa": "kappa", "f1": "F1", "ece": "ECE"}


def as_markdown(downstream: DownstreamSet, outcomes: Sequence[Outcome], options: TransferOptions) -> str:
    """One row for each method and number of shots: mean ± standard deviation over the folds, in percent."""
    shown = _defined(downstream)
    drawn = "images" if downstream.groups is None else "groups of images"
    learnt_from = f" (learnt from {downstream.learnt_from})" if downstream.learnt_from else ""
    lines = [
        f"{downstream.spec.title}{learnt_from}: {len(downstream.records)} images of {len(downstream.classes)} classes, "
        f"{_parted(options, downstream)}; mean ± standard deviation over the folds, "
        f"[95 % interval over {drawn}], in percent.",
        "",
        "| method | shots | " + " | ".join(_TITLES[metric] for metric in shown) + " |",
        "| --- | --- |" + " --- |" * len(shown),
    ]
    for outcome in outcomes:
        cells = [_cell(outcome, metric) for metric in shown]
        lines.append(f"| {outcome.method} | {outcome.shots or ''} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _defined(downstream: DownstreamSet) -> list[str]:
    """The metrics that say something of a set: kappa of grades only, a calibration error where classes exclude."""
    left_out = [] if downstream.spec.ordinal else ["kappa"]
    left_out += ["ece"] if downstream.spec.multi_label else []
    return [metric for metric in METRICS if metric not in left_out]


def pooled_lines(outcomes: Sequence[Outcome]) -> list[str]:
    """A line for each method with the scores of volumes, eyes or patients."""
    return [f"{outcome.name}, {outcome.pooled.line}" for outcome in outcomes if outcome.pooled is not None]


def conformal_lines(outcomes: Sequence[Outcome]) -> list[str]:
    """A line for each method on its conformal sets."""
    return [
        f"{outcome.name}: sets meant to hold the true class of {sets.asked:.0%} of the images hold that of "
        f"{sets.coverage:.1%}, with {sets.size:.2f} classes on average ({sets.single:.0%} of the sets name one)"
        for outcome in outcomes
        if (sets := outcome.conformal)
    ]


def _parted(options: TransferOptions, downstream: DownstreamSet) -> str:
    if options.given_split:
        shared = downstream.groups is not None and _shared_groups(downstream)
        note = f" ({shared} groups of it are learnt from too)" if shared else ""
        return f"tested on the test part that the set gives{note}"
    return f"{options.folds} folds{_kept_together(downstream)}"


def _shared_groups(downstream: DownstreamSet) -> int:
    """Patients, or images with near copies, on both sides of a given split."""
    tested = np.array([record.split == "test" for record in downstream.records])
    return len(np.intersect1d(downstream.groups[tested], downstream.groups[~tested]))


def _kept_together(downstream: DownstreamSet) -> str:
    parts = [" by patient"] if downstream.by_patient else []
    parts += [" near copies together"] if downstream.copies_together else []
    return ",".join(parts) if downstream.by_patient else "".join(f",{part}" for part in parts)


def write_results(
    out: Path, encoded: Encoded, outcomes: Sequence[Outcome], options: TransferOptions, model: str, plots: bool = True
) -> None:
    """Makes a folder of `results.json`, `made.json`, `results.csv`, `table.md`, `predictions.npz` and `plots`.

    Args:
        out: folder to make.
        encoded: what was measured on.
        outcomes: of it.
        options: of the run.
        model: name of the model, without the path it lies under.
        plots: whether to draw.

    Raises:
        MissingExtraError: there is nothing to draw with.
    """
    downstream = encoded.downstream
    with new_folder(out) as folder:
        write_json(folder / "results.json", as_json(downstream, outcomes, options, model))
        write_json(folder / MADE_NAME, provenance())  # apart, so that the same command gives the same results
        write_text(folder / "results.csv", _as_csv(outcomes))
        pooled = "".join(f"\n{line}\n" for line in pooled_lines(outcomes) + conformal_lines(outcomes))
        write_text(folder / "table.md", as_markdown(downstream, outcomes, options) + pooled)
        if plots:
            write_plots(folder / "plots", encoded, outcomes)
        predictions = {outcome.name: outcome.answers.probabilities for outcome in outcomes}
        np.savez_compressed(folder / "predictions.npz", labels=outcomes[0].answers.labels, **predictions)


def _cell(outcome: Outcome, metric: str) -> str:
    mean, deviation = outcome.mean(metric)
    if math.isnan(mean):
        return "n/a"
    text = f"{100 * mean:.1f}"
    if not math.isnan(deviation):
        text += f" ± {100 * deviation:.1f}"
    if metric in outcome.interval:
        low, high = outcome.interval[metric]
        text += f" [{100 * low:.1f}, {100 * high:.1f}]"
    return text


def _plain(value):
    """A figure for JSON, where there is no NaN."""
    return None if math.isnan(value) else float(value)


def as_json(downstream: DownstreamSet, outcomes: Sequence[Outcome], options: TransferOptions, model: str) -> dict:
    """All figures, for machines; what is not defined is None."""
    return {
        "data": downstream.spec.title,
        "model": model,
        "images": len(downstream.records),
        "classes": downstream.classes,
        "learnt_from": downstream.learnt_from,
        "by_patient": downstream.by_patient,
        "copies_together": downstream.copies_together,
        "groups": None if downstream.groups is None else len(np.unique(downstream.groups)),
        "options": asdict(options) | {"shots": [str(shots) for shots in options.shots]},
        "not_used": [row.without_names() for row in sorted(downstream.left_out)],
        "outcomes": [
            {
                "method": outcome.method,
                "shots": None if outcome.shots is None else str(outcome.shots),
                **{
                    metric: dict(zip(("mean", "sd"), map(_plain, outcome.mean(metric)), strict=True))
                    | {"folds": [_plain(getattr(scores, metric)) for scores in outcome.folds]}
                    | {"overall": _plain(getattr(outcome.overall, metric))}
                    | ({"interval": outcome.interval[metric]} if metric in outcome.interval else {})
                    for metric in _defined(downstream)
                },
                "sensitivity": dict(zip(downstream.classes, map(_plain, outcome.overall.sensitivity), strict=True)),
                "specificity": dict(zip(downstream.classes, map(_plain, outcome.overall.specificity), strict=True)),
                "confusion": outcome.overall.confusion.tolist(),
                "abstention": outcome.abstention,
                "reliability": outcome.reliability,
                **_thresholds(downstream, outcome),
                **({"pooled": outcome.pooled.figures} if outcome.pooled else {}),
                **({"conformal": asdict(outcome.conformal)} if outcome.conformal else {}),
            }
            for outcome in outcomes
        ],
    }


def _thresholds(downstream: DownstreamSet, outcome: Outcome) -> dict:
    """Mean over the test images of the threshold of each class, where an image may have several."""
    if not downstream.spec.multi_label:
        return {}
    means = np.broadcast_to(outcome.answers.threshold, outcome.answers.probabilities.shape).mean(axis=0)
    return {"thresholds": dict(zip(downstream.classes, map(float, means), strict=True))}


def _as_csv(outcomes: Sequence[Outcome]) -> str:
    rows = []
    for outcome in outcomes:
        for fold, scores in enumerate(outcome.folds):
            values = [_plain(getattr(scores, metric)) for metric in METRICS]
            shots = outcome.shots or ""
            rows.append([outcome.method, shots, fold, *("" if v is None else f"{v:.6f}" for v in values)])
    return csv_text(["method", "shots", "fold", *METRICS], rows)
