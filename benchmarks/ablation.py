"""What elite data, text revision, captions and textual pretraining each bring, on drawn retinas, over several seeds.

    python benchmarks/ablation.py --out runs/ablation [--seeds 0 1 2] [--quick]

For every seed: pictures are drawn (nine tenths with a condition only, one tenth with a caption), the text tower is
pretrained, and keepfit-v2-lite is trained eight times on the same pictures, for the same number of steps: with
the objectives of OBJECTIVES, each from the pretrained text tower and from the one of the wheel. Each model is scored
without further training on

    unseen pictures      of the conditions it was trained on: ACA over eleven conditions, and how well it tells fundus
                         photographs with a lesion from those without (AUC, mean over five kinds of lesions; public
                         data never names a lesion, captions do)
    unseen combinations  fundus photographs of eyes with two conditions, where training knew eyes with one: the share of
                         which the two likeliest of five conditions are the right ones (chance is 0.1), AUC of the
                         conditions, AUC of the lesions

Every finished part stays in --out; interrupted and started again, it goes on. The table is printed and written to
--out/table.md: mean and standard deviation over the seeds, and under it the difference that each part makes, paired by
seed.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from sklearn.metrics import roc_auc_score
from transformers.utils import logging as transformers_logging

from keepfit_clip.data.records import Record
from keepfit_clip.data.shards.build import ShardOptions, build_shards
from keepfit_clip.data.sources import read_records
from keepfit_clip.drawing import KINDS, DrawOptions, draw_dataset, draw_retina
from keepfit_clip.drawing.retina import CONDITIONS
from keepfit_clip.evaluate.table import evaluate_table, image_batches
from keepfit_clip.files import new_folder, write_json, write_text
from keepfit_clip.folders.export import export_model
from keepfit_clip.folders.loaded import LoadedModel
from keepfit_clip.folders.loading import load_model
from keepfit_clip.knowledge.conditions import Knowledge
from keepfit_clip.knowledge.templates import class_texts
from keepfit_clip.model.zero_shot import ZeroShotClassifier
from keepfit_clip.training.demo.display import StepDisplay
from keepfit_clip.training.demo.launch import flag_words, program, run_logged
from keepfit_clip.training.hybrid.loss_log import steps_done
from keepfit_clip.training.text_stage.pretrain import TextPretraining, pretrain_text

MODEL = "keepfit-v2-lite"
OBJECTIVES = {
    "public data only (contrastive)": {"--preset": "contrastive"},
    "+ elite data": {"--preset": "v1", "--revision-weight": 0},
    "+ text revision (v1)": {"--preset": "v1"},
    "+ captions (v2)": {"--preset": "v2", "--caption-weight": 3},
}
TOWERS = ("the wheel's text tower", "after textual pretraining")
# Cataract hides what else there is.
COMBINED = ("diabetic retinopathy", "branch retinal vein occlusion", "age-related macular degeneration", "glaucoma",
            "pathologic myopia")  # fmt: skip
LESIONS = ("microaneurysms", "retinal hemorrhages", "hard exudates", "cotton-wool spots", "drusen")
FIGURES = {
    "aca": "ACA, 11 conditions",
    "lesion_auc": "lesion AUC",
    "both_right": "both conditions right",
    "combined_auc": "condition AUC",
    "combined_lesion_auc": "lesion AUC, combinations",
}
TEST_SEED = 1_000_003


@dataclass(frozen=True)
class Size:
    """How much is drawn and trained."""

    pictures: int = 1600
    test_pictures: int = 480
    combinations: int = 200
    size: int = 96
    text_epochs: float = 1.5
    epochs: int = 4
    samples_per_epoch: int = 960
    batch_size: int = 32


QUICK = Size(64, 32, 20, 64, 0.05, 1, 64, 16)


def main() -> None:
    """Trains what is not trained yet and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of everything; goes on in an old one")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true", help="too little to learn anything: a test of this script")
    args = parser.parse_args()
    torch.set_num_threads(2)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    size = QUICK if args.quick else Size()
    arms = [(objective, tower) for objective in OBJECTIVES for tower in TOWERS]
    results = {arm: [] for arm in arms}
    with StepDisplay(len(args.seeds) * (1 + len(arms)) + 1) as display:
        test = args.out / "test"
        with display.step("draw what nobody trains on", test.exists()):
            if not test.exists():
                draw_tests(test, size)
        for seed in args.seeds:
            one = Seed(args.out / f"seed{seed}", seed, size)
            with display.step(f"seed {seed}: pictures and text tower", one.tower.exists()) as on_step:
                one.prepare(on_step)
            for objective, tower in arms:
                scores = one.folder / f"{name_of(objective, tower)}.json"
                with display.step(f"seed {seed}: {objective}, {tower}", scores.exists()) as on_step:
                    if not scores.exists():
                        write_json(scores, one.train(objective, tower, test, on_step))
                results[objective, tower].append(json.loads(scores.read_text()))
    table = as_markdown(results, len(args.seeds))
    write_text(args.out / "table.md", table)
    Console(soft_wrap=True).print(table, markup=False, highlight=False)


