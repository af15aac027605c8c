"""What a benchmark found, written down: tables for machines and people, and a page with charts."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from keepfit_clip.benchmark.run import BenchmarkRun
from keepfit_clip.benchmark.tables import Comparison, Grid, Row, as_csv, as_json, as_markdown, grids, legend
from keepfit_clip.files import write_json, write_text
from keepfit_clip.page.charts import COLOURS, INK, as_svg, new_figure, plain, tidy
from keepfit_clip.page.report import Figure, Section, render_report

__all__ = ["PAGE_NAME", "accuracy_chart", "rank_chart", "write_benchmark"]

PAGE_NAME = "index.html"


def write_benchmark(
    out: Path,
    run: BenchmarkRun,
    charts: bool = True,
    on_step: Callable[[str, int, int], None] = lambda step, done, total: None,
) -> list[Grid]:
    """Writes `results.json`, `results.csv`, `table.md` and `index.html`.

    Args:
        out: folder to write into.
        run: what was measured.
        charts: whether the page has some.
        on_step: called while models are compared.

    Returns:
        The tables.

    Raises:
        MissingExtraError: there is nothing to draw with.
        OutputError: they cannot be written.
    """
    comparison = Comparison(run, on_step)
    tables = grids(comparison)
    write_json(out / "results.json", as_json(comparison))
    write_text(out / "results.csv", as_csv(comparison))
    write_text(out / "table.md", as_markdown(comparison, tables))
    write_text(out / PAGE_NAME, _page(comparison, tables, charts))
    return tables


def _page(comparison: Comparison, tables: list[Grid], charts: bool) -> str:
    run = comparison.run
    images = sum({name: result.images for (_, name), result in run.results.items()}.values())
    figures = [
        Figure("models", str(len({model for model, _ in run.results}))),
        Figure("data sets", str(len({name for _, name in run.results})), f"{len(run.missing)} were not there"),
        Figure("images tested", str(images)),
    ]
    scores, *others = [_section(table) for table in tables]
    sections = [scores, *(_charts(comparison) if charts else []), *others]
    papers = list(dict.fromkeys((row.model, row.paper) for row in comparison.rows if row.paper))
    if papers:
        sections.append(Section("Papers", header=["figures of", "from"], rows=[list(pair) for pair in papers]))
    return render_report(run.suite.title, legend(run), figures, sections)


def _section(table: Grid) -> Section:
    text = f"{table.text[0].upper()}{table.text[1:]}." if table.text else ""
    return Section(table.title, text, header=table.header, rows=table.rows)


def _charts(comparison: Comparison) -> list[Section]:
    """The ACA of each method, and the ranks where there are some."""
    names = dict.fromkeys(row.name for row in comparison.rows if not row.paper)
    sections = [
        Section(f"ACA: {name}", chart=accuracy_chart(comparison, [row for row in comparison.rows if row.name == name]))
        for name in names
    ]
    if any(ranks for ranks, _ in comparison.ranks.values()):
        words = "Mean rank by ACA; the shorter the bar, the better."
        sections.append(Section("Ranks", words, rank_chart(comparison)))
    return sections


def accuracy_chart(comparison: Comparison, rows: list[Row]) -> str:
    """Bars of the ACA of some rows on each set, with their intervals; hatched where a paper gives the figure."""
    sets = comparison.run.sets
    figure = new_figure(2.4 + max(0.35 * len(rows), 0.9) * len(sets), 3.2)
    axes = figure.add_subplot()
    width = 0.8 / len(rows)
    for number, row in enumerate(rows):
        places = np.arange(len(sets)) + (number - (len(rows) - 1) / 2) * width
        values, spans = zip(*(_bar(comparison, row, one) for one in sets), strict=True)
        if np.isnan(values).all():
            continue
        colour = COLOURS[number % len(COLOURS)]
        look = {"hatch": "//", "color": "white", "edgecolor": colour} if row.paper else {"color": colour}
        axes.bar(places, values, 0.9 * width, label=plain(row.title), **look)
        axes.errorbar(places, values, np.array(spans).T, fmt="none", ecolor=INK, elinewidth=0.9, capsize=2)
    axes.set_xticks(range(len(sets)), [plain(one.name) for one in sets], fontsize=8, rotation=20, ha="right")
    axes.set_ylim(0, 1)
    axes.set_ylabel("ACA", fontsize=9)
    axes.legend(fontsize=8, frameon=False, bbox_to_anchor=(1, 1), loc="upper left")
    tidy(axes)
    return as_svg(figure)


def _bar(comparison: Comparison, row: Row, one) -> tuple[float, tuple[float, float]]:
    """The height of a bar, and how far its interval goes below and above it."""
    published = comparison.published(row, one, "aca")
    if published is not None:
        return published.value, (0.0, 0.0)
    mean, found = comparison.mean(row, one, "aca")[0], comparison.result(row, one)
    if found is None or np.isnan(mean) or "aca" not in found[1].interval:
        return mean, (0.0, 0.0)
    low, high = found[1].interval["aca"]
    return mean, (max(0.0, mean - low), max(0.0, high - mean))


def rank_chart(comparison: Comparison) -> str:
    """The mean rank of each model, by method."""
    ranks = {name: ranks for name, (ranks, _) in comparison.ranks.items() if ranks}
    models = [model.label for model in comparison.run.options.models if any(model.label in r for r in ranks.values())]
    figure = new_figure(6.4, 1.2 + 0.22 * len(models) * len(ranks))
    axes = figure.add_subplot()
    height = 0.8 / len(models)
    for number, model in enumerate(models):
        places = np.arange(len(ranks)) + (number - (len(models) - 1) / 2) * height
        values = [of_method.get(model, np.nan) for of_method in ranks.values()]
        axes.barh(places, values, 0.9 * height, color=COLOURS[number % len(COLOURS)], label=plain(model))
    axes.set_yticks(range(len(ranks)), [plain(name) for name in ranks], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("mean rank", fontsize=9)
    axes.legend(fontsize=8, frameon=False, bbox_to_anchor=(1, 1), loc="upper left")
    tidy(axes)
    return as_svg(figure)
