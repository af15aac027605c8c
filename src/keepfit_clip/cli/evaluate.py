"""`keepfit-clip evaluate`, `evaluate-retrieval` and `evaluate-captions`: scores on a table, nothing learnt."""

import math
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from keepfit_clip.cli.console import console, error_console, quiet_libraries, show_left_out, with_progress
from keepfit_clip.cli.options import (
    MEASURE,
    AllowMissing,
    Cache,
    Classes,
    Crop,
    Device,
    Findings,
    JsonFile,
    KnowledgeFile,
    Modality,
    Model,
    NamesOnly,
    Pool,
    PoolBy,
    Root,
    class_spec,
    path_or_url,
    upper,
    write_result,
)
from keepfit_clip.cli.table_options import reads_tables, tell_notes
from keepfit_clip.page.cells import csv_text

Pairs = Annotated[
    Path,
    typer.Argument(
        metavar="TABLE", help="CSV of images and captions or categories, or another source", parser=path_or_url
    ),
]
Language = Annotated[str, typer.Option("--lang", help="language of the captions")]


def add_commands(app: typer.Typer) -> None:
    """Adds the commands."""
    for command in (evaluate, evaluate_retrieval, evaluate_captions):
        app.command(rich_help_panel=MEASURE)(command)


@reads_tables
def evaluate(
    table: Annotated[
        Path, typer.Argument(help="CSV of images and categories, or another source of labels", parser=path_or_url)
    ],
    model: Model,
    source_options,
    images: Root = None,
    classes: Classes = None,
    modality: Modality = None,
    allow_missing_classes: AllowMissing = False,
    pool: Pool = None,
    pool_by: PoolBy = "mean",
    json_file: JsonFile = None,
    names_only: NamesOnly = False,
    findings: Findings = False,
    knowledge: KnowledgeFile = None,
    crop: Crop = None,
    device: Device = None,
) -> None:
    """Zero-shot scores on a labelled table: ACA, AUC, of grades quadratic kappa, and the confusion table."""
    from keepfit_clip.evaluate.pooling import PooledScores, check_pooling, keys_of
    from keepfit_clip.evaluate.table import FIGURE_TITLES, evaluate_table
    from keepfit_clip.folders.loading import load_model
    from keepfit_clip.knowledge.conditions import Knowledge

    quiet_libraries()
    check_pooling(pool, pool_by)
    result = evaluate_table(
        load_model(model, device, crop),
        table,
        images,
        class_spec(classes, table),
        upper(modality),
        Knowledge.load(knowledge),
        not names_only,
        progress=with_progress("Classifying"),
        options=source_options,
        allow_missing_classes=allow_missing_classes,
        findings=findings,
    )
    tell_notes(result.notes)
    show_left_out(result.left_out, "rows not scored")
    scores = result.scores
    confusion = Table("true \\ predicted", *map(escape, result.classes), title=f"{result.images} images")
    for name, row in zip(result.classes, scores.confusion.tolist(), strict=True):
        confusion.add_row(escape(name), *map(str, row))
    console.print(confusion)
    of = "" if result.complete else f" of {len(result.classes_scored)} of {len(result.classes)} classes"
    summary = "   ".join(f"{FIGURE_TITLES[name]}{of} {value:.3f}" for name, value in result.figures.items())
    console.print(f"{summary}   (over {result.images} images)", soft_wrap=True)
    missing = [name for name in result.classes if name not in result.classes_scored]
    if missing:
        console.print(f"[yellow]no image of {escape(', '.join(missing))}: the scores say nothing of it[/]")
    pooled = None
    if pool:
        keys = keys_of(result.records, pool)
        pooled = PooledScores.of(result.labels, result.probabilities, keys, pool, pool_by)
        console.print(pooled.line, markup=False, soft_wrap=True)
    content = {
        "images": result.images,
        "classes": result.classes,
        "pooled": pooled and pooled.figures,
        "classes_scored": result.classes_scored,
        "complete": result.complete,
        **{name: result.figures.get(name) for name in FIGURE_TITLES},
        "confusion": scores.confusion.tolist(),
        "not_scored": _reasons(result.left_out),
    }
    write_result(json_file, content)


