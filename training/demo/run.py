"""The whole method on drawn retinas: draw, build shards, both stages, export, evaluate, report.

    keepfit-clip demo --out runs/demo

Every step leaves a folder or file that appears only when complete, and is not done again; stage 2 goes on from its
last epoch. DIR/report.html and DIR/metrics.json are the result.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from keepfit_clip._version import __version__
from keepfit_clip.data.shards.build import ShardOptions, build_shards
from keepfit_clip.data.sources import read_records
from keepfit_clip.drawing import KINDS, DrawOptions, draw_dataset
from keepfit_clip.errors import KeepFITError, OutputError
from keepfit_clip.extras import require_extra
from keepfit_clip.files import WorkFolder, remove, require_free, write_json, write_text, writing
from keepfit_clip.folders.export import export_model
from keepfit_clip.folders.loading import load_model
from keepfit_clip.folders.model_folder import CONFIG_NAME, WEIGHTS_NAME
from keepfit_clip.knowledge.conditions import Knowledge
from keepfit_clip.knowledge.templates import class_texts
from keepfit_clip.model.config import ModelConfig
from keepfit_clip.model.pretrained import resolve_source
from keepfit_clip.page.report import Section
from keepfit_clip.training.answers import ClassifiedImage, answers_section
from keepfit_clip.training.demo.display import StepDisplay
from keepfit_clip.training.demo.launch import flag_words, program, run_logged
from keepfit_clip.training.demo.measuring import peak_memory, timed
from keepfit_clip.training.demo.report import (
    CLOCK,
    METRICS,
    PEAK,
    REPORT,
    SCORES,
    build_page,
    collect_metrics,
    read_result,
)
from keepfit_clip.training.hybrid.loss_log import LOSSES_NAME, steps_done
from keepfit_clip.training.text_stage.pretrain import REPORT_NAME as TEXT_REPORT
from keepfit_clip.training.text_stage.pretrain import TextPretraining, pretrain_text

__all__ = ["FULL", "QUICK", "DemoSettings", "run_demo"]

MODEL = "keepfit-v2-lite"
_SETTINGS = "demo.json"
# What an attempt that was killed could not finish writing.
_LEFTOVERS = (".*.partial", "pictures/.*.partial", "shards/.*.partial", "stage2/checkpoints/*.partial")
_TEST_SEED = 1_000_003  # pictures of another seed than the training ones


@dataclass(frozen=True)
class DemoSettings:
    """How much is drawn and trained.

    Args:
        pictures: drawn for training; a tenth of them with captions.
        test_pictures: drawn for the evaluation.
        size: of the pictures, and the model's input, pixels.
        text_epochs: of stage 1.
        epochs, samples_per_epoch, batch_size, lr, warmup, caption_weight: of stage 2.
        seed: of everything.
    """

    pictures: int = 2400
    test_pictures: int = 320
    size: int = 128
    text_epochs: float = 0.4
    epochs: int = 4
    samples_per_epoch: int = 704
    batch_size: int = 32
    lr: float = 7e-4
    warmup: int = 15
    caption_weight: float = 3.0
    seed: int = 0


FULL = DemoSettings()
QUICK = DemoSettings(
    pictures=320, test_pictures=32, size=64, text_epochs=0.1, epochs=2, samples_per_epoch=192, batch_size=16, warmup=3
)


def run_demo(out: str | Path, settings: DemoSettings = FULL) -> dict:
    """Runs what is not done yet.

    Args:
        out: folder of the demo: new, or one that was started with the same settings.
        settings: how much.

    Returns:
        What stands in metrics.json.

    Raises:
        OutputError: `out` holds something else, or a demo of other settings, or no space is left.
        MissingExtraError, MissingWeightsError: the extra `plots` or `lite` is not installed.
        KeepFITError: a step failed; its last words are quoted.
    """
    out = Path(out)
    require_extra("plots")
    _require_weights()
    _claim(out, settings)
    busy = OutputError(f"another demo is at work in {out}: wait for it, or choose another --out")
    folder = WorkFolder(out)
    with folder.alone(busy), writing(out):
        folder.remove_leftovers(*_LEFTOVERS)
        steps = _Demo(out, settings).steps
        _prepare(steps, after=(out / REPORT, out / METRICS))
        with peak_memory(out / CLOCK, PEAK), StepDisplay([step.seconds for step in steps]) as display:
            for step in steps:
                with display.step(step.name, step.done) as on_step:
                    if not step.done:
                        with timed(out / CLOCK, step.name):
                            step.do(on_step)
        if not (out / REPORT).exists() or not (out / METRICS).exists():
            metrics = collect_metrics(out, asdict(settings))
            write_text(out / REPORT, build_page(out, metrics, _answers(out)))
            write_json(out / METRICS, metrics)
    metrics = read_result(out / METRICS)
    for name, (first, last) in metrics["losses"].items():
        if not last < first:
            raise KeepFITError(f"{out}: the {name} loss did not fall ({first:.3f} to {last:.3f})")
    return metrics


def _answers(out: Path) -> Section:
    """Right and wrong answers of the finished model on the test pictures, with heat maps."""
    scores, test = read_result(out / SCORES), out / "pictures" / "test"
    answers = [
        ClassifiedImage(test / p["image"], p["modality"], p["condition"], p["predicted"], p["probability"])
        for p in scores["pictures"]
    ]
    return answers_section(load_model(out / "model"), answers, scores["zero_shot"]["classes"])


def _require_weights() -> None:
    config = ModelConfig.named(MODEL)
    for name in (config.text.hf_model_name, config.vision.pretrained_weights):
        resolve_source(name)


def _claim(out: Path, settings: DemoSettings) -> None:
    """Marks a new folder with the settings, or checks those of an older one."""
    if not (out / _SETTINGS).exists():
        require_free(out)
    try:
        differing = WorkFolder(out).claim({"keepfit_clip": __version__, **asdict(settings)}, _SETTINGS)
    except ValueError:
        differing = [_SETTINGS]
    if differing:
        raise OutputError(f"{out} holds a demo of other settings or another version: choose another --out or remove it")


@dataclass(frozen=True)
class _Step:
    """One step.

    Args:
        name: of the step.
        results: what stands when it is done, in the order in which it is made.
        own: the folder or file all of it lies in.
        do: does it, telling how far it is.
        seconds: that it takes on two slow cores, at FULL.
        resumes: whether it goes on from what it left unfinished.
    """

    name: str
    results: tuple[Path, ...]
    own: Path
    do: Callable[[Callable[[int, int], None]], None]
    seconds: float
    resumes: bool = False

    @property
    def done(self) -> bool:
        return all(result.exists() for result in self.results)


def _prepare(steps: Sequence[_Step], after: Sequence[Path]) -> None:
    """Clears the way for the first step that is not done: what was made from an older result of it goes.

    Args:
        steps: in order.
        after: files that are made from all of them.
    """
    first = next((number for number, step in enumerate(steps) if not step.done), None)
    if first is None:
        return
    for path in (*(step.own for step in steps[first + 1 :]), *after):
        remove(path)
    step = steps[first]
    if not step.resumes or step.results[-1].exists():  # the last is there: it was finished once, and a part is gone
        remove(step.own)


class _Demo:
    """The steps and where each leaves its result."""

    def __init__(self, out: Path, settings: DemoSettings):
        self.out = out
        self.settings = settings
        self.run = out / "stage2"
        pictures, shards, tower, model = (out / name for name in ("pictures", "shards", "text_tower", "model"))
        drawn = tuple(pictures / part / "retina.csv" for part in ("training", "test"))
        built = tuple(shards / kind / "manifest.json" for kind in ("public", "elite"))
        pretrained = (tower / "model.safetensors", tower / TEXT_REPORT)
        trained = (self.run / LOSSES_NAME, self.run / "checkpoints" / f"epoch_{settings.epochs}.pt")
        exported = (model / WEIGHTS_NAME, model / CONFIG_NAME)
        self.steps = (
            _Step("draw pictures", drawn, pictures, self.draw, 34, resumes=True),
            _Step("build shards", built, shards, self.build, 14, resumes=True),
            _Step("stage 1: textual pretraining", pretrained, tower, self.stage1, 64),
            _Step("stage 2: hybrid pretraining", trained, self.run, self.stage2, 315, resumes=True),
            _Step("export", exported, model, self.export, 1),
            _Step("evaluate in a fresh process", (out / SCORES,), out / SCORES, self.evaluate, 27),
        )

    def draw(self, on_step) -> None:
        s = self.settings
        total, done = s.pictures + s.test_pictures, 0
        for part, count, seed in (("training", s.pictures, s.seed), ("test", s.test_pictures, s.seed + _TEST_SEED)):
            folder = self.out / "pictures" / part
            if not folder.exists():
                draw_dataset(folder, DrawOptions(count, s.size, seed), _counted(on_step, done, total))
            done += count

    def build(self, on_step) -> None:
        pictures = self.out / "pictures" / "training"
        for number, kind in enumerate(("public", "elite")):
            folder = self.out / "shards" / kind
            if not folder.exists():
                options = ShardOptions(kind=kind, dataset="drawn")
                build_shards(pictures / f"{kind}.csv", pictures, folder, options)
            on_step(number + 1, 2)

    def stage1(self, on_step) -> None:
        knowledge = Knowledge.load()
        lines = {c for r in read_records(self.out / "pictures" / "training" / "elite.csv") for c in r.caption_texts}
        lines.update(text for modality, name in KINDS for text in class_texts(name, modality, knowledge))
        corpus = self.out / "corpus.txt"
        if not corpus.exists():  # written anew it would be another corpus, and what was trained on it lost
            write_text(corpus, "\n".join(sorted(lines)) + "\n")
        settings = TextPretraining(
            init=MODEL, epochs=self.settings.text_epochs, batch_size=16, lr=2e-4, seed=self.settings.seed
        )
        known = knowledge.around(name for _, name in KINDS)  # all there is would take longer than the whole demo may
        pretrain_text([corpus], settings, self.out / "text_tower", known, on_step)

    def stage2(self, on_step) -> None:
        s = self.settings
        flags = {
            "--model": MODEL,
            "--pretrained-image": True,
            "--text-tower": self.out / "text_tower",
            "--public-data": self.out / "shards" / "public",
            "--elite-data": self.out / "shards" / "elite",
            "--force-image-size": s.size,
            "--batch-size": s.batch_size,
            "--epochs": s.epochs,
            "--train-num-samples": s.samples_per_epoch,
            "--lr": s.lr,
            "--warmup": s.warmup,
            "--caption-weight": s.caption_weight,
            "--seed": s.seed,
            "--workers": 1,
            "--log-every-n-steps": 2,
            "--logs": self.out,
            "--name": self.run.name,
            "--resume": "latest",
            "--delete-previous-checkpoint": True,
        }

        def poll() -> None:
            if progress := steps_done(self.run, s.epochs):
                on_step(*progress)

        run_logged(program("keepfit_clip.training.main", *flag_words(flags)), self.out / "stage2.log", poll, "stage 2")

    def export(self, on_step) -> None:
        export_model(self.run, self.out / "model")

    def evaluate(self, on_step) -> None:
        test, log = self.out / "pictures" / "test", self.out / "evaluation.log"
        log.unlink(missing_ok=True)

        def poll() -> None:
            lines = re.findall(r"^(\d+)/(\d+)$", log.read_text(encoding="utf-8"), re.MULTILINE)
            if lines:
                on_step(*map(int, lines[-1]))

        command = program("keepfit_clip.training.demo.judge", self.out / "model", test, self.out / SCORES)
        run_logged(command, log, poll, "the evaluation")


def _counted(on_step: Callable[[int, int], None], done: int, total: int):
    """Wraps numbers so that going through them is told as a part of more."""

    def wrap(numbers: Sequence[int]) -> Iterator[int]:
        for index, number in enumerate(numbers, start=1):
            yield number
            on_step(done + index, total)

    return wrap
