"""Cells of CSV files that a spreadsheet does not take for formulas."""

import csv
import io
from collections.abc import Iterable, Sequence

__all__ = ["csv_text", "safe_cell"]

_STARTS = ("=", "+", "-", "@", "\t", "\r")  # of a formula; OWASP's list


def safe_cell(value: object) -> object:
    """A value with an apostrophe before it where a spreadsheet would run it; numbers, also written out, stay.

    >>> [safe_cell(value) for value in ("=1+1", "-0.5", -0.5, "drusen")]
    ["'=1+1", '-0.5', -0.5, 'drusen']
    """
    if not isinstance(value, str) or not value.startswith(_STARTS) or _is_number(value):
        return value
    return f"'{value}"


def csv_text(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A CSV table whose cells are safe, with lines that end in a newline."""
    return "".join(_line(row) for row in (header, *rows))


def _line(row: Sequence[object]) -> str:
    text = io.StringIO()
    # Python before 3.13 quotes a carriage return only where it is part of the line's end.
    csv.writer(text, lineterminator="\r\n").writerow([safe_cell(value) for value in row])
    return text.getvalue().removesuffix("\r\n") + "\n"


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return value.isascii() and "_" not in value and value == value.strip()
