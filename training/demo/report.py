"""What the demo ends with: metrics.json and the page report.html."""

import json
import random
from pathlib import Path

import numpy as np

from keepfit_clip.errors import KeepFITError
from keepfit_clip.page.charts import confusion_chart
from keepfit_clip.page.report import Card, Figure, Section, picture_uri, render_report
from keepfit_clip.training.hybrid.loss_log import read_losses
from keepfit_clip.training.report import settings_sections, text_section, training_sections
from keepfit_clip.training.text_stage.pretrain import REPORT_NAME as TEXT_REPORT

__all__ = ["CLOCK", "METRICS", "PEAK", "REPORT", "SCORES", "build_page", "collect_metrics", "read_result"]

CLOCK, METRICS, REPORT, SCORES = "clock.json", "metrics.json", "report.html", "evaluation.json"
PEAK = "peak_memory_gib"
_AT_EACH_END = 3  # logged values whose mean is a loss's first and last value


def collect_metrics(out: Path, settings: dict) -> dict:
    """All figures of a finished demo.

    Args:
        out: its folder.
        settings: what was drawn and trained.
    """
    scores, clock, tower = (read_result(out / name) for name in (SCORES, CLOCK, f"text_tower/{TEXT_REPORT}"))
    zero_shot, captions = scores["zero_shot"], scores["captions"]
    blind = captions["no_image"]
    peak = clock.pop(PEAK)
    return {
        "zero_shot_aca": zero_shot["aca"],
        "zero_shot_aca_shuffled_images": zero_shot["aca_shuffled_images"],
        "zero_shot_aca_shuffled_within_modality": zero_shot["aca_shuffled_within_modality"],
        "zero_shot_chance": 1 / len(zero_shot["classes"]),
        "caption_condition_rate": captions["condition_rate"],
        "caption_condition_rate_no_image": blind["condition_rate"],
        "caption_condition_rate_best_constant": captions["condition_rate_best_constant"],
        "caption_eye_rate_no_image": blind["eye_rate"],
        "caption_quadrant_rate_no_image": blind["quadrant_rate"],
        **{
            f"caption_{what}_rate{control}": captions[f"{what}_rate{control}"]
            for what in ("eye", "quadrant", "side", "count")
            for control in ("", "_other_picture")
        },
        "classes": zero_shot["classes"],
        "test_pictures": zero_shot["images"],
        "zero_shot_accuracy_by_kind": zero_shot["accuracy_by_kind"],
        "losses": _first_and_last(_losses(out)),
        "textual_pretraining": tower["held_out"],
        "seconds": round(sum(clock.values()), 1),
        "seconds_by_step": {name: round(seconds, 1) for name, seconds in clock.items()},
        "peak_memory_gib": round(peak, 2),
        "settings": settings,
    }


