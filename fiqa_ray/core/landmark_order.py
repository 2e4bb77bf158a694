"""In which order a set's landmarks are given, judged by how well faces fit the template.

Detectors and data sets give the five points in different orders. A wrong order is seldom refused image by image: with
exchanged mouth corners a similarity transform still exists, and the crop is 5 to 7 px off. Over a set, the right order
shows: its median residual is 1 to 6 px, that of another order above 10 px, except for orders that look like a turned or
mirrored face. Those show by the roll that they give to upright faces.
"""

from __future__ import annotations

import cmath
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fiqa_ray.core.align import TEMPLATE, fit_residual

POINTS = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")
"""Names of the template's points; left is the side of smaller x in an upright image."""

USUAL: dict[str, tuple[int, ...]] = {
    "standard": (0, 1, 2, 3, 4),
    "both_exchanged": (1, 0, 2, 4, 3),
    "eyes_exchanged": (1, 0, 2, 3, 4),
    "mouth_exchanged": (0, 1, 2, 4, 3),
    "nose_first": (2, 0, 1, 3, 4),
    "nose_last": (0, 1, 3, 4, 2),
}
"""Orders with a name: which template point stands first, second and so on. Others are named by their points."""

MAX_SAMPLE = 2048
"""Rows of a set that are judged, evenly spaced."""
MIN_RESIDUAL_PX = 4.0
"""An order that fits at least this well is never refused for its residual."""
MAX_RATIO = 0.75
"""Another order fits clearly better if its residual is below this share of the given order's."""
MAX_RATIO_OF_ONE = 0.4
"""The same for a single image, whose landmarks are noisier than a set's median."""
MAX_ROLL_DEG = 60.0
"""Sets whose median roll exceeds this are refused if another order fits as well and leaves the faces upright."""
_ROLL_COST = 1 / 20
"""Px of residual that a degree of roll counts for when orders are compared: upright readings are more likely."""
_MAX_FRACTION = 1.5


@dataclass(frozen=True)
class LandmarkOrder:
    """How ten numbers give five points.

    Attributes:
        points: which template point (index into `POINTS`) stands at each of the five positions.
        planar: all coordinates of one axis come first (x1..x5, y1..y5), not pair by pair.
        y_first: y stands before x.
        fractions: coordinates are fractions of the image's width and height, not pixels.
    """

    points: tuple[int, ...] = USUAL["standard"]
    planar: bool = False
    y_first: bool = False
    fractions: bool = False

    @classmethod
    def parse(cls, name: str) -> LandmarkOrder:
        """Return the order of a name, such as `standard`, `planar+nose_first` or `nose-left_eye-right_eye-...`.

        Raises:
            ValueError: the text is no such name.
        """
        flags = {"planar": False, "y_first": False, "fractions": False}
        points: tuple[int, ...] | None = None
        for word in name.split("+"):
            if word in flags and not flags[word]:
                flags[word] = True
            elif points is None and word in USUAL:
                points = USUAL[word]
            elif points is None and sorted(word.split("-")) == sorted(POINTS):
                points = tuple(POINTS.index(point) for point in word.split("-"))
            else:
                raise ValueError(
                    f"{word!r} is no order of landmarks; use {', '.join(USUAL)}, or all five of {'-'.join(POINTS)} in "
                    "your order, with planar, y_first or fractions added by '+'"
                )
        return cls(points or USUAL["standard"], **flags)

    @property
    def name(self) -> str:
        """The order's name, which `parse` reads."""
        usual = next((name for name, points in USUAL.items() if points == self.points), None)
        words = [word for word in ("fractions", "planar", "y_first") if getattr(self, word)]
        if usual != "standard" or not words:
            words.append(usual or "-".join(POINTS[point] for point in self.points))
        return "+".join(words)

    def describe(self) -> str:
        """Return the order in words, such as `x1..x5, y1..y5 of left eye, right eye, nose, ...`."""
        axes = "yx" if self.y_first else "xy"
        form = ", ".join(f"{a}1..{a}5" for a in axes) if self.planar else f"{axes[0]}, {axes[1]}"
        points = ", ".join(POINTS[point].replace("_", " ") for point in self.points)
        return f"{form} of {points}" + (", as fractions of the image's size" if self.fractions else "")

    def arrange(self, values: ArrayLike) -> NDArray[np.float64]:
        """Return `(I, 10)` numbers in this order as `(I, 5, 2)` points in the template's order (fractions stay such)."""
        numbers = np.asarray(values, np.float64).reshape(-1, 10)
        points = numbers.reshape(-1, 2, 5).swapaxes(1, 2) if self.planar else numbers.reshape(-1, 5, 2)
        if self.y_first:
            points = points[:, :, ::-1]
        return points[:, np.argsort(self.points)]


@dataclass(frozen=True)
class OrderFit:
    """How well a set's landmarks fit the template in one order.

    Attributes:
        order: the order.
        residual_px: median over the images of the root-mean-square distance from the template, in px of the crop.
        roll_deg: median of the absolute roll, in degrees.
    """

    order: LandmarkOrder
    residual_px: float
    roll_deg: float

    @property
    def cost(self) -> float:
        """Residual in px, and the roll's share in it."""
        return self.residual_px + _ROLL_COST * self.roll_deg