@reads_tables
def evaluate_retrieval(
    table: Pairs,
    model: Model,
    source_options,
    images: Root = None,
    modality: Modality = None,
    lang: Language = "en",
    json_file: JsonFile = None,
    cache: Cache = Path("runs/features"),
    knowledge: KnowledgeFile = None,
    crop: Crop = None,
    device: Device = None,
) -> None:
    """Recall at 1, 5 and 10: texts of an image, images of a text, images like an image; chance beside each."""
    from keepfit_clip.evaluate.features import FeatureCache
    from keepfit_clip.evaluate.pairs import evaluate_retrieval, read_pairs
    from keepfit_clip.folders.loading import load_model
    from keepfit_clip.knowledge.conditions import Knowledge

    quiet_libraries()
    pairs = read_pairs(table, images, source_options, lang)
    loaded = load_model(model, device, crop)
    features = FeatureCache(cache, loaded)
    result = evaluate_retrieval(
        loaded, pairs, Knowledge.load(knowledge), upper(modality), features, with_progress("Encoding")
    )
    tell_notes(result.table.notes)
    show_left_out(result.table.left_out, "rows not used")
    if result.cut_texts:
        error_console.print(f"[yellow]{result.cut_texts} texts are longer than the model's context and were cut[/]")
    queries = {"image_to_text": len(result.table.records), "text_to_image": result.texts}
    queries["image_to_image"] = int(result.scores["image_to_image_queries"])
    shown = Table("retrieval", "queries", "R@1", "R@5", "R@10", "chance at 1, 5, 10", title="recall in percent")
    for direction, number in queries.items():
        recall, chance = (
            [_percent(result.scores[f"{direction}_{what}@{k}"]) for k in (1, 5, 10)] for what in ("recall", "chance")
        )
        shown.add_row(direction.replace("_", " "), str(number), *recall, ", ".join(chance))
    console.print(shown)
    counts = {"images": queries["image_to_text"], "texts": result.texts, "cut_texts": result.cut_texts}
    write_result(json_file, counts | _scores(result.scores) | {"not_used": _reasons(result.table.left_out)})


@reads_tables
def evaluate_captions(
    table: Pairs,
    model: Model,
    source_options,
    images: Root = None,
    num_beams: Annotated[int, typer.Option(min=1, help="beams of the search; 1 is greedy")] = 1,
    max_length: Annotated[int | None, typer.Option(min=2, help="longest caption, tokens")] = None,
    lang: Language = "en",
    json_file: JsonFile = None,
    captions: Annotated[Path | None, typer.Option(help="write row, expert's and model's caption as CSV")] = None,
    cache: Cache = Path("runs/features"),
    knowledge: KnowledgeFile = None,
    crop: Crop = None,
    device: Device = None,
) -> None:
    """BLEU, ROUGE-L, CIDEr and chrF of written captions, and whether they name the right conditions and lesions."""
    from keepfit_clip.evaluate.features import FeatureCache
    from keepfit_clip.evaluate.pairs import evaluate_captions, read_pairs
    from keepfit_clip.extras import require_extra
    from keepfit_clip.files import write_text
    from keepfit_clip.folders.loading import load_model
    from keepfit_clip.knowledge.conditions import Knowledge

    quiet_libraries()
    require_extra("captions")
    pairs = read_pairs(table, images, source_options, lang, captions_only=True)
    loaded = load_model(model, device, crop)
    loaded.require_captions()
    kept = FeatureCache(cache, loaded)
    options = {"num_beams": num_beams} | ({"max_length": max_length} if max_length else {})
    result = evaluate_captions(loaded, pairs, Knowledge.load(knowledge), kept, with_progress("Writing"), **options)
    tell_notes(result.table.notes)
    show_left_out(result.table.left_out, "rows not used")
    shown = Table("metric", "value", title=f"{len(result.written)} captions")
    for name, value in result.scores.items():
        text = str(value) if isinstance(value, int) else "n/a" if math.isnan(value) else f"{value:.3f}"
        shown.add_row(name.replace("_", " "), text)
    console.print(shown)
    if captions:
        write_text(captions, _caption_table(result))
    counts = {"images": len(result.written)} | options
    write_result(json_file, counts | _scores(result.scores) | {"not_used": _reasons(result.table.left_out)})


def _caption_table(result) -> str:
    """Row, experts' captions and the model's, as CSV; nothing names an image."""
    rows = zip(result.table.records, result.table.captions, result.written, strict=True)
    return csv_text(
        ["row", "expert", "written"], ([record.row, " | ".join(truth), written] for record, truth, written in rows)
    )


def _percent(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{100 * value:.1f}"


def _scores(scores: dict[str, float]) -> dict:
    """For JSON, where there is no NaN."""
    return {name: None if math.isnan(value) else value for name, value in scores.items()}


def _reasons(left_out: list) -> list[dict]:
    return [row.without_names() for row in sorted(left_out)]
