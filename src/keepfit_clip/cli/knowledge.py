"""`keepfit-clip knowledge ...`: what the library knows of a condition, and whether a file of one's own is valid."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from keepfit_clip.cli.console import console
from keepfit_clip.cli.options import JsonFile, KnowledgeFile, write_result
from keepfit_clip.errors import CategoryError

app = typer.Typer(help="Look conditions up and check knowledge files.", no_args_is_help=True)


@app.command()
def lookup(
    term: Annotated[str, typer.Argument(help='any name or abbreviation, e.g. "NPDR" or "no glaucoma"')],
    knowledge: KnowledgeFile = None,
    json_file: JsonFile = None,
) -> None:
    """Show what is known of a condition or sign."""
    from keepfit_clip.knowledge.conditions import Knowledge

    known = Knowledge.load(knowledge)
    match = known.look_up(term)
    condition = match.condition
    if condition is None:
        similar = ", ".join(known.similar(term))
        raise CategoryError(f"{term!r} is not known{f'; written like it: {similar}' if similar else ''}")
    table = Table(show_header=False, box=None, pad_edge=False)
    rows = [
        ("name", f"{match.name} (the absence of what follows)" if match.denies else match.name),
        ("kind", condition.kind),
        ("also called", ", ".join(condition.synonyms)),
        ("abbreviations", ", ".join(condition.abbreviations)),
        ("also recognised", ", ".join(condition.spellings)),
        ("a form of", " < ".join(known.ancestors(condition.name))),
        ("forms of it", ", ".join(known.children(condition.name))),
        *((code.system, f"{code.code}  {code.title}") for code in condition.codes),
        *((f"on {modality}", "\n".join(texts)) for modality, texts in condition.findings.items()),
        ("source", condition.source),
    ]
    for label, value in rows:
        if value:
            table.add_row(f"[bold]{label}[/]", escape(value))
    console.print(table)
    write_result(json_file, {"name": match.name, "denied": match.denies, "condition": asdict(condition)})


@app.command()
def check(file: Annotated[Path, typer.Argument(help="knowledge file, JSON or YAML")]) -> None:
    """Check a knowledge file against the schema; exit 1 with what is wrong."""
    from keepfit_clip.knowledge.conditions import Knowledge

    known = Knowledge.load(file)
    names = sum(len(condition.terms) for condition in known.conditions.values())
    silent = [name for name, condition in known.conditions.items() if not condition.findings]
    console.print(f"{file}: valid, {len(known.conditions)} conditions under {names} names", soft_wrap=True)
    if silent:
        console.print(f"without any visible finding: {escape(', '.join(silent))}", soft_wrap=True)
