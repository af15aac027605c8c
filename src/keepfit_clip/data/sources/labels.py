"""What a source's labels mean, where the data set has a map of its own or its table is known to be wrong."""

from dataclasses import replace

from keepfit_clip.data.records import Record
from keepfit_clip.data.sources.notes import SourceNotes
from keepfit_clip.data.sources.options import SourceOptions
from keepfit_clip.knowledge.labels import read_label_map, repair_of
from keepfit_clip.remote.paths import Place

__all__ = ["SourceLabels"]


class SourceLabels:
    """Puts categories in the place of labels.

    Args:
        source: the table, whose name tells whether it is one that is known to be wrong.
        options: `labels` and `as_written`.
        notes: told what was repaired, and how many labels say nothing.

    Raises:
        CategoryError: there is no such label map, or it is not one.
    """

    def __init__(self, source: str | Place, options: SourceOptions, notes: SourceNotes):
        self.map = read_label_map(options.labels) if options.labels else None
        self.repair = None if options.as_written else repair_of(source)
        self.notes = notes
        known = (*options.known_labels, *self.map.labels) if self.map else options.known_labels
        self.options = replace(options, known_labels=known)

    def read(self, record: Record) -> Record:
        """A record with the categories that its labels stand for."""
        categories = record.categories
        if self.repair is not None:
            categories = self.repair.apply(categories)
            if categories != record.categories:
                self.notes.repaired[self.repair.title, self.repair.why] += 1
        if self.map is None:
            return record if categories == record.categories else replace(record, categories=categories)
        meanings = [(label, self.map.meaning(label)) for label in categories]
        self.notes.silent.update(label for label, meaning in meanings if meaning == ())
        read = [name for label, meaning in meanings for name in (meaning if meaning is not None else (label,))]
        modality = record.modality or self.map.modality
        return replace(record, categories=tuple(dict.fromkeys(read)), modality=modality)
