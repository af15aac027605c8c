"""`keepfit-clip transfer`: what a model brings to a labelled data set."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from keepfit_clip.cli.console import (
    StepProgress,
    console,
    markdown_table,
    quiet_libraries,
    show_left_out,
    with_progress,
)
from keepfit_clip.cli.options import (
    MEASURE,
    Cache,
    Classes,
    Crop,
    Device,
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
from keepfit_clip.errors import ConfigError
from keepfit_clip.training.flags import listed

_LEARNING, _SHIFT = "Learning", "Domain shift"


def add_commands(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(rich_help_panel=MEASURE)(transfer)


@reads_tables
def transfer(
    tables: Annotated[
        list[Path],
        typer.Argument(help="CSVs of images and categories, or other sources of labels", parser=path_or_url),
    ],
    model: Model,
    source_options,
    images: Root = None,
    classes: Classes = None,
    method: Annotated[
        str,
        typer.Option(
            help="zero-shot, zero-shot-names, zero-shot-findings, linear-probe, text-probe, clip-adapter, tip-adapter, "
            "tip-adapter-f, finetune, joined by ','"
        ),
    ] = "zero-shot",
    shots: Annotated[
        str,
        typer.Option(
            help="images per class (1,5,10; ~5 in the set's proportions) or shares (20%,80%)",
            rich_help_panel=_LEARNING,
        ),
    ] = "80%",
    folds: Annotated[int, typer.Option(help="parts; each is tested once", rich_help_panel=_LEARNING)] = 5,
    split: Annotated[
        str, typer.Option(help="folds, or given: the test part that comes with the set", rich_help_panel=_LEARNING)
    ] = "folds",
    seed: Annotated[int, typer.Option(help="of folds, shots and adapters", rich_help_panel=_LEARNING)] = 0,
    epochs: Annotated[int, typer.Option(help="of finetune", rich_help_panel=_LEARNING)] = 10,
    batch_size: Annotated[int, typer.Option(help="of finetune", rich_help_panel=_LEARNING)] = 16,
    lr: Annotated[float, typer.Option(help="of finetune", rich_help_panel=_LEARNING)] = 1e-4,
    layer_decay: Annotated[
        float,
        typer.Option(
            help="of finetune: factor of the rate from each layer to the one before", rich_help_panel=_LEARNING
        ),
    ] = 1.0,
    early_stop: Annotated[
        float,
        typer.Option(help="of finetune: share of the training images that choose the epoch", rich_help_panel=_LEARNING),
    ] = 0.0,
    balanced: Annotated[
        bool,
        typer.Option(
            "--balanced/--as-frequent",
            help="of finetune: classes weigh alike, or by their images",
            rich_help_panel=_LEARNING,
        ),
    ] = True,
    precision: Annotated[
        str, typer.Option(help="of finetune: fp32, bf16, or auto (bf16 on a GPU)", rich_help_panel=_LEARNING)
    ] = "auto",
    keep: Annotated[
        str | None,
        typer.Option(
            help="keep what the method learns from all images as a head of the model: a name, or a folder (./heads/dr)",
            rich_help_panel=_LEARNING,
        ),
    ] = None,
    modality: Modality = None,
    names_only: NamesOnly = False,
    threshold: Annotated[
        str, typer.Option(help="where an image may have several classes: 0.5, one for each (0.4,0.6), or 'tuned'")
    ] = "0.5",
    pool: Pool = None,
    pool_by: PoolBy = "mean",
    copies_together: Annotated[
        bool, typer.Option("--copies-together/--copies-apart", help="keep near copies in one fold")
    ] = True,
    domain_shift: Annotated[
        Path | None, typer.Option(help="test on this table instead", rich_help_panel=_SHIFT, parser=path_or_url)
    ] = None,
    domain_shift_images: Annotated[
        Path | None,
        typer.Option(help="folder of its images (--images)", rich_help_panel=_SHIFT, parser=path_or_url),
    ] = None,
    cache: Cache = Path("runs/features"),
    out: Annotated[
        Path | None,
        typer.Option(help="new folder for JSON, CSV, table and predictions; of several tables one each in it"),
    ] = None,
    plots: Annotated[bool, typer.Option("--plots/--no-plots", help="draw into the folder (extra plots)")] = True,
    json_file: JsonFile = None,
    knowledge: KnowledgeFile = None,
    crop: Crop = None,
    device: Device = None,
) -> None:
    """Measure zero-shot, few-shot and linear-probe classification over folds, from features computed once."""
    from keepfit_clip.data.downstream import read_downstream
    from keepfit_clip.evaluate.features import FeatureCache
    from keepfit_clip.extras import require_extra
    from keepfit_clip.files import require_free
    from keepfit_clip.folders.loading import load_model
    from keepfit_clip.knowledge.conditions import Knowledge
    from keepfit_clip.transfer.finetune import FinetuneOptions
    from keepfit_clip.transfer.heads import facts_of, head_folder, save_head
    from keepfit_clip.transfer.protocol import Transfer, TransferOptions, encode_set, learning_methods, run_transfer
    from keepfit_clip.transfer.splits import parse_shots
    from keepfit_clip.transfer.tables import as_json, as_markdown, conformal_lines, pooled_lines, write_results

    quiet_libraries()
    if out is not None:
        require_free(out)
        if plots:
            require_extra("plots")
    options = TransferOptions(
        listed(method),
        tuple(parse_shots(shots)),
        folds,
        upper(modality),
        not names_only,
        _thresholds(threshold),
        seed,
        finetune=FinetuneOptions(
            epochs,
            batch_size,
            lr,
            balanced=balanced,
            layer_decay=layer_decay,
            early_stop=early_stop,
            precision=precision,
        ),
        given_split=split == "given",
        pool=pool,
        pool_by=pool_by,
    )
    if split not in ("folds", "given"):
        raise ConfigError(f"--split {split}: folds or given")
    if domain_shift_images is not None and domain_shift is None:
        raise ConfigError("--domain-shift-images without --domain-shift")
    head = None
    if keep is not None:
        if len(tables) > 1 or domain_shift is not None or len(learning_methods(options)) != 1:
            raise ConfigError("--keep takes one table and one --method that learns, without --domain-shift")
        head = require_free(head_folder(model, keep))
    names = [table.stem for table in tables]
    if len(set(names)) < len(names):
        raise ConfigError(f"two of the tables are called the same: {', '.join(names)}")

    known = Knowledge.load(knowledge)
    loaded = load_model(model, device, crop)
    features = FeatureCache(cache, loaded)

    def encode(table: Path, images: Path | None, spec):
        read = read_downstream(table, images, spec, known, source_options)
        return encode_set(loaded, read, features, with_progress("Encoding"), copies_together)

    results = []
    for table in tables:
        encoded = encode(table, images, class_spec(classes, table))
        shifted = None
        if domain_shift is not None:
            spec = replace(encoded.downstream.spec, title=domain_shift.stem)
            shifted = encode(domain_shift, domain_shift_images or images, spec).shifted_from(encoded)
        for part, name in ((encoded, table.name), (shifted, domain_shift and domain_shift.name)):
            if part is not None:
                tell_notes(part.downstream.notes)
                show_left_out(part.downstream.left_out, f"rows of {name} not used")
        with StepProgress() as progress:
            outcomes = run_transfer(loaded, encoded, options, shifted, known, progress, features)
        tested = shifted or encoded
        console.print(markdown_table(as_markdown(tested.downstream, outcomes, options)))
        for line in pooled_lines(outcomes) + conformal_lines(outcomes):
            console.print(line, markup=False, soft_wrap=True)
        results.append(as_json(tested.downstream, outcomes, options, loaded.name))
        if out is not None:
            folder = out / table.stem if len(tables) > 1 else out
            write_results(folder, tested, outcomes, options, loaded.name, plots)
            console.print(f"-> {folder}", soft_wrap=True)
        if head is not None:
            run = Transfer(loaded, encoded, options, encoded, known, features)
            with console.status("Learning from all images"):
                learnt = run.learn(learning_methods(options)[0])
            kept = next(outcome for outcome in reversed(outcomes) if outcome.method in learning_methods(options))
            save_head(head, facts_of(loaded, run, kept, learnt), learnt)
            console.print(
                f"head -> {head}  (keepfit-clip predict IMAGES --model {model} --head {keep} --out FILE.csv)",
                soft_wrap=True,
            )
    write_result(json_file, results)


def _thresholds(text: str) -> tuple[float, ...] | None:
    if text == "tuned":
        return None
    try:
        return tuple(map(float, listed(text)))
    except ValueError as error:
        raise ConfigError(f"--threshold {text!r} is neither 'tuned' nor numbers such as 0.5") from error
