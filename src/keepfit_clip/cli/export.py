"""`keepfit-clip export` and `push-to-hub`: weights out."""

from pathlib import Path
from typing import Annotated

import typer

from keepfit_clip.cli.console import console, quiet_libraries
from keepfit_clip.cli.options import WEIGHTS
from keepfit_clip.errors import ConfigError


def add_commands(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command(rich_help_panel=WEIGHTS)(export)
    app.command(name="push-to-hub", rich_help_panel=WEIGHTS)(push_to_hub)


def export(
    run: Annotated[
        str, typer.Argument(help="run folder (its latest checkpoint) or a checkpoint in one; of a program, a model")
    ],
    out: Annotated[Path, typer.Option(help="new folder for the model; of a program a file, .onnx or .pt2")],
    onnx: Annotated[
        bool, typer.Option("--onnx", help="write the image tower of a model as ONNX (.onnx), or by torch.export (.pt2)")
    ] = False,
    head: Annotated[
        str | None, typer.Option(help="with a head of `transfer --keep` (its name, or its folder); with --onnx")
    ] = None,
) -> None:
    """Write a trained run as a folder that open_clip loads with local-dir:, or a model as ONNX or torch.export."""
    from keepfit_clip.folders.export import export_model

    quiet_libraries()
    if onnx:
        from keepfit_clip.folders.loading import load_model
        from keepfit_clip.predict.exported import export_program
        from keepfit_clip.transfer.heads import head_folder, load_head

        loaded = load_model(run, "cpu")
        kept = load_head(head_folder(run, head), loaded) if head else None
        difference = export_program(loaded, out, kept)
        console.print(f"{loaded.name} -> {out}  (differs from torch by at most {difference:.1g})", soft_wrap=True)
        return
    if head:
        raise ConfigError("--head goes with --onnx: a model's folder holds its heads itself")
    checkpoint = export_model(run, out)
    console.print(f"{checkpoint.name} -> {out}", soft_wrap=True)


def push_to_hub(
    folder: Annotated[Path, typer.Argument(help="folder made by export or import")],
    repository: Annotated[str, typer.Argument(help="OWNER/NAME on the Hugging Face hub")],
    private: Annotated[bool, typer.Option("--private", help="a new repository is private")] = False,
) -> None:
    """Upload a model folder to the Hugging Face hub, from where open_clip loads it with hf-hub:."""
    from keepfit_clip.folders import hub

    address = hub.push_to_hub(folder, repository, private)
    console.print(f"{folder} -> {address}", soft_wrap=True)
