"""A report of a run: one HTML page, its charts as PNG, and a table of figures in Markdown."""

from .reading import read_run
from .write import Report, write_report


__all__ = ["Report", "read_run", "write_report"]
