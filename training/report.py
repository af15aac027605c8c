"""A page about a run, whatever the run was: `keepfit-clip report RUN --out FILE.html`.

RUN may be a run of stage 2, a text tower of stage 1, a folder of `keepfit-clip transfer`, a demo, or a folder of
several of these; what is found of them becomes a section each. With a model and a table of labelled images there are
heat maps of right and wrong answers too.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from keepfit_clip.data.tars.locations import is_local
from keepfit_clip.data.tars.reader import list_all_shards, read_shards
from keepfit_clip.errors import KeepFITError, ShardError, first_line
from keepfit_clip.files import parse_json, read_json
from keepfit_clip.page.charts import confusion_chart, loss_chart
from keepfit_clip.page.report import Card, Figure, Section, picture_uri, render_report
from keepfit_clip.training.hybrid.loss_log import LOSSES_NAME, read_losses
from keepfit_clip.training.hybrid.run_folder import DATA_FLAGS, SETTINGS_NAME
from keepfit_clip.training.hybrid.settings import reported
from keepfit_clip.training.text_stage.pretrain import REPORT_NAME as TEXT_REPORT

__all__ = [
    "RunParts",
    "build_report",
    "find_parts",
    "text_section",
    "training_sections",
    "transfer_section",
]

_TRANSFER = "results.json"
_DEPTH = 3  # folders below RUN that are looked into
_TOP = 12  # categories of a data set that are named
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


def build_report(run: Path, answers: Sequence[Section] = (), data: Sequence[str | Path] = ()) -> str:
    """The page as HTML.

    Args:
        run: a folder, see `find_parts`.
        answers: further sections, of a model on a table.
        data: where the validation shards of the trainings lie, for the pictures beside the captions.

    Raises:
        KeepFITError: there is nothing to report, or a file is damaged.
    """
    parts = find_parts(run)
    figures, sections = [], []
    for tower in parts.text:
        with _as_a_run_writes_it(tower / TEXT_REPORT):
            sections.append(text_section(_read(tower / TEXT_REPORT)["held_out"]))
    for folder in parts.training:
        with _as_a_run_writes_it(folder):
            figures += _figures(folder)
            sections += training_sections(folder, data)
    for folder in parts.transfer:
        with _as_a_run_writes_it(folder / _TRANSFER):
            sections.append(transfer_section(folder))
    names = ", ".join(dict.fromkeys(folder.name for part in (parts.training, parts.transfer) for folder in part))
    return render_report(f"Run {run.resolve().name}", names, figures, [*sections, *answers])


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


def training_sections(run: Path, data: Sequence[str | Path] = ()) -> list[Section]:
    """Settings, data, losses, evaluations and captions of a run of stage 2.

    Args:
        run: its folder.
        data: where its validation shards lie, for the pictures beside the captions.
    """
    settings = _read(run / SETTINGS_NAME) if (run / SETTINGS_NAME).exists() else {}
    lines = read_losses(run)
    sections = []
    if settings:
        rows = [[name, _setting(name, value)] for name, value in reported(settings).items()]
        sections.append(Section(f"Settings of {run.name}", header=["setting", "value"], rows=rows))
        sections += _data_sections(settings)
    if lines:
        sections.append(Section(f"Losses of {run.name}", _TERMS, chart=loss_chart(lines)))
    results = run / "checkpoints" / "results.jsonl"
    if results.exists() and (values := _read_lines(results)):
        sections.append(_evaluations(values))
    captions = run / "captions.jsonl"
    if captions.exists() and (written := _read_lines(captions)):
        sections.append(_captions(written, data))
    return sections


def transfer_section(folder: Path) -> Section:
    """The table of a transfer run, and its best outcome's confusion matrix where an image has one class."""
    content = _read(folder / _TRANSFER)
    metrics = [
        name for name in ("aca", "auc", "f1", "ece") if any(o[name]["mean"] is not None for o in content["outcomes"])
    ]
    best = max(content["outcomes"], key=lambda outcome: outcome["aca"]["mean"] or 0)
    single = np.ndim(best["confusion"]) == 2
    name = f"{best['method']} {best['shots'] or ''}".strip()
    return Section(
        f"Transfer: {content['data']}",
        f"{content['images']} images of {len(content['classes'])} classes, {content['options']['folds']} folds"
        f"{' by patient' if content['by_patient'] else ''}; mean ± standard deviation in percent"
        + (f". The matrix is of {name}, whose ACA is highest." if single else "."),
        chart=confusion_chart(best["confusion"], content["classes"]) if single else "",
        header=["method", "shots", *(metric.upper() for metric in metrics)],
        rows=[
            [outcome["method"], outcome["shots"] or "", *(_percent(outcome[metric]) for metric in metrics)]
            for outcome in content["outcomes"]
        ],
    )


