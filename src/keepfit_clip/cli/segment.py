"""`keepfit-clip segment`: how well lesions are found with a model's image tower under a decoder."""

from pathlib import Path
from typing import Annotated

import typer

from keepfit_clip.cli.console import (
    StepProgress,
    console,
    error_console,
    markdown_table,
    quiet_libraries,
    show_left_out,
    with_progress,
)
from keepfit_clip.cli.options import MEASURE, Cache, Crop, Device, JsonFile, Model, upper, write_result
from keepfit_clip.errors import ConfigError
from keepfit_clip.training.flags import listed

_MASKS, _DRAWN, _LEARNING = "Images and masks", "Drawn retinas instead", "Learning"


def add_commands(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(rich_help_panel=MEASURE)(segment)


def segment(
    model: Model,
    images: Annotated[Path | None, typer.Option("--images", help="folder of images", rich_help_panel=_MASKS)] = None,
    masks: Annotated[
        Path | None,
        typer.Option(help="folder of label masks STEM.png, or of folders CLASS/STEM.png", rich_help_panel=_MASKS),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            help='"hard exudate,hemorrhage": values 1 and 2 of label masks; "disc=128,cup=0,background=255"; or the '
            "folders, or drawn lesions, that count (all)"
        ),
    ] = None,
    group_pattern: Annotated[
        str | None,
        typer.Option(help="regular expression: patient or eye in the file name, e.g. '[0-9]+'", rich_help_panel=_MASKS),
    ] = None,
    groups: Annotated[
        Path | None, typer.Option(help="CSV of image and group (patient) instead", rich_help_panel=_MASKS)
    ] = None,
    copies_together: Annotated[
        bool,
        typer.Option("--copies-together/--copies-apart", help="keep near copies in one fold", rich_help_panel=_MASKS),
    ] = True,
    drawn: Annotated[int | None, typer.Option(help="how many to draw", rich_help_panel=_DRAWN)] = None,
    size: Annotated[
        int | None, typer.Option(help="width and height, pixels (the tower's)", rich_help_panel=_DRAWN)
    ] = None,
    modality: Annotated[str | None, typer.Option(help="CFP, FFA or OCT (CFP)", rich_help_panel=_DRAWN)] = None,
    conditions: Annotated[
        str | None, typer.Option(help='e.g. "normal,diabetic retinopathy" (all)', rich_help_panel=_DRAWN)
    ] = None,
    tower: Annotated[str, typer.Option(help="frozen or finetune", rich_help_panel=_LEARNING)] = "frozen",
    input_size: Annotated[
        int | None,
        typer.Option(help="pixels of a side that the tower takes (as it was trained)", rich_help_panel=_LEARNING),
    ] = None,
    control: Annotated[
        str,
        typer.Option(
            help="the same on the backbone's ImageNet weights (imagenet), on random ones, or none",
            rich_help_panel=_LEARNING,
        ),
    ] = "imagenet",
    folds: Annotated[int, typer.Option(help="parts; each is tested once", rich_help_panel=_LEARNING)] = 5,
    epochs: Annotated[int, typer.Option(help="passes over a fold's images", rich_help_panel=_LEARNING)] = 20,
    batch_size: Annotated[int, typer.Option(help="images in a step", rich_help_panel=_LEARNING)] = 8,
    lr: Annotated[
        float, typer.Option(help="of the decoder; a fine-tuned tower has a tenth", rich_help_panel=_LEARNING)
    ] = 1e-3,
    seed: Annotated[int, typer.Option(help="of folds, decoders and drawn retinas", rich_help_panel=_LEARNING)] = 0,
    overlays: Annotated[int, typer.Option(help="images to show in --out")] = 6,
    cache: Cache = Path("runs/features"),
    out: Annotated[Path | None, typer.Option(help="new folder for JSON, table and overlays")] = None,
    json_file: JsonFile = None,
    crop: Crop = None,
    device: Device = None,
) -> None:
    """Measure segmentation: Dice and IoU of a decoder on the image tower, over patient folds, beside ImageNet's."""
    from keepfit_clip.evaluate.features import FeatureCache
    from keepfit_clip.extras import require_extra
    from keepfit_clip.files import require_free
    from keepfit_clip.folders.loading import load_model
    from keepfit_clip.model.image_tower import ImageTower
    from keepfit_clip.segmentation.control import control_tower
    from keepfit_clip.segmentation.folder import read_masks
    from keepfit_clip.segmentation.network import set_input_size
    from keepfit_clip.segmentation.prepared import prepare
    from keepfit_clip.segmentation.protocol import SegmentationOptions, run_segmentation
    from keepfit_clip.segmentation.tables import as_json, as_markdown, write_results
    from keepfit_clip.segmentation.training import TrainingOptions

    quiet_libraries()
    require_extra("segmentation")
    if out is not None:
        require_free(out)
    if (drawn is None) == (images is None or masks is None):
        raise ConfigError("give --images and --masks, or --drawn for retinas that are drawn")
    training = TrainingOptions(tower, epochs, batch_size, lr)
    options = SegmentationOptions(training, control, folds, seed, overlays=overlays)
    loaded = load_model(model, device, crop)
    image_tower = loaded.model.visual
    if not isinstance(image_tower, ImageTower):
        raise ConfigError(f"{loaded.name}: masks are learnt on towers of this library or of timm only")
    if input_size is not None:
        set_input_size(image_tower, input_size)
    preprocess = {**image_tower.preprocess, **({} if crop is None else {"crop": crop})}
    preprocess |= {} if input_size is None else {"size": input_size}
    beside = control_tower(control, image_tower.config, preprocess, seed)
    if beside is not None:
        beside.tower.to(loaded.device)
        if beside.note:
            error_console.print(beside.note, markup=False, soft_wrap=True, style="yellow")

    if drawn is None:
        source = read_masks(images, masks, classes, group_pattern, groups)
    else:
        source = _drawn(drawn, size or _longest(preprocess["size"]), modality, conditions, classes, seed)
    prepared = prepare(source, preprocess, copies_together, with_progress("Reading"))
    show_left_out(source.left_out, "images or masks not used")
    kept = FeatureCache(cache, loaded).folder
    with StepProgress() as progress:
        result = run_segmentation(image_tower, beside, prepared, options, kept, progress)
    console.print(markdown_table(as_markdown(result)))
    if out is not None:
        write_results(out, result, loaded.name)
        console.print(f"-> {out}", soft_wrap=True)
    write_result(json_file, as_json(result, loaded.name))


def _longest(size: int | tuple[int, int]) -> int:
    return size if isinstance(size, int) else max(size)


def _drawn(count: int, size: int, modality: str | None, conditions: str | None, classes: str | None, seed: int):
    from keepfit_clip.knowledge.conditions import Knowledge
    from keepfit_clip.segmentation.drawn import DrawnOptions, drawn_masks

    names = None
    if conditions is not None:
        knowledge = Knowledge.load()
        names = [knowledge.canonical(name) for name in listed(conditions)]
    return drawn_masks(
        DrawnOptions(count, size, upper(modality) or "CFP", names, seed), listed(classes) if classes else None
    )
