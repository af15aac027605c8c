"""`keepfit-clip explain`: where a model looks."""

from pathlib import Path
from typing import Annotated

import typer

from keepfit_clip.cli.console import console, end_in_part, quiet_libraries, with_progress
from keepfit_clip.cli.options import USE, Crop, Device, Images, KnowledgeFile, Modality, Model, NamesOnly, upper
from keepfit_clip.errors import ImageError, KeepFITError
from keepfit_clip.training.flags import listed


def add_commands(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(rich_help_panel=USE)(explain)


def explain(
    images: Images,
    model: Model,
    out: Annotated[Path, typer.Option(help="new folder for overlays and page")],
    categories: Annotated[str | None, typer.Option(help='the classes, e.g. "glaucoma,normal"')] = None,
    modality: Modality = None,
    names_only: NamesOnly = False,
    grad_cam: Annotated[bool, typer.Option("--grad-cam/--no-grad-cam", help="with Grad-CAM (extra explain)")] = True,
    words: Annotated[bool, typer.Option("--words/--no-words", help="with the words of the caption")] = True,
    map_scale: Annotated[
        int, typer.Option(min=1, max=4, help="maps of the image in so many times the model's size; 1 is fastest")
    ] = 2,
    knowledge: KnowledgeFile = None,
    crop: Crop = None,
    device: Device = None,
) -> None:
    """Show where the model looks for each category and each word of its caption: PNG overlays and a page."""
    from keepfit_clip.explain.maps import Explainer
    from keepfit_clip.explain.report import PAGE, write_explanations
    from keepfit_clip.extras import require_extra
    from keepfit_clip.files import require_free
    from keepfit_clip.folders.loading import load_model
    from keepfit_clip.images.reading import open_image
    from keepfit_clip.knowledge.conditions import Knowledge

    quiet_libraries()
    require_free(out)
    names = listed(categories)
    if names and grad_cam:
        require_extra("explain")
    loaded = load_model(model, device, crop)
    explainer = Explainer(loaded, names, upper(modality), Knowledge.load(knowledge), not names_only, map_scale)
    problems: list[str] = []

    def explained():
        done = 0
        for number, path in enumerate(with_progress("Explaining")(images), start=1):
            try:
                yield number, explainer(open_image(path, blank=False), grad_cam, words)
                done += 1
            except ImageError as error:
                problems.append(str(error))
        if not done:
            raise KeepFITError(f"none of the images can be read: {problems[0]}")

    write_explanations(out, explained(), loaded.name)
    console.print(f"-> {out / PAGE}", soft_wrap=True)
    end_in_part(problems)
