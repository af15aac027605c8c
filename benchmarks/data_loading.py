"""Samples a second: our training stream beside open_clip_train's own WebDataset loader, on the same shards.

    python benchmarks/data_loading.py [--shards DIR] [--sizes 224 512] [--workers 1 2] [--batches 60]

Both read the same tars of 512-pixel JPEGs (drawn fundus photographs, unless --shards names a folder of public ones),
with the training transforms each of them has, in batches of 32, and the same tokenizer. The third figure is what
Pillow needs in one process to decode and resize alone, without and with its scaled decoding. Times begin after the
first batches, so that starting workers does not count. Figures of the last run: docs/DATA.md.
"""

import argparse
import io
import tarfile
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import numpy as np
import open_clip
import torch
from open_clip_train.data import get_wds_dataset
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

import keepfit_clip  # noqa: F401 - registers the models
from keepfit_clip.data import MixedStream, ShardOptions, StreamOptions, build_shards, list_shards
from keepfit_clip.data.stream.decoding import make_resizer
from keepfit_clip.data.stream.sampling import make_pools
from keepfit_clip.drawing import draw_retina
from keepfit_clip.knowledge.conditions import Knowledge
from keepfit_clip.model.tokenization import Tokenizer

BATCH = 32
WARM_UP = 4
DRAWN = 128
COPIES = 6


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=Path, help="public shards to read instead of drawn ones")
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 512])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batches", type=int, default=60)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        shards = args.shards or draw_shards(Path(folder))
        table = Table(
            "size", "workers", "ours /s", "open_clip /s", "ratio", "decode + resize /s", "scaled /s", "ratios"
        )
        for size in args.sizes:
            plain, scaled = decoding_alone(shards, size, draft=False), decoding_alone(shards, size, draft=True)
            for workers in args.workers:
                theirs = rate(open_clip_loader(shards, size, workers, args.batches), args.batches)
                ours = rate(our_loader(shards, size, workers, args.batches), args.batches)
                ratios = f"{ours / plain:.2f} {ours / scaled:.2f}"
                row = (size, workers, f"{ours:.0f}", f"{theirs:.0f}", f"{ours / theirs:.2f}", f"{plain:.0f}")
                table.add_row(*map(str, row), f"{scaled:.0f}", ratios)
    Console(width=120).print(table)


def draw_shards(folder: Path) -> Path:
    """Public shards of 512-pixel JPEGs: drawn retinas, each also turned and mirrored."""
    rows = ["image,categories"]
    for number in range(DRAWN):
        condition = ("normal", "diabetic retinopathy", "glaucoma", "cataract")[number % 4]
        image = draw_retina("CFP", condition, [number], 512).image
        for copy in range(COPIES):
            turned = image.transpose(list(Image.Transpose)[copy]) if copy else image
            turned.save(folder / f"{number}_{copy}.png", compress_level=1)
            rows.append(f"{number}_{copy}.png,['{condition}']")
    (folder / "table.csv").write_text("\n".join(rows) + "\n")
    options = ShardOptions(kind="public", modality="CFP", samples_per_shard=DRAWN)
    build_shards(folder / "table.csv", folder, folder / "shards", options)
    return folder / "shards"


def rate(loader: Iterable, batches: int) -> float:
    """Samples a second."""
    iterator = iter(loader)
    for _ in range(WARM_UP):
        next(iterator)
    start = time.perf_counter()
    count = sum(len(images) for images, _ in islice(iterator, batches))
    return count / (time.perf_counter() - start)


def our_loader(shards: Path, size: int, workers: int, batches: int) -> DataLoader:
    """The stream as training makes it."""
    preprocess = {"size": size, "resize_mode": "longest", "interpolation": "bicubic", "fill_color": 0}
    stream = MixedStream(
        make_pools(str(shards)),
        [],
        StreamOptions(batch_size=BATCH),
        batches_per_worker=batches + WARM_UP,
        epoch=lambda: 0,
        resize=make_resizer(preprocess),
        tokenizer=Tokenizer(open_clip.get_tokenizer("keepfit-v2-test"), 77, 0, 49407),
        knowledge=Knowledge.load(),
        mean=[0.5] * 3,
        std=[0.5] * 3,
    )
    return DataLoader(stream, batch_size=None, num_workers=workers)


def open_clip_loader(shards: Path, size: int, workers: int, batches: int):
    """open_clip_train's loader with its own training transform."""
    tars = list_shards(shards)
    args = Namespace(
        train_data="{" + ",".join(tars) + "}" if len(tars) > 1 else tars[0],
        train_data_upsampling_factors=None,
        train_num_samples=BATCH * (batches + WARM_UP) * workers,
        dataset_resampled=True,
        batch_size=BATCH,
        workers=workers,
        seed=0,
        world_size=1,
    )
    preprocess = open_clip.image_transform(size, is_train=True)
    tokenizer = open_clip.get_tokenizer("keepfit-v2-test")
    return get_wds_dataset(args, preprocess, is_train=True, tokenizer=tokenizer).dataloader


def decoding_alone(shards: Path, size: int, draft: bool) -> float:
    """Images a second that Pillow decodes and resizes in one process, with bytes in memory and pixels out."""
    encoded = []
    for tar in list_shards(shards):
        with tarfile.open(tar) as members:
            encoded += [members.extractfile(m).read() for m in members if m.name.endswith(".jpg")]
    encoded = encoded[:400]
    start = time.perf_counter()
    for content in encoded:
        image = Image.open(io.BytesIO(content))
        if draft:
            image.draft("RGB", (size, size))
        image = image.convert("RGB")
        if image.size != (size, size):
            image = image.resize((size, size), Image.Resampling.BICUBIC)
        np.asarray(image)
    return len(encoded) / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
