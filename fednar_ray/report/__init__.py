"""What a search taught: tables, pictures, and one page with all of it."""

from fednar_ray.report.writing import Report, write_report

__all__ = ["Report", "write_report"]
