"""What the defaults, each part of the method and textual pretraining bring on real images, over seeds.

    python benchmarks/learning.py DIR --out runs/learning [--arms NAME ...] [--seeds 0 1 2] [--jobs 2]

DIR is laid out as examples/real_images.py says, and split by it: by patient, near duplicates together. Every arm of
ARMS trains keepfit-v2-lite with the same number of steps on the train part, once for each seed; all arms of a seed see
the same samples in the same order. Each model is then asked zero-shot, on the validation part and on the test part,

    (a) classes that the public sets name     four classes, pathologic myopia against normal
    (b) classes that only captions name       macular edema and grade of retinopathy, on CFP and on OCT
    (c) classes held out of the public sets   in the arms that hold them out (--hold-out-categories)
    (d) few shots after it                    probes on 1, 5 and 10 images of each of the four classes
    (e) another origin                        glaucoma against cataract, both of a programme that training did not see:
                                              the arms that leave one of two out

Defaults are chosen by the validation part; the test part is read once they are. Every finished run stays in --out;
interrupted and started again, it goes on. The tables are printed and written to --out/validation.md and --out/test.md:
means over the seeds, with 95 % intervals over images and seeds.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import open_clip
import torch
from rich.console import Console
from rich.progress import Progress
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import real_images

from keepfit_clip.data.downstream import read_downstream
from keepfit_clip.data.shards import ShardOptions, build_shards
from keepfit_clip.data.sources import read_records
from keepfit_clip.evaluate import evaluate_table
from keepfit_clip.evaluate.metrics.classification import Answers, bootstrap_scores, score_classification
from keepfit_clip.files import new_folder, write_text
from keepfit_clip.folders import export_model, load_model
from keepfit_clip.folders.model_folder import write_model_folder
from keepfit_clip.model.config import ModelConfig, RevisionConfig
from keepfit_clip.model.preprocess import resolve_preprocess
from keepfit_clip.processor import keep_freed_memory
from keepfit_clip.training.demo.launch import flag_words, program

MODEL = "keepfit-v2-lite"
BATCH = 32
PRETRAINED, WHEEL = "pretrained", "the wheel's"
EDEMA = ("no diabetic macular edema", "diabetic macular edema")
GRADES = ("no diabetic retinopathy", "non-proliferative diabetic retinopathy", "proliferative diabetic retinopathy")
FOUR = real_images.SETS[0].classes
HELD_OUT = ("cataract", "pathologic myopia")
# Measure -> table, modality, classes
MEASURES = {
    "four classes": ("cfp_four_classes", "CFP", FOUR),
    "pathologic myopia": ("cfp_myopia", "CFP", ("normal", "pathologic myopia")),
    "edema, CFP": ("cfp_specialist", "CFP", EDEMA),
    "edema, OCT": ("oct_specialist", "OCT", EDEMA),
    "grade, CFP": ("cfp_specialist", "CFP", GRADES),
    "grade, OCT": ("oct_specialist", "OCT", GRADES),
    "cataract": ("cfp_four_classes", "CFP", ("normal", "cataract")),
}
OTHER_ORIGIN = ("glaucoma", "cataract")
SHOTS = (1, 5, 10)


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Args:
        title: what it is, in the tables.
        flags: of `keepfit-clip train`, beside those that all arms share.
        tower: the text tower it starts from.
        dot: whether the text revision attends by plain products, as KeepFIT v1's.
        without: suffix of the files of glaucoma and cataract that are not trained on: they come from two programmes,
            one of which gives JPEG files and the other PNG.
    """

    title: str
    flags: dict[str, object]
    tower: str = WHEEL
    dot: bool = False
    without: str = ""


