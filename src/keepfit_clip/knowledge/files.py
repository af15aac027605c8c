"""Knowledge files on disk: read, checked against the schema, and brought to the present one."""

import copy
import json
from pathlib import Path

import jsonschema
import yaml

from keepfit_clip.errors import KnowledgeError, first_line
from keepfit_clip.files import parse_json

__all__ = ["SCHEMA", "migrated", "parse_yaml", "problem_report", "read_knowledge_file", "shipped_entries"]

SCHEMA = 2
_HERE = Path(__file__).parent
_PROBLEMS_SHOWN = 10
_LARGEST_FILE = 16 << 20  # bytes


def shipped_entries() -> list[dict]:
    """The entries that ship with the library, with their wording in other languages."""
    # Checked against the schema by the tests, not at each start.
    entries = json.loads((_HERE / "knowledge.json").read_text(encoding="utf-8"))["conditions"]
    by_name = {entry["name"]: entry for entry in entries}
    for file in sorted(_HERE.glob("knowledge.*.json")):
        language = file.name.split(".")[1]
        if language == "schema":
            continue
        for name, wording in json.loads(file.read_text(encoding="utf-8"))["conditions"].items():
            by_name[name].setdefault("languages", {})[language] = wording
    return entries


def read_knowledge_file(path: str | Path) -> dict:
    """The content of a user's file, in the present schema.

    Raises:
        KnowledgeError: the file is missing, cannot be parsed, or breaks the schema it says it has.
    """
    path = Path(path)
    try:
        text = _read_bounded(path)
        content = parse_yaml(text) if path.suffix.lower() in (".yaml", ".yml") else parse_json(text)
        json.dumps(content, ensure_ascii=False, default=str).encode()  # halves of characters end here
    except OSError as error:
        raise KnowledgeError(f"{path}: cannot be read ({first_line(error)})") from error
    except (ValueError, RecursionError) as error:
        raise KnowledgeError(f"{path}: neither JSON nor YAML ({' '.join(str(error).split())})") from error
    content = migrated(content)
    schema = json.loads((_HERE / "knowledge.schema.json").read_text(encoding="utf-8"))
    errors = sorted(jsonschema.Draft202012Validator(schema).iter_errors(content), key=lambda e: list(map(str, e.path)))
    if errors:
        raise KnowledgeError(problem_report(str(path), [_problem(error, content) for error in errors]))
    return content


def migrated(content):
    """A file's content in the present schema; what is of no older one is left as it is.

    Schema 1 had one parent where there may be several now, and called a sign a lesion.
    """
    if not isinstance(content, dict) or content.get("schema") != 1 or not isinstance(content.get("conditions"), list):
        return content
    content = copy.deepcopy(content)
    content["schema"] = SCHEMA
    for entry in content["conditions"]:
        if isinstance(entry, dict):
            if "parents" not in entry and (parent := entry.pop("parent", None)) is not None:
                entry["parents"] = [parent]
            if entry.get("kind") == "lesion":
                entry["kind"] = "sign"
    return content


def _read_bounded(path: Path) -> str:
    with open(path, "rb") as file:
        content = file.read(_LARGEST_FILE + 1)
    if len(content) > _LARGEST_FILE:
        raise ValueError(f"larger than {_LARGEST_FILE >> 20} MiB")
    return content.decode("utf-8-sig")


class _NoAliases(yaml.SafeLoader):
    """YAML without aliases: a few lines of them stand for gigabytes once somebody walks through what they name."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.YAMLError(f"an alias (*NAME) in line {mark.line + 1}: write out what it stands for")
        return super().compose_node(parent, index)


def parse_yaml(text: str):
    """The content of a YAML text.

    Raises:
        ValueError: it is no YAML, or has an alias.
    """
    try:
        return yaml.load(text, Loader=_NoAliases)
    except (yaml.YAMLError, AttributeError, KeyError, TypeError) as error:  # odd tags end in errors of Python's own
        raise ValueError(str(error) or "an odd value") from error


def _problem(error: jsonschema.ValidationError, content) -> str:
    """A breach of the schema, with the name of its entry and the path in it."""
    path = list(error.absolute_path)
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".") or "the file"
    if path[:1] == ["conditions"] and len(path) > 1:
        entry = content["conditions"][path[1]]
        if isinstance(entry, dict) and isinstance(entry.get("name"), str):
            where += f" ({entry['name']})"
    message = error.message if len(error.message) < 160 else f"{error.message[:160]}..."
    return f"{where}: {message}"


def problem_report(name: str, problems: list[str]) -> str:
    """The first of some problems of a file, in one line."""
    shown = "; ".join(problems[:_PROBLEMS_SHOWN])
    more = f"; and {len(problems) - _PROBLEMS_SHOWN} more" if len(problems) > _PROBLEMS_SHOWN else ""
    return f"{name}: {shown}{more}"
