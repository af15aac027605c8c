"""Start-up with very many shards, and memory against the number of shards read.

    python benchmarks/many_shards.py [--shards 100000]

Makes that many names of a few small tars (hard links), and times what training does before its first batch: listing
them, counting their samples, and a worker's first batch of 32. Then it reads on and prints the process's memory after
more and more shards.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import psutil
import torch
from data_loading import BATCH, our_loader

from keepfit_clip.data import ShardOptions, build_shards, list_shards, read_shards
from keepfit_clip.data.tars.reader import check_kind, count_samples
from keepfit_clip.drawing import draw_retina

STEPS = (100, 1000, 5000, 20_000)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=100_000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_shards(folder, args.shards)
        start = time.perf_counter()
        shards = list_shards(folder / "shards")
        check_kind(shards, "public")
        samples = count_samples(shards)
        listed = time.perf_counter() - start
        batch = next(iter(our_loader(folder / "shards", 64, workers=1, batches=1)))
        total = time.perf_counter() - start
        print(f"{len(shards)} shards, {samples} samples: listed and counted in {listed:.1f} s, ", end="")
        print(f"first batch of {len(batch[0])} after {total:.1f} s")
        process, done = psutil.Process(), 0
        for count in STEPS:
            for _ in read_shards(shards[done:count]):
                pass
            done = min(count, len(shards))
            print(f"{process.memory_info().rss / 2**20:.0f} MiB after {done} shards")


def make_shards(folder: Path, count: int) -> None:
    """`count` names of small tars of 8 samples, with their lists."""
    rows = ["image,categories"]
    for number in range(2 * BATCH):
        draw_retina("CFP", "normal", [number], 32).image.save(folder / f"{number}.png")
        rows.append(f"{number}.png,['normal']")
    (folder / "table.csv").write_text("\n".join(rows) + "\n")
    options = ShardOptions(kind="public", modality="CFP", samples_per_shard=8)
    build_shards(folder / "table.csv", folder, folder / "few", options)
    few = sorted((folder / "few").glob("*.tar"))
    (folder / "shards").mkdir()
    for number in range(count):
        os.link(few[number % len(few)], folder / "shards" / f"{number:06d}.tar")
    (folder / "shards" / "sizes.json").write_text(json.dumps({f"{n:06d}.tar": 8 for n in range(count)}))
    (folder / "shards" / "manifest.json").write_text(json.dumps({"options": {"kind": "public"}}))


if __name__ == "__main__":
    main()
