"""What changed between two knowledge files."""

from dataclasses import fields

from keepfit_clip.knowledge.conditions import Condition, Knowledge

__all__ = ["compare_knowledge"]


def compare_knowledge(old: Knowledge, new: Knowledge) -> list[tuple[str, str, list[str], list[str]]]:
    """Rows of (entry, field, what went, what came), in the order of the new file; entries that went come last.

    A whole entry that came or went has the field "entry". A term that means something else now has the field "means".
    """
    rows: list[tuple[str, str, list[str], list[str]]] = []
    for name, condition in new.conditions.items():
        before = old.conditions.get(name)
        if before is None:
            rows.append((name, "entry", [], [name]))
        else:
            rows += [(name, *change) for change in _changes(before, condition)]
    rows += [(name, "entry", [name], []) for name in old.conditions if name not in new.conditions]
    for name, condition in old.conditions.items():
        for term in (*condition.terms, *condition.labels):
            now = new.look_up(term)
            if now.name != name and now.condition is not None:
                rows.append((term, "means", [name], [now.name]))
    return rows


def _changes(old: Condition, new: Condition):
    before, after = _texts(old), _texts(new)
    for key in dict.fromkeys((*before, *after)):
        gone = [text for text in before.get(key, ()) if text not in after.get(key, ())]
        come = [text for text in after.get(key, ()) if text not in before.get(key, ())]
        if gone or come:
            yield key, gone, come


def _texts(condition: Condition) -> dict[str, list[str]]:
    """Field -> its texts; one field for each modality and language."""
    found: dict[str, list[str]] = {}
    for entry in fields(condition):
        value = getattr(condition, entry.name)
        if entry.name in ("findings", "absent"):
            found |= {f"{entry.name} {modality}": list(texts) for modality, texts in value.items()}
        elif entry.name == "languages":
            for language, wording in value.items():
                found[f"{language} names"] = list(wording.names)
                found[f"{language} spellings"] = list(wording.spellings)
                for part in ("findings", "absent"):
                    by_modality = getattr(wording, part)
                    found |= {f"{language} {part} {modality}": list(texts) for modality, texts in by_modality.items()}
        elif entry.name == "codes":
            found["codes"] = [f"{code.system} {code.code}" for code in value]
        elif entry.name != "name":
            found[entry.name] = list(value) if isinstance(value, tuple) else [value] if value else []
    return found