LR = 1e-4
BEFORE = {"--lr": LR, "--head-lr": LR, "--ema-decay": 0, "--implied": "negative", "--eps": 1e-6}
FAST = {"--lr": 3e-4}
FASTER = {"--lr": 6e-4}
BALANCED = {"--balance": "category", "--elite-balance": "category"}
ROOT = {"--balance": "root", "--elite-balance": "category"}
LETTERBOX = {"--image-resize-mode": "longest"}
CROP = {"--crop": True}
STRONG = {"--augmentation": "strong"}
HOLD_OUT = {"--hold-out-categories": ",".join(HELD_OUT)}
PUBLIC = {"--preset": "contrastive"}
ELITE = {"--preset": "v1", "--revision-weight": 0}
ARMS = {
    "before": Arm("the defaults of before", BEFORE, dot=True),
    "head_lr": Arm("before, new layers at 1e-3", BEFORE | {"--head-lr": 1e-3}, dot=True),
    "lr": Arm("before, all at 3e-4", BEFORE | {"--lr": 3e-4, "--head-lr": 3e-4}, dot=True),
    "ema": Arm("before, averaged weights", BEFORE | {"--ema-decay": 0.999}, dot=True),
    "positive": Arm("before, what follows is positive", BEFORE | {"--implied": "positive"}, dot=True),
    "mask": Arm("before, what follows is masked", BEFORE | {"--implied": "mask"}, dot=True),
    "cosine": Arm("before, revision guided by images", BEFORE),
    "strong": Arm("before, strong augmentation", BEFORE | STRONG, dot=True),
    "defaults": Arm("the defaults (public, elite, revision, captions)", {}),
    "fast": Arm("the defaults, --lr 3e-4", FAST),
    "fast_strong": Arm("the defaults, --lr 3e-4, strong augmentation", FAST | STRONG),
    "balanced": Arm("the defaults, --lr 3e-4, categories balanced", FAST | BALANCED),
    "root": Arm("the defaults, --lr 3e-4, public categories balanced half the way, elite ones wholly", FAST | ROOT),
    "decay": Arm("the defaults, --lr 3e-4, --layer-decay 0.85", FAST | {"--layer-decay": 0.85}),
    "faster": Arm("the defaults, --lr 6e-4", FASTER),
    "faster_root": Arm("the defaults, --lr 6e-4, balanced as root", FASTER | ROOT),
    "fastest_root": Arm("the defaults, --lr 1e-3, balanced as root", {"--lr": 1e-3} | ROOT),
    "quarter": Arm("the defaults, --lr 3e-4, a quarter of each batch elite", FAST | {"--elite-fraction": 0.25}),
    "joint": Arm("the defaults, public and elite contrasted together", {"--joint-contrast": True}),
    "masked": Arm("the defaults, --implied mask", {"--implied": "mask"}),
    "letterbox": Arm("the defaults, images framed in place of stretched", LETTERBOX),
    "crop": Arm("the defaults, photographs without their border", CROP),
    "unaveraged": Arm("the defaults, --ema-decay 0", {"--ema-decay": 0}),
    "public": Arm("public alone", PUBLIC),
    "elite": Arm("+ elite", ELITE),
    "revision": Arm("+ revision", {"--preset": "v1"}),
    "public_text": Arm("public alone, after textual pretraining", PUBLIC, PRETRAINED),
    "elite_text": Arm("+ elite, after textual pretraining", ELITE, PRETRAINED),
    "revision_text": Arm("+ revision, after textual pretraining", {"--preset": "v1"}, PRETRAINED),
    "captions_text": Arm("+ captions, after textual pretraining", {"--preset": "v2"}, PRETRAINED),
    "jpg_mild": Arm("without one origin", FAST, without=".jpg"),
    "jpg_strong": Arm("without one origin, strong augmentation", FAST | STRONG, without=".jpg"),
    "png_mild": Arm("without the other origin", FAST, without=".png"),
    "png_strong": Arm("without the other origin, strong augmentation", FAST | STRONG, without=".png"),
    "held_out_public": Arm("public alone, two classes held out", PUBLIC | HOLD_OUT),
    "held_out": Arm("all, two classes held out", HOLD_OUT),
}


