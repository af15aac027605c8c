"""Which shards are read how often: pools of shards with weights, and repeats of rare categories."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from keepfit_clip.data.tars.locations import is_local
from keepfit_clip.data.tars.reader import list_shards, shard_info
from keepfit_clip.errors import ConfigError

__all__ = ["BALANCES", "ShardPool", "category_repeats", "make_pools"]

BALANCES = ("none", "dataset", "category", "root")
# Power of how rare a category is, with which its samples are repeated.
_POWERS = {"category": 1.0, "root": 0.5}
_MOST_REPEATS = 10.0


@dataclass(frozen=True)
class ShardPool:
    """Shards that are read together, in a new order at each pass.

    Args:
        shards: their locations.
        weight: how often a sample is taken from this pool, relative to the other pools' weights.
    """

    shards: tuple[str, ...]
    weight: float = 1.0


def make_pools(spec: str, weights: str | None = None, balance: str = "none") -> list[ShardPool]:
    """The pools that a specification of shards stands for.

    Args:
        spec: see `list_shards`.
        weights: one for each part of `spec`, joined by `::`; the parts become pools.
        balance: dataset makes each folder of shards a pool of the same weight, as FLAIR balances its data sets; with
            anything else and no weights all shards are one pool, in which every sample comes up once in a pass.

    Raises:
        ConfigError: weights that do not fit, or weights and balanced data sets at once.
        ShardError: shards that are not there.
    """
    if balance not in BALANCES:
        raise ConfigError(f"the balance is {balance!r}; it can be {', '.join(BALANCES)}")
    if weights is None:
        shards = list_shards(spec)
        if balance != "dataset":
            return [ShardPool(tuple(shards))]
        folders: dict[str, list[str]] = {}
        for shard in shards:
            folders.setdefault(_folder(shard), []).append(shard)
        return [ShardPool(tuple(members)) for members in folders.values()]
    if balance == "dataset":
        raise ConfigError("weights and balanced data sets exclude each other")
    parts = str(spec).split("::")
    try:
        values = [float(weight) for weight in weights.split("::")]
    except ValueError as error:
        raise ConfigError(f"the weights {weights!r} are not numbers joined by '::'") from error
    if len(values) != len(parts) or min(values) <= 0:
        raise ConfigError(f"{len(parts)} parts of shards need as many positive weights; these are {weights!r}")
    return [ShardPool(tuple(list_shards(part)), weight) for part, weight in zip(parts, values, strict=True)]


def _folder(shard: str) -> str:
    return os.path.dirname(shard) if is_local(shard) else shard.rpartition("/")[0]


def category_repeats(pools: Sequence[ShardPool], balance: str = "category") -> dict[str, float]:
    """How often a sample of each category is used in a pass; empty where categories are not balanced.

    A category with n samples, of N in K categories, gets N / (K n), at most 10, so that all come up about as often, or
    the square root of that; a sample with several categories is used as often as the rarest of them asks (repeat
    factors, as for LVIS, arXiv 1908.03195).

    Args:
        pools: the shards, with a manifest beside them.
        balance: one of BALANCES.

    Raises:
        ConfigError: no manifest beside the shards tells how many samples each category has.
    """
    if balance not in _POWERS:
        return {}
    counts: Counter[str] = Counter()
    shards = [shard for pool in pools for shard in pool.shards]
    for manifest in shard_info(shards, "manifest.json").values():
        stored = manifest.get("categories")
        if isinstance(stored, dict):
            counts.update({name: n for name, n in stored.items() if isinstance(n, int) and n > 0})
    if not counts:
        raise ConfigError(
            "balanced categories need the manifest.json that `keepfit-clip shards build` writes, and categories in it: "
            f"there are none beside {shards[0]}"
        )
    even = counts.total() / len(counts)
    return {name: min(_MOST_REPEATS, (even / count) ** _POWERS[balance]) for name, count in counts.items()}
