"""The paper in arrays: pure numerics, without files and without Ray. Read `paper.py` first.

Section III, label optimization:
    paper.py          the whole of it on one page of plain numpy: the specification
    clustering.py     the images of an identity in clusters
    pairs.py          mated pairs across clusters, and their similarities (equation 1)
    ranking.py        similarity ranks of all pairs (id^Xs of equation 2)
    labels.py         indices, mean ranks (equation 2), the update (equation 3), labels; `optimize_labels` runs it all
Section IV, evaluation:
    verification.py   false match and false non-match rates
    conventions.py    what "area at an FMR" leaves open, by name
    orders.py         pairs by similarity and by quality
    levels.py         thresholds and errors at each discard level
    edc.py            the error-versus-discard curve
    floor.py          what random numbers are worth
    resampling.py     samples of a benchmark: pairs or persons
    bootstrap.py      areas over samples
    intervals.py      intervals of areas and of differences
    verdicts.py       which differences hold, which scorers lead
Beside the paper:
    align.py          a face to its 112x112 crop
    fusion.py         several quality scores to one
    kernels/          compiled loops and devices, each under its numpy equivalent
"""