def read_result(path: Path) -> dict:
    """What a JSON file of the demo holds.

    Raises:
        KeepFITError: it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise KeepFITError(f"{path}: missing or damaged; remove it and start the demo again") from error


def _losses(out: Path) -> list[dict]:
    lines = read_losses(out / "stage2")
    if not lines or lines[-1]["step"] != lines[-1]["steps"]:
        raise KeepFITError(f"{out / 'stage2'}: its losses are missing or cut; remove this folder and start again")
    return lines


def _first_and_last(lines: list[dict]) -> dict[str, list[float]]:
    """Mean of the first and of the last logged values: of both contrastive terms together, and of the caption NLL."""

    def mean(part: list[dict], ending: str) -> float:
        return float(np.mean([sum(v for k, v in line["terms"].items() if k.endswith(ending)) for line in part]))

    ends = lines[:_AT_EACH_END], lines[-_AT_EACH_END:]
    return {name: [mean(end, f"{name}_loss") for end in ends] for name in ("contrastive", "caption")}


def build_page(out: Path, metrics: dict, answers: Section) -> str:
    """The report as HTML.

    Args:
        out: folder of the demo.
        metrics: of `collect_metrics`.
        answers: of the model on unseen pictures, see `training.answers.answers_section`.
    """
    scores = read_result(out / SCORES)
    m = metrics
    figures = [
        Figure(
            "zero-shot ACA",
            _share(m["zero_shot_aca"]),
            f"{len(m['classes'])} conditions; images shuffled {_share(m['zero_shot_aca_shuffled_images'])}, shuffled "
            f"within the modality {_share(m['zero_shot_aca_shuffled_within_modality'])}",
        ),
        Figure(
            "captions: condition right",
            _share(m["caption_condition_rate"]),
            f"given an even grey picture {_share(m['caption_condition_rate_no_image'])}, best constant answer "
            f"{_share(m['caption_condition_rate_best_constant'])}",
        ),
        *(
            Figure(
                f"captions: {where} right",
                _share(m[f"caption_{what}_rate"]),
                f"captions of other pictures of the same kind {_share(m[f'caption_{what}_rate_other_picture'])}",
            )
            for what, where in (
                ("eye", "eye"),
                ("quadrant", "quadrant"),
                ("side", "side of the fovea (OCT)"),
                ("count", "number of lesions"),
            )
        ),
        Figure("time", f"{m['seconds'] / 60:.1f} min", f"peak memory {m['peak_memory_gib']:.1f} GiB"),
    ]
    return render_report(
        "KeepFIT V2 on drawn retinas",
        f"{m['settings']['pictures']} drawn pictures, a tenth of them with captions, the others with a category only; "
        f"all figures are of {m['test_pictures']} pictures the model never saw. Drawn pictures are easier than "
        "patients: these figures show that the method works, not how well it would do in a clinic.",
        figures,
        [
            Section(
                "Zero-shot classification",
                _CONTROLS,
                chart=confusion_chart(scores["zero_shot"]["confusion"], m["classes"]),
                header=["kind", "right"],
                rows=[[kind, _share(value)] for kind, value in m["zero_shot_accuracy_by_kind"].items()],
            ),
            Section(
                "Pictures, predictions and generated captions",
                "Chosen at random, two of each kind. A red edge marks a wrong prediction. The control is what the same "
                "decoder writes when it is given an even grey picture.",
                cards=_cards(out / "pictures" / "test", scores["pictures"], scores["captions"]["no_image"]["caption"]),
            ),
            answers,
            text_section(m["textual_pretraining"]),
            *training_sections(out / "stage2", [out / "shards" / kind for kind in ("public", "elite")]),
            Section(
                "Time",
                header=["step", "seconds"],
                rows=[[name, f"{seconds:.0f}"] for name, seconds in m["seconds_by_step"].items()],
            ),
            *settings_sections(out / "stage2"),
        ],
    )


_CONTROLS = (
    "Every picture is compared with the texts of all conditions, in the words of its modality. The controls beside the "
    "figures above: the same evaluation of the same table with its pictures dealt out anew; the predictions dealt out "
    "anew within each modality; for captions, what the same decoder writes when it is given an even grey picture, and "
    "the captions of other pictures of the same kind."
)


def _cards(pictures: Path, entries: list[dict], blind: str, of_each: int = 2) -> list[Card]:
    """Some pictures of every kind, with the caption of an even grey picture as the control."""
    kinds: dict[tuple, list[dict]] = {}
    for entry in entries:
        kinds.setdefault((entry["modality"], entry["condition"]), []).append(entry)
    rng = random.Random(0)
    chosen = [entry for kind in sorted(kinds) for entry in rng.sample(kinds[kind], min(of_each, len(kinds[kind])))]
    return [
        Card(
            image=picture_uri(pictures / entry["image"]),
            facts=[
                ("truth", entry["truth"]),
                ("predicted", f"{entry['predicted']} ({entry['probability']:.0%})"),
                ("written", entry["written"]),
                ("control", blind),
            ],
            right=entry["predicted"] == entry["condition"],
        )
        for entry in chosen
    ]


def _share(value: float | None) -> str:
    return "none" if value is None else f"{value:.1%}"
