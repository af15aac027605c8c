"""What shards hold, as an HTML page: counts by category, modality and source, and a contact sheet."""

from keepfit_clip.data.description import Description
from keepfit_clip.data.shards.inspection import ShardStatistics
from keepfit_clip.page.report import Figure, Section, picture_uri, render_report

__all__ = ["statistics_page"]

_MOST_BARS = 60
_LONGEST_LINE = 90  # characters


def statistics_page(statistics: ShardStatistics) -> str:
    """The page as HTML; nothing in it names an input."""
    figures = [
        Figure("samples", f"{statistics.samples:,}", ", ".join(_counted(statistics.counts["kind"]))),
        Figure("categories", str(len(statistics.categories)), ", ".join(_counted(statistics.counts["modality"]))),
    ]
    if statistics.captions:
        words = statistics.caption_words / statistics.captions
        note = f"{statistics.distinct_captions:,} different ones, {words:.0f} words on average"
        figures.append(Figure("captions", f"{statistics.captions:,}", note))
    if statistics.groups:
        note = f"{statistics.samples / statistics.groups:.1f} images each; they never stand in two parts of a split"
        figures.append(Figure("patients or groups", f"{statistics.groups:,}", note))
    if statistics.unreadable:
        figures.append(Figure("unreadable", str(statistics.unreadable), "see `keepfit-clip shards check`"))
    sections = [
        Section(f"Categories, {modality}", _left_out(counts), bars=counts.most_common(_MOST_BARS))
        for modality, counts in sorted(statistics.categories_by_modality.items())
        if counts
    ]
    sections += [
        Section(title, bars=statistics.counts[name].most_common(_MOST_BARS))
        for title, name in (("Source data sets", "dataset"), ("Eyes", "eye"), ("Languages of captions", "language"))
        if statistics.counts[name]
    ]
    if statistics.sizes:
        text = "Width and height in pixels, of the pictures below."
        sections.append(Section("Sizes", text, bars=statistics.sizes.most_common(12)))
    if statistics.examples:
        sheet = [(picture_uri(thumbnail), _line(description)) for thumbnail, description in statistics.examples]
        sections.append(Section("Contact sheet", "Samples drawn at random.", sheet=sheet))
    return render_report("Shards", "What they hold, counted over all samples.", figures, sections)


def _counted(counts) -> list[str]:
    return [f"{count:,} {value}" for value, count in counts.most_common()]


def _left_out(counts) -> str:
    return f"The most frequent {_MOST_BARS} of {len(counts)}." if len(counts) > _MOST_BARS else ""


def _line(description: Description) -> str:
    text = description.captions[0].text if description.captions else ", ".join(description.categories)
    return text if len(text) <= _LONGEST_LINE else f"{text[:_LONGEST_LINE]}..."
