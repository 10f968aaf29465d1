"""One self-contained HTML page about finished or unfinished runs. Reads records, never torch."""

from msfusion.report.page import write_report

__all__ = ["write_report"]
