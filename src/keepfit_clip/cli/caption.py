"""`keepfit-clip caption`: what a model writes of images."""

from typing import Annotated

import typer

from keepfit_clip.cli.console import console, end_in_part, quiet_libraries
from keepfit_clip.cli.options import USE, Crop, Device, Images, JsonFile, Model, write_result


def add_commands(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(rich_help_panel=USE)(caption)


def caption(
    images: Images,
    model: Model,
    num_beams: Annotated[int, typer.Option(min=1, help="beams of the search; 1 is greedy")] = 1,
    max_length: Annotated[int | None, typer.Option(min=2, help="longest caption, tokens")] = None,
    json_file: JsonFile = None,
    crop: Crop = None,
    device: Device = None,
) -> None:
    """Write a caption for each image."""
    from keepfit_clip.evaluate.table import image_batches
    from keepfit_clip.folders.loading import load_model

    quiet_libraries()
    loaded = load_model(model, device, crop)
    loaded.require_captions()
    problems: list[str] = []
    options = {"max_length": max_length} if max_length else {}
    rows = []
    for indices, batch in image_batches(images, loaded.preprocess, on_error=lambda _, e: problems.append(str(e))):
        ids = loaded.model.generate(batch.to(loaded.device), num_beams=num_beams, **options)
        for index, text in zip(indices, loaded.decode(ids), strict=True):
            console.print(f"{images[index]}: {text}", markup=False, soft_wrap=True)
            rows.append({"image": index + 1, "caption": text})
    write_result(json_file, rows)
    end_in_part(problems)
