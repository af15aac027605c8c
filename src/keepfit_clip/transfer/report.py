"""What a report says of a transfer: `results.json`, and the answers in `predictions.npz` where they were kept."""

import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from keepfit_clip.page.report import Section
from keepfit_clip.transfer.plots import Plotted, outcome_charts

__all__ = ["compare_transfers", "transfer_sections"]

_METRICS = ("aca", "auc", "kappa", "f1", "ece")


def transfer_sections(folder: Path, content: dict, name: str = "") -> list[Section]:
    """The table of a transfer, charts and classes of the method whose ACA is highest, and the same of others, folded.

    Args:
        folder: of the transfer.
        content: of its `results.json`.
        name: to call it by, where the page shows several.
    """
    suffix = f" ({name})" if name else ""
    metrics = [one for one in _METRICS if any(o.get(one, {}).get("mean") is not None for o in content["outcomes"])]
    ranked = sorted(content["outcomes"], key=lambda outcome: -(outcome["aca"]["mean"] or 0))
    table = Section(
        f"Transfer: {content['data']}{suffix}",
        f"{content['images']} images of {len(content['classes'])} classes, {content['options']['folds']} folds"
        f"{' by patient' if content['by_patient'] else ''}; mean ± standard deviation over the folds, "
        "[95 % interval over images], in percent.",
        header=["method", "shots", *(metric.upper() for metric in metrics)],
        rows=[
            [outcome["method"], outcome["shots"] or "", *(_percent(outcome.get(metric)) for metric in metrics)]
            for outcome in content["outcomes"]
        ],
    )
    answers = _answers(folder)
    return [table, *(_details(outcome, content["classes"], answers, n > 0, suffix) for n, outcome in enumerate(ranked))]


def compare_transfers(results: Mapping[str, Mapping]) -> list[Section]:
    """A table for each data set of which several transfers are.

    Args:
        results: name of a transfer -> content of its `results.json`.
    """
    sections = []
    for title in dict.fromkeys(content["data"] for content in results.values()):
        of_title = {name: content for name, content in results.items() if content["data"] == title}
        if len(of_title) > 1:
            sections.append(_transfers(title, of_title))
    return sections


def _transfers(title: str, results: Mapping[str, Mapping]) -> Section:
    outcomes = {
        name: {(outcome["method"], outcome["shots"] or ""): outcome for outcome in content["outcomes"]}
        for name, content in results.items()
    }
    rows = [
        [*key, metric.upper(), *(_percent(of_run.get(key, {}).get(metric)) for of_run in outcomes.values())]
        for key in dict.fromkeys(key for of_run in outcomes.values() for key in of_run)
        for metric in ("aca", "auc")
    ]
    text = "Mean ± standard deviation over the folds, [95 % interval over images], in percent."
    return Section(f"Transfers to {title}", text, header=["method", "shots", "metric", *results], rows=rows)


def _percent(metric: dict | None) -> str:
    """A metric of an outcome as text: mean, deviation and interval."""
    if metric is None or metric["mean"] is None:
        return "n/a"
    spread = f" ± {100 * metric['sd']:.1f}" if metric.get("sd") is not None else ""
    low, high = metric.get("interval") or (None, None)
    interval = f" [{100 * low:.1f}, {100 * high:.1f}]" if low is not None else ""
    return f"{100 * metric['mean']:.1f}{spread}{interval}"


def _details(
    outcome: dict, classes: Sequence[str], answers: dict[str, np.ndarray], folded: bool, suffix: str
) -> Section:
    """Charts and classes of one outcome."""
    name = f"{outcome['method']} {outcome['shots'] or ''}".strip()
    confusion = np.array(outcome["confusion"])
    plotted = Plotted(
        confusion,
        *(np.array([_or_nan(outcome[rate][c]) for c in classes]) for rate in ("sensitivity", "specificity")),
        outcome["reliability"],
        outcome["abstention"],
        _or_nan(outcome.get("ece", {}).get("mean")),
        answers.get("labels") if name in answers else None,
        answers.get(name),
    )
    # Of each class against the rest the second row is of images that have it.
    images = confusion.sum(axis=1) if confusion.ndim == 2 else confusion[:, 1].sum(axis=1)
    rates = zip(classes, images.tolist(), plotted.sensitivity, plotted.specificity, strict=True)
    thresholds = outcome.get("thresholds", {})
    return Section(
        f"{name}{suffix}" if folded else f"{name}, whose ACA is highest{suffix}",
        "Each class over all folds; sensitivity and specificity in percent.",
        chart=outcome_charts(plotted, classes),
        header=["class", "images", "sensitivity", "specificity", *(["threshold"] if thresholds else [])],
        rows=[
            [c, str(n), _share(found), _share(spared), *([f"{thresholds[c]:.2f}"] if thresholds else [])]
            for c, n, found, spared in rates
        ],
        folded=folded,
    )


def _answers(folder: Path) -> dict[str, np.ndarray]:
    """Labels, and the probabilities of each outcome by its name; empty where they were not kept."""
    try:
        with np.load(folder / "predictions.npz", allow_pickle=False) as content:
            return dict(content)
    except (OSError, ValueError, zipfile.BadZipFile):
        return {}


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _share(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{100 * value:.1f}"
