"""The whole chain on real retinal images: split, shards, both stages, export, evaluation beside a linear probe.

    pip install 'keepfit-clip[lite]'
    python examples/real_images.py DIR --out RUN [-- --lr 3e-4 ...]

DIR holds the tables cfp_four_classes.csv, cfp_myopia.csv, ffa_disease.csv and ffa_phase.csv (FLAIR's format; public
data), cfp_specialist.csv and oct_specialist.csv (captions, categories, patient, eye; elite data), with the image paths
in them relative to DIR. RUN/model is the exported model, RUN/results.json and RUN/results.md the figures, RUN/held_out
the held-out rows of each table.
Interrupted and started again, it goes on where it was. About an hour on 2 cores.
"""

import argparse
import json
import random
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import open_clip
import pandas as pd
import torch
from rich.console import Console
from rich.progress import track
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import keepfit_clip  # noqa: F401 - registers the models
from keepfit_clip.data.downstream import read_downstream
from keepfit_clip.data.duplicates import UnionFind, near_pairs, perceptual_hash
from keepfit_clip.data.records import Record
from keepfit_clip.data.shards import ShardOptions, build_shards
from keepfit_clip.data.sources import read_records
from keepfit_clip.errors import ImageError
from keepfit_clip.evaluate import evaluate_table, image_batches
from keepfit_clip.evaluate.metrics.classification import score_classification
from keepfit_clip.files import write_json, write_text
from keepfit_clip.folders import export_model, load_model
from keepfit_clip.images import open_image
from keepfit_clip.knowledge import Knowledge, class_texts
from keepfit_clip.processor import keep_freed_memory
from keepfit_clip.training.demo.launch import flag_words, program
from keepfit_clip.training.demo.measuring import timed
from keepfit_clip.training.text_stage.pretrain import TextPretraining, pretrain_text

MODEL = "keepfit-v2-lite"
PARTS = {"test": 0.2, "validation": 0.15}  # shares of the patients; the rest is trained on
TRAINED_ON = ("train", "validation")  # whatever was to be chosen was chosen before, on the validation part
SEED = 0
CLOCK = "seconds.json"
console = Console()


@dataclass(frozen=True)
class RetinaSet:
    """One table: what it is used for, and the classes it is evaluated on."""

    name: str
    kind: str
    modality: str
    classes: tuple[str, ...]

    @property
    def table(self) -> str:
        """File name of the table."""
        return f"{self.name}.csv"


SETS = (
    RetinaSet("cfp_four_classes", "public", "CFP", ("normal", "diabetic retinopathy", "glaucoma", "cataract")),
    RetinaSet("cfp_myopia", "public", "CFP", ("normal", "high myopia", "pathologic myopia")),
    RetinaSet(
        "ffa_disease",
        "public",
        "FFA",
        ("normal", "branch retinal vein occlusion", "capillary non-perfusion", "no capillary non-perfusion"),
    ),
    RetinaSet("ffa_phase", "public", "FFA", ("arterial phase", "venous phase")),
    RetinaSet("cfp_specialist", "elite", "CFP", ("no diabetic macular edema", "diabetic macular edema")),
    RetinaSet("oct_specialist", "elite", "OCT", ("no diabetic macular edema", "diabetic macular edema")),
)


