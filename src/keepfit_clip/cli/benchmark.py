"""`keepfit-clip benchmark`: several models on a suite of data sets, in one table."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from keepfit_clip.cli.console import StepProgress, console, error_console, quiet_libraries
from keepfit_clip.cli.options import MEASURE, Cache, Crop, Device, JsonFile, write_result
from keepfit_clip.errors import ConfigError
from keepfit_clip.training.flags import listed

_RUN = "How it runs"


def add_commands(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(rich_help_panel=MEASURE)(benchmark)


def benchmark(
    suite: Annotated[str, typer.Argument(help="flair, keepfit, retcop, oct, quick (drawn retinas), or a suite's file")],
    models: Annotated[
        str,
        typer.Option(
            help="joined by ','; folders or names (`keepfit-clip models`), each maybe LABEL=NAME; all are compared "
            "with the first one"
        ),
    ],
    out: Annotated[Path, typer.Option(help="folder of the results; the same one goes on after a stop")],
    root: Annotated[Path | None, typer.Option(help="folder that the data sets lie in")] = None,
    method: Annotated[str | None, typer.Option(help="as of `transfer`, in place of the suite's")] = None,
    shots: Annotated[str | None, typer.Option(help="1,5,10 or 20%,80%, in place of the suite's")] = None,
    folds: Annotated[int | None, typer.Option(help="in place of the suite's")] = None,
    protocol: Annotated[
        str, typer.Option(help="ours, or flair: its scale in Tip-Adapter, its resizing, its ± (docs/EVALUATION.md)")
    ] = "ours",
    seed: Annotated[int, typer.Option(help="of folds, shots, adapters and resampling")] = 0,
    jobs: Annotated[
        int | None, typer.Option(help="a model on a set each, at a time (ray: all its cores)", rich_help_panel=_RUN)
    ] = None,
    engine: Annotated[
        str,
        typer.Option(help="processes of this machine, or ray: a cluster that shares its disk", rich_help_panel=_RUN),
    ] = "processes",
    cache: Cache = Path("runs/features"),
    charts: Annotated[bool, typer.Option("--charts/--no-charts", help="on the page (extra plots)")] = True,
    json_file: JsonFile = None,
    crop: Crop = None,
    device: Device = None,
) -> None:
    """Compare models over a suite of data sets: one table with intervals, ranks, differences, seconds, and a page."""
    from keepfit_clip.benchmark.page import PAGE_NAME, write_benchmark
    from keepfit_clip.benchmark.run import BenchmarkOptions, ModelChoice, run_benchmark
    from keepfit_clip.benchmark.suites import read_suite
    from keepfit_clip.extras import require_extra
    from keepfit_clip.transfer.splits import parse_shots

    quiet_libraries()
    if charts:
        require_extra("plots")
    if folds is not None and folds < 2:
        raise ConfigError(f"--folds {folds}: at least two are needed")
    options = BenchmarkOptions(
        tuple(map(ModelChoice.of, listed(models))),
        listed(method) or None,
        tuple(map(str, parse_shots(shots))) if shots is not None else None,
        folds,
        protocol,
        seed,
        jobs=jobs if jobs is not None or engine == "ray" else 1,
        engine=engine,
        device=device,
        crop=crop,
    )
    with StepProgress() as progress:
        run = run_benchmark(read_suite(suite), root, out, options, cache, _show_missing, progress)
        tables = write_benchmark(out, run, charts, progress)
    for table in tables:
        console.print(_as_table(table))
    kept = f", {run.kept} kept from before" if run.kept else ""
    console.print(f"{len(run.results)} results{kept} -> {out / PAGE_NAME}", soft_wrap=True)
    grids = [dict(zip(table.header, row, strict=True)) for table in tables for row in table.rows]
    write_result(json_file, {"rows": grids, "failures": len(run.failures)})
    _end(run.failures)


def _show_missing(missing) -> None:
    if missing:
        error_console.print(f"[yellow]{len(missing)} sets of the suite are not there and left out:[/]")
        for one, where in missing:
            error_console.print(f"  {one.name}: looked for {where}", markup=False, soft_wrap=True)


def _end(failures) -> None:
    """Tells the jobs that came to nothing, by reason; then the command has failed in part."""
    reasons: dict[str, list[str]] = {}
    for failure in failures:
        reasons.setdefault(failure.reason, []).append(f"{failure.model} on {failure.set}")
    if failures:
        error_console.print(f"[yellow]{len(failures)} jobs failed:[/]")
        for reason, which in reasons.items():
            error_console.print(f"  {', '.join(which)}: {reason}", markup=False, soft_wrap=True)
        raise typer.Exit(1)


def _as_table(grid) -> Table:
    """A table for a terminal."""
    table = Table(title=grid.title, title_justify="left", caption=grid.text, caption_justify="left")
    for name in grid.header:
        table.add_column(escape(name))
    for row in grid.rows:
        table.add_row(*map(escape, row))
    return table
