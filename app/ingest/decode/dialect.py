"""The dialect of a CSV. Pure.

A request's CSV follows RFC 4180. A file's may have another separator, a decimal comma, and marks of its own.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CsvDialect:
    """The separator of a CSV's fields and the mark in its numbers."""

    separator: str = ","
    """One ASCII character."""
    decimal_comma: bool = False
    """Whether 21,5 is a number, and 21.5 none."""
    missing: frozenset[str] = frozenset()
    """What stands for no value in a metric, beside what does in every CSV."""
