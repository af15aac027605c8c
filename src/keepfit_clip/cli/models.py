"""`keepfit-clip models`: what can be built, how trained models are named, what is at hand, and what others publish."""

from dataclasses import asdict
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from keepfit_clip.cli.console import console, quiet_libraries
from keepfit_clip.cli.options import USE, JsonFile, write_result


def add_commands(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(rich_help_panel=USE)(models)


def models(
    weights: Annotated[bool, typer.Option("--weights", help="show the field's public weights too")] = False,
    json_file: JsonFile = None,
) -> None:
    """List the architectures to train, the names of trained models, those in the cache, and the field's weights."""
    from keepfit_clip.folders.cached import cached_models
    from keepfit_clip.folders.imports.public_weights import list_public_weights
    from keepfit_clip.folders.loading import SCHEMES
    from keepfit_clip.registry import list_keepfit_models

    quiet_libraries()
    console.print("Architectures to train (train --model, open_clip.create_model):")
    for name in list_keepfit_models():
        console.print(f"  {name}")
    ways = Table(title="Trained models, for every --model", title_justify="left")
    ways.add_column("name", no_wrap=True)
    ways.add_column("what it is")
    for scheme in SCHEMES.values():
        ways.add_row(escape(scheme.example), escape(scheme.what))
    console.print(ways)
    cached, published = cached_models(), list_public_weights()
    _show_cached(cached)
    if weights:
        _show_weights(published)
    else:
        console.print("The field's public weights, and what they may be used for: keepfit-clip models --weights")
    content = {
        "architectures": list_keepfit_models(),
        "names": {scheme.example: scheme.what for scheme in SCHEMES.values()},
        "cached": [asdict(model) for model in cached],
        "weights": [asdict(entry) for entry in published],
    }
    write_result(json_file, content)


def _show_cached(cached) -> None:
    console.print("In the cache, ready without a network:" if cached else "In the cache: no model yet")
    for model in cached:  # the name on a line of its own: one that is wrapped cannot be copied
        console.print(f"  {model.name}", markup=False, highlight=False, soft_wrap=True)
        console.print(f"    {model.what}, {model.size / 1e6:,.1f} MB", markup=False, style="dim")


def _show_weights(published) -> None:
    """Weights one below the other: columns of sentences cannot be read on a terminal."""
    console.print("\nThe field's public weights. Nothing is fetched, and none of these files was tried here.\n")
    for entry in published:
        console.print(f"[bold]{escape(entry.name)}[/]: {escape(entry.what)}")
        facts = Table(show_header=False, box=None, padding=(0, 1, 0, 2), pad_edge=True)
        facts.add_column(no_wrap=True, min_width=7, style="dim")
        facts.add_column(overflow="fold")
        digest = f"{entry.sha256} ({entry.sha256_of})" if entry.sha256 else ""
        rows = {"saw": entry.saw, "terms": entry.terms, "lies": entry.where, "paper": entry.paper, "SHA-256": digest}
        for label, value in rows.items():
            if value:
                facts.add_row(label, escape(value))
        console.print(facts)
        for name in entry.here:
            console.print(f"  here      {name}", markup=False, highlight=False, soft_wrap=True)
        console.print()
