"""The key of a result: a score, judged by one recogniser on one benchmark at one operating point."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ScorerKey:
    """What a quality score is. Tables of a paper select by these columns.

    Attributes:
        scorer: Name of the quality score; no two of a job are alike.
        quality_model: Recogniser that the quality comes from, or empty: a method may use none.
        method: FIQA method; of random numbers and recorded truth the variant.
        variant: "baseline", "unoptimized", "optimized", "ediff", "given", "random" or "oracle".
        theta: Step size of the label optimization; null unless the variant is "optimized".
        seed: Seed of the training; null unless there was one.
    """

    scorer: str
    quality_model: str
    method: str
    variant: str
    theta: float
    seed: int | None


@dataclass(frozen=True)
class CellKey(ScorerKey):
    """One cell of the matrix: a score, judged by one recogniser on one benchmark at one operating point.

    Attributes:
        benchmark: Name of the benchmark.
        recognizer: Recogniser whose errors are counted.
        convention: Name of the convention; the table `conventions` says what it means.
        fmr: False match rate that sets the threshold; null where a starting FNMR sets it.
    """

    benchmark: str
    recognizer: str
    convention: str
    fmr: float
