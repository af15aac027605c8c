"""`keepfit-clip shards ...`: from labelled pictures to WebDataset shards."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from keepfit_clip.cli.console import console, error_console, show_messages, with_progress

app = typer.Typer(help="Build WebDataset shards.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keeps `build` a command of its own while it is the only one."""


@app.command()
def build(
    table: Annotated[Path, typer.Argument(help="CSV: image, categories (FLAIR) or image, caption")],
    images: Annotated[Path, typer.Option(help="folder the image paths are relative to")],
    out: Annotated[Path, typer.Option(help="new folder for the shards")],
    kind: Annotated[str, typer.Option(help="public (categories) or elite (expert captions)")],
    modality: Annotated[str | None, typer.Option(help="CFP, FFA or OCT, for rows that do not say")] = None,
    size: Annotated[int | None, typer.Option(help="longest side of the stored images, pixels")] = None,
    dataset: Annotated[str | None, typer.Option(help="name of the data set to store")] = None,
    samples_per_shard: Annotated[int, typer.Option(help="samples in a tar")] = 1000,
    quality: Annotated[int, typer.Option(min=1, max=100, help="JPEG quality")] = 95,
    knowledge: Annotated[Path | None, typer.Option(help="knowledge file instead of the shipped one")] = None,
) -> None:
    """Build shards from a labelled table."""
    from keepfit_clip.data.shards import ShardOptions, build_shards
    from keepfit_clip.knowledge import Knowledge

    options = ShardOptions(
        kind=kind,
        modality=modality.upper() if modality else None,
        size=size,
        dataset=dataset,
        samples_per_shard=samples_per_shard,
        quality=quality,
    )
    report = build_shards(table, images, out, options, Knowledge.load(knowledge), with_progress("Building shards"))
    show_messages(report.messages, "rows left out (numbers and reasons are in manifest.json)")
    if report.unresolved:
        names = ", ".join(f"{name} ({count})" for name, count in report.unresolved.most_common(10))
        error_console.print(f"[yellow]categories the knowledge file does not know, kept as written:[/] {escape(names)}")
    console.print(f"{report.samples} samples in {len(report.shards)} shards -> {out}", soft_wrap=True)
