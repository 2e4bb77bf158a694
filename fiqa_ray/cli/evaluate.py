"""The command that judges scores on benchmarks, without labels and without training."""

from __future__ import annotations

from fiqa_ray.cli.arguments import Job_, NewSettings, Overrides, console
from fiqa_ray.public_uri import public_text


def evaluate(job: Job_, overrides: Overrides = None, new_settings: NewSettings = False) -> None:
    """Judge a job's methods, saved regressors and score files on its benchmarks: no labels, no training.

    Makes what lacks: a further score, recogniser, false match rate or convention makes its own results only. The job needs
    neither source nor methods, and a method may be a saved regressor's folder.
    """
    from fiqa_ray.config import load_settings
    from fiqa_ray.tools.evaluate import evaluate_job
    from fiqa_ray.tools.show import areas_tables

    settings = load_settings(job, overrides or [], with_training=False)
    finished_job = evaluate_job(settings, new_settings=new_settings)
    results = finished_job.results()
    for title, table in areas_tables(*(results.read_all(suffix=f".{name}.parquet") for name in ("auc", "exclusions"))):
        console.print(title)
        console.print(table)
    if settings.source is not None:
        print(
            "the regressors that this job trains on labels are left out; `fiqa-ray run` with this job judges them too"
        )
    print(public_text(f"results: {results.uri}"))
    print(public_text(f"report: {finished_job.report().at('report.html')}"))
