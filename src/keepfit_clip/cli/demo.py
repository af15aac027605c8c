"""`keepfit-clip demo`: the whole method on drawn retinas, without data, hub or accelerator."""

import webbrowser
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from keepfit_clip.cli.console import console, error_console, quiet_libraries
from keepfit_clip.cli.options import TRAIN, JsonFile, write_result


def add_commands(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(rich_help_panel=TRAIN)(demo)


def demo(
    out: Annotated[Path, typer.Option(help="folder of the demo; started again, it goes on where it was")] = Path(
        "runs/demo"
    ),
    quick: Annotated[bool, typer.Option("--quick", help="a short run that only shows that everything works")] = False,
    open_page: Annotated[bool, typer.Option("--open", help="show the report in a browser at the end")] = False,
    json_file: JsonFile = None,
) -> None:
    """Run the whole method on drawn retinas: both stages, export, evaluation, report. Five to eight minutes."""
    from keepfit_clip.training.demo.run import FULL, QUICK, run_demo

    quiet_libraries()
    try:
        metrics = run_demo(out, QUICK if quick else FULL)
    except KeyboardInterrupt:
        error_console.print("interrupted: the same command goes on where it was")
        raise
    table = Table("on unseen pictures", "model", "control", "what the control is")
    for name, key, control, meaning in (
        ("zero-shot ACA", "zero_shot_aca", "zero_shot_aca_shuffled_images", "images shuffled"),
        ("captions: condition", "caption_condition_rate", "caption_condition_rate_no_image", "no image"),
        ("captions: eye", "caption_eye_rate", "caption_eye_rate_other_picture", "another picture of the kind"),
        ("captions: quadrant", "caption_quadrant_rate", "caption_quadrant_rate_other_picture", "the same"),
        ("captions: side of the fovea", "caption_side_rate", "caption_side_rate_other_picture", "the same"),
        ("captions: lesions counted", "caption_count_rate", "caption_count_rate_other_picture", "the same"),
    ):
        table.add_row(name, *("none" if metrics[k] is None else f"{metrics[k]:.3f}" for k in (key, control)), meaning)
    console.print(table)
    console.print(f"{metrics['seconds']:.0f} s, at most {metrics['peak_memory_gib']:.1f} GiB", highlight=False)
    console.print(f"report  {out / 'report.html'}", soft_wrap=True)
    console.print(f"model   {out / 'model'}", soft_wrap=True)
    console.print(f"next    keepfit-clip app --model {out / 'model'}", soft_wrap=True)
    write_result(json_file, metrics)
    if open_page and not webbrowser.open((out / "report.html").absolute().as_uri()):
        error_console.print("no browser is at hand: open the report by its name")
