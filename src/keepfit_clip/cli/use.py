"""`keepfit-clip models`, `classify`, `caption` and `evaluate`: using a trained model."""

import math
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from keepfit_clip.cli.console import console, error_console, quiet_libraries, show_messages, with_progress
from keepfit_clip.cli.options import Device, KnowledgeFile, Modality, Model, NamesOnly, split_names, upper
from keepfit_clip.errors import CategoryError

Images = Annotated[list[Path], typer.Argument(help="image files", show_default=False)]


def add_commands(app: typer.Typer) -> None:
    """Adds the commands."""
    for command in (models, classify, caption, evaluate):
        app.command()(command)


def models() -> None:
    """List the model configs this library registers with open_clip."""
    from keepfit_clip.registry import list_keepfit_models

    for name in list_keepfit_models():
        console.print(name)


def classify(
    images: Images,
    model: Model,
    categories: Annotated[str, typer.Option(help='the classes, e.g. "glaucoma,normal"')],
    modality: Modality = None,
    names_only: NamesOnly = False,
    knowledge: KnowledgeFile = None,
    device: Device = None,
) -> None:
    """Zero-shot probabilities of the given categories for each image."""
    from keepfit_clip.evaluation import image_batches
    from keepfit_clip.knowledge import Knowledge
    from keepfit_clip.loading import load_model
    from keepfit_clip.zero_shot import ZeroShotClassifier

    quiet_libraries()
    loaded = load_model(model, device)
    classifier = ZeroShotClassifier(
        loaded.model, loaded.tokenizer, _split(categories), upper(modality), Knowledge.load(knowledge), not names_only
    )
    if classifier.unknown:
        unknown = escape(", ".join(classifier.unknown))
        error_console.print(f"[yellow]not in the knowledge file, so judged by name alone:[/] {unknown}")
    table = Table()
    table.add_column("image", overflow="fold")
    for name in classifier.categories:
        table.add_column(escape(name))
    problems: list[str] = []
    for indices, batch in image_batches(images, loaded.preprocess, on_error=lambda _, e: problems.append(str(e))):
        for index, row in zip(indices, classifier.predict_proba(batch).tolist(), strict=True):
            best = row.index(max(row))
            cells = [f"[bold]{p:.3f}[/]" if i == best else f"{p:.3f}" for i, p in enumerate(row)]
            table.add_row(escape(str(images[index])), *cells)
    console.print(table)
    _end(problems)


def caption(
    images: Images,
    model: Model,
    num_beams: Annotated[int, typer.Option(min=1, help="beams of the search; 1 is greedy")] = 1,
    max_length: Annotated[int | None, typer.Option(min=2, help="longest caption, tokens")] = None,
    device: Device = None,
) -> None:
    """Write a caption for each image."""
    from keepfit_clip.evaluation import image_batches
    from keepfit_clip.loading import load_model

    quiet_libraries()
    loaded = load_model(model, device)
    problems: list[str] = []
    options = {"max_length": max_length} if max_length else {}
    for indices, batch in image_batches(images, loaded.preprocess, on_error=lambda _, e: problems.append(str(e))):
        ids = loaded.model.generate(batch.to(loaded.device), num_beams=num_beams, **options)
        for index, text in zip(indices, loaded.decode(ids), strict=True):
            console.print(f"{images[index]}: {text}", markup=False, soft_wrap=True)
    _end(problems)


def evaluate(
    table: Annotated[Path, typer.Argument(help="CSV of images and categories")],
    images: Annotated[Path, typer.Option(help="folder the image paths are relative to")],
    model: Model,
    classes: Annotated[str | None, typer.Option(help='restrict and order the classes, e.g. "normal,glaucoma"')] = None,
    modality: Modality = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the scores for machines")] = None,
    names_only: NamesOnly = False,
    knowledge: KnowledgeFile = None,
    device: Device = None,
) -> None:
    """Zero-shot scores on a labelled table: ACA, AUC, quadratic kappa and the confusion table."""
    from keepfit_clip.evaluation import evaluate_table
    from keepfit_clip.files import write_json
    from keepfit_clip.knowledge import Knowledge
    from keepfit_clip.loading import load_model

    quiet_libraries()
    result = evaluate_table(
        load_model(model, device),
        table,
        images,
        _split(classes) if classes else None,
        upper(modality),
        Knowledge.load(knowledge),
        not names_only,
        progress=with_progress("Classifying"),
    )
    show_messages(result.messages, "rows not scored")
    scores = result.scores
    confusion = Table("true \\ predicted", *map(escape, result.classes), title=f"{result.images} images")
    for name, row in zip(result.classes, scores.confusion.tolist(), strict=True):
        confusion.add_row(escape(name), *map(str, row))
    console.print(confusion)
    console.print(f"ACA {scores.aca:.3f}   AUC {scores.auc:.3f}   quadratic kappa {scores.kappa:.3f}")
    if json_file:
        content = {
            "images": result.images,
            "classes": result.classes,
            "aca": scores.aca,
            "auc": None if math.isnan(scores.auc) else scores.auc,
            "kappa": None if math.isnan(scores.kappa) else scores.kappa,
            "confusion": scores.confusion.tolist(),
            "not_scored": [{"row": row, "reason": reason} for row, reason in sorted(result.unused.items())],
        }
        write_json(json_file, content)


def _split(names: str) -> list[str]:
    found = split_names(names)
    if not found:
        raise CategoryError('no category given: write them as "glaucoma,normal"')
    return found


def _end(problems: list[str]) -> None:
    """Names images that could not be read; then the command has failed in part."""
    show_messages(problems, "images that cannot be read")
    if problems:
        raise typer.Exit(1)
