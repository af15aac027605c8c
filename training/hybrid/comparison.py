"""Several runs beside each other: evaluations and settings in tables of a column each, losses in one chart."""

from collections.abc import Mapping, Sequence
from typing import Any

from keepfit_clip.page.charts import loss_charts
from keepfit_clip.page.report import Section

__all__ = ["compare_evaluations", "compare_losses", "compare_settings"]


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


def _figure(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else "" if value is None else str(value)
