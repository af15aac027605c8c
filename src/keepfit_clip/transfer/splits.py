"""Training and test images of a downstream data set: seeded, stratified, no patient and no copy on both sides."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold
from typing_extensions import Self

from keepfit_clip.errors import CategoryError, ConfigError

__all__ = ["Shots", "choose_shots", "folds_of", "given_fold", "parse_shots"]


@dataclass(frozen=True)
class Shots:
    """How much a method may learn from.

    Args:
        per_class: images of each class, or None.
        share: of the whole data set, or None.
        as_frequent: whether `per_class` is a mean over the classes, which are drawn in the set's own proportions.
    """

    per_class: int | None = None
    share: float | None = None
    as_frequent: bool = False

    @classmethod
    def of(cls, shots: "Shots | str | int") -> Self:
        """Shots as people write them: 5 of each class, "~5" on average and as frequent as they are, "20%" of the set.

        Raises:
            ConfigError: it is neither.
        """
        if isinstance(shots, cls):
            return shots
        word = str(shots).strip()
        number = word.removesuffix("%").removeprefix("~")
        share, as_frequent = word.endswith("%"), word.startswith("~")
        if not number.isdigit() or int(number) < 1 or (share and (int(number) >= 100 or as_frequent)):
            raise ConfigError(
                f"--shots {word!r} is neither a number of images per class (5, or ~5 in the set's own proportions) nor "
                "a share such as 20%"
            )
        return cls(share=int(number) / 100) if share else cls(per_class=int(number), as_frequent=as_frequent)

    def __str__(self) -> str:
        return f"{'~' * self.as_frequent}{self.per_class}" if self.share is None else f"{round(100 * self.share)}%"


def parse_shots(text: str) -> list[Shots]:
    """Reads "1,5,10" or "20%,80%".

    Raises:
        ConfigError: it is neither.
    """
    shots = [Shots.of(word) for word in filter(None, (part.strip() for part in text.split(",")))]
    if not shots:
        raise ConfigError("--shots names nothing: write 1,5,10 or 80%")
    return shots


def folds_of(
    labels: np.ndarray, folds: int, groups: np.ndarray | None = None, seed: int = 0, names: Sequence[str] | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Parts a data set into folds; every image is tested once.

    Args:
        labels: (N,) class numbers, or (N, K) of 0 and 1, stratified then by the rarest class an image has.
        folds: number of them.
        groups: (N,) what must not be parted, such as a patient's images, or None.
        seed: of the shuffling.
        names: of the classes, for the error.

    Yields:
        Indices of the images to learn from and of those to test.

    Raises:
        CategoryError: a class has fewer images, or fewer groups, than there are folds.
    """
    strata = labels if labels.ndim == 1 else _rarest(labels)
    there = len(labels) if groups is None else len(np.unique(groups))
    if there < folds:
        what = "images" if groups is None else "patients (near copies counted once)"
        raise CategoryError(
            f"there are {there} {what}, which is fewer than the {folds} folds: use fewer --folds, "
            "and less of --shots with them"
        )
    for number in np.unique(strata):
        members = np.flatnonzero(strata == number)
        count = len(members if groups is None else np.unique(groups[members]))
        if count < folds and labels.ndim == 1:
            what = "images" if groups is None else "patients (near copies counted once)"
            name = f"number {number}" if names is None else repr(names[number])
            raise CategoryError(f"the class {name} has {count} {what}, which is fewer than the {folds} folds")
    if groups is not None and np.bincount(strata).max() < folds:  # nothing to stratify by
        splitter = GroupKFold(folds, shuffle=True, random_state=seed)
    elif groups is not None:
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    elif labels.ndim == 1:
        splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    else:
        rare = min(np.bincount(strata)[np.unique(strata)]) < folds
        splitter = (KFold if rare else StratifiedKFold)(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        parts = list(splitter.split(strata, strata, groups))
    yield from parts


def given_fold(splits: Sequence[str | None]) -> tuple[np.ndarray, np.ndarray]:
    """The one fold of a set that comes with a split: indices of its test part, and of all others to learn from.

    Args:
        splits: the part of each image: "test" is tested; None is neither tested nor learnt from.

    Raises:
        ConfigError: the source gives no test part, or nothing beside it.
    """
    parts = np.array([split or "" for split in splits])
    test, learnt = np.flatnonzero(parts == "test"), np.flatnonzero((parts != "test") & (parts != ""))
    if not len(test) or not len(learnt):
        have = ", ".join(sorted(set(parts) - {""})) or "none"
        raise ConfigError(f"--split given needs a part 'test' and another; the source gives {have}")
    return learnt, test


def _rarest(labels: np.ndarray) -> np.ndarray:
    """The rarest class of each image (N,); K for those of none."""
    counts = labels.sum(axis=0)
    rarity = np.where(labels.astype(bool), counts, len(labels) + 1)
    return np.where(labels.any(axis=1), rarity.argmin(axis=1), labels.shape[1])


def choose_shots(
    labels: np.ndarray, pool: np.ndarray, shots: Shots, total: int, seed: int, names: list[str]
) -> np.ndarray:
    """Draws what a method may learn from.

    Args:
        labels: (N,) or (N, K) of the whole data set.
        pool: indices that may be drawn.
        shots: how many.
        total: images of the whole data set, of which `shots.share` is a part.
        seed: of the draw; more shots of one seed contain fewer ones.
        names: of the classes, for the error.

    Returns:
        Sorted indices out of `pool`.

    Raises:
        CategoryError: a class has fewer images than shots.
    """
    order = np.random.default_rng(seed).permutation(pool)
    one_hot = labels if labels.ndim == 2 else np.eye(len(names), dtype=int)[labels]
    wanted = [shots.per_class] * len(names)
    if shots.share is not None or shots.as_frequent:
        asked = shots.per_class * len(names) if shots.as_frequent else round(shots.share * total)
        size = min(asked, len(pool))  # folds are not all of one size
        wanted = np.maximum(1, np.round(one_hot[pool].sum(axis=0) * size / len(pool)).astype(int))
    chosen: set[int] = set()
    for number, name in enumerate(names):
        members = [index for index in order if one_hot[index, number]]
        if len(members) < wanted[number]:
            raise CategoryError(
                f"the class {name!r} has {len(members)} images to learn from in a fold, and "
                f"{wanted[number]} are asked for"
            )
        have = sum(one_hot[index, number] for index in chosen)
        chosen.update([index for index in members if index not in chosen][: max(0, wanted[number] - have)])
    return np.array(sorted(chosen))
