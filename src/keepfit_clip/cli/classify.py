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
    """Zero-shot probabilities of the given categories for each image."""
    from keepfit_clip.evaluate.table import image_batches
    from keepfit_clip.finite import NOT_FINITE, finite_rows
    from keepfit_clip.folders.loading import load_model
    from keepfit_clip.knowledge.conditions import Knowledge
    from keepfit_clip.model.zero_shot import ZeroShotClassifier

    quiet_libraries()
    loaded = load_model(model, device, crop)
    classifier = ZeroShotClassifier(
        loaded.model,
        loaded.tokenizer,
        require_names(categories),
        upper(modality),
        Knowledge.load(knowledge),
        not names_only,
        findings,
    )
    table = Table()
    table.add_column("image", overflow="fold")
    for name in classifier.categories:
        table.add_column(escape(name))
    problems: list[str] = []
    rows = []
    for indices, batch in image_batches(images, loaded.preprocess, on_error=lambda _, e: problems.append(str(e))):
        answers = classifier.logits(batch).softmax(dim=-1)
        for index, row, finite in zip(indices, answers.tolist(), finite_rows(answers), strict=True):
            if not finite:
                problems.append(f"{images[index]}: {NOT_FINITE}")
                continue
            best = row.index(max(row))
            cells = [f"[bold]{p:.3f}[/]" if i == best else f"{p:.3f}" for i, p in enumerate(row)]
            table.add_row(escape(str(images[index])), *cells)
            rows.append({"image": index + 1, **dict(zip(classifier.categories, row, strict=True))})
    console.print(table)
    write_result(json_file, rows)
    end_in_part(problems)
