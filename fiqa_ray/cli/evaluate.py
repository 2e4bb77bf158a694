"""The command that judges scores on benchmarks, without labels and without training."""

from __future__ import annotations

from fiqa_ray.cli.arguments import Job_, NewSettings, Overrides, console
from fiqa_ray.public_uri import public_text


def evaluate(job: Job_, overrides: Overrides = None, new_settings: NewSettings = False) -> None:
    """Judge a job's methods, regressors and score files on its benchmarks: no labels, no training.

    Makes what lacks: a further score, recogniser, false match rate or convention makes its own results only. The job needs
    neither source nor methods, and a method may be a saved regressor's folder.
    """
    from fiqa_ray.config import load_settings
    from fiqa_ray.tools.evaluate import evaluate_job
    from fiqa_ray.tools.show import areas_tables

    finished_job = evaluate_job(load_settings(job, overrides or [], with_training=False), new_settings=new_settings)
    results = finished_job.results()
    for title, table in areas_tables(*(results.read_all(suffix=f".{name}.parquet") for name in ("auc", "exclusions"))):
        console.print(title)
        console.print(table)
    print(public_text(f"results: {results.uri}"))
    print(public_text(f"report: {finished_job.report().at('report.html')}"))
