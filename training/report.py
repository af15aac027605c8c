"""A page about a run, or about several beside each other: `keepfit-clip report RUN [RUN ...] --out FILE.html`.

RUN may be a run of stage 2, a text tower of stage 1, a folder of `keepfit-clip transfer`, a demo, or a folder of
several of these; what is found of them becomes a section each, results first and settings folded. With a model and a
table of labelled images there are heat maps of right and wrong answers too.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from keepfit_clip.data.tars.locations import is_local
from keepfit_clip.data.tars.reader import list_all_shards, read_shards
from keepfit_clip.errors import KeepFITError, ShardError, first_line
from keepfit_clip.files import parse_json, read_json
from keepfit_clip.folders.export import RUN_CHECKPOINTS
from keepfit_clip.page.charts import loss_charts
from keepfit_clip.page.provenance import in_words
from keepfit_clip.page.report import Card, Figure, Section, picture_uri, render_report
from keepfit_clip.training.hybrid.comparison import compare_evaluations, compare_losses, compare_settings
from keepfit_clip.training.hybrid.loss_log import LOSSES_NAME, read_losses
from keepfit_clip.training.hybrid.record import RunRecord
from keepfit_clip.training.hybrid.run_folder import DATA_FLAGS, RECORD_NAME, RESULTS_NAME, SETTINGS_NAME
from keepfit_clip.training.hybrid.settings import reported
from keepfit_clip.training.text_stage.pretrain import REPORT_NAME as TEXT_REPORT
from keepfit_clip.transfer.report import compare_transfers, transfer_sections
from keepfit_clip.transfer.tables import MADE_NAME

__all__ = ["RunParts", "build_report", "find_parts", "settings_sections", "text_section", "training_sections"]

_TRANSFER = "results.json"
_DEPTH = 3  # folders below RUN that are looked into
_TOP = 12  # categories of a data set that are named
_MAIN_FIGURES = ("zero_shot_aca", "caption_nll")  # beginnings of names of an evaluation that head the page
_TERMS = (
    "Each term with its weight, as it is trained: soft-CLIP over public images (category texts) and elite images "
    "(captions), in nats; the text revision, a mean squared error; the captions, in nats per token."
)


@dataclass
class RunParts:
    """What a folder holds.

    Args:
        training: runs of stage 2.
        text: text towers of stage 1.
        transfer: results of `keepfit-clip transfer`.
    """

    training: list[Path] = field(default_factory=list)
    text: list[Path] = field(default_factory=list)
    transfer: list[Path] = field(default_factory=list)


def find_parts(run: Path) -> RunParts:
    """Looks for runs in a folder and below.

    Raises:
        KeepFITError: there is no such folder, or no run in it.
    """
    if not run.is_dir():
        raise KeepFITError(f"{run}: no such folder")
    parts = RunParts()
    for folder in _folders(run, _DEPTH):
        if (folder / LOSSES_NAME).exists():
            parts.training.append(folder)
        if (folder / TEXT_REPORT).exists() and not any(folder.is_relative_to(other) for other in parts.training):
            parts.text.append(folder)  # a run's own copy of its tower is not told twice
        if (folder / _TRANSFER).exists() and "outcomes" in _read(folder / _TRANSFER):
            parts.transfer.append(folder)
    if not (parts.training or parts.text or parts.transfer):
        raise KeepFITError(
            f"{run}: nothing to report; a run has {LOSSES_NAME}, a text tower {TEXT_REPORT}, a transfer {_TRANSFER}"
        )
    return parts


def _folders(folder: Path, depth: int) -> Iterator[Path]:
    yield folder
    if depth:
        for below in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
            yield from _folders(below, depth - 1)


def build_report(runs: Path | Sequence[Path], answers: Sequence[Section] = (), data: Sequence[str | Path] = ()) -> str:
    """The page as HTML.

    Args:
        runs: a folder, see `find_parts`, or several, which are compared.
        answers: further sections, of a model on a table.
        data: where the validation shards of the trainings lie, for the pictures beside the captions.

    Raises:
        KeepFITError: there is nothing to report, or a file is damaged.
    """
    folders = [runs] if isinstance(runs, Path) else list(runs)
    found = [find_parts(folder) for folder in folders]
    parts = RunParts(*(_once(getattr(one, kind) for one in found) for kind in ("training", "text", "transfer")))
    trained = {name: _Training(folder) for name, folder in _named(parts.training).items()}
    transfers = {name: (folder, _read(folder / _TRANSFER)) for name, folder in _named(parts.transfer).items()}
    figures, results, details = [], [], []
    for name, (folder, content) in transfers.items():
        with _as_a_run_writes_it(folder / _TRANSFER):
            results += transfer_sections(folder, content, name if len(transfers) > 1 else "")
            made = folder / MADE_NAME
            details += _made(name, _read(made) if made.exists() else None)
    for name, training in trained.items():
        with _as_a_run_writes_it(training.folder):
            figures += training.figures(name)
            results += training_sections(training.folder, data, name, losses=len(trained) == 1)
            details += settings_sections(training.folder, name)
    for tower in parts.text:
        with _as_a_run_writes_it(tower / TEXT_REPORT):
            results.append(text_section(_read(tower / TEXT_REPORT)["held_out"]))
    compared = _compared(trained) + compare_transfers({name: content for name, (_, content) in transfers.items()})
    names = ", ".join(folder.resolve().name for folder in folders)
    title = f"Run {names}" if len(folders) == 1 else f"Runs {names}"
    lines = [f"{name}: {headline}" for name, one in trained.items() if (headline := one.record.headline)]
    subtitle = "; ".join(lines) or ", ".join((*trained, *transfers))
    return render_report(title, subtitle, figures, [*compared, *results, *answers, *details])


def _once(lists: Iterable[list[Path]]) -> list[Path]:
    """All folders of several lists, each once."""
    return list({folder.resolve(): folder for folders in lists for folder in folders}.values())


def _named(folders: Sequence[Path]) -> dict[str, Path]:
    """Short names of folders that tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    depth = 1
    while len({part[-depth:] for part in parts}) < len(parts):
        depth += 1
    return {"/".join(part[-depth:]): folder for part, folder in zip(parts, folders, strict=True)}


