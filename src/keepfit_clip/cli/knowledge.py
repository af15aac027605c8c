"""`keepfit-clip knowledge ...`: what the library knows of a condition, and files of one's own."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from keepfit_clip.cli.console import console
from keepfit_clip.cli.options import JsonFile, KnowledgeFile, write_result
from keepfit_clip.errors import CategoryError, ConfigError

app = typer.Typer(help="Look conditions up; check, compare and show knowledge files.", no_args_is_help=True)


@app.command()
def lookup(
    term: Annotated[str, typer.Argument(help='any name, abbreviation or label, e.g. "NPDR" or "no glaucoma"')],
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
        shown = term if len(term) <= 60 else f"{term[:60]}..."
        raise CategoryError(f"{shown!r} is not known{f'; written like it: {similar}' if similar else ''}")
    chinese = condition.languages.get("zh")
    rows = [
        ("name", f"{match.name} (the absence of what follows)" if match.denies else match.name),
        ("kind", condition.kind),
        ("also called", ", ".join(condition.synonyms)),
        ("abbreviations", ", ".join(condition.abbreviations)),
        ("also recognised", ", ".join(condition.spellings)),
        ("as a label only", ", ".join(condition.labels)),
        ("in Chinese", ", ".join(chinese.names) if chinese else ""),
        ("a form or sign of", ", ".join(known.ancestors(condition.name))),
        ("forms and signs", ", ".join(known.children(condition.name))),
        *((code.system, f"{code.code}  {code.title}") for code in condition.codes),
        *((f"on {modality}", "\n".join(texts)) for modality, texts in condition.findings.items()),
        *((f"instead, on {modality}", "\n".join(texts)) for modality, texts in condition.absent.items()),
        ("source", condition.source),
        ("not reviewed", condition.unreviewed),
    ]
    table = Table(show_header=False, box=None, pad_edge=False)
    for label, value in rows:
        if value:
            table.add_row(f"[bold]{label}[/]", escape(value))
    console.print(table)
    write_result(json_file, {"name": match.name, "denied": match.denies, "condition": asdict(condition)})


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="knowledge file, JSON or YAML")], json_file: JsonFile = None
) -> None:
    """Check a knowledge file against the schema; exit 1 with what is wrong."""
    from keepfit_clip.knowledge.conditions import Knowledge

    known = Knowledge.load(file)
    names = sum(len(condition.terms) for condition in known.conditions.values())
    silent = [name for name, condition in known.conditions.items() if not condition.findings]
    console.print(f"{file}: valid, {len(known.conditions)} conditions under {names} names", soft_wrap=True)
    if silent:
        console.print(f"without any visible finding: {escape(', '.join(silent))}", soft_wrap=True)
    write_result(json_file, {"conditions": len(known.conditions), "names": names, "without_findings": silent})


@app.command()
def diff(
    old: Annotated[Path, typer.Argument(help="knowledge file; 'shipped' is the library's own")],
    new: Annotated[Path, typer.Argument(help="knowledge file; 'shipped' is the library's own")],
    json_file: JsonFile = None,
) -> None:
    """Show what changed from one knowledge file to another, and which words mean something else now."""
    from keepfit_clip.knowledge.compare import compare_knowledge

    rows = compare_knowledge(_load(old), _load(new))
    table = Table("entry", "field", "before", "after")
    for entry, field, gone, come in rows:
        table.add_row(escape(entry), field, escape("; ".join(gone)), escape("; ".join(come)))
    console.print(table if rows else "nothing changed")
    write_result(json_file, [dict(zip(("entry", "field", "before", "after"), row, strict=True)) for row in rows])


def _load(file: Path):
    from keepfit_clip.knowledge.conditions import Knowledge

    return Knowledge.load(None if str(file) == "shipped" else file)


@app.command()
def migrate(
    file: Annotated[Path, typer.Argument(help="knowledge file of an older schema")],
    out: Annotated[Path, typer.Option(help="new file, JSON")],
) -> None:
    """Write a knowledge file in the present schema. Older ones are read too, but new fields need it."""
    from keepfit_clip.files import write_text
    from keepfit_clip.knowledge.conditions import Knowledge
    from keepfit_clip.knowledge.files import SCHEMA, read_knowledge_file

    if out.exists():
        raise ConfigError(f"{out} exists: choose a new name with --out")
    Knowledge.load(file)  # what is wrong in it is told before anything is written
    content = read_knowledge_file(file)
    write_text(out, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    console.print(f"{out}: schema {SCHEMA}, {len(content['conditions'])} conditions", soft_wrap=True)


@app.command()
def labels(
    name: Annotated[str | None, typer.Argument(help="a shipped map or a file; all are listed by default")] = None,
    json_file: JsonFile = None,
) -> None:
    """List the label maps of data sets (`--labels` of build, evaluate and transfer), or show one."""
    from keepfit_clip.knowledge.labels import label_map_names, read_label_map

    if name is None:
        table = Table("name", "data set", "modality", "labels")
        maps = {shipped: read_label_map(shipped) for shipped in label_map_names()}
        for shipped, read in maps.items():
            table.add_row(shipped, escape(read.title), read.modality or "", str(len(read.labels)))
        console.print(table)
        write_result(json_file, {shipped: {"title": m.title, "modality": m.modality} for shipped, m in maps.items()})
        return
    read = read_label_map(name)
    table = Table("label", "means", title=escape(read.title), caption=escape(read.source))
    for label, categories in read.labels.items():
        open_question = " (not documented)" if label in read.unverified else ""
        table.add_row(escape(label), escape(", ".join(categories) or "nothing to be seen") + open_question)
    console.print(table)
    write_result(json_file, {label: list(categories) for label, categories in read.labels.items()})


@app.command()
def report(
    out: Annotated[Path, typer.Option(help="HTML file to write")],
    knowledge: KnowledgeFile = None,
) -> None:
    """Write one self-contained page of a whole knowledge file: its tree, names, findings, codes and sources."""
    from keepfit_clip.drawing.retina import KINDS, draw_retina
    from keepfit_clip.files import write_text
    from keepfit_clip.knowledge.conditions import Knowledge
    from keepfit_clip.page.knowledge import render_knowledge
    from keepfit_clip.page.report import picture_uri

    known = Knowledge.load(knowledge)
    pictures: dict[str, list[tuple[str, str]]] = {}
    for modality, name in KINDS:
        term = known.look_up(name)
        if term.condition is not None:
            picture = picture_uri(draw_retina(modality, name, 1, size=160).image)
            pictures.setdefault(term.condition.name, []).append((picture, f"{term.name} on {modality}, drawn"))
    title = "What keepfit_clip knows" if knowledge is None else f"What {Path(knowledge).name} knows"
    write_text(out, render_knowledge(known, title, pictures))
    console.print(f"{out}: {len(known.conditions)} entries", soft_wrap=True)
