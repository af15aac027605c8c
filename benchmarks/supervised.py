"""What an image tower learns from labels alone, beside which the zero-shot figures of real images are to be read.

    python benchmarks/supervised.py DIR --out RUN [--table cfp_four_classes] [--epochs 7] [--lr 6e-4] [--seeds 0]

The tower of keepfit-v2-lite begins with its ImageNet weights and with a linear probe as its head, and is fine-tuned on
the labels of one table, all classes weighing alike. DIR, the split and the parts are those of examples/real_images.py
(RUN may be a folder of it): it learns from what is trained on there, and is asked on the test part. Seven epochs show
it about as many of the four classes' images as the 720 steps of that run do. ACA and AUC are means over the seeds, with
95 % intervals over images and seeds; the share that is right stands beside each class.
"""

import argparse
from pathlib import Path

import numpy as np
from learning import cell, real_images
from rich.console import Console
from rich.progress import track

from keepfit_clip.data.downstream import read_downstream
from keepfit_clip.evaluate.metrics.classification import Answers, score_classification
from keepfit_clip.folders import load_model
from keepfit_clip.processor import keep_freed_memory
from keepfit_clip.transfer.classifiers import Features
from keepfit_clip.transfer.finetune import FinetuneOptions, LabelledImages, TowerImages, finetune
from keepfit_clip.transfer.methods import Fold

TOWER = "timm:tf_efficientnet_lite0"


def main() -> None:
    """Trains a tower for each seed, and prints a line of Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, metavar="DIR", help="folder with the tables and images")
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder of the split")
    parser.add_argument("--table", choices=[s.name for s in real_images.SETS], default="cfp_four_classes")
    parser.add_argument("--epochs", type=int, default=7)
    parser.add_argument("--lr", type=float, default=6e-4)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    keep_freed_memory()
    args.out.mkdir(parents=True, exist_ok=True)
    split = real_images.split_rows(real_images.read_sets(args.images), args.out / "split.json")[args.table]
    chosen = next(s for s in real_images.SETS if s.name == args.table)
    train, test = (
        _labelled(args.images, chosen, {row for part in parts for row in split[part]})
        for parts in (real_images.TRAINED_ON, ("test",))
    )
    loaded = load_model(TOWER, args.device)
    pooled = real_images.image_features(
        [record.image for record in train.records],
        loaded.preprocess,
        lambda batch: loaded.model.visual.encode(batch.to(loaded.device)).pooled,
    )
    start = Features(pooled, np.empty((len(pooled), 0), np.float32))
    options = FinetuneOptions(epochs=args.epochs, batch_size=args.batch_size, lr=args.lr)
    answers = []
    for seed in track(args.seeds, "seeds", transient=True):
        fold = Fold(start, train.labels, start[:0], None, seed, TowerImages(loaded, train, test, options))
        tuned = finetune(fold)
        answers.append(Answers(test.labels, tuned.answer(test, loaded.preprocess, args.batch_size)))
    Console(soft_wrap=True).print(as_markdown(chosen, answers), markup=False, highlight=False)


def _labelled(images: Path, chosen: real_images.RetinaSet, rows: set[int]) -> LabelledImages:
    labelled = read_downstream(images / chosen.table, images, chosen.classes, rows=rows)
    names = [str(record.row) for record in labelled.records]
    return LabelledImages(labelled.records, names, labelled.labels, np.array(names))


def as_markdown(chosen: real_images.RetinaSet, answers: list[Answers]) -> str:
    """ACA and AUC with their intervals, and how much of each class is right."""
    shares = np.mean([score_classification(a.labels, a.probabilities).sensitivity for a in answers], axis=0)
    right = ", ".join(f"{name} {share:.2f}" for name, share in zip(chosen.classes, shares, strict=True))
    return (
        "| table | images | seeds | ACA / AUC | right |\n| --- | --- | --- | --- | --- |\n"
        f"| {chosen.name} | {len(answers[0].labels)} | {len(answers)} | {cell(answers)} | {right} |"
    )


if __name__ == "__main__":
    main()
