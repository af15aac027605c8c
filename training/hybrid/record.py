"""When, how long, with what and by which command a run was made, from its `record.jsonl` and `settings.json`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from keepfit_clip.page.provenance import in_words
from keepfit_clip.training.hybrid.outlook import duration
from keepfit_clip.training.hybrid.run_folder import DATA_FLAGS

__all__ = ["RunRecord"]

_SHOWN = 16  # digits of a hash


@dataclass(frozen=True)
class RunRecord:
    """What is known of how a run was made; older runs kept nothing of it.

    Args:
        lines: of `record.jsonl`: a beginning for each attempt, and an end for each that came to one.
        settings: of `settings.json`.
    """

    lines: Sequence[Mapping]
    settings: Mapping = field(default_factory=dict)

    @property
    def headline(self) -> str:
        """Date, duration, version and hardware in a line; empty where nothing was kept."""
        facts = self.facts
        version = self._last.get("versions", {}).get("keepfit-clip")
        parts = [
            facts.get("began"),
            facts.get("duration"),
            version and f"keepfit-clip {version}",
            facts.get("hardware"),
        ]
        return ", ".join(part for part in parts if part)

    @property
    def facts(self) -> dict[str, str]:
        """Names and values for a table."""
        facts = {}
        if self._last:
            began = next(line["date"] for line in self.lines if line["event"] == "begin")
            facts = {"began": began.replace("T", " ").replace("Z", " UTC"), "duration": self._duration}
            facts |= {"versions": in_words(self._last["versions"]), "hardware": self._last["hardware"]}
            facts |= {"command": f"keepfit-clip train {' '.join(self._last['command'])}"}
        return facts | self._hashes

    @property
    def _last(self) -> Mapping:
        """The last beginning."""
        return next((line for line in reversed(self.lines) if line["event"] == "begin"), {})

    @property
    def _duration(self) -> str:
        """The time of all attempts that came to their end, and how many did not."""
        seconds, unfinished, began = 0.0, 0, None
        for line in self.lines:
            moment = datetime.fromisoformat(line["date"].replace("Z", "+00:00"))
            if line["event"] == "begin":
                unfinished += began is not None
                began = moment
            elif began is not None:
                seconds += (moment - began).total_seconds()
                began = None
        unfinished += began is not None
        parts = [duration(seconds)] if seconds or not unfinished else []
        if unfinished:
            parts.append(f"{unfinished} attempt{'s' * (unfinished > 1)} without an end")
        return " and ".join(parts)

    @property
    def _hashes(self) -> dict[str, str]:
        """SHA-256 of the shards that manifests tell."""
        hashes = {}
        for flag in DATA_FLAGS:
            manifests = self.settings.get("manifests", {}).get(flag) or []
            told = [counts["sha256"][:_SHOWN] for counts in manifests if counts and counts.get("sha256")]
            if told:
                hashes[f"{flag.partition('_')[0]} data, SHA-256"] = ", ".join(told)
        return hashes
