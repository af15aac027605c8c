"""Plots of a transfer run, as SVG: how each method errs, what more shots bring, how the features lie."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.manifold import TSNE
from sklearn.metrics import roc_auc_score, roc_curve

from keepfit_clip.files import write_text
from keepfit_clip.page.charts import COLOURS, INK, as_svg, draw_confusion, new_figure, plain, tidy
from keepfit_clip.transfer.protocol import Encoded, Outcome

__all__ = ["Plotted", "embedding_chart", "outcome_chart", "outcome_charts", "shots_chart", "write_plots"]

_MOST = 2000  # points of an embedding map
_PERPLEXITY = 30
_DASHES = ("-", "--", ":")  # for classes beyond the colours


@dataclass(frozen=True)
class Plotted:
    """What is drawn of an outcome.

    Args:
        confusion: (K, K), or (K, 2, 2) where an image may have several classes.
        sensitivity, specificity: (K,), NaN where not defined.
        reliability: see `Outcome.reliability`; may be empty.
        abstention: see `Outcome.abstention`; may be empty.
        ece: expected calibration error, the mean of the folds.
        labels: (N,) or (N, K); None where the answers were not kept, and no ROC curve can be drawn.
        probabilities: (N, K), or None.
    """

    confusion: np.ndarray
    sensitivity: np.ndarray
    specificity: np.ndarray
    reliability: Sequence[tuple[float, float]] = ()
    abstention: Sequence[tuple[float, float]] = ()
    ece: float = math.nan
    labels: np.ndarray | None = None
    probabilities: np.ndarray | None = None

    @property
    def panels(self) -> list[Callable]:
        """Functions that draw a panel each: of axes, this, and the names of the classes."""
        return [
            _draw_confusion if self.confusion.ndim == 2 else _draw_rates,
            *([_draw_roc] if self.labels is not None else []),
            *([_draw_reliability] if len(self.reliability) else []),
            *([_draw_abstention] if len(self.abstention) else []),
        ]


def write_plots(folder: Path, encoded: Encoded, outcomes: Sequence[Outcome]) -> None:
    """Writes a file for each outcome, `shots.svg` and `embedding.svg` where they say something.

    Args:
        folder: to write into.
        encoded: the images tested.
        outcomes: of a run over them.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    folder.mkdir()
    classes = encoded.downstream.classes
    for outcome in outcomes:
        name = outcome.name.replace(" ", "-").replace("%", "-percent")
        write_text(folder / f"{name}.svg", outcome_chart(outcome, classes))
    if len({outcome.shots for outcome in outcomes if outcome.shots}) > 1:
        write_text(folder / "shots.svg", shots_chart(outcomes))
    if encoded.labels.ndim == 1 and len(encoded.labels) > 3:
        write_text(folder / "embedding.svg", embedding_chart(encoded.features.projected, encoded.labels, classes))


def outcome_chart(outcome: Outcome, classes: Sequence[str]) -> str:
    """Confusion matrix, ROC curves, reliability and abstention of one method, side by side.

    Where an image may have several classes: sensitivity and specificity of each, and ROC curves.
    """
    plotted = _plotted(outcome)
    panels = plotted.panels
    side = _side(classes)
    widths = [side, 3.6, 3.0, 3.0][: len(panels)]
    figure = new_figure(sum(widths), max(side - 0.2, 3.0))
    grid = figure.add_gridspec(1, len(panels), width_ratios=widths)
    for column, draw in enumerate(panels):
        axes = figure.add_subplot(grid[column])
        draw(axes, plotted, classes)
        tidy(axes)
    figure.suptitle(outcome.name, fontsize=10, color=INK, x=0.01, ha="left")
    return as_svg(figure)


def outcome_charts(plotted: Plotted, classes: Sequence[str]) -> str:
    """The same panels as charts of their own, one after the other, with what is known of the outcome."""
    charts = []
    for draw in plotted.panels:
        wide = draw in (_draw_confusion, _draw_rates)
        figure = new_figure(_side(classes) + 0.6, _side(classes)) if wide else new_figure(3.6, 3.2)
        axes = figure.add_subplot()
        draw(axes, plotted, classes)
        tidy(axes)
        charts.append(as_svg(figure))
    return "".join(charts)


def _side(classes: Sequence[str]) -> float:
    return max(3.2, 1.9 + 0.36 * len(classes))


def _plotted(outcome: Outcome) -> Plotted:
    overall, answers = outcome.overall, outcome.answers
    return Plotted(
        overall.confusion,
        overall.sensitivity,
        overall.specificity,
        outcome.reliability,
        outcome.abstention,
        outcome.mean("ece")[0],
        answers.labels,
        answers.probabilities,
    )


