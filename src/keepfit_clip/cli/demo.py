"""`keepfit-clip demo`: the whole method on drawn retinas, without data, hub or accelerator."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from keepfit_clip.cli.console import console, error_console, quiet_libraries
from keepfit_clip.cli.options import TRAIN


def add_commands(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(rich_help_panel=TRAIN)(demo)


def demo(
    out: Annotated[Path, typer.Option(help="folder of the demo; started again, it goes on where it was")] = Path(
        "runs/demo"
    ),
    quick: Annotated[bool, typer.Option(help="a short run that only shows that everything works")] = False,
) -> None:
    """Run the whole method on drawn retinas: both stages, export, evaluation, report. Ten minutes on two cores."""
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
    console.print(f"report: {out / 'report.html'}", soft_wrap=True)
