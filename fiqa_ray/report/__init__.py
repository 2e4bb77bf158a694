"""One self-contained HTML page about a run: `render_report(ReportData(...))`."""

from fiqa_ray.report.data import (
    AucRow,
    CorrelationRow,
    DifferenceRow,
    EdcLine,
    Face,
    FaceStrip,
    LabelSummary,
    ModelRow,
    ReportData,
    StageRow,
    VerificationRow,
    edc_lines,
    rows_from,
)
from fiqa_ray.report.render import render_report

__all__ = [
    "AucRow",
    "CorrelationRow",
    "DifferenceRow",
    "EdcLine",
    "Face",
    "FaceStrip",
    "LabelSummary",
    "ModelRow",
    "ReportData",
    "StageRow",
    "VerificationRow",
    "edc_lines",
    "render_report",
    "rows_from",
]
