"""Charts as SVG texts, drawn by matplotlib (extra `plots`)."""

import io
from collections.abc import Mapping, Sequence

import numpy as np

from keepfit_clip.extras import require_extra

__all__ = [
    "COLOURS",
    "INK",
    "as_svg",
    "confusion_chart",
    "draw_confusion",
    "loss_charts",
    "new_figure",
    "plain",
    "tidy",
]

_WIDE_RANGE = 30  # a term that falls further than this is drawn on a logarithmic scale
INK, _PALE = "#24303a", "#b9cfcf"
COLOURS = (
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
)  # of lines and bars that stand for different things


def loss_charts(logs: Mapping[str, Sequence[dict]]) -> str:
    """A chart for each loss term over the steps of one run, or of several in different colours.

    Args:
        logs: name of a run -> its lines, at least one, as `training.hybrid.loss_log.read_losses` gives them.
    """
    terms = dict.fromkeys(term for lines in logs.values() for term in lines[0]["terms"])
    return "".join(_loss_chart(term, logs) for term in terms)


def _loss_chart(term: str, logs: Mapping[str, Sequence[dict]]) -> str:
    figure = new_figure(3.4, 2.5)
    axes = figure.add_subplot()
    curves = []
    for number, (name, lines) in enumerate(logs.items()):
        lines = [line for line in lines if term in line["terms"]]
        if not lines:
            continue
        steps = [line["epoch"] * line["steps"] + line["step"] for line in lines]
        curves.append(values := np.array([line["terms"][term] for line in lines]))
        if len(logs) == 1:
            axes.plot(steps, values, color=_PALE, linewidth=1)
        axes.plot(steps, _smooth(values), color=COLOURS[number % len(COLOURS)], linewidth=1.6, label=plain(name))
    axes.set_title(term.removesuffix("_loss").replace("_", " "), fontsize=10, color=INK)
    axes.set_xlabel("step", fontsize=8)
    if len(logs) > 1:
        axes.legend(fontsize=7, frameon=False)
    values = np.concatenate(curves)
    if values.min() > 0 and values.max() > _WIDE_RANGE * values.min():
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=min(0, values.min()))
    tidy(axes)
    return as_svg(figure)


def confusion_chart(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """A confusion matrix: true classes by row, predicted by column, shaded by the share of the row."""
    side = 2.2 + 0.42 * len(classes)
    figure = new_figure(side + 1.2, side)
    draw_confusion(figure.add_subplot(), confusion, classes)
    return as_svg(figure)


def draw_confusion(axes, confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> None:
    """The same on matplotlib axes."""
    counts = np.asarray(confusion)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="GnBu", vmin=0, vmax=1.15)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            colour = "white" if shares[row, column] > 0.6 else INK
            axes.text(column, row, str(count), ha="center", va="center", fontsize=8, color=colour)
    classes = [plain(name) for name in classes]
    axes.set_xticks(range(len(classes)), classes, rotation=40, ha="right", fontsize=8)
    axes.set_yticks(range(len(classes)), classes, fontsize=8)
    axes.set_xlabel("predicted", fontsize=9)
    axes.set_ylabel("true", fontsize=9)
    tidy(axes)


def new_figure(width: float, height: float):
    """A matplotlib figure of so many inches, without any global state of pyplot."""
    require_extra("plots")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.06)  # inches; a browser's letters may be wider than matplotlib's
    return figure


def plain(text: str) -> str:
    """A text for a chart; matplotlib would take what stands between two dollar signs for a formula."""
    return text.replace("$", r"\$")


def tidy(axes) -> None:
    """Small labels, no frame above and right."""
    axes.tick_params(labelsize=8, colors=INK, length=2)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Mean over a window of a tenth of all values, at least three."""
    window = max(3, len(values) // 10) | 1
    padded = np.pad(values, window // 2, mode="edge")
    return np.convolve(padded, np.full(window, 1 / window), mode="valid")


def as_svg(figure) -> str:
    """The figure as SVG text; the same figure gives the same text."""
    file = io.StringIO()
    # Without a date and with fixed names inside.
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": "keepfit", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    return text[text.index("<svg") :]
