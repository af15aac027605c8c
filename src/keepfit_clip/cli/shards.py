"""`keepfit-clip shards ...`: from labelled pictures to WebDataset shards."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from keepfit_clip.cli import shards_check
from keepfit_clip.cli.console import StepProgress, console, error_console, show_left_out
from keepfit_clip.cli.options import JsonFile, path_or_url, write_result
from keepfit_clip.cli.table_options import name_value_pairs, reads_tables, tell_lines
from keepfit_clip.errors import ConfigError

app = typer.Typer(help="Build, check and look into WebDataset shards.", no_args_is_help=True)

_PICTURES, _PRIVATE, _WORK = "Pictures", "Leaks and privacy", "Work"


@app.command()
@reads_tables
def build(
    source: Annotated[
        Path,
        typer.Argument(
            help="CSV, TSV, JSON lines, JSON of studies, Parquet, folder of classes, or shards to build anew",
            parser=path_or_url,
        ),
    ],
    out: Annotated[Path, typer.Option(help="new folder for the shards")],
    kind: Annotated[str, typer.Option(help="public (categories) or elite (expert captions)")],
    source_options,
    images: Annotated[
        Path | None, typer.Option(help="folder the image paths are relative to", parser=path_or_url)
    ] = None,
    modality: Annotated[str | None, typer.Option(help="CFP, FFA or OCT, for rows that do not say")] = None,
    dataset: Annotated[str | None, typer.Option(help="name of the data set to store")] = None,
    knowledge: Annotated[Path | None, typer.Option(help="knowledge file instead of the shipped one")] = None,
    size: Annotated[
        int | None, typer.Option(help="of the stored images, pixels; none is enlarged", rich_help_panel=_PICTURES)
    ] = None,
    side: Annotated[
        str | None,
        typer.Option(
            help="whose size it is: longest or shortest (the shortest of OCT, the longest of others)",
            rich_help_panel=_PICTURES,
        ),
    ] = None,
    quality: Annotated[int, typer.Option(min=1, max=100, help="JPEG quality", rich_help_panel=_PICTURES)] = 95,
    crop: Annotated[
        bool, typer.Option("--crop", help="cut the black border off fundus photographs", rich_help_panel=_PICTURES)
    ] = False,
    originals: Annotated[
        bool,
        typer.Option("--originals", help="store images as coded, only without metadata", rich_help_panel=_PICTURES),
    ] = False,
    keep_blank: Annotated[
        bool,
        typer.Option("--keep-blank", help="keep pictures that are even or nearly black", rich_help_panel=_PICTURES),
    ] = False,
    split: Annotated[
        str | None,
        typer.Option(
            help="parts by patient, train=0.8,val=0.2, or those that the set gives: given", rich_help_panel=_PRIVATE
        ),
    ] = None,
    near_duplicates: Annotated[
        str | None,
        typer.Option(
            help="nearly equal pictures: ignore, together (in one part) or drop; together is the default with --split",
            rich_help_panel=_PRIVATE,
        ),
    ] = None,
    exclude: Annotated[
        list[Path] | None,
        typer.Option(
            help="drop images that also stand in this set; may be repeated",
            rich_help_panel=_PRIVATE,
            parser=path_or_url,
        ),
    ] = None,
    redact: Annotated[
        bool,
        typer.Option(
            "--redact",
            help="black out names, dates and numbers in captions; else such rows are left out",
            rich_help_panel=_PRIVATE,
        ),
    ] = False,
    keep_identifiers: Annotated[
        bool, typer.Option("--keep-identifiers", help="keep such captions as they are", rich_help_panel=_PRIVATE)
    ] = False,
    burnt_in_text: Annotated[
        str,
        typer.Option(
            help="text at the edges of pictures: count, mask (paint over), refuse (leave such rows out), or ignore",
            rich_help_panel=_PRIVATE,
        ),
    ] = "count",
    lang: Annotated[str | None, typer.Option(help="language of the captions, e.g. en")] = None,
    correct_terms: Annotated[
        str, typer.Option(help="replace the known mistranslations of a data set in its captions: mm-retinal")
    ] = "",
    samples_per_shard: Annotated[int, typer.Option(help="samples in a tar", rich_help_panel=_WORK)] = 1000,
    workers: Annotated[int | None, typer.Option(min=1, help="processes (all cores)", rich_help_panel=_WORK)] = None,
    engine: Annotated[
        str, typer.Option(help="processes, or ray for a cluster with a shared file system", rich_help_panel=_WORK)
    ] = "processes",
    restart: Annotated[
        bool, typer.Option("--restart", help="throw away what a stopped build had done", rich_help_panel=_WORK)
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="build a few rows in a temporary folder and say what the build would read, take and write",
            rich_help_panel=_WORK,
        ),
    ] = False,
    json_file: JsonFile = None,
    accept_changes: Annotated[
        bool,
        typer.Option(
            "--accept-changes",
            help="go on with a stopped build although its input changed; files that came are not taken in",
            rich_help_panel=_WORK,
        ),
    ] = False,
) -> None:
    """Build shards from labelled pictures. A build that was stopped goes on when it is started again."""
    from keepfit_clip.data.shards.build import ShardOptions, build_shards
    from keepfit_clip.data.shards.dry_run import try_build
    from keepfit_clip.knowledge.conditions import Knowledge

    if redact and keep_identifiers:
        raise ConfigError("--redact and --keep-identifiers exclude each other")
    if restart and accept_changes:
        raise ConfigError("--restart and --accept-changes exclude each other")
    options = ShardOptions(
        kind=kind,
        modality=modality.upper() if modality else None,
        size=size,
        side=side,
        dataset=dataset,
        samples_per_shard=samples_per_shard,
        quality=quality,
        crop=crop,
        originals=originals,
        split=split if split in (None, "given") else name_value_pairs("--split", split.split(","), float),
        near_duplicates=near_duplicates,
        exclude=tuple(str(path) for path in exclude or ()),
        identifiers="redact" if redact else "keep" if keep_identifiers else "refuse",
        correct_terms=correct_terms,
        keep_blank=keep_blank,
        burnt_in_text=burnt_in_text,
    )
    source_options = replace(source_options, lang=lang)
    if dry_run:
        with StepProgress() as progress:
            outlook = try_build(
                source, images, options, Knowledge.load(knowledge), source_options, workers, on_step=progress
            )
        _tell_outlook(outlook, out, json_file)
        return
    with StepProgress() as progress:
        report = build_shards(
            source,
            images,
            out,
            options,
            Knowledge.load(knowledge),
            source_options,
            workers=workers,
            engine=engine,
            on_step=progress,
            restart=restart,
            accept_changes=accept_changes,
        )
    tell_lines(report.told)
    show_left_out(report.left_out, "rows left out (numbers and reasons are in manifest.json)")
    if report.redacted:
        error_console.print(f"[yellow]something was blacked out in the captions of {report.redacted} samples[/]")
    if report.burnt_in_text:
        pictures = f"{len(report.burnt_in_text)} pictures (burnt_in_text in manifest.json has their rows)"
        told = (
            f"text was painted over in {pictures}"
            if burnt_in_text == "mask"
            else f"text seems to be burnt into {pictures}: look at them, then --burnt-in-text mask paints it over, "
            "--burnt-in-text refuse leaves the rows out"
        )
        error_console.print(f"[yellow]{told}[/]", soft_wrap=True)
    if report.silent:
        error_console.print(
            f"[yellow]{report.silent} labels tell of the patient or a story, and name nothing to be seen: left out[/]"
        )
    if correct_terms:
        console.print(f"mistranslations replaced in the captions of {report.corrected} samples", soft_wrap=True)
    if report.unresolved:
        names = ", ".join(f"{name} ({count})" for name, count in report.unresolved.most_common(10))
        error_console.print(f"[yellow]categories the knowledge file does not know, kept as written:[/] {escape(names)}")
    console.print(f"{report.samples} samples in {len(report.shards)} shards -> {out}", soft_wrap=True)
    counts = {name: dict(getattr(report, name).most_common()) for name in ("categories", "modalities", "unresolved")}
    rejected = [row.without_names() for row in sorted(report.left_out)]
    write_result(json_file, {"samples": report.samples, "shards": report.shards, **counts, "rejected": rejected})


def _tell_outlook(outlook, out: Path, json_file: Path | None) -> None:
    """What `--dry-run` found."""
    tried = outlook.tried.samples + len(outlook.tried.left_out)
    labels = ", ".join(f"{name} {count}" for name, count in outlook.labels.most_common(8)) or "none"
    more = f" and {len(outlook.labels) - 8} more" if len(outlook.labels) > 8 else ""
    tell_lines(outlook.tried.told)
    show_left_out(outlook.left_out, "rows that cannot be read")
    show_left_out(outlook.tried.left_out, f"of the {tried} images tried would be left out")
    lines = {
        "images": f"{outlook.images}",
        "labels": f"{labels}{more}",
        "disk": f"about {outlook.size / 2**20:.0f} MiB",
        "time": f"about {outlook.seconds:.0f} s of writing, from {tried} images of one process",
        "folder": f"{out}",
    }
    console.print("dry run: nothing was kept")
    for name, value in lines.items():
        console.print(f"  {name:7} {value}", markup=False, highlight=False, soft_wrap=True)
    write_result(
        json_file,
        {
            "images": outlook.images,
            "labels": dict(outlook.labels.most_common()),
            "bytes": round(outlook.size),
            "seconds": outlook.seconds,
            "tried": tried,
            "rejected": [row.without_names() for row in [*outlook.left_out, *outlook.tried.left_out]],
        },
    )


shards_check.add_commands(app)