def shots_chart(outcomes: Sequence[Outcome]) -> str:
    """Average class accuracy over the shots that each method learnt from; the bars are a standard deviation."""
    shots = list(dict.fromkeys(str(outcome.shots) for outcome in outcomes if outcome.shots))
    figure = new_figure(5.4, 3.4)
    axes = figure.add_subplot()
    for number, method in enumerate(dict.fromkeys(outcome.method for outcome in outcomes)):
        colour = COLOURS[number % len(COLOURS)]
        of_method = [outcome for outcome in outcomes if outcome.method == method]
        means, deviations = np.array([outcome.mean("aca") for outcome in of_method]).T
        if of_method[0].shots is None:
            axes.axhline(means[0], color=colour, linestyle="--", linewidth=1.3, label=method)
            continue
        positions = np.array([shots.index(str(outcome.shots)) for outcome in of_method]) + 0.03 * number
        axes.errorbar(positions, means, deviations, color=colour, marker="o", markersize=4, capsize=2, label=method)
    axes.set_xticks(range(len(shots)), shots)
    axes.set_xlabel("images of each class, or share of all images", fontsize=9)
    axes.set_ylabel("ACA", fontsize=9)
    axes.legend(fontsize=8, frameon=False, bbox_to_anchor=(1, 1), loc="upper left")
    tidy(axes)
    return as_svg(figure)


def embedding_chart(features: np.ndarray, labels: np.ndarray, classes: Sequence[str], seed: int = 0) -> str:
    """A t-SNE map of image features; of many images a part is drawn.

    Args:
        features: (N, D), N above 3.
        labels: (N,) class numbers.
        classes: their names.
        seed: of the map and of the part.
    """
    chosen = np.random.default_rng(seed).permutation(len(labels))[:_MOST]
    perplexity = min(_PERPLEXITY, (len(chosen) - 1) / 3)
    coordinates = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(features[chosen])
    figure = new_figure(5.6, 3.8)
    axes = figure.add_subplot()
    for number, name in enumerate(classes):
        members = coordinates[labels[chosen] == number]
        axes.scatter(*members.T, s=7, color=COLOURS[number % len(COLOURS)], alpha=0.75, linewidths=0, label=plain(name))
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title("image features (t-SNE)", fontsize=10, color=INK)
    axes.legend(fontsize=8, frameon=False, markerscale=2.2, bbox_to_anchor=(1, 1), loc="upper left")
    tidy(axes)
    return as_svg(figure)


def _draw_confusion(axes, plotted: Plotted, classes: Sequence[str]) -> None:
    draw_confusion(axes, plotted.confusion, classes)


def _draw_roc(axes, plotted: Plotted, classes: Sequence[str]) -> None:
    """Each class against the rest; of two classes the second alone."""
    labels, probabilities = plotted.labels, plotted.probabilities
    several = labels.ndim == 2
    for number, name in enumerate(classes):
        truth = labels[:, number] if several else labels == number
        if truth.min() == truth.max() or (not several and len(classes) == 2 and number == 0):
            continue
        fpr, tpr, _ = roc_curve(truth, probabilities[:, number])
        area = roc_auc_score(truth, probabilities[:, number])
        style = _DASHES[number // len(COLOURS) % len(_DASHES)]
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(fpr, tpr, style, color=colour, linewidth=1.4, label=f"{plain(name)} {area:.2f}")
    axes.plot([0, 1], [0, 1], color=INK, linewidth=0.6, linestyle=":")
    axes.set_xlabel("1 - specificity", fontsize=9)
    axes.set_ylabel("sensitivity", fontsize=9)
    axes.legend(fontsize=7, frameon=False, loc="lower right", title="AUC", title_fontsize=7)


def _draw_reliability(axes, plotted: Plotted, classes: Sequence[str]) -> None:
    confidence, accuracy = np.array(plotted.reliability).T
    axes.plot([0, 1], [0, 1], color=INK, linewidth=0.6, linestyle=":")
    axes.plot(confidence, accuracy, color=COLOURS[0], marker="o", markersize=4, linewidth=1.4)
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel(f"probability of the answer\n(ECE {plotted.ece:.3f}, mean of the folds)", fontsize=9)
    axes.set_ylabel("share that is right", fontsize=9)


def _draw_abstention(axes, plotted: Plotted, classes: Sequence[str]) -> None:
    answered, accuracy = np.array(plotted.abstention).T
    axes.plot(answered, accuracy, color=COLOURS[0], marker="o", markersize=4, linewidth=1.4)
    axes.set_xlim(0, 1.02)
    axes.set_ylim(min(0.5, accuracy.min()) - 0.02, 1.02)
    axes.set_xlabel("share answered, the surest first", fontsize=9)
    axes.set_ylabel("accuracy", fontsize=9)


def _draw_rates(axes, plotted: Plotted, classes: Sequence[str]) -> None:
    positions = np.arange(len(classes))
    for shift, name in ((-0.18, "sensitivity"), (0.18, "specificity")):
        values = np.nan_to_num(getattr(plotted, name))
        axes.barh(positions + shift, values, height=0.32, color=COLOURS[0 if shift < 0 else 3], label=name)
    axes.set_yticks(positions, [plain(name) for name in classes], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.legend(fontsize=7, frameon=False, bbox_to_anchor=(0, 1), loc="lower left", ncols=2)
