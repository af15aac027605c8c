"""Plots of a transfer run, as SVG: how each method errs, what more shots bring, how the features lie."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.manifold import TSNE
from sklearn.metrics import roc_auc_score, roc_curve

from keepfit_clip.files import write_text
from keepfit_clip.page.charts import INK, as_svg, draw_confusion, new_figure, plain, tidy
from keepfit_clip.transfer.protocol import Encoded, Outcome

__all__ = ["embedding_chart", "outcome_chart", "shots_chart", "write_plots"]

_MOST = 2000  # points of an embedding map
_PERPLEXITY = 30
_COLOURS = (
    "#0b6e6e",
    "#d1495b",
    "#e0a030",
    "#3b6fb6",
    "#7a4fa3",
    "#5f8f2f",
    "#8c5a3c",
    "#d76fa8",
    "#6b7780",
    "#17a2b8",
)
_DASHES = ("-", "--", ":")  # for classes beyond the colours


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
    """Confusion matrix, ROC curves, reliability and abstention of one method.

    Where an image may have several classes: sensitivity and specificity of each, and ROC curves.
    """
    answers = outcome.answers
    several = answers.labels.ndim == 2
    side = max(3.2, 1.9 + 0.36 * len(classes))
    panels = (_draw_rates, _draw_roc) if several else (_draw_confusion, _draw_roc, _draw_reliability, _draw_abstention)
    widths = [side, 3.6] if several else [side, 3.6, 3.0, 3.0]
    figure = new_figure(sum(widths), max(side - 0.2, 3.0))
    grid = figure.add_gridspec(1, len(panels), width_ratios=widths)
    for column, draw in enumerate(panels):
        axes = figure.add_subplot(grid[column])
        draw(axes, outcome, classes)
        tidy(axes)
    figure.suptitle(outcome.name, fontsize=10, color=INK, x=0.01, ha="left")
    return as_svg(figure)


def shots_chart(outcomes: Sequence[Outcome]) -> str:
    """Average class accuracy over the shots that each method learnt from; the bars are a standard deviation."""
    shots = list(dict.fromkeys(str(outcome.shots) for outcome in outcomes if outcome.shots))
    figure = new_figure(5.4, 3.4)
    axes = figure.add_subplot()
    for number, method in enumerate(dict.fromkeys(outcome.method for outcome in outcomes)):
        colour = _COLOURS[number % len(_COLOURS)]
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
        axes.scatter(
            *members.T, s=7, color=_COLOURS[number % len(_COLOURS)], alpha=0.75, linewidths=0, label=plain(name)
        )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title("image features (t-SNE)", fontsize=10, color=INK)
    axes.legend(fontsize=8, frameon=False, markerscale=2.2, bbox_to_anchor=(1, 1), loc="upper left")
    tidy(axes)
    return as_svg(figure)


def _draw_confusion(axes, outcome: Outcome, classes: Sequence[str]) -> None:
    draw_confusion(axes, outcome.overall.confusion, classes)


def _draw_roc(axes, outcome: Outcome, classes: Sequence[str]) -> None:
    """Each class against the rest; of two classes the second alone."""
    labels, probabilities = outcome.answers.labels, outcome.answers.probabilities
    several = labels.ndim == 2
    for number, name in enumerate(classes):
        truth = labels[:, number] if several else labels == number
        if truth.min() == truth.max() or (not several and len(classes) == 2 and number == 0):
            continue
        fpr, tpr, _ = roc_curve(truth, probabilities[:, number])
        area = roc_auc_score(truth, probabilities[:, number])
        style = _DASHES[number // len(_COLOURS) % len(_DASHES)]
        colour = _COLOURS[number % len(_COLOURS)]
        axes.plot(fpr, tpr, style, color=colour, linewidth=1.4, label=f"{plain(name)} {area:.2f}")
    axes.plot([0, 1], [0, 1], color=INK, linewidth=0.6, linestyle=":")
    axes.set_xlabel("1 - specificity", fontsize=9)
    axes.set_ylabel("sensitivity", fontsize=9)
    axes.legend(fontsize=7, frameon=False, loc="lower right", title="AUC", title_fontsize=7)


def _draw_reliability(axes, outcome: Outcome, classes: Sequence[str]) -> None:
    confidence, accuracy = np.array(outcome.reliability).T
    axes.plot([0, 1], [0, 1], color=INK, linewidth=0.6, linestyle=":")
    axes.plot(confidence, accuracy, color=_COLOURS[0], marker="o", markersize=4, linewidth=1.4)
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel(f"probability of the answer (ECE {outcome.mean('ece')[0]:.3f}, mean of the folds)", fontsize=9)
    axes.set_ylabel("share that is right", fontsize=9)


def _draw_abstention(axes, outcome: Outcome, classes: Sequence[str]) -> None:
    answered, accuracy = np.array(outcome.abstention).T
    axes.plot(answered, accuracy, color=_COLOURS[0], marker="o", markersize=4, linewidth=1.4)
    axes.set_xlim(0, 1.02)
    axes.set_ylim(min(0.5, accuracy.min()) - 0.02, 1.02)
    axes.set_xlabel("share answered, the surest first", fontsize=9)
    axes.set_ylabel("accuracy", fontsize=9)


def _draw_rates(axes, outcome: Outcome, classes: Sequence[str]) -> None:
    positions = np.arange(len(classes))
    for shift, name in ((-0.18, "sensitivity"), (0.18, "specificity")):
        values = np.nan_to_num(getattr(outcome.overall, name))
        axes.barh(positions + shift, values, height=0.32, color=_COLOURS[0 if shift < 0 else 3], label=name)
    axes.set_yticks(positions, [plain(name) for name in classes], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.legend(fontsize=7, frameon=False, bbox_to_anchor=(0, 1), loc="lower left", ncols=2)