def name_of(objective: str, tower: str) -> str:
    return f"arm{list(OBJECTIVES).index(objective)}{TOWERS.index(tower)}"


# ---- pictures


def draw_tests(out: Path, size: Size) -> None:
    """Other pictures of the same kinds, and eyes with two conditions."""
    with new_folder(out) as folder:
        draw_dataset(folder / "single", DrawOptions(size.test_pictures, size.size, TEST_SEED))
        (folder / "pairs").mkdir()
        pairs, rows = list(combinations(COMBINED, 2)), ["image,categories,modality"]
        for number in range(size.combinations):
            first, second = pairs[number % len(pairs)]
            drawn = draw_retina("CFP", first, [TEST_SEED, number], size.size, also=second)
            drawn.image.save(folder / "pairs" / f"{number}.png")
            rows.append(f'{number}.png,"{list(drawn.categories)}",CFP')
        write_text(folder / "pairs" / "retina.csv", "\n".join(rows) + "\n")


class Seed:
    """All that is trained from one seed."""

    def __init__(self, folder: Path, seed: int, size: Size):
        self.folder, self.seed, self.size = folder, seed, size
        self.tower = folder / "text_tower"

    def prepare(self, on_step: Callable[[int, int], None]) -> None:
        """Pictures, shards and the pretrained text tower."""
        pictures = self.folder / "pictures"
        if not pictures.exists():
            draw_dataset(pictures, DrawOptions(self.size.pictures, self.size.size, self.seed))
        for kind in ("public", "elite"):
            if not (self.folder / kind).exists():
                build_shards(pictures / f"{kind}.csv", pictures, self.folder / kind, ShardOptions(kind=kind))
        if not self.tower.exists():
            knowledge = Knowledge.load()
            corpus = self.folder / "corpus.txt"
            if not corpus.exists():
                captions = {c for record in read_records(pictures / "elite.csv") for c in record.caption_texts}
                texts = {text for modality, name in KINDS for text in class_texts(name, modality, knowledge)}
                write_text(corpus, "\n".join(sorted(captions | texts)) + "\n")
            settings = TextPretraining(init=MODEL, epochs=self.size.text_epochs, batch_size=16, lr=2e-4, seed=self.seed)
            known = knowledge.around(name for _, name in KINDS)
            pretrain_text([corpus], settings, self.tower, known, on_step)

    def train(self, objective: str, tower: str, test: Path, on_step: Callable[[int, int], None]) -> dict[str, float]:
        """Trains and scores one model."""
        name, size = name_of(objective, tower), self.size
        flags = {
            "--model": MODEL,
            "--pretrained-image": True,
            "--public-data": self.folder / "public",
            "--elite-data": self.folder / "elite",
            "--force-image-size": size.size,
            "--batch-size": size.batch_size,
            "--epochs": size.epochs,
            "--train-num-samples": size.samples_per_epoch,
            "--lr": 7e-4,
            "--warmup": 15,
            "--seed": self.seed,
            "--workers": 1,
            "--log-every-n-steps": 5,
            "--logs": self.folder,
            "--name": name,
            "--resume": "latest",
            "--delete-previous-checkpoint": True,
            **OBJECTIVES[objective],
        }
        if tower == TOWERS[1]:
            flags["--text-tower"] = self.tower

        def look() -> None:
            if told := steps_done(self.folder / name, size.epochs):
                on_step(*told)

        command = program("keepfit_clip.training.main", *flag_words(flags))
        run_logged(command, self.folder / f"{name}.log", look, name)
        model = self.folder / f"{name}-model"
        if not model.exists():
            export_model(self.folder / name, model)
        return score(load_model(model, "cpu"), test)


