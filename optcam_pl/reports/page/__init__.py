"""The report page: one folder with an HTML page of finished runs, to look at and to send."""

from optcam_pl.reports.page.page import write_page

__all__ = ["write_page"]
