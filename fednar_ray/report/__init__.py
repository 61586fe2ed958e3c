"""Plots of runs, comparisons and searches, and the page of a search."""

from fednar_ray.report.search_report import SearchReport, write_report

__all__ = ["SearchReport", "write_report"]
