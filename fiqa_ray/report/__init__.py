"""One self-contained HTML page about a run: `render.render_report(data.ReportData(...))`."""
