"""What transfer costs beside running the image tower: zero-shot over a table, and a linear probe over five folds.

    python benchmarks/transfer.py [--pictures 1000] [--threads 2]

All passes read the same drawn pictures from the disk with keepfit-v2-lite at 224 pixels, without a cache, in turns:
the bare image tower; zero-shot over the table, texts and scores included; linear probe over five folds, likewise.
Printed are images per second and seconds of each, the median of the rounds, and their ratios.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import open_clip
import torch
from rich.console import Console
from rich.table import Table
from transformers.utils import logging as transformers_logging

import keepfit_clip  # noqa: F401 - registers the models
from keepfit_clip.data.downstream import read_downstream
from keepfit_clip.drawing import DrawOptions, draw_dataset
from keepfit_clip.drawing.retina import CONDITIONS
from keepfit_clip.evaluate.table import image_batches
from keepfit_clip.folders.loaded import LoadedModel
from keepfit_clip.transfer.protocol import TransferOptions, encode_set, run_transfer

MODEL = "keepfit-v2-lite"


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers_logging.set_verbosity_error()
    model, _, preprocess = open_clip.create_model_and_transforms(MODEL, pretrained_image=True)
    loaded = LoadedModel(model.eval(), preprocess, open_clip.get_tokenizer(MODEL))
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder) / "pictures"
        draw_dataset(pictures, DrawOptions(args.pictures, 224))
        downstream = read_downstream(pictures / "retina.csv", pictures, CONDITIONS)

        def bare() -> None:
            with torch.inference_mode():
                for _, batch in image_batches([record.image for record in downstream.records], preprocess):
                    model.encode_image(batch)

        def transfer(method: str) -> Callable[[], None]:
            options = TransferOptions((method,), modality="CFP")
            return lambda: run_transfer(loaded, encode_set(loaded, downstream), options)

        passes = {
            "bare image tower": bare,
            "zero-shot": transfer("zero-shot"),
            "linear probe": transfer("linear-probe"),
        }
        seconds = {name: [] for name in passes}
        for _ in range(args.rounds):
            for name, work in passes.items():
                start = time.perf_counter()
                work()
                seconds[name].append(time.perf_counter() - start)
    images = len(downstream.records)
    table = Table("pass", "seconds", "images/s", "images/s, ratio", "seconds, ratio", title=f"{images} pictures")
    first = statistics.median(seconds["bare image tower"])
    for name, times in seconds.items():
        median = statistics.median(times)
        table.add_row(name, f"{median:.1f}", f"{images / median:.1f}", f"{first / median:.3f}", f"{median / first:.3f}")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
