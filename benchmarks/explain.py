"""How well heat maps find lesions whose place is known, beside a guess at the centre and other controls.

    python benchmarks/explain.py --model runs/demo/model [--pictures 240] [--scale 1] [--curves 0]

Drawn pictures of the kinds with masked lesions, which no model was trained on (seed). The pointing game (Zhang et al.,
IJCV 2018): is the hottest point (the middle of the hottest patch) on a lesion, or within 15/224 of the picture's width
of one? Deletion and insertion
(RISE, arXiv 1806.07421): the mean probability of the picture's own condition while its pixels, the hottest first, are
blurred away (lower is better) or come back into a blurred picture (higher is better). Attention of a word is that of
the words of the caption that name the condition or its lesions; captions without such a word count as missed.
Similarity and Grad-CAM are asked for the picture's own condition among those of its modality; the controls are another
picture's similarity and the same picture's Grad-CAM for another category.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

import cv2
import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers.utils import logging as transformers_logging

from keepfit_clip.drawing.content import LESIONS
from keepfit_clip.drawing.retina import KINDS, DrawnRetina, draw_retina
from keepfit_clip.explain.maps import SCALE, Explainer, Explanation
from keepfit_clip.folders.loading import load_model

TOLERANCE = 15 / 224
STEPS = 12
MAPS = (
    "similarity",
    "Grad-CAM",
    "attention of words",
    "another picture's similarity",
    "another category's Grad-CAM",
    "centre guess",
    "random map",
)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--pictures", type=int, default=240)
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--scale", type=int, default=SCALE, help="of the maps, see `Explainer`")
    parser.add_argument(
        "--curves", type=int, help="pictures of deletion and insertion, which take longest; all by default"
    )
    args = parser.parse_args()
    transformers_logging.set_verbosity_error()
    loaded = load_model(args.model)
    size = loaded.model.visual.image_size
    size = size if isinstance(size, int) else size[0]
    # As large as the enlarged view, for real images have more pixels than the tower takes.
    drawn = list(pictures(args.pictures, args.seed, size * SCALE))
    explainers = {
        modality: Explainer(loaded, [condition for m, condition in KINDS if m == modality], modality, scale=args.scale)
        for modality in ("CFP", "FFA", "OCT")
    }
    explained = [explain(explainers[retina.modality], retina) for retina in track(drawn, "Explaining", transient=True)]
    rng = np.random.default_rng(args.seed)
    hits, deletion, insertion = (defaultdict(list) for _ in range(3))
    by_kind: dict[tuple[str, str], dict[str, list]] = defaultdict(lambda: defaultdict(list))
    for number in track(range(len(drawn)), "Scoring", transient=True):
        retina, found = drawn[number], explained[number]
        other = explained[(number + len(set(KINDS))) % len(drawn)]
        maps = heat_maps(retina, found, other, rng)
        target = cv2.resize(near_lesions(retina).astype(np.uint8), found.picture.size).astype(bool)
        for name, heat in maps.items():
            hit = float(target[hottest(heat)]) if heat is not None else 0.0
            if name == "random map":
                hit = float(target.mean())
            hits[name].append(hit)
            by_kind[(retina.modality, retina.condition)][name].append(hit)
            if heat is not None and (args.curves is None or number < args.curves):
                gone, back = curves(loaded, explainers[retina.modality], retina, found, heat)
                deletion[name].append(gone)
                insertion[name].append(back)
    console = Console(width=120)
    table = Table(
        "map",
        "pointing game",
        "deletion",
        "insertion",
        title=f"{len(drawn)} pictures, {size} pixels, scale {args.scale}",
    )
    for name in MAPS:
        table.add_row(name, *(mean_and_error(values[name]) for values in (hits, deletion, insertion)))
    console.print(table)
    detail = Table("kind", "pictures", *MAPS, title="pointing game by kind")
    for (modality, condition), found in sorted(by_kind.items()):
        cells = [f"{np.mean(found[name]):.2f}" for name in MAPS]
        detail.add_row(f"{modality} {condition}", str(len(found[MAPS[0]])), *cells)
    console.print(detail)
    for name in MAPS[:3]:
        difference = np.array(hits[name]) - np.array(hits["centre guess"])
        better = difference.mean() > 2 * difference.std(ddof=1) / len(difference) ** 0.5
        console.print(f"{name}: {'better than' if better else 'NO better than'} the centre guess in the pointing game")


def pictures(count: int, seed: int, size: int) -> Iterator[DrawnRetina]:
    """So many pictures with lesions, the kinds in turn."""
    number = found = 0
    while found < count:
        modality, condition = KINDS[number % len(KINDS)]
        retina = draw_retina(modality, condition, [seed, number], size)
        number += 1
        if condition != "normal" and any(mask.any() for mask in retina.masks.values()):
            found += 1
            yield retina


def explain(explainer: Explainer, retina: DrawnRetina) -> Explanation:
    """An explanation, of its words only those that name the condition or its lesions."""
    explanation = explainer(retina.image)
    told = (retina.condition, *retina.lesions, *(LESIONS[name] for name in retina.lesions))
    names = {word for text in told for word in text.split()}
    words = [word for word in explanation.words if word.word.strip(".,:;").casefold() in names]
    return replace(explanation, words=words)


def near_lesions(retina: DrawnRetina) -> np.ndarray:
    """(H, W) bool: lesions and what is near enough."""
    mask = np.any(list(retina.masks.values()), axis=0).astype(np.uint8)
    radius = max(1, round(TOLERANCE * len(mask)))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    return cv2.dilate(mask, disc).astype(bool)


def hottest(heat: np.ndarray) -> tuple[int, int]:
    """The middle of the patch within 5 % of the highest value: at an edge of a coarse map the highest is a plateau."""
    low, high = heat.min(), heat.max()
    _, patches = cv2.connectedComponents((heat >= high - 0.05 * (high - low)).astype(np.uint8))
    rows, columns = np.nonzero(patches == patches[np.unravel_index(np.argmax(heat), heat.shape)])
    return round(rows.mean()), round(columns.mean())


def heat_maps(
    retina: DrawnRetina, found: Explanation, other: Explanation, rng: np.random.Generator
) -> dict[str, np.ndarray | None]:
    """Every map of a picture; None where there is no word to look at."""
    own = found.categories.index(retina.condition)
    size = len(found.similarity[own])
    across = np.linspace(-1, 1, size)
    return {
        "similarity": found.similarity[own],
        "Grad-CAM": found.grad_cam[own],
        "attention of words": np.mean([word.heat for word in found.words], axis=0) if found.words else None,
        "another category's Grad-CAM": found.grad_cam[(own + 1) % len(found.grad_cam)],
        "another picture's similarity": other.similarity[own % len(other.similarity)],
        "centre guess": -(across[:, None] ** 2 + across[None] ** 2),
        "random map": cv2.resize(rng.random((7, 7)).astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC),
    }


def curves(
    loaded, explainer: Explainer, retina: DrawnRetina, found: Explanation, heat: np.ndarray
) -> tuple[float, float]:
    """Areas under the deletion and the insertion curve."""
    picture = np.asarray(found.picture)
    sigma = len(picture) / 12
    blurred = cv2.GaussianBlur(picture, (0, 0), sigma)
    order = np.argsort(-heat, axis=None)
    views = []
    for step in range(STEPS + 1):
        hottest = np.zeros(heat.size, dtype=bool)
        hottest[order[: heat.size * step // STEPS]] = True
        hottest = hottest.reshape(heat.shape)[:, :, None]
        views += [np.where(hottest, blurred, picture), np.where(hottest, picture, blurred)]
    batch = torch.stack([loaded.preprocess(Image.fromarray(view)) for view in views])
    with torch.inference_mode():
        features = loaded.model.encode_image(batch.to(loaded.device), normalize=True).float()
    own = explainer.classes.probabilities(features)[:, found.categories.index(retina.condition)].cpu().numpy()
    return float(np.trapezoid(own[::2], dx=1 / STEPS)), float(np.trapezoid(own[1::2], dx=1 / STEPS))


def mean_and_error(values: list[float]) -> str:
    """Mean and standard error."""
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1) / len(values) ** 0.5:.3f}" if len(values) > 1 else "n/a"


if __name__ == "__main__":
    main()
