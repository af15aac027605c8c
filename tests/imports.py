"""Who imports whom, from the source alone: `python tests/imports.py` prints the rooms by floors, and what is wrong.

A room is a package, or a single file beside the packages. It may import from rooms below it; two rooms never import
from each other, at the top of a file or inside a function.
"""

import ast
import sys
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
# From the lowest floor to the highest; rooms of one line do not import from each other.
FLOORS = (
    "_version _faces _former errors",
    "extras files finite processor",
    "remote",
    "knowledge images",
    "page drawing model",
    "explain",
    "folders",
    "registry doctor",
    "data data.identifiers data.engines",
    "data.tars",
    "data.sources",
    "data.duplicates data.downstream",
    "data.shards data.stream",
    "evaluate.metrics",
    "evaluate",
    "transfer",
    "predict segmentation benchmark",
    "app training.programs training.flags",
    "training.text_stage training.hybrid",
    "training training.answers training.report",
    "training.demo",
    "cli",
)


def modules():
    """Dotted name -> path of every module, without the package's own name."""
    found = {}
    for folder, prefix in ((ROOT / "src" / "keepfit_clip", ()), (ROOT / "training", ("training",))):
        for path in sorted(folder.rglob("*.py")):
            parts = (*prefix, *path.relative_to(folder).with_suffix("").parts)
            found[".".join(part for part in parts if part != "__init__")] = path
    return found


def room_of(name, rooms):
    """The room of a module: the longest of them that its name begins with; "" is the package's face."""
    parts = name.split(".")
    return next((room for n in range(len(parts), 0, -1) if (room := ".".join(parts[:n])) in rooms), "")


def imports_of(path, known):
    """Modules of ours that a module imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "keepfit_clip":
            base = node.module.partition(".")[2]
            for alias in node.names:
                name = f"{base}.{alias.name}".lstrip(".")
                yield name if name in known else base
        elif isinstance(node, ast.Import):
            yield from (a.name.partition(".")[2] for a in node.names if a.name.startswith("keepfit_clip."))


def arrows():
    """Room -> the other rooms that it imports from, each with the modules that do."""
    known = modules()
    rooms = {room for floor in FLOORS for room in floor.split()}
    found = defaultdict(lambda: defaultdict(list))
    for name, path in known.items():
        if path.name == "__init__.py" and name.count(".") == 0 and name not in ("cli",):
            continue  # a face: it names what stands in the room, lazily
        for other in imports_of(path, known):
            one, two = room_of(name, rooms), room_of(other, rooms)
            if one and two and one != two:
                found[one][two].append(name)
    return found


def faults():
    """Lines about imports that go upwards or round in a circle, and about modules that stand in no room."""
    floor_of = {room: number for number, floor in enumerate(FLOORS) for room in floor.split()}
    found = arrows()
    lines = [
        f"{', '.join(sorted(set(who)))}: {one} imports from {two}, which is not below it"
        for one, others in found.items()
        for two, who in others.items()
        if floor_of[two] >= floor_of[one]
    ]
    homeless = [name for name in modules() if name not in ("", "__main__") and not room_of(name, floor_of)]
    lines += [f"{name} is in no room" for name in homeless]
    try:
        TopologicalSorter({one: set(others) for one, others in found.items()}).prepare()
    except CycleError as error:
        lines.append(f"a circle: {' -> '.join(error.args[1])}")
    return lines


def main():
    found = arrows()
    for floor in reversed(FLOORS):
        for room in floor.split():
            print(f"{room:20} <- {' '.join(sorted(found[room]))}")
        print()
    rooms, count = sum(len(floor.split()) for floor in FLOORS), sum(map(len, found.values()))
    print(f"{rooms} rooms on {len(FLOORS)} floors, {count} arrows")
    for line in faults():
        print(line)
    sys.exit(bool(faults()))


if __name__ == "__main__":
    main()
