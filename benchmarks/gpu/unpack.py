"""Puts the parts that pack.py cut together again, one after the other; after the last one the kit is ready.

    python3 benchmarks/gpu/unpack.py PART --kit KIT

It needs nothing but Python and pip. Parts may come in any order, and again.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tarfile
from pathlib import Path


def main() -> None:
    """Takes one part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", type=Path)
    parser.add_argument("--kit", type=Path, required=True)
    args = parser.parse_args()
    manifest = json.loads((args.part / "manifest.json").read_text())
    for entry in manifest["pieces"]:
        data = (args.part / entry["piece"]).read_bytes()
        if hashlib.sha256(data).hexdigest() != entry["sha256"]:
            sys.exit(f"{args.part / entry['piece']} was damaged on its way: send {args.part} again")
        file = args.kit / "files" / entry["file"]
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "r+b" if file.exists() else "w+b") as target:
            target.truncate(entry["size"])
            target.seek(entry["at"])
            target.write(data)
    taken = args.kit / "taken"
    taken.mkdir(exist_ok=True)
    (taken / args.part.name).touch()
    there = len(list(taken.iterdir()))
    if there < manifest["parts"]:
        print(f"{there} of {manifest['parts']} parts are there")
        return
    wheels = [str(wheel) for wheel in sorted((args.kit / "files" / "wheels").glob("*.whl"))]
    options = ["--no-index", "--no-deps", "--no-compile", "--upgrade", "--target", str(args.kit / "site")]
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *options, *wheels], check=True)
    images = args.kit / "files" / "images.tar"
    if images.exists():
        with tarfile.open(images) as tar:
            tar.extractall(args.kit / "images", filter="data")
    print(f"{args.kit} is ready")


if __name__ == "__main__":
    main()
