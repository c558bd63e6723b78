"""The report of a training run: one HTML file that opens without a network; see `page`."""

from nearkin.report.page import write_report
from nearkin.report.view import RunView, read_run

__all__ = ["RunView", "read_run", "write_report"]
