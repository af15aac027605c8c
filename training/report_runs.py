"""Several runs beside each other: figures and settings in tables of a column each, losses in one chart."""

from collections.abc import Mapping, Sequence
from typing import Any

from keepfit_clip.page.charts import loss_charts
from keepfit_clip.page.report import Section
from keepfit_clip.training.report_transfer import percent

__all__ = ["compare_evaluations", "compare_losses", "compare_settings", "compare_transfers"]


def compare_evaluations(last: Mapping[str, Mapping[str, Any]]) -> Section:
    """The last evaluation of each run.

    Args:
        last: name of a run -> name of a figure -> its value.
    """
    names = dict.fromkeys(name for values in last.values() for name in values if name != "epoch")
    rows = [[name.replace("_", " "), *(_figure(values.get(name)) for values in last.values())] for name in names]
    rows.insert(0, ["epoch", *(str(values.get("epoch", "")) for values in last.values())])
    return Section("Last evaluation of each run", header=["figure", *last], rows=rows)


def compare_losses(logs: Mapping[str, Sequence[dict]]) -> Section:
    """The loss terms of each run in one chart for each term.

    Args:
        logs: name of a run -> lines of its `losses.jsonl`.
    """
    text = "Each term with its weight, as it is trained: only terms of equal weights compare. Smoothed."
    return Section("Losses of the runs", text, chart=loss_charts(logs))


def compare_settings(settings: Mapping[str, Mapping[str, str]]) -> Section:
    """The settings that are not the same in all runs.

    Args:
        settings: name of a run -> setting -> its value as text.
    """
    names = dict.fromkeys(name for values in settings.values() for name in values)
    rows = [[name, *(values.get(name, "") for values in settings.values())] for name in names]
    rows = [row for row in rows if len(set(row[1:])) > 1]
    same = "" if rows else "The runs have the same settings."
    return Section("Settings that differ", same, header=["setting", *settings], rows=rows)


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
        [*key, metric.upper(), *(percent(of_run.get(key, {}).get(metric)) for of_run in outcomes.values())]
        for key in dict.fromkeys(key for of_run in outcomes.values() for key in of_run)
        for metric in ("aca", "auc")
    ]
    text = "Mean ± standard deviation over the folds, [95 % interval over images], in percent."
    return Section(f"Transfers to {title}", text, header=["method", "shots", "metric", *results], rows=rows)


def _figure(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else "" if value is None else str(value)
