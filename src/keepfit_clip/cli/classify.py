"""`keepfit-clip classify`: zero-shot probabilities of images."""

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from keepfit_clip.cli.console import console, end_in_part, quiet_libraries
from keepfit_clip.cli.options import (
    USE,
    Crop,
    Device,
    Findings,
    Images,
    JsonFile,
    KnowledgeFile,
    Modality,
    Model,
    NamesOnly,
    require_names,
    upper,
    write_result,
)
from keepfit_clip.errors import ImageError


def add_commands(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(rich_help_panel=USE)(classify)


def classify(
    images: Images,
    model: Model,
    categories: Annotated[str, typer.Option(help='the classes, e.g. "glaucoma,normal"')],
    modality: Modality = None,
    names_only: NamesOnly = False,
    findings: Findings = False,
    knowledge: KnowledgeFile = None,
    json_file: JsonFile = None,
    crop: Crop = None,
    device: Device = None,
) -> None:
    """Zero-shot probabilities of the given categories for each image; `predict` writes a table of many."""
    from keepfit_clip.folders.loading import load_model
    from keepfit_clip.knowledge.conditions import Knowledge
    from keepfit_clip.predict.answers import Predictor
    from keepfit_clip.predict.inputs import as_records

    quiet_libraries()
    predictor = Predictor(
        load_model(model, device, crop),
        require_names(categories),
        modality=upper(modality),
        descriptions=not names_only,
        findings=findings,
        knowledge=Knowledge.load(knowledge),
    )
    table = Table()
    table.add_column("image", overflow="fold")
    for name in predictor.classes:
        table.add_column(escape(name))
    problems: list[str] = []
    rows = []
    for number, answer in predictor.answers(as_records(images)):
        if isinstance(answer, ImageError):
            problems.append(str(answer))
            continue
        row = answer.probabilities.tolist()
        cells = [f"[bold]{p:.3f}[/]" if p == max(row) else f"{p:.3f}" for p in row]
        table.add_row(escape(str(images[number])), *cells)
        rows.append({"image": number + 1, **dict(zip(predictor.classes, row, strict=True))})
    console.print(table)
    write_result(json_file, rows)
    end_in_part(problems)
