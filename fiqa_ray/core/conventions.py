"""Conventions of the error-versus-discard curve: the choices that the words "area at FMR 0.001" leave open, by name.

A row of `CONVENTIONS` says everything that code, tables and figures must know of a convention. Values of different
conventions must not be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from fiqa_ray.core.verification import exact_fmr
from fiqa_ray.errors import UsageError

Pool = Literal["all", "mated", "nonmated", "images"]
Threshold = Literal["fixed", "recomputed", "nearest_left"]
Count = Literal["below", "at_most", "nearest"]


@dataclass(frozen=True)
class Convention:
    """How a curve is computed and integrated.

    Attributes:
        name: Name in tables.
        summary: The convention in a sentence.
        pool: What is discarded, from the worst: `all` pairs, `mated` pairs alone, `images` with all of their pairs, or
            `nonmated` pairs alone, which makes it a curve of the FMR.
        threshold: `fixed`: set once, by all pairs. `recomputed`: set again at each level, by the pairs left.
            `nearest_left`: the similarity left that is nearest to the fixed one.
        count: How many false matches the rate allows: `below` it, `at_most` it, or `nearest`: thresholds are similarities
            of pairs, a pair at the threshold counts, and the one with the nearest rate is taken.
        step: Discarded share from level to level, one over a whole number; None: each distinct quality is a level, where
            equal qualities go together, and the last level is (1, 0).
        ties: `cut`: a level may fall between equal qualities. `together`: they are discarded at one level or not at all.
        curve: `line`: straight between levels. `step`: the left value is held.
        accept: Whether a pair is accepted `above` the threshold, or also `at` it.
        starting_fnmr: FNMR before any discard that sets the threshold in place of an FMR: the linearly interpolated
            quantile of the mated similarities.
        limits: Discarded shares at which the convention is usually read, beside those of the job.
    """

    name: str
    summary: str
    pool: Pool = "all"
    threshold: Threshold = "recomputed"
    count: Count = "below"
    step: float | None = 0.05
    ties: Literal["cut", "together"] = "cut"
    curve: Literal["line", "step"] = "line"
    accept: Literal["above", "at"] = "above"
    starting_fnmr: float | None = None
    limits: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Refuse choices that do not go together.

        Raises:
            UsageError: They do not; the message says which.
        """
        if self.step is not None and not (0 < self.step <= 0.5 and abs(1 / self.step - round(1 / self.step)) < 1e-9):
            raise UsageError(
                f"convention {self.name!r}: step={self.step} must be 1/2, 1/3, ...; `every` (in Python None) makes each "
                "quality a level"
            )
        kind_only = self.pool in ("mated", "nonmated")
        if self.step is None and (not kind_only or self.curve != "step"):
            raise UsageError(
                f"convention {self.name!r}: with a level at each quality give pool mated or nonmated, and curve step"
            )
        if kind_only and self.threshold != "fixed":
            raise UsageError(
                f"convention {self.name!r}: with pool {self.pool} the threshold never changes: give threshold fixed"
            )
        if self.starting_fnmr is not None and self.threshold != "fixed":
            raise UsageError(f"convention {self.name!r}: a starting FNMR sets one threshold: give threshold fixed")
        if self.threshold == "nearest_left" and self.count != "nearest":
            raise UsageError(f"convention {self.name!r}: threshold nearest_left goes with count nearest only")

    @property
    def n_levels(self) -> int:
        """Return the number of levels; 0 where each quality is one."""
        return 0 if self.step is None else round(1 / self.step)

    @property
    def end(self) -> float:
        """Return the discarded share at which the curve ends."""
        return 1.0 if self.step is None else (self.n_levels - 1) / self.n_levels

    @property
    def is_stepped(self) -> bool:
        """Return whether the curve is drawn in steps that hold the left value, not in lines between levels."""
        return self.curve == "step"

    @property
    def error(self) -> str:
        """Return the rate that is drawn: "fnmr" or "fmr"."""
        return "fmr" if self.pool == "nonmated" else "fnmr"

    @property
    def discards(self) -> str:
        """Return in words what is discarded."""
        return DISCARDED[self.pool]

    def describe(self) -> str:
        """Return the choices as one line, for captions."""
        step = "each quality" if self.step is None else f"steps of {self.step:g}"
        ties = ", equal qualities together" if self.ties == "together" else ""
        rate = f"starting FNMR {self.starting_fnmr:g}" if self.starting_fnmr is not None else f"FMR {self.count}"
        threshold = f"threshold {self.threshold.replace('_', ' ')}, {rate}, pairs accepted {ACCEPTED[self.accept]}"
        return f"{self.discards} discarded in {step}{ties}; {threshold}; {self.curve} curve to {self.end:g}"

    def identity(self) -> dict[str, Any]:
        """Return the choices that decide results, for fingerprints."""
        return {k: v for k, v in vars(self).items() if k not in ("name", "summary", "limits")}