def main() -> None:
    """Trains what is not trained yet and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, metavar="DIR", help="folder with the tables and images")
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder of everything")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="NAME", help=", ".join(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=150, help=f"of {BATCH} samples")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--text-epochs", type=float, default=2, help="of textual pretraining")
    parser.add_argument("--workers", type=int, default=1, help="that read images, of each run")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, which share the processor's cores")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no run after these")
    args = parser.parse_args()
    keep_freed_memory()
    started = time.monotonic()
    experiment = Experiment(args)
    runs = [(arm, seed) for seed in args.seeds for arm in args.arms]
    waiting = [run for run in runs if not experiment.answers_of(*run).exists()]
    with Progress(transient=True) as progress, ThreadPoolExecutor(args.jobs) as pool:
        bar = progress.add_task("runs", total=len(runs), completed=len(runs) - len(waiting))

        def work(run: tuple[str, int]) -> None:
            if time.monotonic() - started < args.minutes * 60:
                experiment.run(*run)
                progress.advance(bar)

        list(pool.map(work, waiting))
    for part in real_images.PARTS:
        table = experiment.as_markdown(args.arms, args.seeds, part)
        write_text(args.out / f"{part}.md", table)
        Console(soft_wrap=True).print(table, markup=False, highlight=False)


class Experiment:
    """Split, shards, text towers and runs, in one folder.

    Args:
        args: of the command line.
    """

    def __init__(self, args: argparse.Namespace):
        self.args, self.images, self.out = args, args.images, args.out
        self.out.mkdir(parents=True, exist_ok=True)
        records = real_images.read_sets(self.images)
        self.split = real_images.split_rows(records, self.out / "split.json")
        self.shards = real_images.build_all_shards(self.images, self.split, self.out / "shards")
        self.tower = self.out / "text_tower"
        if any(ARMS[arm].tower == PRETRAINED for arm in args.arms) and not self.tower.exists():
            real_images.pretrain_text_tower(records, self.split, self.tower, args.text_epochs, parts=("train",))
        self.dot_model = self.out / "dot_model"
        if not self.dot_model.exists():
            config = ModelConfig.named(MODEL).with_revision(RevisionConfig(attention="dot"))
            with new_folder(self.dot_model) as folder:
                write_model_folder(folder, config, resolve_preprocess(config), open_clip.get_tokenizer(MODEL))

    def answers_of(self, arm: str, seed: int) -> Path:
        """The file of what a finished run answered."""
        return self.out / "answers" / f"{arm}-{seed}.npz"

    def run(self, arm: str, seed: int) -> None:
        """Trains and asks one model, in a process of its own."""
        name, start = f"{arm}-{seed}", time.monotonic()
        environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // self.args.jobs))}
        command = program("keepfit_clip.training.main", *flag_words(self._flags(arm, seed)))
        with open(self.out / f"{name}.log", "a", encoding="utf-8") as log:
            subprocess.run(command, check=True, env=environment, stdout=log, stderr=log)
            minutes = (time.monotonic() - start) / 60
            ask = [sys.executable, __file__, "--ask", self.out, self.images, name, str(minutes), self.args.device]
            subprocess.run(list(map(str, ask)), check=True, env=environment, stdout=log, stderr=log)
        shutil.rmtree(self.out / "runs" / name / "checkpoints")

    def _flags(self, arm: str, seed: int) -> dict[str, object]:
        chosen = ARMS[arm]
        flags = {
            "--model": f"local-dir:{self.dot_model}" if chosen.dot else MODEL,
            "--public-data": "::".join(self._public(chosen.without)),
            "--elite-data": "::".join(self.shards["elite train"]),
            "--elite-fraction": 0.375,
            "--force-image-size": self.args.image_size,
            "--batch-size": BATCH,
            "--epochs": 1,
            "--train-num-samples": self.args.steps * BATCH,
            "--device": self.args.device,
            "--workers": self.args.workers,
            "--seed": seed,
            "--logs": self.out / "runs",
            "--name": f"{arm}-{seed}",
            "--resume": "latest",  # what was interrupted begins anew: it has no checkpoint before its end
            "--log-every-n-steps": 10,
            **chosen.flags,
        }
        if chosen.dot:
            flags["--allow-source"] = ModelConfig.named(MODEL).text.hf_model_name
            flags["--pretrained-image"] = True
        if chosen.tower == PRETRAINED:
            flags["--text-tower"] = self.tower
        return flags

    def _public(self, without: str) -> list[str]:
        """The public shards, without an origin."""
        table = real_images.SETS[0]
        folders = self.shards["public train"]
        if not without:
            return folders
        part = self.out / "shards" / f"{table.name}-without{without}"
        if not part.exists():
            options = ShardOptions(kind=table.kind, modality=table.modality, size=256)
            left = set(of_origin(self.images, without))
            rows = [row for row in self.split[table.name]["train"] if row not in left]
            build_shards(self.images / table.table, self.images, part, options, rows=rows)
        return [str(part) if Path(folder).name == f"{table.name}-train" else folder for folder in folders]

    def as_markdown(self, arms: Sequence[str], seeds: Iterable[int], part: str) -> str:
        """Scores of the arms that are finished on a part: a row for each, ACA and AUC of each measure."""
        title = " | ".join(f"{measure} (chance {1 / len(MEASURES[measure][2]):.2f})" for measure in MEASURES)
        lines = [
            f"{part}: ACA / AUC, means over seeds; in brackets 95 % intervals over images and seeds.",
            "",
            f"| arm | seeds | minutes | {title} | probes of {', '.join(map(str, SHOTS))} shots | another origin |",
            "| --- |" + " --- |" * (4 + len(MEASURES)),
        ]
        for arm in arms:
            files = [file for seed in seeds if (file := self.answers_of(arm, seed)).exists()]
            if files:
                runs = [np.load(file) for file in files]
                minutes = np.mean([run["minutes"] for run in runs])
                cells = [_cell(runs, part, measure) for measure in MEASURES]
                probes = np.mean([run[f"{part} probes"] for run in runs], axis=0)
                shots = " ".join(f"{aca:.3f}" for aca in probes)
                cells.append(shots)
                cells.append(_cell(runs, "any", "another origin") if ARMS[arm].without else "")
                lines.append(f"| {ARMS[arm].title} | {len(runs)} | {minutes:.1f} | {' | '.join(cells)} |")
        return "\n".join(lines) + "\n"


def _cell(runs: Sequence, part: str, measure: str) -> str:
    return cell([Answers(run[f"{part} {measure} labels"], run[f"{part} {measure} probabilities"]) for run in runs])


def cell(answers: Sequence[Answers]) -> str:
    """ACA and AUC of the same images by several seeds: means, with their intervals."""
    scores = [score_classification(a.labels, a.probabilities) for a in answers]
    aca, auc = (np.mean([getattr(score, name) for score in scores]) for name in ("aca", "auc"))
    (low, high), (auc_low, auc_high) = _intervals(answers)
    return f"{aca:.3f} [{low:.3f}, {high:.3f}] / {auc:.3f} [{auc_low:.3f}, {auc_high:.3f}]"


def _intervals(answers: Sequence[Answers], resamples: int = 500) -> np.ndarray:
    """95 % of the mean ACA and AUC: images are drawn once for all seeds, and seeds are drawn too, with replacement."""
    scores = bootstrap_scores(answers, shared=True, resamples=resamples)  # (seeds, 2, resamples)
    drawn = np.random.default_rng(1).integers(len(answers), size=(len(answers), 1, resamples))
    return np.nanpercentile(np.take_along_axis(scores, drawn, axis=0).mean(axis=0), [2.5, 97.5], axis=-1).T


def _aca(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Mean over the classes that have images of the share that is right."""
    return float(np.mean([(predicted[labels == k] == k).mean() for k in np.unique(labels)]))


