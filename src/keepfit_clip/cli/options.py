"""Options that several commands have, under the same names, and how their texts are read."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["Device", "KnowledgeFile", "Modality", "Model", "NamesOnly", "split_names", "upper"]

Model = Annotated[str, typer.Option("--model", help="folder made by `keepfit-clip export` or `import`")]
Modality = Annotated[str | None, typer.Option(help="CFP, FFA or OCT; it words the texts")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ... (CUDA where there is one)")]
KnowledgeFile = Annotated[Path | None, typer.Option("--knowledge", help="knowledge file instead of the shipped one")]
NamesOnly = Annotated[bool, typer.Option(help="compare with the names alone, without descriptions")]


def split_names(text: str) -> list[str]:
    """The names of a text such as "glaucoma,normal"."""
    return [name.strip() for name in text.split(",") if name.strip()]


def upper(modality: str | None) -> str | None:
    """A modality in capitals, if there is one."""
    return modality.upper() if modality else None
