"""The field's public weights: what they are, saw, may be used for, where they lie, and how they are named here.

The file is `public_weights.json`. Nothing is fetched, and where weights lie is told in words: homes and terms change,
and `source` says what was read. Nothing that was not found there is filled in.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from keepfit_clip.files import read_json
from keepfit_clip.model.pretrained import WHEELS

__all__ = ["NOT_STATED", "PublicWeights", "as_markdown", "list_public_weights"]

NOT_STATED = "not stated"
_FILE = Path(__file__).with_suffix(".json")
_COLUMNS = ("weights", "what they are", "what they saw", "licence or terms", "where they lie", "named here")


@dataclass(frozen=True)
class PublicWeights:
    """A published set of weights.

    Args:
        name: of the weights.
        what: they are: architecture, and what of it is used here.
        saw: modalities, data and number of images, as the paper or repository says.
        terms: licence or conditions, as the repository says; `NOT_STATED` where it says none.
        where: they lie, in words.
        paper: arXiv number or journal.
        here: what --model calls them; FILE is the file that was downloaded.
        source: what these facts were read in.
        sha256: of a file, 64 digits; '' where no source states it.
        sha256_of: which file, and who states it.
        wheel: installed wheel that they come in, whose SHA-256 is checked whenever it is loaded; '' for none.
    """

    name: str
    what: str
    saw: str
    terms: str
    where: str
    paper: str
    here: tuple[str, ...]
    source: tuple[str, ...]
    sha256: str = ""
    sha256_of: str = ""
    wheel: str = ""


@lru_cache(maxsize=1)
def list_public_weights() -> tuple[PublicWeights, ...]:
    """All that the file has, in its order; the SHA-256 of wheels are those that loading checks."""
    found = []
    for entry in read_json(_FILE):
        entry = {**entry, "here": tuple(entry["here"]), "source": tuple(entry["source"])}
        if wheel := WHEELS.get(entry.get("wheel")):
            entry |= {"sha256": wheel.sha256, "sha256_of": Path(wheel.weights).name}
        found.append(PublicWeights(**entry))
    return tuple(found)


def as_markdown() -> str:
    """The table of the documentation, a row for each set of weights."""
    lines = [_row(_COLUMNS), _row(["---"] * len(_COLUMNS))]
    for weights in list_public_weights():
        names = "<br>".join(f"`{name}`" for name in weights.here)
        digest = f"<br>SHA-256 `{weights.sha256}` ({weights.sha256_of})" if weights.sha256 else ""
        title = f"**{weights.name}**<br>{weights.paper}" if weights.paper != NOT_STATED else f"**{weights.name}**"
        lines.append(_row([title, weights.what, weights.saw, weights.terms, weights.where + digest, names]))
    return "\n".join(lines)


def _row(cells) -> str:
    return f"| {' | '.join(cells)} |"
