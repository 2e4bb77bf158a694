"""What a job's benchmarks say in a few sentences: do optimized labels help, by how much, and for which method?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from fiqa_ray.datasets.results import BASELINE, EDIFF, RANDOM, AucRow, DifferenceRow


def answer_lines(areas: Sequence[AucRow], differences: Sequence[DifferenceRow]) -> Iterator[str]:
    """Yield sentences on the first benchmark, convention and rate of some results, under each recogniser.

    A difference is clear where its interval leaves out 0 and its p-value holds after Holm's correction for all comparisons.
    """
    if not areas:
        yield "The job has no benchmark of other people, so it does not tell whether optimized labels help."
        return
    first, recognizers = areas[0], _recognizers(areas)
    levels = set()
    for recognizer in recognizers:
        cell = (recognizer, *_place(first))
        same_cell = [r for r in differences if _cell(r) == cell]
        gains = [r for r in same_cell if r.family == "unoptimized"]
        area_of = {r.scorer: r.auc for r in areas if r.is_own_limit and _cell(r) == cell}
        levels |= {f"{100 * r.level:g} %" for r in gains if not math.isnan(r.low)}
        by_rule = {r.scorer for r in areas if r.variant == EDIFF}
        for labels, of_labels in (
            ("optimized labels", [r for r in gains if r.scorer_a not in by_rule]),
            ("labels by eDifFIQA's rule", [r for r in gains if r.scorer_a in by_rule]),
        ):
            if of_labels or (not gains and labels == "optimized labels"):
                yield _answer(labels, of_labels, f" under {recognizer}" if len(recognizers) > 1 else "")
                yield from _why_untold(of_labels)
            blocks = [(f"  {_gain(row, labels, area_of)}", *_further(row, same_cell, area_of)) for row in of_labels]
            for block in dict.fromkeys(blocks):  # a theta that is both given and chosen says the same twice
                yield from block
    rate = "" if first.fmr is None or math.isnan(first.fmr) else f"FMR {first.fmr:g}, "
    brackets = f"; in brackets a {levels.pop()} interval" if levels else ""
    yield (
        f"Areas under the error-versus-discard curve x 1000 on {first.benchmark} under {_listed(recognizers)}, lower "
        f"is better ({rate}convention {first.convention}){brackets}."
    )


def sign_lines(doubts: Mapping[str, str], areas: Sequence[AucRow]) -> Iterator[str]:
    """Yield a line per method whose scores may have the wrong sign, with its area beside that of random numbers.

    Args:
        doubts: what the similarities of the training pairs say against each method's sign; empty where they confirm it.
        areas: those of the benchmarks; the first benchmark, convention, rate and recogniser count.
    """
    cell = [r for r in areas if r.is_own_limit and _cell(r) == _cell(areas[0])]
    random = next((r for r in cell if r.scorer == RANDOM), None)
    for method, doubt in doubts.items():
        row = next((r for r in cell if r.scorer == method), None)
        beside = ""
        if row is not None and random is not None:
            areas_of_both = f"{1000 * row.auc:.1f}, that of random numbers {1000 * random.auc:.1f}"
            beside = f"on {row.benchmark} its area x 1000 is {areas_of_both}"
            if row.auc_low > random.auc and not doubt:  # NaN where there is no interval
                doubt = f"{method}: random numbers sort better: is a larger score better quality? Negate an uncertainty"
        if doubt:
            yield f"{doubt}; {beside}." if beside else f"{doubt}."


def other_results(areas: Sequence[AucRow]) -> str:
    """Return a sentence on the results that `answer_lines` does not tell, or an empty text."""
    n = len({_place(r) for r in areas}) - 1
    if n < 1:
        return ""
    return (
        f"The report also has {n} other combination{'s' if n > 1 else ''} of benchmark, convention and rate, which may say "
        "something else."
    )


def _listed(names: Sequence[str]) -> str:
    """Write names as "a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _recognizers(areas: Sequence[AucRow]) -> list[str]:
    """Return the recognisers that judge on the benchmark, by the convention and at the rate of the first area."""
    return list(dict.fromkeys(r.recognizer for r in areas if _place(r) == _place(areas[0])))


def _place(row: AucRow | DifferenceRow) -> tuple[str, str, str]:
    """Return benchmark, convention and rate; a rate that is NaN equals itself."""
    return row.benchmark, row.convention, f"{row.fmr}"


def _further(row: DifferenceRow, same_cell: Sequence[DifferenceRow], area_of: Mapping[str, float]) -> Iterator[str]:
    """Yield how the first scorer of a difference compares with its method, and with a regressor on eDifFIQA's labels."""
    for family, name in ((BASELINE, f"{row.method} itself"), (EDIFF, "the regressor on labels by eDifFIQA's rule")):
        against = next((r for r in same_cell if r.family == family and r.scorer_a == row.scorer_a), None)
        if against is not None:
            before = area_of.get(against.scorer_b, math.nan)
            yield f"    against {name}, {1000 * before:.1f}: {_change(against)}"


