"""`keepfit-clip app`: a page to try a model on."""

import threading
from pathlib import Path
from typing import Annotated

import typer

from keepfit_clip.cli.console import console, quiet_libraries, show_left_out, with_progress
from keepfit_clip.cli.options import USE, Cache, Crop, Device, KnowledgeFile, path_or_url
from keepfit_clip.cli.table_options import reads_tables, tell_notes
from keepfit_clip.errors import CheckpointError, ConfigError

COMMAND = "app"
_DEMO = Path("runs/demo/model")


def add_commands(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(COMMAND, rich_help_panel=USE)(reads_tables(serve))


def serve(
    model: Annotated[
        str | None, typer.Option(help=f"a folder, or a name as of `keepfit-clip models` ({_DEMO}, of the demo)")
    ] = None,
    gallery: Annotated[
        Path | None, typer.Option(help="shards or a table; the most similar images are shown", parser=path_or_url)
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="folder the image paths of a gallery table are relative to", parser=path_or_url),
    ] = None,
    host: Annotated[str, typer.Option(help="address to bind to")] = "127.0.0.1",
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="name by which browsers may ask for the page beside its address (repeat it; NAME:PORT)"
        ),
    ] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="port (a free one)")] = None,
    cache: Cache = Path("runs/features"),
    knowledge: KnowledgeFile = None,
    crop: Crop = None,
    device: Device = None,
    source_options=None,
) -> None:
    """Open a page: drop images, read probabilities and captions, see where the model looks. Research use only."""
    from keepfit_clip.app.page import running_page
    from keepfit_clip.app.service import Gallery, Service
    from keepfit_clip.evaluate.features import FeatureCache
    from keepfit_clip.evaluate.pairs import read_pairs
    from keepfit_clip.extras import require_extra
    from keepfit_clip.folders.loading import load_model
    from keepfit_clip.knowledge.conditions import Knowledge
    from keepfit_clip.transfer.heads import head_folder, list_heads, load_head

    quiet_libraries()
    require_extra("app")
    if model is None:
        if not _DEMO.exists():
            raise CheckpointError(
                "no --model given, and no model of the demo: run `keepfit-clip demo` or give a folder"
            )
        model = str(_DEMO)
    loaded = load_model(model, device, crop)
    if not loaded.has_text:
        raise ConfigError(f"{loaded.name} has no text tower: the page compares images with words")
    shown = None
    if gallery is not None:
        pairs = read_pairs(gallery, images, source_options)
        tell_notes(pairs.notes)
        show_left_out(pairs.left_out, "entries of the gallery not used")
        shown = Gallery(loaded, pairs, FeatureCache(cache, loaded), with_progress("Encoding the gallery"))
    heads = {name: load_head(head_folder(model, name), loaded) for name in list_heads(model)}
    service = Service(loaded, Knowledge.load(knowledge), shown, heads)
    with running_page(service, f"KeepFIT: {loaded.name}", host, port, allow_host or ()) as address:
        console.print(f"{address}  (Ctrl+C ends it)", soft_wrap=True)
        threading.Event().wait()
