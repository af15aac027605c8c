"""`keepfit-clip shards check|stats|show`: looking into finished shards."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from keepfit_clip.cli.console import StepProgress, console
from keepfit_clip.cli.options import JsonFile, KnowledgeFile, write_result

_ROWS_SHOWN = 40
_PICTURE_WIDTH = 64  # characters

_Spec = Annotated[str, typer.Argument(help="folder of shards, or any other specification of them")]


def check(
    folder: Annotated[Path, typer.Argument(help="folder of shards, or of the parts of a split")],
    knowledge: KnowledgeFile = None,
    json_file: JsonFile = None,
    workers: Annotated[int | None, typer.Option(min=1, help="processes (all cores)")] = None,
) -> None:
    """Check hashes, samples, images, categories and leaks between parts; exit 1 with a table of problems."""
    from keepfit_clip.data.shards.inspection import check_shards
    from keepfit_clip.knowledge.conditions import Knowledge

    with StepProgress() as progress:
        problems = check_shards(folder, Knowledge.load(knowledge), workers, progress)
    names = ("shard", "sample", "problem")
    write_result(json_file, [dict(zip(names, problem, strict=True)) for problem in problems])
    if not problems:
        console.print(f"{folder}: nothing wrong", soft_wrap=True)
        return
    table = Table("shard", "sample", "problem", title=f"{folder}: {len(problems)} problems", title_justify="left")
    for problem in problems[:_ROWS_SHOWN]:
        table.add_row(*map(escape, problem))
    console.print(table)
    if len(problems) > _ROWS_SHOWN:
        console.print(f"... and {len(problems) - _ROWS_SHOWN} more")
    raise typer.Exit(1)


def stats(
    shards: _Spec,
    html: Annotated[Path | None, typer.Option(help="also write a page with a contact sheet here")] = None,
    examples: Annotated[int, typer.Option(min=0, help="pictures on the contact sheet")] = 48,
    json_file: JsonFile = None,
) -> None:
    """Count samples by category, modality, source and eye; with --html also write a page."""
    from keepfit_clip.data.shards.inspection import gather_statistics
    from keepfit_clip.data.shards.statistics_page import statistics_page
    from keepfit_clip.files import write_text

    with StepProgress() as progress:
        statistics = gather_statistics(shards, examples, progress)
    table = Table("", "", "samples", title=f"{statistics.samples} samples", title_justify="left")
    table.columns[2].justify = "right"
    for name, counts in statistics.counts.items():
        for number, (value, count) in enumerate(counts.most_common()):
            table.add_row("" if number else name, escape(str(value)), str(count))
    for number, (category, count) in enumerate(statistics.categories.most_common(_ROWS_SHOWN)):
        table.add_row("" if number else "category", escape(category), str(count))
    console.print(table)
    if len(statistics.categories) > _ROWS_SHOWN:
        console.print(f"... and {len(statistics.categories) - _ROWS_SHOWN} more categories")
    if statistics.captions:
        console.print(f"{statistics.captions} captions, {statistics.distinct_captions} different ones")
    if statistics.groups:
        console.print(f"{statistics.groups} patients or other groups")
    if statistics.unreadable:
        console.print(f"[yellow]{statistics.unreadable} shards or samples could not be read[/]: see `shards check`")
    counts = {name: dict(values.most_common()) for name, values in statistics.counts.items()}
    content = {"samples": statistics.samples, **counts, "categories": dict(statistics.categories.most_common())}
    content |= {name: getattr(statistics, name) for name in ("captions", "distinct_captions", "groups", "unreadable")}
    write_result(json_file, content)
    if html is not None:
        write_text(html, statistics_page(statistics))
        console.print(f"-> {html}", soft_wrap=True)


def show(
    shards: _Spec,
    key: Annotated[str, typer.Argument(help="key of a sample, or the beginning of one")],
    image: Annotated[Path | None, typer.Option(help="also write the image here, as it is stored")] = None,
) -> None:
    """Show one sample: what is said of it, and its picture in the terminal's colours."""
    from keepfit_clip.data.description import json_text
    from keepfit_clip.data.shards.inspection import find_sample
    from keepfit_clip.errors import OutputError, first_line
    from keepfit_clip.files import printable

    sample = find_sample(shards, key)
    stored = {"key": sample.key, **json.loads(json_text(sample.json))}
    console.print_json(printable(json.dumps(stored, ensure_ascii=False)))
    picture = sample.image()
    console.print(f"{picture.width} x {picture.height} pixels, {len(sample.image_bytes)} bytes")
    console.print(_in_characters(picture))
    if image is not None:
        try:
            image.write_bytes(sample.image_bytes)
        except OSError as error:
            raise OutputError(f"{image}: cannot be written ({first_line(error)})") from error


def _in_characters(picture) -> Text:
    """A picture as half blocks, two pixels to a character."""
    height = max(2, round(_PICTURE_WIDTH * picture.height / picture.width) // 2 * 2)
    small = picture.resize((_PICTURE_WIDTH, height)).load()
    text = Text()
    for row in range(0, height, 2):
        for column in range(_PICTURE_WIDTH):
            upper, lower = small[column, row], small[column, row + 1]
            text.append(
                "\u2580", style=f"rgb({upper[0]},{upper[1]},{upper[2]}) on rgb({lower[0]},{lower[1]},{lower[2]})"
            )
        text.append("\n")
    return text


def _rgb(colour: tuple[int, int, int]) -> str:
    return ",".join(map(str, colour))


def add_commands(app: typer.Typer) -> None:
    """Adds the commands of this file."""
    app.command()(check)
    app.command()(stats)
    app.command()(show)