def _made(name: str, made: Mapping | None) -> list[Section]:
    """A folded section of date, versions and hardware of a result that tells them."""
    if not made:
        return []
    rows = [["date", made["date"]], ["versions", in_words(made["versions"])], ["hardware", made["hardware"]]]
    return [Section(f"How {name} was made", header=["", ""], rows=rows, folded=True)]


def _compared(trained: Mapping[str, "_Training"]) -> list[Section]:
    """Several runs of stage 2 beside each other; nothing of a single one."""
    if len(trained) < 2:
        return []
    last = {name: one.evaluations[-1] if one.evaluations else {} for name, one in trained.items()}
    logs = {name: one.lines for name, one in trained.items() if one.lines}
    return [
        *([compare_evaluations(last)] if any(last.values()) else []),
        *([compare_losses(logs)] if logs else []),
        compare_settings({name: one.shown_settings for name, one in trained.items()}),
    ]


@contextmanager
def _as_a_run_writes_it(path: Path) -> Iterator[None]:
    """Names a file or folder whose content is not what a run writes.

    Raises:
        KeepFITError: so it is.
    """
    try:
        yield
    except KeepFITError:
        raise
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {first_line(error)}"
        raise KeepFITError(f"{path}: holds something that no run writes ({what}); is it damaged?") from error


def text_section(scores: dict[str, dict]) -> Section:
    """What stage 1 learnt.

    Args:
        scores: of held-out masked tokens, `frozen` and `trained`.
    """
    labels = {"frozen": "same head on the frozen start", "trained": "after textual pretraining"}
    return Section(
        "Stage 1: textual pretraining",
        "Masked tokens of held-out sentences.",
        header=["", "perplexity", "accuracy"],
        rows=[[labels[n], f"{s['perplexity']:.1f}", f"{s['accuracy']:.1%}"] for n, s in scores.items()],
    )


class _Training:
    """What a run of stage 2 left in its folder.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.settings = _read(folder / SETTINGS_NAME) if (folder / SETTINGS_NAME).exists() else {}
        self.lines = read_losses(folder)
        self.evaluations = _read_lines(folder / RUN_CHECKPOINTS / RESULTS_NAME)
        self.captions = _read_lines(folder / "captions.jsonl")
        self.record = RunRecord(_read_lines(folder / RECORD_NAME), self.settings)

    @property
    def shown_settings(self) -> dict[str, str]:
        """Settings as text."""
        return {name: _setting(name, value) for name, value in reported(self.settings).items()}

    def figures(self, name: str) -> list[Figure]:
        """The last evaluation's main figures, and first and last value of the loss."""
        last = self.evaluations[-1] if self.evaluations else {}
        figures = [
            Figure(f"{name}: {key.replace('_', ' ')}", f"{value:.3f}", f"after epoch {last.get('epoch')}")
            for key, value in last.items()
            if isinstance(value, float) and key.startswith(_MAIN_FIGURES)
        ]
        if self.lines:
            first, end = (sum(line["terms"].values()) for line in (self.lines[0], self.lines[-1]))
            done = f"epoch {self.lines[-1]['epoch'] + 1}, step {self.lines[-1]['step']} of {self.lines[-1]['steps']}"
            figures.append(Figure(f"{name}: loss", f"{end:.3f}", f"{first:.3f} at the start; {done}"))
        return figures


def training_sections(run: Path, data: Sequence[str | Path] = (), name: str = "", losses: bool = True) -> list[Section]:
    """Evaluations, captions, losses and data of a run of stage 2.

    Args:
        run: its folder.
        data: where its validation shards lie, for the pictures beside the captions.
        name: to call it by; the folder's own by default.
        losses: whether they are drawn.
    """
    training, name, sections = _Training(run), name or run.name, []
    if training.evaluations:
        sections.append(_evaluations(training.evaluations, name))
    if training.captions:
        sections.append(_captions(training.captions, data, name))
    if training.lines and losses:
        sections.append(Section(f"Losses of {name}", _TERMS, chart=loss_charts({name: training.lines})))
    return sections + _data_sections(training.settings, name)


