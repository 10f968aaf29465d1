"""One self-contained HTML page about finished or unfinished runs. Reads records, never torch."""

from msfusion.report.page import check_page_at, write_report

__all__ = ["check_page_at", "write_report"]
