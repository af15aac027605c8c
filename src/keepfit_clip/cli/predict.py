"""`keepfit-clip predict`: a table of what a model says of images."""

from pathlib import Path
from typing import Annotated

import typer

from keepfit_clip.cli.console import StepProgress, console, quiet_libraries
from keepfit_clip.cli.options import (
    USE,
    Crop,
    Device,
    Findings,
    JsonFile,
    KnowledgeFile,
    Modality,
    Model,
    NamesOnly,
    Root,
    path_or_url,
    require_names,
    upper,
    write_result,
)
from keepfit_clip.cli.table_options import reads_tables

_ASKED = "What is asked"


def add_commands(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(rich_help_panel=USE)(predict)


@reads_tables
def predict(
    inputs: Annotated[
        list[Path],
        typer.Argument(help="images, folders of images, tables or shards", parser=path_or_url, metavar="IMAGES"),
    ],
    model: Model,
    source_options,
    out: Annotated[Path, typer.Option(help="new file, .csv or .parquet")],
    images: Root = None,
    categories: Annotated[
        str | None, typer.Option(help='classes to compare with, e.g. "glaucoma,normal"', rich_help_panel=_ASKED)
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(help="what `transfer --keep` learnt: its name, or its folder", rich_help_panel=_ASKED),
    ] = None,
    caption: Annotated[bool, typer.Option("--caption", help="write captions", rich_help_panel=_ASKED)] = False,
    features: Annotated[
        bool, typer.Option("--features", help="with the features of the joint space", rich_help_panel=_ASKED)
    ] = False,
    modality: Modality = None,
    names_only: NamesOnly = False,
    findings: Findings = False,
    knowledge: KnowledgeFile = None,
    anonymous: Annotated[
        bool, typer.Option("--anonymous", help="name images by a hash of their content, not as they were given")
    ] = False,
    num_beams: Annotated[int, typer.Option(min=1, help="beams of the captions' search; 1 is greedy")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="images at a time")] = 32,
    workers: Annotated[int, typer.Option(min=0, help="processes that read images meanwhile")] = 1,
    json_file: JsonFile = None,
    crop: Crop = None,
    device: Device = None,
) -> None:
    """Write a row for each image: probabilities, uncertainty, modality, caption. Interrupted, it goes on."""
    from keepfit_clip.folders.loading import load_model
    from keepfit_clip.knowledge.conditions import Knowledge
    from keepfit_clip.predict.answers import Predictor
    from keepfit_clip.predict.inputs import find_inputs
    from keepfit_clip.predict.output import OutputOptions, left_out_path, write_predictions
    from keepfit_clip.transfer.heads import head_folder, load_head

    quiet_libraries()
    left_out = []
    found = find_inputs(inputs, images, source_options, left_out.append)
    loaded = load_model(model, device, crop)
    predictor = Predictor(
        loaded,
        require_names(categories) if categories else (),
        load_head(head_folder(model, head), loaded) if head else None,
        upper(modality),
        caption,
        features,
        not names_only,
        findings,
        Knowledge.load(knowledge),
        {"num_beams": num_beams} if caption else {},
    )
    with StepProgress() as progress:
        options = OutputOptions(batch_size, workers, anonymous)
        result = write_predictions(
            out, found, predictor, options, left_out, lambda done: progress("predicting", done, len(found))
        )
    resumed = f" ({result.resumed} of them done before)" if result.resumed else ""
    console.print(f"{result.rows} images{resumed} -> {out}", soft_wrap=True)
    for reason, count in result.left_out.most_common():
        console.print(f"[yellow]left out, {count} images:[/] {reason}", soft_wrap=True)
    write_result(json_file, {"rows": result.rows, "resumed": result.resumed, "left_out": dict(result.left_out)})
    if result.left_out:
        console.print(f"which -> {left_out_path(out)}", soft_wrap=True)
        raise typer.Exit(1)
