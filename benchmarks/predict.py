"""What `predict` costs beside running the image tower.

    python benchmarks/predict.py [--pictures 10000] [--threads 2] [--workers 1]

All passes read the same drawn pictures from the disk with keepfit-v2-lite at 224 pixels, in turns: the bare image
tower, fed by as many reading processes; `predict` with four categories and features into CSV; with a linear head into
Parquet. Printed are images per second, the median of the rounds, and their ratios.
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
from torch.utils.data import DataLoader, Dataset
from transformers.utils import logging as transformers_logging

import keepfit_clip  # noqa: F401 - registers the models
from keepfit_clip.drawing import DrawOptions, draw_dataset
from keepfit_clip.folders.loaded import LoadedModel
from keepfit_clip.images.reading import open_image
from keepfit_clip.predict.answers import Predictor
from keepfit_clip.predict.inputs import Input, find_inputs
from keepfit_clip.predict.output import OutputOptions, write_predictions
from keepfit_clip.processor import keep_freed_memory
from keepfit_clip.transfer.classifiers import LinearClassifier
from keepfit_clip.transfer.heads import Head, HeadFacts

MODEL = "keepfit-v2-lite"
CLASSES = ("normal", "glaucoma", "diabetic retinopathy", "macular hole")
DRAWN = 500  # different pictures, each read again and again


class Pictures(Dataset):
    """Preprocessed pictures."""

    def __init__(self, inputs: list[Input], preprocess: Callable):
        self.inputs, self.preprocess = inputs, preprocess

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, number: int) -> torch.Tensor:
        return self.preprocess(open_image(self.inputs[number].record.image))


def linear_head(loaded: LoadedModel) -> Head:
    """A head of random weights, as costly as a learnt one."""
    weight = torch.randn(len(CLASSES), loaded.widths[0], dtype=torch.float64)
    classifier = LinearClassifier(weight, torch.zeros(len(CLASSES), dtype=torch.float64), torch.tensor(False))
    facts = HeadFacts("linear-probe", "linear", CLASSES, False, (None,), (), 1.0, {}, {}, loaded.name, "")
    return Head(facts, classifier)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(args.threads)
    transformers_logging.set_verbosity_error()
    model = open_clip.create_model(MODEL, pretrained_image=True).eval()
    loaded = LoadedModel(model, model.visual.image_transform(), open_clip.get_tokenizer(MODEL))
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder) / "pictures"
        draw_dataset(pictures, DrawOptions(DRAWN, 224))
        drawn = find_inputs([pictures / "retina.csv"], pictures)
        inputs = (drawn * (args.pictures // len(drawn) + 1))[: args.pictures]
        options = OutputOptions(32, args.workers)

        def bare() -> None:
            with torch.inference_mode():
                for batch in DataLoader(Pictures(inputs, loaded.preprocess), 32, num_workers=args.workers):
                    model.encode_image(batch)

        def predict(name: str, **asked) -> Callable[[], None]:
            def work() -> None:
                out = Path(folder) / name
                write_predictions(out, inputs, Predictor(loaded, **asked), options)
                out.unlink()

            return work

        passes = {
            "bare image tower": bare,
            "predict, categories and features, CSV": predict("a.csv", categories=CLASSES, features=True),
            "predict, linear head, Parquet": predict("b.parquet", head=linear_head(loaded)),
        }
        seconds = {name: [] for name in passes}
        for _ in range(args.rounds):
            for name, work in passes.items():
                start = time.perf_counter()
                work()
                seconds[name].append(time.perf_counter() - start)
    table = Table("pass", "images/s", "ratio", title=f"{len(inputs)} pictures, {args.workers} reading processes")
    first = statistics.median(seconds["bare image tower"])
    for name, times in seconds.items():
        median = statistics.median(times)
        table.add_row(name, f"{len(inputs) / median:.1f}", f"{first / median:.3f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