# ---- what a trained model answers, in a process of its own


def ask(out: Path, images: Path, name: str, minutes: float, device: str) -> None:
    """Writes the answers of a run's model on both parts."""
    model = out / "runs" / name / "model_asked"
    if not model.exists():
        export_model(out / "runs" / name, model)
    loaded = load_model(model, device)
    split = json.loads((out / "split.json").read_text())
    arrays: dict[str, np.ndarray] = {"minutes": np.array(minutes)}
    for part in real_images.PARTS:
        for measure, (table, modality, classes) in MEASURES.items():
            file, rows = images / f"{table}.csv", split[table][part]
            answered = evaluate_table(
                loaded, file, images, classes, modality=modality, rows=rows, allow_missing_classes=True
            )
            arrays[f"{part} {measure} labels"] = answered.labels
            arrays[f"{part} {measure} probabilities"] = answered.probabilities
        arrays[f"{part} probes"] = few_shots(loaded, images, split, part)
    without = ARMS[name.rpartition("-")[0]].without
    if without:
        table = real_images.SETS[0]
        rows = of_origin(images, without)
        answered = evaluate_table(loaded, images / table.table, images, OTHER_ORIGIN, modality="CFP", rows=rows)
        arrays["any another origin labels"] = answered.labels
        arrays["any another origin probabilities"] = answered.probabilities
    file = out / "answers" / f"{name}.npz"
    file.parent.mkdir(exist_ok=True)
    partial = file.with_suffix(".partial.npz")
    np.savez(partial, **arrays)
    os.replace(partial, file)
    shutil.rmtree(model)