def _cell(row: AucRow | DifferenceRow) -> tuple[str, str, str, str]:
    """Return what areas must share to be compared."""
    return (row.recognizer, *_place(row))


def _is_clear(row: DifferenceRow) -> bool:
    return row.p_holm < 1 - row.level and (row.high < 0 or row.low > 0)


def why_untold(row: DifferenceRow) -> str:
    """Say why a difference cannot be clear whatever it is: it has no interval, or too few draws; empty if it can be."""
    if math.isnan(row.low) or math.isnan(row.high):
        return row.reason or "there is no interval"
    n, n_family, level = row.n_draws - row.n_undefined, max(row.n_family, 1), 1 - row.level
    if 2 * n_family >= level * (n + 1) - 1e-9:
        needed = math.ceil(2 * n_family / level - 1e-9)
        family = f"{n_family} comparison{'s' if n_family > 1 else ''}"
        return f"{n} draws cannot show p < {level:.2g} among {family}: set evaluate.draws to {needed} or more"
    return ""


def _answer(labels: str, gains: list[DifferenceRow], under: str) -> str:
    """Return the first sentence; `under` names the recogniser where there are several."""
    helps = dict.fromkeys(r.method for r in gains if _is_clear(r) and r.difference < 0)
    harms = dict.fromkeys(r.method for r in gains if _is_clear(r) and r.difference > 0)
    rest = [r for r in gains if r.method not in helps and r.method not in harms]
    moved = [r for r in rest if r.theta != 0]
    open_ = dict.fromkeys(r.method for r in moved if not why_untold(r))
    untold = dict.fromkeys(r.method for r in moved if r.method not in open_)
    same = {r.method for r in rest} - {r.method for r in moved}
    parts = [f"yes for {', '.join(helps)}"] if helps else []
    parts += [f"no clear difference for {', '.join(open_)}"] if open_ else []
    parts += [f"they harm {', '.join(harms)}"] if harms else []
    parts += [f"cannot be told for {', '.join(untold)}"] if untold else []
    parts += [f"nothing was optimized for {', '.join(sorted(same))} (theta is 0)"] if same else []
    answer = "; ".join(parts) or "nothing was compared"
    return f"Do {labels} help{under}? {answer[0].upper()}{answer[1:]}."


def _why_untold(gains: Sequence[DifferenceRow]) -> Iterator[str]:
    """Yield for which methods it cannot be told, and why: reasons that differ in a number alone once."""
    told = {r.method for r in gains if _is_clear(r) or not why_untold(r)}
    groups: dict[str, list[DifferenceRow]] = {}
    for row in gains:
        if row.method not in told and row.theta != 0:
            number, _, rest = why_untold(row).partition(" ")
            groups.setdefault(rest if number.isdecimal() else why_untold(row), []).append(row)
    for rows in groups.values():
        names = dict.fromkeys(r.method for r in rows)
        yield f"  cannot be told for {', '.join(names)}: {'; '.join(merged(why_untold(r) for r in rows))}"


def _gain(row: DifferenceRow, labels: str, area_of: Mapping[str, float]) -> str:
    """Return the areas of both regressors of a method, and their difference."""
    theta = "" if row.theta is None or math.isnan(row.theta) else f" (theta {row.theta:g})"
    after, before = area_of.get(row.scorer_a, math.nan), area_of.get(row.scorer_b, math.nan)
    if row.theta == 0:
        return f"{row.method}{theta}: the labels are its own scores; regressor on them {1000 * after:.1f}"
    areas = f"regressor on its scores {1000 * before:.1f}, on {labels} {1000 * after:.1f}"
    return f"{row.method}{theta}: {areas}: {_change(row)}"


def _change(row: DifferenceRow) -> str:
    """Return a difference, its interval, and what it means."""
    interval = "" if math.isnan(row.low) else f" [{1000 * row.low:+.1f}, {1000 * row.high:+.1f}]"
    if _is_clear(row):
        meaning = "a clear gain" if row.difference < 0 else "a clear loss"
    else:
        meaning = "cannot be told" if why_untold(row) else "no clear difference"
    return f"{1000 * row.difference:+.1f}{interval}, {meaning}"


def merged(reasons: Iterable[str]) -> list[str]:
    """Return every reason once; those that differ in the number that they begin with become one, with its range."""
    numbers: dict[str, list[int]] = {}
    for reason in reasons:
        number, _, rest = reason.partition(" ")
        if number.isdecimal():
            numbers.setdefault(rest, []).append(int(number))
        else:
            numbers.setdefault(reason, [])
    texts = []
    for rest, values in numbers.items():
        ends = dict.fromkeys(f"{value:,}" for value in (min(values), max(values))) if values else {}
        texts.append(" ".join(filter(None, [" to ".join(ends), rest])))
    return texts