def settings_sections(run: Path, name: str = "") -> list[Section]:
    """Settings of a run of stage 2 and how it was made, folded.

    Args:
        run: its folder.
        name: to call it by; the folder's own by default.
    """
    training, name = _Training(run), name or run.name
    tables = {f"Settings of {name}": training.shown_settings, f"How {name} was made": training.record.facts}
    return [
        Section(title, header=["", ""], rows=[[key, value] for key, value in values.items()], folded=True)
        for title, values in tables.items()
        if values
    ]


def _data_sections(settings: dict, name: str) -> list[Section]:
    """What the manifests of a run's shards counted when it started; shards without one at hand are named only."""
    rows, categories = [], Counter()
    for flag in DATA_FLAGS:
        locations = (settings.get(flag) or "").split("::")
        manifests = settings.get("manifests", {}).get(flag) or [None] * len(locations)
        for location, manifest in zip(locations, manifests, strict=False):
            if not location:
                continue
            if manifest is None:
                rows.append([flag.partition("_")[0], _last(location), "no manifest", "", ""])
                continue
            if flag != "val_data":
                categories.update(manifest["categories"] or {})
            modalities = ", ".join(f"{m} {n}" for m, n in sorted((manifest["modalities"] or {}).items()))
            counts = [str(manifest["samples"]), modalities, str(manifest["rejected"])]
            rows.append([flag.partition("_")[0], _last(location), *counts])
    if not rows:
        return []
    held_out = settings.get("hold_out_categories")
    return [
        Section(
            f"Data of {name}",
            f"From the shards' manifests; below, the {_TOP} commonest of {len(categories)} categories in training."
            + (f" Public samples of {held_out} were held out of it." if held_out else ""),
            header=["used as", "shards", "samples", "modalities", "rows left out"],
            rows=rows,
            bars=categories.most_common(_TOP),
        )
    ]


def _evaluations(lines: list[dict], name: str) -> Section:
    rows = [
        [key.replace("_", " "), *(f"{line[key]:.3f}" if isinstance(line.get(key), float) else "" for line in lines)]
        for key in dict.fromkeys(key for line in lines for key in line if key != "epoch")
    ]
    header = ["epoch", *(str(line["epoch"]) for line in lines)]
    return Section(f"Evaluations while training {name}", header=header, rows=rows)


def _captions(lines: list[dict], data: Sequence[str | Path], name: str) -> Section:
    """The captions of the last evaluation, beside their pictures where it is told where the shards are.

    The control beside each is what the model wrote for the next image whose expert said something else.
    """
    last = [line for line in lines if line["epoch"] == lines[-1]["epoch"]]
    pictures = _pictures_of({line["key"] for line in last}, data)
    cards = []
    for number, line in enumerate(last):
        others = [other for other in last[number + 1 :] + last[:number] if other["truth"] != line["truth"]]
        control = [("control: written for another image", others[0]["written"])] if others else []
        facts = [("the expert's", line["truth"]), ("written", line["written"]), *control]
        right = line["truth"].casefold() == line["written"].casefold()
        cards.append(Card(pictures.get(line["key"], ""), facts, right))
    text = (
        "Written at the last evaluation; a red edge marks a caption that is not the expert's word for word. Where the "
        "control says the same as the caption, the model did not look."
    )
    return Section(f"Captions of held-out images, {name}", text, cards=cards)


def _pictures_of(keys: set[str], data: Sequence[str | Path]) -> dict[str, str]:
    """Data URIs of samples of local shards."""
    pictures: dict[str, str] = {}
    for location in map(str, data):
        if not is_local(location) or pictures.keys() >= keys:
            continue
        try:
            for sample in read_shards(list_all_shards(location), on_error=lambda _: None):
                if sample.key in keys:
                    pictures[sample.key] = picture_uri(sample.image_bytes)
        except ShardError:  # the shards are gone; captions stand alone
            continue
    return pictures


def _setting(name: str, value) -> str:
    if name in DATA_FLAGS:
        return ", ".join(_last(location) for location in value.split("::"))
    return _last(value) if name in ("model", "text_tower", "image_tower") and isinstance(value, str) else str(value)


def _last(location: str) -> str:
    """A folder's own name, without where it lies."""
    return location.rstrip("/").rpartition("/")[2] or location


def _read(path: Path) -> dict:
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise KeepFITError(f"{path}: missing or damaged ({first_line(error)})") from error
    if not isinstance(content, dict):
        raise KeepFITError(f"{path}: not what a run writes")
    return content


def _read_lines(path: Path) -> list[dict]:
    """JSON lines, without one that an interruption cut; none where there is no file."""
    lines = []
    if not path.exists():
        return lines
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = parse_json(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            lines.append(line)
    return lines