def of_origin(images: Path, suffix: str) -> list[int]:
    """Rows of glaucoma and cataract whose files have a suffix."""
    table = real_images.SETS[0]
    records = read_records(images / table.table, images)
    return [r.row for r in records if r.image.suffix == suffix and set(r.categories) & set(OTHER_ORIGIN)]


def few_shots(loaded, images: Path, split: dict, part: str, draws: int = 5) -> np.ndarray:
    """ACA on the four classes of a linear probe on few images of each: a mean over draws for each of SHOTS."""
    table = real_images.SETS[0]
    drawn = np.random.default_rng(0)
    labelled = read_downstream(images / table.table, images, FOUR)
    rows = np.array([record.row for record in labelled.records])
    wanted = np.isin(rows, split[table.name][part])
    candidates = np.flatnonzero(np.isin(rows, split[table.name]["train"]))
    chosen = [
        [drawn.permutation(candidates[labelled.labels[candidates] == k])[: max(SHOTS)] for k in range(len(FOUR))]
        for _ in range(draws)
    ]
    used = np.unique(np.concatenate([np.flatnonzero(wanted), *(row for draw in chosen for row in draw)]))
    encoded = real_images.image_features(
        [labelled.records[i].image for i in used],
        loaded.preprocess,
        lambda batch: loaded.model.encode_image(batch.to(loaded.device), normalize=True),
    )
    features = np.full((len(rows), encoded.shape[1]), np.nan, np.float32)
    features[used] = encoded
    usable = np.isfinite(features).all(axis=1)
    wanted &= usable
    scores = np.zeros((draws, len(SHOTS)))
    for draw, of_class in enumerate(chosen):
        for column, shots in enumerate(SHOTS):
            train = np.concatenate([members[usable[members]][:shots] for members in of_class])
            probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
            probe.fit(features[train], labelled.labels[train])
            scores[draw, column] = _aca(labelled.labels[wanted], probe.predict(features[wanted]))
    return scores.mean(axis=0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--ask"]:
        keep_freed_memory()
        ask(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], float(sys.argv[5]), sys.argv[6])
    else:
        main()
