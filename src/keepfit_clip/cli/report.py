"""`keepfit-clip report`: a page about runs."""

from pathlib import Path
from typing import Annotated

import typer

from keepfit_clip.cli.console import console, quiet_libraries, show_left_out, with_progress
from keepfit_clip.cli.options import (
    MEASURE,
    AllowMissing,
    Classes,
    Crop,
    Device,
    KnowledgeFile,
    Modality,
    NamesOnly,
    class_spec,
    path_or_url,
    upper,
)
from keepfit_clip.cli.table_options import reads_tables, tell_notes
from keepfit_clip.errors import ConfigError

_ANSWERS = "Answers of a model"


def add_commands(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(rich_help_panel=MEASURE)(report)


@reads_tables
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(help="folder of a training, a text tower, a transfer or a demo; several are compared"),
    ],
    out: Annotated[Path, typer.Option(help="HTML file to write")],
    source_options,
    data: Annotated[
        list[str] | None,
        typer.Option(help="validation shards of the training, for the pictures beside its captions (repeat it)"),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="model folder whose answers are shown", rich_help_panel=_ANSWERS)
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(help="CSV of images and categories it answers", rich_help_panel=_ANSWERS, parser=path_or_url),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="folder the image paths are relative to", rich_help_panel=_ANSWERS, parser=path_or_url),
    ] = None,
    classes: Classes = None,
    allow_missing_classes: AllowMissing = False,
    modality: Modality = None,
    names_only: NamesOnly = False,
    knowledge: KnowledgeFile = None,
    crop: Crop = None,
    device: Device = None,
) -> None:
    """Write one self-contained page about a run, or several beside each other: results, losses, settings, heat maps."""
    from keepfit_clip.evaluate.table import FIGURE_TITLES, evaluate_table
    from keepfit_clip.extras import require_extra
    from keepfit_clip.files import write_text
    from keepfit_clip.folders.loading import load_model
    from keepfit_clip.knowledge.conditions import Knowledge
    from keepfit_clip.page.charts import confusion_chart
    from keepfit_clip.page.report import Section
    from keepfit_clip.training.answers import answers_section, classified_images
    from keepfit_clip.training.report import build_report, find_parts

    quiet_libraries()
    require_extra("plots")
    if (model is None) != (table is None) or (table is None and images is not None):
        raise ConfigError("--model and --table go together: the answers of a model on labelled images")
    for run in runs:
        find_parts(run)
    sections = []
    if model is not None:
        known, loaded = Knowledge.load(knowledge), load_model(model, device, crop)
        result = evaluate_table(
            loaded,
            table,
            images,
            class_spec(classes, table),
            upper(modality),
            known,
            not names_only,
            progress=with_progress("Classifying"),
            options=source_options,
            allow_missing_classes=allow_missing_classes,
        )
        tell_notes(result.notes)
        show_left_out(result.left_out, "rows not scored")
        figures = ", ".join(f"{FIGURE_TITLES[name]} {value:.3f}" for name, value in result.figures.items())
        text = f"{result.images} images of {len(result.classes_scored)} classes: {figures}."
        chart = confusion_chart(result.scores.confusion, result.classes)
        sections.append(Section("Zero-shot classification", text, chart=chart))
        sections.append(
            answers_section(loaded, classified_images(result, upper(modality)), result.classes, known, not names_only)
        )
    write_text(out, build_report(runs, sections, data or ()))
    console.print(f"-> {out}", soft_wrap=True)