def main() -> None:
    """Runs the chain."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, metavar="DIR", help="folder with the tables and images")
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="run folder")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--samples-per-epoch", type=int, default=3840)
    parser.add_argument("--text-epochs", type=float, default=1)
    parser.epilog = "What stands after -- are further flags of `keepfit-clip train`."
    own, train_flags = _parted(sys.argv[1:])
    args = argparse.Namespace(**vars(parser.parse_args(own)), train_flags=train_flags)
    keep_freed_memory()
    args.out.mkdir(parents=True, exist_ok=True)
    records = read_sets(args.images)
    split = split_rows(records, args.out / "split.json")
    shards = build_all_shards(args.images, split, args.out / "shards")
    text_tower = args.out / "text_tower"
    if not text_tower.exists():
        with timed(args.out / CLOCK, "stage 1"):
            pretrain_text_tower(records, split, text_tower, args.text_epochs)
    if not (args.out / "stage2" / "checkpoints" / f"epoch_{args.epochs}.pt").exists():
        with timed(args.out / CLOCK, "stage 2"):
            train(args, shards, text_tower)
    seconds = json.loads((args.out / CLOCK).read_text())
    if not (args.out / "model").exists():
        export_model(args.out / "stage2", args.out / "model")
    write_held_out(args.images, split, args.out / "held_out")
    results = evaluate_all(args.images, records, split, args.out / "model")
    write_json(args.out / "results.json", {"seconds": seconds, **results})
    report = as_markdown(results, seconds)
    (args.out / "results.md").write_text(report, encoding="utf-8")
    console.print(report, markup=False, soft_wrap=True)


def _parted(words: list[str]) -> tuple[list[str], list[str]]:
    """What stands before and after "--"."""
    cut = words.index("--") if "--" in words else len(words)
    return words[:cut], words[cut + 1 :]


def read_sets(images: Path) -> dict[str, list[Record]]:
    """The records of each table."""
    return {s.name: list(read_records(images / s.table, images)) for s in SETS}


def split_rows(records: dict[str, list[Record]], cache: Path) -> dict[str, dict[str, list[int]]]:
    """Row numbers of the parts "train", "validation" and "test" of each set.

    What belongs together stays together, over all sets: images of one patient, or of one number in the file name
    where no patient is known, and near duplicates.
    """
    if cache.exists():
        return json.loads(cache.read_text())
    everything = [(name, record) for name, found in records.items() for record in found]
    hashes = [perceptual_hash(open_image(r.image)) for _, r in track(everything, "Perceptual hashes", transient=True)]
    together = UnionFind()
    for one, other in near_pairs(np.frombuffer(b"".join(hashes), dtype=np.uint8).reshape(len(hashes), -1)):
        together.join(one, other)
    first_of: dict[tuple, int] = {}
    for index, (name, record) in enumerate(everything):
        together.join(index, first_of.setdefault(_identity(name, record), index))
    number_of = {root: number for number, root in enumerate(sorted({together.find(i) for i in range(len(everything))}))}
    group = [number_of[together.find(i)] for i in range(len(everything))]
    order = random.Random(SEED).sample(range(len(number_of)), len(number_of))
    part_of, first = dict.fromkeys(order, "train"), 0
    for part, share in PARTS.items():
        count = round(len(order) * share)
        part_of |= dict.fromkeys(order[first : first + count], part)
        first += count
    split = {name: {part: [] for part in ("train", *PARTS)} for name in records}
    for (name, record), number in zip(everything, group, strict=True):
        split[name][part_of[number]].append(record.row)
    write_json(cache, split)
    return split


def _identity(name: str, record: Record) -> tuple[str, ...]:
    """What names the patient or eye: the patient where there is one, else the number in the file name."""
    if record.patient is not None:
        return ("patient", record.patient)
    number = re.search(r"\d+", record.image.stem)
    family = name.partition("_")[0] if name.startswith("ffa") else name  # both FFA sets come from one source
    return (family, number[0] if number else record.image.stem)


def build_all_shards(images: Path, split: dict, out: Path) -> dict[str, list[str]]:
    """Shards of every set and part; "public train" and the like -> folders."""
    folders = defaultdict(list)
    for s in SETS:
        for part in ("train", *PARTS):
            folder = out / f"{s.name}-{part}"
            if not folder.exists():
                options = ShardOptions(kind=s.kind, modality=s.modality, size=256)
                build_shards(images / s.table, images, folder, options, rows=split[s.name][part])
            folders[f"{s.kind} {part}"].append(str(folder))
    return folders


def pretrain_text_tower(records: dict, split: dict, out: Path, epochs: float, parts=TRAINED_ON) -> None:
    """Stage 1 on the knowledge file, the texts of the public classes and the training captions."""
    knowledge = Knowledge.load()
    lines = set()
    for s in SETS:
        rows = {row for part in parts for row in split[s.name][part]}
        lines.update(caption for r in records[s.name] if r.row in rows for caption in r.caption_texts)
        lines.update(text for name in s.classes for text in class_texts(name, s.modality, knowledge))
    corpus = out.with_name("corpus.txt")
    if not corpus.exists():  # written anew it would be another corpus, and what was trained on it lost
        write_text(corpus, "\n".join(sorted(lines)) + "\n")
    pretrain_text([corpus], TextPretraining(init=MODEL, epochs=epochs, seed=SEED, no_control=True), out, knowledge)


def train(args: argparse.Namespace, shards: dict[str, list[str]], text_tower: Path) -> None:
    """Stage 2 as a program of its own, which goes on from its last epoch."""
    flags = {
        "--model": MODEL,
        "--text-tower": text_tower,
        "--public-data": "::".join(folder for part in TRAINED_ON for folder in shards[f"public {part}"]),
        "--elite-data": "::".join(folder for part in TRAINED_ON for folder in shards[f"elite {part}"]),
        "--val-data": "::".join(shards["public test"] + shards["elite test"]),
        "--elite-fraction": 0.375,
        "--balance": "root",
        "--elite-balance": "category",
        "--lr": 6e-4,
        "--batch-size": 32,
        "--epochs": args.epochs,
        "--train-num-samples": args.samples_per_epoch,
        "--workers": 1,
        "--seed": SEED,
        "--logs": args.out,
        "--name": "stage2",
        "--resume": "latest",
        "--log-every-n-steps": 10,
        "--val-frequency": args.epochs,
        "--delete-previous-checkpoint": True,
    }
    command = program("keepfit_clip.training.main", *flag_words(flags), *args.train_flags)
    subprocess.run(command, check=True)


def write_held_out(images: Path, split: dict, out: Path) -> None:
    """The held-out rows of each table as a table of their own, for `keepfit-clip transfer` and the like."""
    out.mkdir(exist_ok=True)
    for s in SETS:
        table = pd.read_csv(images / s.table, dtype=str, keep_default_na=False)
        held_out = table.iloc[[row - 1 for row in split[s.name]["test"]]]
        write_text(out / s.table, held_out.to_csv(index=False))


def evaluate_all(images: Path, records: dict, split: dict, model: Path) -> dict:
    """Zero-shot and linear-probe scores of every set, and captions of the elite ones."""
    loaded = load_model(model, "cpu")
    results = {"sets": {}, "captions": {}}
    for s in SETS:
        zero_shot = evaluate_table(
            loaded, images / s.table, images, s.classes, modality=s.modality, rows=split[s.name]["test"]
        )
        probe = linear_probe(images, split[s.name], s)
        results["sets"][s.name] = {
            "classes": zero_shot.classes,
            "images": zero_shot.images,
            "zero_shot": {"aca": zero_shot.scores.aca, "auc": zero_shot.scores.auc},
            "linear_probe": {"aca": probe.aca, "auc": probe.auc},
            "confusion": zero_shot.scores.confusion.tolist(),
        }
        if s.kind == "elite":
            results["captions"][s.name] = caption_scores(loaded, records[s.name], split[s.name]["test"])
    return results


def linear_probe(images: Path, rows: dict[str, list[int]], s: RetinaSet):
    """A logistic regression on the ImageNet features of the same backbone, on the same split."""
    torch.manual_seed(SEED)
    model, _, preprocess = open_clip.create_model_and_transforms(MODEL, pretrained_image=True, pretrained_text=False)
    trunk = model.visual.trunk.eval()
    labelled = read_downstream(images / s.table, images, s.classes)
    features = image_features([record.image for record in labelled.records], preprocess, trunk)
    shown = np.isfinite(features).all(axis=1)
    features, labels = features[shown], labelled.labels[shown]
    held_out = np.isin([record.row for record in labelled.records], rows["test"])[shown]
    folds = int(min(5, np.bincount(labels[~held_out]).min()))
    probe = make_pipeline(
        StandardScaler(),
        GridSearchCV(
            LogisticRegression(class_weight="balanced", max_iter=2000),
            {"C": np.logspace(-5, 0, 6)},
            cv=folds,
            scoring="balanced_accuracy",
        ),
    )
    probe.fit(features[~held_out], labels[~held_out])
    return score_classification(labels[held_out], probe.predict_proba(features[held_out]))


def image_features(paths: Sequence[Path], preprocess, encode: Callable[[torch.Tensor], torch.Tensor]) -> np.ndarray:
    """Features (N, C) of images; NaN where one cannot be used."""
    features = None
    with torch.inference_mode():
        for indices, batch in image_batches(paths, preprocess, on_error=_leave_out):
            encoded = encode(batch).float().cpu().numpy()
            if features is None:
                features = np.full((len(paths), encoded.shape[1]), np.nan, dtype=np.float32)
            features[indices] = encoded
    return features


def caption_scores(loaded, records: list[Record], rows: list[int]) -> dict:
    """Greedy captions of held-out images: how many name the right edema state, eye and whole sentence, and a few."""
    chosen = [record for record in records if record.row in set(rows)]
    written: list[str] = []
    truth: list[str] = []
    images = [record.image for record in chosen]
    for numbers, batch in image_batches(images, loaded.preprocess, on_error=_leave_out):
        written += loaded.decode(loaded.model.generate(batch))
        truth += [_plain(chosen[number].caption_texts[0]) for number in numbers]
    guesses = [_plain(text) for text in written]

    def share(pattern: str) -> float:
        return float(np.mean([_first(pattern, g) == _first(pattern, t) for g, t in zip(guesses, truth, strict=True)]))

    sample = random.Random(SEED).sample(range(len(truth)), 4)
    return {
        "images": len(truth),
        "edema_state_right": share(r"edema is (present|absent)"),
        "eye_right": share(r"(left|right) eye"),
        "sentence_right": float(np.mean([g == t for g, t in zip(guesses, truth, strict=True)])),
        "examples": [{"truth": truth[i], "written": guesses[i]} for i in sample],
    }


def _leave_out(_index: int, error: ImageError) -> None:
    console.print(f"an image is left out: {error.reason}", markup=False, soft_wrap=True)


def _plain(text: str) -> str:
    """Lower case, single spaces, no spaces around punctuation: what a WordPiece tokenizer gives back."""
    return re.sub(r"\s*([^\w\s])\s*", r"\1", " ".join(text.lower().split()))


def _first(pattern: str, text: str) -> str | None:
    found = re.search(pattern, text)
    return found[1] if found else None


def as_markdown(results: dict, seconds: dict[str, float]) -> str:
    """The figures as they stand in docs/RESULTS.md."""
    lines = [
        ", ".join(f"{stage} took {spent / 60:.0f} minutes" for stage, spent in seconds.items()) + ".",
        "",
        "| set | held-out images | zero-shot ACA | zero-shot AUC | linear probe ACA | linear probe AUC |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in results["sets"].items():
        zero_shot, probe = row["zero_shot"], row["linear_probe"]
        figures = (zero_shot["aca"], zero_shot["auc"], probe["aca"], probe["auc"])
        lines.append(f"| {name} | {row['images']} | " + " | ".join(f"{value:.3f}" for value in figures) + " |")
    for name, row in results["captions"].items():
        lines += [
            "",
            f"Captions of {name} ({row['images']} held-out images): edema state right {row['edema_state_right']:.3f}, "
            f"eye right {row['eye_right']:.3f}, whole sentence right {row['sentence_right']:.3f}.",
            "",
        ]
        lines += [f"- truth: {e['truth']}\n  written: {e['written']}" for e in row["examples"]]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
