"""The command that judges scores on benchmarks, without making labels and without training."""

from __future__ import annotations

from fiqa_ray.cli.arguments import Job_, NewSettings, Overrides, console
from fiqa_ray.public_uri import public_text


def evaluate(job: Job_, overrides: Overrides = None, new_settings: NewSettings = False) -> None:
    """Judge a job's methods, regressors and score files on its benchmarks: no labels, no training.

    Makes what lacks: a further score, recogniser, false match rate or convention makes its own results only. The regressors
    are those that `fiqa-ray run` has trained. The job needs neither source nor methods, and a method may be a saved
    regressor's folder.
    """
    from fiqa_ray.config import load_settings
    from fiqa_ray.tools.evaluate import evaluate_job
    from fiqa_ray.tools.open_run import open_run
    from fiqa_ray.tools.show import areas_tables

    settings = load_settings(job, overrides or [], with_training=False)
    finished_job, missing = evaluate_job(settings, new_settings=new_settings)
    results = finished_job.results()
    for title, table in areas_tables(*(results.read_all(suffix=f".{name}.parquet") for name in ("auc", "exclusions"))):
        console.print(title)
        console.print(table)
    if finished_job.label_sets():
        print("\n".join(open_run(settings.run_uri).answer()))
    if missing:
        names = "; ".join(missing)
        print(
            f"left out, for this run has not trained them: {names}. `fiqa-ray run` with this job trains and judges them"
        )
    print(public_text(f"results: {results.uri}"))
    print(public_text(f"report: {finished_job.report().at('report.html')}"))