DISCARDED = {"all": "pairs", "mated": "mated pairs", "nonmated": "non-mated pairs", "images": "images"}
"""What a convention discards, in words, by `Convention.pool`."""
ACCEPTED = {"above": "above it", "at": "at or above it"}
"""Which pairs count as accepted, in words, by `Convention.accept`."""

CONVENTIONS: dict[str, Convention] = {
    convention.name: convention
    for convention in (
        Convention(
            "paper",
            "“paper” discards from all pairs in steps of 5 % and sets a new threshold at every step, so that the FMR stays "
            "below its target; straight lines, area over [0, 0.95].",
        ),
        Convention(
            "nearest",
            "“nearest” discards as “paper” does, but takes the threshold whose FMR is nearest to the target (CR-FIQA); "
            "straight lines, area over [0, 0.95].",
            count="nearest",
        ),
        Convention(
            "dasec",
            "“dasec” discards from the mated pairs only, keeps one threshold and lets equal qualities go together; steps, "
            "area over [0, 1] unless a limit is given.",
            pool="mated",
            threshold="fixed",
            count="at_most",
            step=None,
            ties="together",
            curve="step",
        ),
        Convention(
            "pmf",
            "“pmf” discards from all pairs in steps of 1 %, equal qualities together, and reads each level at the "
            "similarity left that is nearest to the first threshold, whose FMR is nearest to the target; straight lines to "
            "0.99 (face-uncertainty-pytorch).",
            threshold="nearest_left",
            count="nearest",
            step=0.01,
            ties="together",
            accept="at",
        ),
        Convention(
            "nist",
            "“nist” sets one threshold by an FNMR of 1 %, discards images in steps of 1 %, each with all of its pairs, and "
            "is read as the FNMR that is left at 1 % and 5 %.",
            pool="images",
            threshold="fixed",
            step=0.01,
            accept="at",
            starting_fnmr=0.01,
            limits=(0.01, 0.05),
        ),
    )
}
"""The conventions by name; `evaluate.conventions` may also say "like one of them, but"."""


def convention_of(convention: str | Convention) -> Convention:
    """Return a convention by its name, or the convention itself.

    Raises:
        UsageError: The name is unknown.
    """
    if isinstance(convention, Convention):
        return convention
    if convention not in CONVENTIONS:
        raise UsageError(f"convention={convention!r} is unknown: choose one of {', '.join(CONVENTIONS)}")
    return CONVENTIONS[convention]


def changed(name: str, like: str, **choices: Any) -> Convention:
    """Return a convention that is like another but for some choices.

    Raises:
        UsageError: An unknown name, or choices that do not go together.
    """
    base = convention_of(like)
    new = replace(base, name=name, **choices)
    return replace(new, summary=f"“{name}”: {new.describe()}.", limits=base.limits if new.starting_fnmr else ())


Cell = tuple[str, float | None]
"""The name of a convention and a false match rate; None where a starting FNMR sets the threshold."""


def cells_of(conventions: Sequence[Convention], fmrs: Sequence[float]) -> dict[Cell, Convention]:
    """Return every convention with every rate; one with a starting FNMR has one cell.

    Raises:
        UsageError: two conventions have one name, or a rate is outside (0, 1).
    """
    names = [c.name for c in conventions]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UsageError(f"two conventions are named {twice[0]!r}: give each its own name")
    for fmr in fmrs:
        exact_fmr(fmr)
    return {(c.name, fmr): c for c in conventions for fmr in (fmrs if c.starting_fnmr is None else (None,))}


def stored_limits(convention: Convention, limits: Sequence[float]) -> list[float]:
    """Return the limits up to which areas are stored, rising: the levels, or multiples of 0.05, and the further ones."""
    n = convention.n_levels or 20
    shares = [k / n for k in range(1, n + (convention.step is None))]
    return sorted({*shares, *further_limits(convention, limits)})


def further_limits(convention: Convention, limits: Sequence[float]) -> list[float]:
    """Return the wanted limits, and the convention's own, that are no levels and so are stored in addition."""
    n = convention.n_levels or 20
    wanted = {limit for limit in (*limits, *convention.limits) if limit <= convention.end}
    return sorted(wanted - {k / n for k in range(1, n + 1)})
