"""Building shards: images a second beside the bare decode, resize and encode; and memory against the number of rows.

    python benchmarks/shard_building.py [--images 400] [--rows 1000 30000 1000000] [--layout-rows 1000 30000 300000]

The first table: 1024-pixel JPEGs stored with 512 pixels. "bare" is what one process needs to decode, resize and encode
them with the same functions and nothing else; ours is a whole build (plan, hashes, tars, manifest), with one worker
and with two, per worker. The worker processes are started by a small build before, so that importing the library is
not counted. The second table: peak memory of a process that builds shards of so many rows (tiny pictures, a caption
each), and its time. The third: the same of a data set with a layout, whose rows are filtered, whose images lie in any
folder, and whose table says the part of each row. Figures of the last run: docs/DATA.md.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from keepfit_clip.data import ShardOptions, build_shards
from keepfit_clip.drawing import draw_retina
from keepfit_clip.images.reading import encode_jpeg, fit_within, open_image

SIZE = 512
DRAWN = 40
PICTURES = 100
LAYOUT = {
    "schema": 1,
    "title": "synthetic rows",
    "modality": "CFP",
    "parts": [
        {
            "table": "labels.csv",
            "keep": {"kind": ["photograph"]},
            "drop": {"quality": ["bad"]},
            "images": [
                {
                    "image": "{file}",
                    "anywhere": True,
                    "patient": "{patient}",
                    "split": "{part}",
                    "captions": ["{caption}"],
                    "labels": [{"column": "grade", "map": {"0": ["normal"], "1": ["glaucoma"]}}],
                }
            ],
        }
    ],
}
BUILD = """
import re, sys, time
from pathlib import Path
from keepfit_clip.data import ShardOptions, SourceOptions, build_shards
source, out, images, layout = sys.argv[1:]
options = ShardOptions(kind="elite", samples_per_shard=5000, split="given" if layout else None)
start = time.perf_counter()
report = build_shards(source, images or None, out, options, source_options=SourceOptions(layout=layout))
seconds = time.perf_counter() - start
# Not ru_maxrss, in which a child starts at its parent's figure.
peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 2**10
print(report.samples, seconds, peak)
"""


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--rows", type=int, nargs="*", default=[1000, 30_000])
    parser.add_argument("--layout-rows", type=int, nargs="*", default=[])
    args = parser.parse_args()
    console = Console(width=100)
    with tempfile.TemporaryDirectory() as folder:
        if args.images:
            console.print(speed(Path(folder), args.images))
        if args.rows:
            console.print(memory(Path(folder), args.rows, table_of))
        if args.layout_rows:
            console.print(memory(Path(folder), args.layout_rows, set_of))


def speed(folder: Path, images: int) -> Table:
    """Images a second, bare and built."""
    draw(folder, images)
    bare = rate_bare(folder)
    table = Table("workers", "ours /s", "bare, one process /s", "ratio per worker")
    for workers in (1, 2):
        small = ShardOptions(kind="public", samples_per_shard=4)
        (folder / "small.csv").write_text("\n".join((folder / "table.csv").read_text().splitlines()[:9]) + "\n")
        build_shards(folder / "small.csv", folder, folder / f"small-{workers}", small, workers=workers)
        options = ShardOptions(kind="public", modality="CFP", size=SIZE, samples_per_shard=50)
        start = time.perf_counter()
        report = build_shards(folder / "table.csv", folder, folder / f"out-{workers}", options, workers=workers)
        rate = report.samples / (time.perf_counter() - start)
        table.add_row(str(workers), f"{rate:.1f}", f"{bare:.1f}", f"{rate / workers / bare:.2f}")
    return table


def draw(folder: Path, images: int) -> None:
    """Different JPEGs of 1024 pixels."""
    rows = ["image,categories"]
    for number in range(images):
        if number % (images // DRAWN or 1) == 0:
            drawn = draw_retina("CFP", "diabetic retinopathy", [number], SIZE).image.resize((2 * SIZE, 2 * SIZE))
        drawn.rotate(number % 40, Image.Resampling.BILINEAR).save(folder / f"{number}.jpg", quality=92)
        rows.append(f"{number}.jpg,['diabetic retinopathy']")
    (folder / "table.csv").write_text("\n".join(rows) + "\n")


def rate_bare(folder: Path) -> float:
    """Images a second of decode, resize and encode alone."""
    contents = [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]
    start = time.perf_counter()
    for content in contents:
        encode_jpeg(fit_within(open_image(content), SIZE))
    return len(contents) / (time.perf_counter() - start)


def memory(folder: Path, counts: list[int], written: Callable[[Path, int], list[str]]) -> Table:
    """Peak memory and time for growing numbers of rows.

    Args:
        folder: for what is written.
        counts: of rows.
        written: writes so many rows; returns the source, the folder of images and the layout.
    """
    table = Table("rows", "samples", "seconds", "peak memory, MiB", title=written.__doc__)
    for count in counts:
        source, *more = written(folder / f"{written.__name__}-{count}", count)
        command = [sys.executable, "-c", BUILD, source, str(folder / f"built-{written.__name__}-{count}"), *more]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        samples, seconds, peak = done.stdout.split()
        table.add_row(f"{count:,}", samples, f"{float(seconds):.0f}", f"{float(peak):.0f}")
    return table


def table_of(folder: Path, count: int) -> list[str]:
    """A table."""
    draw_tiny(folder)
    with open(folder / "table.csv", "w") as file:
        file.write("image,caption,patient\n")
        file.writelines(f"{n % PICTURES}.png,a caption of row number {n},p{n // 3}\n" for n in range(count))
    return [str(folder / "table.csv"), str(folder), ""]


def set_of(folder: Path, count: int) -> list[str]:
    """A data set with a layout."""
    draw_tiny(folder / "photographs" / "all")
    with open(folder / "labels.csv", "w") as file:
        file.write("file,caption,patient,grade,part,kind,quality\n")
        for n in range(count):
            part = "train" if n % 30 < 24 else "test"
            kind, quality = "drawing" if n % 10 == 3 else "photograph", "bad" if n % 20 == 7 else "good"
            row = f"{n % PICTURES}.png,a caption of row number {n},p{n // 3},{n % 2},{part},{kind},{quality}\n"
            file.write(row)
    layout = folder.with_suffix(".json")
    layout.write_text(json.dumps(LAYOUT))
    return [str(folder), "", str(layout)]


def draw_tiny(folder: Path) -> None:
    """Pictures of 16 pixels."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(PICTURES):
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(folder / f"{number}.png")


if __name__ == "__main__":
    main()
