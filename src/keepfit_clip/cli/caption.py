"""`keepfit-clip caption`: what a model writes of images."""

from typing import Annotated

import typer

from keepfit_clip.cli.console import console, end_in_part, quiet_libraries
from keepfit_clip.cli.options import USE, Crop, Device, Images, JsonFile, Model, write_result
from keepfit_clip.errors import ImageError


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
    """Write a caption for each image; `predict --caption` writes a table of many."""
    from keepfit_clip.folders.loading import load_model
    from keepfit_clip.predict.answers import Predictor
    from keepfit_clip.predict.inputs import as_records

    quiet_libraries()
    options = {"num_beams": num_beams} | ({"max_length": max_length} if max_length else {})
    predictor = Predictor(load_model(model, device, crop), captions=True, generation=options)
    problems: list[str] = []
    rows = []
    for number, answer in predictor.answers(as_records(images)):
        if isinstance(answer, ImageError):
            problems.append(str(answer))
            continue
        console.print(f"{images[number]}: {answer.caption}", markup=False, soft_wrap=True)
        rows.append({"image": number + 1, "caption": answer.caption})
    write_result(json_file, rows)
    end_in_part(problems)