# ---- scores


def score(loaded: LoadedModel, test: Path) -> dict[str, float]:
    """The figures of a model; those of FIGURES."""
    single = evaluate_table(loaded, test / "single" / "retina.csv", test / "single", CONDITIONS)
    photographs = [r for r in read_records(test / "single" / "retina.csv", test / "single") if r.modality == "CFP"]
    pairs = list(read_records(test / "pairs" / "retina.csv", test / "pairs"))
    truth, probabilities = multilabel(loaded, pairs, COMBINED)
    likeliest = np.argsort(-probabilities, axis=1)[:, :2]
    both = [set(row) == set(np.flatnonzero(true)) for row, true in zip(likeliest, truth, strict=True)]
    return {
        "aca": single.scores.aca,
        "lesion_auc": mean_auc(*multilabel(loaded, photographs, LESIONS)),
        "both_right": float(np.mean(both)),
        "combined_auc": mean_auc(truth, probabilities),
        "combined_lesion_auc": mean_auc(*multilabel(loaded, pairs, LESIONS)),
    }


def multilabel(loaded: LoadedModel, records: list[Record], categories: tuple[str, ...]) -> tuple[np.ndarray, ...]:
    """Whether each category is true of each picture, and how near the picture is to it: both (N, K)."""
    classifier = ZeroShotClassifier(loaded.model, loaded.tokenizer, categories, "CFP")
    near = []
    for _, batch in image_batches([record.image for record in records], loaded.preprocess):
        near.append(classifier.logits(batch))
    truth = np.array([[category in record.categories for category in categories] for record in records])
    return truth, torch.cat(near).numpy()


def mean_auc(truth: np.ndarray, near: np.ndarray) -> float:
    """Mean over the categories of the area under the ROC curve over the pictures."""
    return float(roc_auc_score(truth, near, average="macro"))


# ---- what is printed


def as_markdown(results: dict[tuple[str, str], list[dict]], seeds: int) -> str:
    """The arms, and what each part brings."""
    lines = [
        f"Mean ± standard deviation over {seeds} seeds.",
        "",
        "| objective | text tower | " + " | ".join(FIGURES.values()) + " |",
        "| --- | --- |" + " --- |" * len(FIGURES),
    ]
    for (objective, tower), rows in results.items():
        cells = [spread([row[figure] for row in rows]) for figure in FIGURES]
        lines.append(f"| {objective} | {tower} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "What each part brings: the difference to the arm without it, of the same seed; in brackets how often it is "
        "positive.",
        "",
        "| part | " + " | ".join(FIGURES.values()) + " |",
        "| --- |" + " --- |" * len(FIGURES),
    ]
    objectives = list(OBJECTIVES)
    parts = {new: [((new, tower), (old, tower)) for tower in TOWERS] for old, new in pairwise(objectives)}
    parts["textual pretraining"] = [((objective, TOWERS[1]), (objective, TOWERS[0])) for objective in objectives]
    for part, pairs in parts.items():
        cells = []
        for figure in FIGURES:
            differences = [
                a[figure] - b[figure]
                for with_it, without in pairs
                for a, b in zip(results[with_it], results[without], strict=True)
            ]
            positive = sum(difference > 0 for difference in differences)
            cells.append(f"{spread(differences, sign='+')} ({positive}/{len(differences)})")
        lines.append(f"| {part.removeprefix('+ ')} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def spread(values: list[float], sign: str = "") -> str:
    deviation = np.std(values, ddof=1) if len(values) > 1 else float("nan")
    return f"{np.mean(values):{sign}.3f} ± {deviation:.3f}"


if __name__ == "__main__":
    main()
