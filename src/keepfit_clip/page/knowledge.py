"""A page of a whole knowledge file: the tree of conditions, and of each its names, findings, codes and source."""

import re
from collections.abc import Mapping, Sequence

from keepfit_clip.knowledge.conditions import Condition, Knowledge
from keepfit_clip.page.templates import render_template

__all__ = ["render_knowledge"]

_LISTS = ("also called", "abbreviations", "recognised", "as a label only")  # with commas between


def render_knowledge(
    knowledge: Knowledge, title: str, pictures: Mapping[str, Sequence[tuple[str, str]]] | None = None
) -> str:
    """The page as HTML, whole in itself.

    Args:
        knowledge: what it shows.
        title: of the page.
        pictures: canonical name -> (data URI, what it is) of examples.
    """
    conditions = list(knowledge.conditions.values())
    signs = sum(condition.kind == "sign" for condition in conditions)
    reviewed = sum(not condition.unreviewed for condition in conditions)
    roots = [condition for condition in conditions if not condition.parents]
    return render_template(
        "knowledge.html.j2",
        title=title,
        subtitle=f"{len(conditions)} entries, {signs} of them signs; in {len(conditions) - reviewed} something is "
        "marked as not yet reviewed by a clinician.",
        tree=[_node(condition, knowledge) for condition in roots],
        entries=[_entry(condition, knowledge, (pictures or {}).get(condition.name, ())) for condition in conditions],
    )


def _node(condition: Condition, knowledge: Knowledge) -> dict:
    forms = [_node(knowledge.conditions[name], knowledge) for name in knowledge.children(condition.name)]
    return {"id": _id(condition.name), "name": condition.name, "sign": condition.kind == "sign", "forms": forms}


def _entry(condition: Condition, knowledge: Knowledge, pictures: Sequence[tuple[str, str]]) -> dict:
    chinese = condition.languages.get("zh")
    facts = [
        ("also called", condition.synonyms),
        ("abbreviations", condition.abbreviations),
        ("recognised", condition.spellings),
        ("as a label only", condition.labels),
        *((f"on {modality}", texts) for modality, texts in condition.findings.items()),
        *((f"instead, on {modality}", texts) for modality, texts in condition.absent.items()),
        ("in Chinese", chinese.names if chinese else ()),
        *((f"中文 {modality}", texts) for modality, texts in (chinese.findings if chinese else {}).items()),
        ("codes", [f"{code.system} {code.code} {code.title}" for code in condition.codes]),
        ("source", [condition.source] if condition.source else []),
    ]
    linked = [
        ("a form or sign of", condition.parents),
        ("forms and signs", knowledge.children(condition.name)),
    ]
    rows = [(label, [{"text": text, "id": ""} for text in texts]) for label, texts in facts if texts]
    rows += [(label, [{"text": name, "id": _id(name)} for name in names]) for label, names in linked if names]
    return {
        "id": _id(condition.name),
        "name": condition.name,
        "kind": condition.kind,
        "unreviewed": condition.unreviewed,
        "facts": rows,
        "between": {label: ", " if label in _LISTS else "; " for label, _ in rows},
        "pictures": pictures,
    }


def _id(name: str) -> str:
    return re.sub(r"\W+", "-", name).strip("-").lower()