def _figures(run: Path) -> list[Figure]:
    """First and last value of the losses, and the last evaluation."""
    lines = read_losses(run)
    figures = []
    if lines:
        first, last = (sum(line["terms"].values()) for line in (lines[0], lines[-1]))
        done = f"epoch {lines[-1]['epoch'] + 1}, step {lines[-1]['step']} of {lines[-1]['steps']}"
        figures.append(Figure(f"{run.name}: loss", f"{last:.3f}", f"{first:.3f} at the start; {done}"))
    return figures


def _data_sections(settings: dict) -> list[Section]:
    """What the manifests of a run's shards counted when it started; shards without one at hand are named only."""
    rows, categories = [], Counter()
    for name in DATA_FLAGS:
        locations = (settings.get(name) or "").split("::")
        manifests = settings.get("manifests", {}).get(name) or [None] * len(locations)
        for location, manifest in zip(locations, manifests, strict=False):
            if not location:
                continue
            if manifest is None:
                rows.append([name.partition("_")[0], _last(location), "no manifest", "", ""])
                continue
            if name != "val_data":
                categories.update(manifest["categories"] or {})
            modalities = ", ".join(f"{m} {n}" for m, n in sorted((manifest["modalities"] or {}).items()))
            counts = [str(manifest["samples"]), modalities, str(manifest["rejected"])]
            rows.append([name.partition("_")[0], _last(location), *counts])
    if not rows:
        return []
    held_out = settings.get("hold_out_categories")
    return [
        Section(
            "Data",
            f"From the shards' manifests; below, the {_TOP} commonest of {len(categories)} categories in training."
            + (f" Public samples of {held_out} were held out of it." if held_out else ""),
            header=["used as", "shards", "samples", "modalities", "rows left out"],
            rows=rows,
            bars=categories.most_common(_TOP),
        )
    ]


def _evaluations(lines: list[dict]) -> Section:
    names = list(dict.fromkeys(name for line in lines for name in line if name != "epoch"))
    rows = [
        [name.replace("_", " "), *(f"{line[name]:.3f}" if isinstance(line.get(name), float) else "" for line in lines)]
        for name in names
    ]
    return Section("Evaluations while training", header=["epoch", *(str(line["epoch"]) for line in lines)], rows=rows)


def _captions(lines: list[dict], data: Sequence[str | Path]) -> Section:
    """The captions of the last evaluation, beside their pictures where it is told where the shards are."""
    last = [line for line in lines if line["epoch"] == lines[-1]["epoch"]]
    pictures = _pictures_of({line["key"] for line in last}, data)
    cards = [
        Card(
            pictures.get(line["key"], ""),
            [("the expert's", line["truth"]), ("written", line["written"])],
            right=line["truth"].casefold() == line["written"].casefold(),
        )
        for line in last
    ]
    text = "Written at the last evaluation; a red edge marks a caption that is not the expert's word for word."
    return Section("Captions of held-out images", text, cards=cards)


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


def _percent(metric: dict) -> str:
    if metric["mean"] is None:
        return "n/a"
    spread = f" ± {100 * metric['sd']:.1f}" if metric.get("sd") is not None else ""
    return f"{100 * metric['mean']:.1f}{spread}"


def _read(path: Path) -> dict:
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise KeepFITError(f"{path}: missing or damaged ({first_line(error)})") from error
    if not isinstance(content, dict):
        raise KeepFITError(f"{path}: not what a run writes")
    return content


def _read_lines(path: Path) -> list[dict]:
    """JSON lines, without one that an interruption cut."""
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = parse_json(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            lines.append(line)
    return lines