def judge_order(values: ArrayLike, order: LandmarkOrder | None = None) -> tuple[OrderFit, OrderFit | None] | None:
    """Judge the order of a set's landmarks.

    Args:
        values: `(I, 10)` numbers as they are given.
        order: what the set is said to have; default: x, y of each point in the template's order.

    Returns:
        The fit of that order, and that of the best other order if it fits clearly better; None if no landmarks are usable.
    """
    numbers = _usable_sample(np.asarray(values, np.float64).reshape(-1, 10))
    if not len(numbers):
        return None
    fractions = bool(np.abs(numbers).max(axis=1).mean() <= _MAX_FRACTION)
    given = _fit(numbers, order or LandmarkOrder())
    best = min(_fit_all(numbers, fractions), key=lambda fit: fit.cost)
    if best.order == given.order:
        return given, None
    is_turned = (
        given.roll_deg > MAX_ROLL_DEG and best.roll_deg < MAX_ROLL_DEG and best.residual_px < given.residual_px + 2
    )
    is_wrong_unit = fractions != given.order.fractions
    is_refused = is_turned or is_wrong_unit or _is_better(best, given, MAX_RATIO)
    return given, best if is_refused else None


def better_order(points: ArrayLike) -> OrderFit | None:
    """Return the order in which one face's points fit far better than in the template's, or None.

    Args:
        points: `(5, 2)` in px, in what is said to be the template's order.
    """
    numbers = np.asarray(points, np.float64).reshape(10).tolist()
    given = _fit_one(numbers, LandmarkOrder())
    if given.residual_px < MIN_RESIDUAL_PX:
        return None
    best = min((_fit_one(numbers, other) for other in _USUAL_ORDERS), key=lambda fit: fit.cost)
    return best if _is_better(best, given, MAX_RATIO_OF_ONE) else None


def _fit_one(numbers: list[float], order: LandmarkOrder) -> OrderFit:
    """Return the fit of one face, as `_fit_all` does; for five points Python is faster than numpy."""
    at = _PLACES[order]
    z = [complex(numbers[x], numbers[y]) for x, y in at]
    mean = sum(z) / len(z)
    size = product = 0j
    for point, target in zip(z, _TARGETS, strict=True):
        centred = (point - mean).conjugate()
        size += abs(centred) ** 2
        product += target * centred
    if not 0 < size.real < math.inf:
        return OrderFit(order, math.inf, 0.0)
    left = max(_TARGETS_SIZE - abs(product) ** 2 / size.real, 0.0)
    return OrderFit(order, math.sqrt(left / len(z)), abs(math.degrees(cmath.phase(product))))


def _is_better(other: OrderFit, given: OrderFit, max_ratio: float) -> bool:
    return given.residual_px >= MIN_RESIDUAL_PX and other.residual_px < max_ratio * given.residual_px


def _usable_sample(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    numbers = numbers[np.isfinite(numbers).all(axis=1)]
    numbers = numbers[np.ptp(numbers, axis=1) > 0]
    return numbers[np.linspace(0, len(numbers) - 1, min(len(numbers), MAX_SAMPLE)).round().astype(np.int64)]


def _fit(numbers: NDArray[np.float64], order: LandmarkOrder) -> OrderFit:
    residual, roll = fit_residual(order.arrange(numbers))
    return OrderFit(order, float(np.median(residual)), float(np.median(np.abs(roll))))


_USUAL_ORDERS = (
    *(LandmarkOrder(points) for points in USUAL.values()),
    *(
        LandmarkOrder(planar=planar, y_first=y_first)
        for planar, y_first in ((True, False), (False, True), (True, True))
    ),
)


_PLACES = {order: order.arrange(np.arange(10))[0].astype(int).tolist() for order in (LandmarkOrder(), *_USUAL_ORDERS)}
"""Where the x and y of each of the template's points stand among the ten numbers of an order."""
_TARGETS = [complex(x, y) for x, y in (TEMPLATE - TEMPLATE.mean(axis=0)).tolist()]
_TARGETS_SIZE = sum(abs(target) ** 2 for target in _TARGETS)


_PERMUTATIONS = np.array(list(itertools.permutations(range(5))))


def _fit_all(numbers: NDArray[np.float64], fractions: bool) -> Iterator[OrderFit]:
    """Yield the fit of every order: each of 120 orders of points, pairwise or planar, x or y first.

    With centred points z and template w the residual's square is (sum |w|^2 - |sum w conj(z)|^2 / sum |z|^2) / 5, so one
    product of matrices gives the fits of all orders of points.
    """
    w = TEMPLATE[:, 0] + 1j * TEMPLATE[:, 1]
    w = w - w.mean()
    for planar, y_first in itertools.product((False, True), repeat=2):
        points = LandmarkOrder(planar=planar, y_first=y_first).arrange(numbers)
        z = points[..., 0] + 1j * points[..., 1]
        z = z - z.mean(axis=1, keepdims=True)
        size = np.maximum((np.abs(z) ** 2).sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
        product = z.conj() @ w[_PERMUTATIONS].T  # (I, 120)
        residual = np.sqrt(np.maximum((np.abs(w) ** 2).sum() - np.abs(product) ** 2 / size, 0) / 5)
        residual, roll = np.median(residual, axis=0), np.median(np.abs(np.degrees(np.angle(product))), axis=0)
        for order, r, turn in zip(_PERMUTATIONS.tolist(), residual.tolist(), roll.tolist(), strict=True):
            yield OrderFit(LandmarkOrder(tuple(order), planar, y_first, fractions), r, turn)
