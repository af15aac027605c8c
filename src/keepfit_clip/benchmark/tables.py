"""What a benchmark leaves: `results.json`, `results.csv` and `table.md`. Nothing in them names an image or a folder."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from keepfit_clip.benchmark.compare import Difference, mean_ranks, paired_difference
from keepfit_clip.benchmark.results import MethodResult, SetResult
from keepfit_clip.benchmark.run import BenchmarkRun
from keepfit_clip.benchmark.suites import PublishedFigure, SuiteSet
from keepfit_clip.page.cells import csv_text
from keepfit_clip.transfer.protocol import METRICS

__all__ = ["METRIC_TITLES", "Comparison", "Grid", "Row", "as_csv", "as_json", "as_markdown", "grids", "legend"]

METRIC_TITLES = {"aca": "ACA", "auc": "AUC", "kappa": "kappa"}
_PUBLISHED = "published"
_NONE = "-"


@dataclass(frozen=True)
class Row:
    """A row of the tables: a model, a method and what it learnt from; `paper` where a paper gives it."""

    model: str
    method: str
    shots: str
    paper: str = ""

    @property
    def title(self) -> str:
        """The model, marked where the figures are not ours."""
        return f"{self.model} ({_PUBLISHED})" if self.paper else self.model

    @property
    def name(self) -> str:
        """Method and shots."""
        return f"{self.method} {self.shots}".strip()


@dataclass(frozen=True)
class Grid:
    """A table for people: a title, what it says, and cells."""

    title: str
    text: str
    header: list[str]
    rows: list[list[str]]


@dataclass
class Comparison:
    """The models of a run beside each other.

    Args:
        run: what was measured.
        on_step: called with the set that is compared, how many pairs are, and of how many.
    """

    run: BenchmarkRun
    on_step: Callable[[str, int, int], None] = lambda step, done, total: None

    @cached_property
    def rows(self) -> list[Row]:
        """Ours by model, then those of papers, each in the order in which they come."""
        ours = [
            Row(model.label, one.method, one.shots)
            for model in self.run.options.models
            for result in self._of_model(model.label)
            for one in result.methods
        ]
        theirs = [Row(f.model, f.method, f.shots, f.paper) for s in self.run.sets for f in s.published]
        order = {name: number for number, name in enumerate(dict.fromkeys(row.name for row in ours))}
        models = {name: number for number, name in enumerate(dict.fromkeys(row.model for row in ours))}
        sorted_ours = sorted(dict.fromkeys(ours), key=lambda row: (models[row.model], order[row.name]))
        return sorted_ours + list(dict.fromkeys(theirs))

    def result(self, row: Row, one: SuiteSet) -> tuple[SetResult, MethodResult] | None:
        """What a row of ours reached on a set."""
        result = None if row.paper else self.run.results.get((row.model, one.name))
        method = result and result.method(row.method, row.shots)
        return (result, method) if method else None

    def published(self, row: Row, one: SuiteSet, metric: str) -> PublishedFigure | None:
        """What a paper gives for a row of its own."""
        key = (row.model, row.method, row.shots, metric)
        figures = one.published if row.paper else ()
        return next((f for f in figures if (f.model, f.method, f.shots, f.metric) == key), None)

    def mean(self, row: Row, one: SuiteSet, metric: str) -> tuple[float, float]:
        """Mean and standard deviation over the folds, as the protocol has it; NaN where there are none."""
        found = self.result(row, one)
        return found[1].mean(metric, self.run.protocol.ddof) if found else (math.nan, math.nan)

    @cached_property
    def ranks(self) -> dict[str, tuple[dict[str, float], list[str]]]:
        """Method and shots -> mean rank of each model by ACA, and the sets that all of them have."""
        ranks = {}
        for name in dict.fromkeys(row.name for row in self.rows if not row.paper):
            rows = [row for row in self.rows if row.name == name and not row.paper]
            scores = {row.model: {s.name: self.mean(row, s, "aca")[0] for s in self.run.sets} for row in rows}
            if len(scores) > 1:
                ranks[name] = mean_ranks(scores)
        return ranks

    @cached_property
    def differences(self) -> dict[tuple[str, str, str], dict[str, Difference]]:
        """(Model, method and shots, set) -> what it reaches beyond the first model, on the same images."""
        first, *others = self.run.options.models
        pairs = [(model, one) for model in others for one in self.run.sets]
        found = {}
        for number, (model, one) in enumerate(pairs):
            self.on_step(f"comparing on {one.name}", number, len(pairs))
            before, after = (self.run.results.get((m.label, one.name)) for m in (first, model))
            if before is None or after is None or before.tested != after.tested:
                continue
            for method in after.methods:
                if before.method(method.method, method.shots) is not None:
                    answers = [self.run.files(m, one).answers(method.name) for m in (first, model)]
                    options = self.run.options
                    found[model.label, method.name, one.name] = paired_difference(
                        *answers, options.resamples, options.seed
                    )
        return found

    def _of_model(self, label: str) -> list[SetResult]:
        return [result for (model, _), result in self.run.results.items() if model == label]


def legend(run: BenchmarkRun) -> str:
    """What the figures are."""
    images = {key[1]: result.images for key, result in run.results.items()}
    sets = ", ".join(f"{name} ({count})" for name, count in images.items())
    folds = run.options.folds or run.suite.folds
    return (
        f"Images tested: {sets}. Mean ± standard deviation over {folds} folds [95 % bootstrap interval over images, or "
        f"over groups of them], in percent. Protocol {run.protocol.name}: {run.protocol.words}."
    )


def grids(comparison: Comparison) -> list[Grid]:
    """The tables, in order; those that would say nothing are left out."""
    run = comparison.run
    tables = [_scores(comparison, metric) for metric in METRIC_TITLES]
    tables += [_ranks(comparison), *(_differences(comparison, metric) for metric in ("aca", "auc"))]
    tables += [_marks(comparison), _seconds(comparison), _left_out(run)]
    return [table for table in tables if table.rows]


def _scores(comparison: Comparison, metric: str) -> Grid:
    """A metric of every row on every set; kappa of grades alone."""
    run = comparison.run
    grades = {key[1] for key, result in run.results.items() if result.ordinal}
    sets = [one for one in run.sets if metric != "kappa" or one.name in grades]
    rows = []
    for row in comparison.rows:
        cells = [_cell(comparison, row, one, metric) for one in sets]
        if set(cells) - {_NONE}:
            rows.append([row.title, row.method, row.shots, *cells])
    text = "after each figure stands whether training knew the classes"
    if any(row.paper for row in comparison.rows):
        text += f"; '{_PUBLISHED}' are a paper's own figures, measured by its authors on their splits"
    return Grid(METRIC_TITLES[metric], text, ["model", "method", "shots", *(_head(one) for one in sets)], rows)


def _head(one: SuiteSet) -> str:
    return f"{one.name} (novel)" if one.novel else one.name


def _cell(comparison: Comparison, row: Row, one: SuiteSet, metric: str) -> str:
    figure = comparison.published(row, one, metric)
    if figure is not None:
        return _percent(figure.value)
    found = comparison.result(row, one)
    if found is None:
        return _NONE
    mean, deviation = comparison.mean(row, one, metric)
    if math.isnan(mean):
        return "n/a"
    text = _percent(mean)
    if not math.isnan(deviation):
        text += f" ± {_percent(deviation)}"
    if metric in found[1].interval:
        text += " [{}, {}]".format(*map(_percent, found[1].interval[metric]))
    return f"{text} {found[0].mark}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _ranks(comparison: Comparison) -> Grid:
    of_any = {model for ranks, _ in comparison.ranks.values() for model in ranks}
    models = [model.label for model in comparison.run.options.models if model.label in of_any]
    rows = [
        [name, str(len(sets)), *(f"{ranks[model]:.2f}" if model in ranks else _NONE for model in models)]
        for name, (ranks, sets) in comparison.ranks.items()
        if sets
    ]
    text = "mean rank by ACA over the sets that all models of a row have; 1 is the best, equal ones share"
    return Grid("Mean rank", text, ["method", "sets", *models], rows)


def _differences(comparison: Comparison, metric: str) -> Grid:
    first, sets = comparison.run.options.models[0].label, comparison.run.sets
    names = dict.fromkeys((model, name) for model, name, _ in comparison.differences)
    rows = []
    for model, name in names:
        found = [comparison.differences.get((model, name, one.name), {}).get(metric) for one in sets]
        rows.append([model, name, *map(_difference, found)])
    text = "in points of percent [95 % interval], both models on the same resampled images; * leaves out 0"
    title = f"{METRIC_TITLES[metric]} beyond {first}"
    return Grid(title, text, ["model", "method", *(one.name for one in sets)], rows)


def _difference(found: Difference | None) -> str:
    if found is None:
        return _NONE
    mean, low, high = (f"{100 * value:+.1f}" for value in (found.mean, found.low, found.high))
    return f"{mean} [{low}, {high}]{' *' if found.clear else ''}"


def _marks(comparison: Comparison) -> Grid:
    run = comparison.run
    rows = [
        [model.label, *(r.mark if (r := run.results.get((model.label, one.name))) else _NONE for one in run.sets)]
        for model in run.options.models
        if any((model.label, one.name) in run.results for one in run.sets)
    ]
    text = (
        "seen: every class was among the categories of the model's training; unseen: one was not, or was held out; "
        "unknown: the model does not say. What experts' captions named is not looked into"
    )
    return Grid("Classes in training", text, ["model", *(one.name for one in run.sets)], rows)


def _seconds(comparison: Comparison) -> Grid:
    run, rows = comparison.run, []
    for model in run.options.models:
        found = [run.results.get((model.label, one.name)) for one in run.sets]
        if any(found):
            rows.append([model.label, "encoding", *(_encoding(result) if result else _NONE for result in found)])
        for row in (row for row in comparison.rows if row.model == model.label and not row.paper):
            of_sets = [comparison.result(row, one) for one in run.sets]
            rows.append([model.label, row.name, *(f"{one[1].seconds:.2f}" if one else _NONE for one in of_sets)])
    text = "encoding with the number of images that were not in the cache; learning and answering over all folds"
    return Grid("Seconds", text, ["model", "what", *(one.name for one in run.sets)], rows)


def _encoding(result: SetResult) -> str:
    return f"{result.encoding_seconds:.2f} ({result.encoded} images)"


def _left_out(run: BenchmarkRun) -> Grid:
    rows = [["", one.name, "", "not below the root"] for one, _ in run.missing]
    rows += [[failure.model, failure.set, "", "failed"] for failure in run.failures]
    rows += [
        [model, name, method, why]
        for (model, name), result in run.results.items()
        for method, why in result.not_measured.items()
    ]
    rows += [
        ["", name, "", f"{len(result.not_used)} rows could not be used"]
        for name, result in {name: result for (_, name), result in run.results.items()}.items()
        if result.not_used
    ]
    return Grid("Not measured", "", ["model", "set", "method", "why"], rows)


def as_markdown(comparison: Comparison, tables: Sequence[Grid]) -> str:
    """All tables."""
    suite = comparison.run.suite
    parts = [f"# {suite.title}", legend(comparison.run)]
    for table in tables:
        lines = ["| " + " | ".join(line) + " |" for line in (table.header, ["---"] * len(table.header), *table.rows)]
        parts += [f"## {table.title}", *([f"{table.text}."] if table.text else []), "\n".join(lines)]
    papers = dict.fromkeys(f"- {row.model}: {row.paper}" for row in comparison.rows if row.paper)
    parts += ["## Papers", "\n".join(papers)] if papers else []
    return "\n\n".join(parts) + "\n"


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def as_json(comparison: Comparison) -> dict:
    """All figures, for machines; what is not defined is None."""
    run = comparison.run
    return {
        "schema": 1,
        "suite": run.suite.title,
        "source": run.suite.source,
        "protocol": {"name": run.protocol.name, "words": run.protocol.words},
        "folds": run.options.folds or run.suite.folds,
        "seed": run.options.seed,
        "models": [model.label for model in run.options.models],
        "sets": [{"name": one.name, "classes": list(one.classes.classes), "novel": one.novel} for one in run.sets],
        "missing": [one.name for one, _ in run.missing],
        "failed": [{"model": failure.model, "set": failure.set} for failure in run.failures],
        "results": [_result(comparison, row, one) for row in comparison.rows for one in run.sets
                    if comparison.result(row, one)],
        "published": [
            {"model": f.model, "method": f.method, "shots": f.shots or None, "set": one.name, "metric": f.metric,
             "value": f.value, "paper": f.paper}
            for one in run.sets for f in one.published
        ],
        "ranks": [{"method": name, "sets": sets, "ranks": ranks} for name, (ranks, sets) in comparison.ranks.items()],
        "differences": [
            {"model": model, "first": run.options.models[0].label, "method": name, "set": of_set,
             **{metric: vars(difference) for metric, difference in found.items()}}
            for (model, name, of_set), found in comparison.differences.items()
        ],
    }  # fmt: skip


def _result(comparison: Comparison, row: Row, one: SuiteSet) -> dict:
    result, method = comparison.result(row, one)
    scores = {}
    for metric in METRICS:
        if metric != "kappa" or result.ordinal:
            mean, deviation = map(_plain, comparison.mean(row, one, metric))
            scores[metric] = {"mean": mean, "sd": deviation, "folds": method.folds[metric]}
            scores[metric] |= {"interval": method.interval[metric]} if metric in method.interval else {}
    return {
        "model": row.model,
        "method": row.method,
        "shots": row.shots or None,
        "set": one.name,
        "images": result.images,
        "classes_in_training": result.mark,
        "seconds": {"encoding": result.encoding_seconds, "encoded": result.encoded, "method": method.seconds},
        **scores,
    }


def as_csv(comparison: Comparison) -> str:
    """A line for each row, set and metric; whose figure it is stands in `figures`."""
    header = [
        "model",
        "method",
        "shots",
        "set",
        "classes_in_training",
        "metric",
        "mean",
        "sd",
        "low",
        "high",
        "figures",
    ]
    lines = []
    for row in comparison.rows:
        for one in comparison.run.sets:
            for metric in METRICS:
                lines += _lines(comparison, row, one, metric)
    return csv_text(header, lines)


def _lines(comparison: Comparison, row: Row, one: SuiteSet, metric: str) -> list[list]:
    figure, found = comparison.published(row, one, metric), comparison.result(row, one)
    key = [row.model, row.method, row.shots, one.name]
    if figure is not None:
        return [[*key, "", metric, f"{figure.value:.6f}", "", "", "", _PUBLISHED]]
    if found is None or (metric == "kappa" and not found[0].ordinal):
        return []
    values = [*comparison.mean(row, one, metric), *found[1].interval.get(metric, (math.nan, math.nan))]
    numbers = ["" if math.isnan(value) else f"{value:.6f}" for value in values]
    return [[*key, found[0].mark, metric, *numbers, "ours"]]
