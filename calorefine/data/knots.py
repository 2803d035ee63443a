"""Knots of columns: weighted quantiles with room for atoms, of several columns at a time.

The knots of a column are its values at `N_KNOTS` equidistant points z between -`Z_MAX` and `Z_MAX`.  Columns are rows
here, (m, n) for n events, so that each is contiguous.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression
from scipy.special import ndtr

from calorefine import stats
from calorefine.errors import ConfigError, ValueRangeError
from calorefine.stats import FloatArray, IntArray

Transform = Literal["quantile", "standard", "integer", "identity"]
Bounds = tuple[float | None, float | None]
N_KNOTS = 121
Z_MAX = 3.0
LEAST_ATOM = 0.005
LEAST_REPEATED = 2.5  # effective events: one that is in the sample twice is no atom
POINTS = np.linspace(-Z_MAX, Z_MAX, N_KNOTS)


class Maps(NamedTuple):
    """Monotone maps of m columns.

    Args:
        knots: (m, K) values at the points.
        slopes: (m, 2) slopes dx/dz below the first and above the last point, positive.
        bounds: (m, 2) lowest and highest possible value.
        integer: (m,) whether values are integers.
    """

    knots: FloatArray
    slopes: FloatArray
    bounds: FloatArray
    integer: NDArray[np.bool_]


NO_MAPS = Maps(np.empty((0, N_KNOTS)), np.empty((0, 2)), np.empty((0, 2)), np.empty(0, bool))


def fit_maps(
    columns: FloatArray, weight: FloatArray, kind: Transform, bounds: Bounds | None, name: str, *, array: bool = False
) -> Maps:
    """Fit the maps of columns of one kind.

    Args:
        columns: (m, n) finite values.
        weight: (n,) any sign, positive sum.
        kind: of the maps.
        bounds: lowest and highest possible value, None for no bound.
        name: for messages.
        array: the columns are cells of an array, some of which may be constant: they are always that.

    Raises:
        ValueRangeError: a column takes a single value, values lie outside the bounds, or are no integers where they
            should be.
        ConfigError: bounds of a kind that has none.
    """
    low, high = (np.nan if end is None else end for end in bounds or (None, None))
    limits = np.tile(np.where(np.isnan([low, high]), [-np.inf, np.inf], [low, high]), (len(columns), 1))
    _check(columns, kind, limits, name)
    integer = np.full(len(columns), kind == "integer")
    if kind == "identity":
        return Maps(np.tile(POINTS, (len(columns), 1)), np.ones((len(columns), 2)), limits, integer)
    lowest, highest = columns.min(axis=1), columns.max(axis=1)
    constant = lowest == highest
    if constant.any() and not array:
        msg = f"column '{name}': all {columns.shape[1]} values are {columns[0, 0]:g}, expected it to vary"
        raise ValueRangeError(msg)
    if kind == "standard":
        center, width = _moments(columns, weight)
        knots, slopes = center[:, None] + width[:, None] * POINTS, np.stack([width, width], axis=1)
    else:
        knots, slopes, limits = _fit_quantiles(columns, weight, limits, integer=kind == "integer")
    fixed = np.repeat(lowest[:, None], 2, axis=1)
    return Maps(
        np.where(constant[:, None], lowest[:, None], knots),
        np.where(constant[:, None], 1.0, slopes),
        np.where(constant[:, None], fixed, limits),
        integer & ~constant,
    )


def _check(columns: FloatArray, kind: Transform, limits: FloatArray, name: str) -> None:
    (low, high), n = limits[0], columns.size
    if outside := int(np.sum((columns < low) | (columns > high))):
        msg = f"{outside} of {n} values are outside [{low:g}, {high:g}], the bounds given"
        raise ValueRangeError(f"column '{name}': {msg}; found {columns.min():g} to {columns.max():g}")
    if np.isfinite(limits).any() and kind == "standard":
        raise ConfigError(f"column '{name}': bounds need the transform 'quantile' or 'integer', found 'standard'")
    if kind == "integer" and (broken := int(np.sum(columns != np.round(columns)))):
        raise ValueRangeError(f"column '{name}': {broken} of {n} values are no integers")


def _moments(columns: FloatArray, weight: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Weighted mean and width (m,) of each column; unweighted where the weights make a variance negative."""
    center = np.atleast_1d(stats.mean(columns.T, weight))
    centered = columns - center[:, None]
    square = np.matmul((centered * weight)[:, None, :], centered[:, :, None])[:, 0, 0] / stats.sum_w(weight)
    width = np.sqrt(np.maximum(square, 0.0))
    return center, np.where(width > 0, width, np.std(columns, axis=1))


def _fit_quantiles(
    columns: FloatArray, weight: FloatArray, limits: FloatArray, *, integer: bool
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Knots (m, K), slopes (m, 2) and bounds (m, 2): an atom at the end of the values (saturation) is a bound."""
    if integer:
        n = columns.shape[1]
        columns = columns + (np.random.default_rng(0).permutation(n) + 0.5) / n - 0.5
        limits = limits + np.array([-0.5, 0.5])
    distinct = Distinct.of(columns, weight)
    index = distinct.quantiles(ndtr(POINTS))
    knots = _set_apart(distinct.value[index], distinct.several[index], limits)
    _make_atoms(knots, distinct)
    outer, full = N_KNOTS // 6, knots[:, -1] - knots[:, 0]
    slopes = np.stack([knots[:, outer] - knots[:, 0], knots[:, -1] - knots[:, -1 - outer]], axis=1)
    least = np.where(full > 0, 1e-3 * full, np.ptp(columns, axis=1))
    if not integer:
        closed = np.stack([knots[:, 0] == knots[:, 1], knots[:, -1] == knots[:, -2]], axis=1)
        ends = np.stack([columns.min(axis=1), columns.max(axis=1)], axis=1)
        limits = np.where(closed & (knots[:, [0, -1]] == ends), ends, limits)
    return knots, np.maximum(slopes / (POINTS[outer] - POINTS[0]), least[:, None]), limits


@dataclass(frozen=True)
class Distinct:
    """The different values of m columns, ascending, one column after the other: U in all.

    Args:
        column: (U,) its number.
        value: (U,) the value.
        cumulative: (U,) share of the weights up to it, in its column.
        share: (U,) share of the weights at it.
        several: (U,) whether several events have it.  One with a large weight, or twice in the sample, is not several:
            the effective number of events decides, from absolute weights, so that signal and background that cancel
            count.
    """

    column: IntArray
    value: FloatArray
    cumulative: FloatArray
    share: FloatArray
    several: NDArray[np.bool_]

    @classmethod
    def of(cls, columns: FloatArray, weight: FloatArray) -> Distinct:
        """Find those of columns (m, n), of events whose weight (n,) is not 0."""
        total = stats.require_positive_sum(weight, "weighted quantile")
        columns, weight = columns[:, weight != 0], weight[weight != 0]
        order = np.argsort(columns, axis=1, kind="stable")
        ordered = np.take_along_axis(columns, order, axis=1)
        first = np.ones(columns.shape, bool)
        first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
        last = np.append(first.ravel()[1:], True).reshape(first.shape)
        group, weights = np.cumsum(first.ravel()) - 1, weight[order].ravel()
        sums, absolute, squares = (np.bincount(group, w) for w in (weights, np.abs(weights), weights**2))
        steps = np.zeros(columns.shape)
        steps[last] = sums
        cumulative = np.cumsum(steps, axis=1)[last] / total
        several = (sums > 0) & (absolute**2 > LEAST_REPEATED * squares)
        return cls(np.nonzero(first)[0], ordered[first], cumulative, sums / total, several)

    def quantiles(self, levels: FloatArray) -> IntArray:
        """Which of the values (m, k) are the quantiles at these levels (k,), as `stats.quantile` has them.

        The columns are laid end to end, so that one regression and one search serve all of them.
        """
        cumulative = self.cumulative
        if np.any((np.diff(cumulative) < 0) & (np.diff(self.column) == 0)):
            apart = (1.0 + np.ptp(cumulative)) * self.column
            cumulative = isotonic_regression(cumulative + apart).x - apart
        start = np.searchsorted(self.column, np.arange(self.column[-1] + 2))
        shift = 2.0 * np.arange(len(start) - 1)
        flat = np.clip(cumulative, 0, 1) + 2.0 * self.column
        index = np.searchsorted(flat, (levels - 1e-12) + shift[:, None])
        return np.minimum(index, start[1:, None] - 1)


def _set_apart(knots: FloatArray, several: NDArray[np.bool_], limits: FloatArray) -> FloatArray:
    """Set equal knots (m, K) apart, around the one event that they are at, unless several have its value: an atom.

    Beyond the outermost events they go on at the mean slope, at most half of the way to a bound.
    """
    z, end, number = POINTS, N_KNOTS - 1, np.arange(N_KNOTS)
    equal = np.diff(knots, axis=1) == 0
    edge = np.ones((len(knots), 1), bool)
    first = np.maximum.accumulate(np.where(np.hstack([edge, ~equal]), number, 0), axis=1)
    last = np.minimum.accumulate(np.where(np.hstack([~equal, edge]), number, end)[:, ::-1], axis=1)[:, ::-1]
    center = np.where(first == 0, last, np.where(last == end, first, -1))
    known = several | (last == first) | (number == center)
    left = np.maximum.accumulate(np.where(known, number, -1), axis=1)
    right = np.minimum.accumulate(np.where(known, number, end + 1)[:, ::-1], axis=1)[:, ::-1]
    at, to = np.clip(left, 0, end), np.clip(right, 0, end)
    value, after = (np.take_along_axis(knots, index, axis=1) for index in (at, to))
    between = (after - value) / np.where(to > at, z[to] - z[at], 1.0) * (z - z[at]) + value
    i, j = right[:, :1], left[:, -1:]  # the outermost that are known
    least, most = (np.take_along_axis(knots, index, axis=1) for index in (i, j))
    slope = (knots[:, -1:] - knots[:, :1]) / (z[-1] - z[0])
    below = np.minimum(slope, (least - limits[:, :1]) / np.where(i > 0, 2 * (z[i] - z[0]), 1.0))
    above = np.minimum(slope, (limits[:, 1:] - most) / np.where(j < end, 2 * (z[-1] - z[j]), 1.0))
    outer = np.where(number < i, least + below * (z - z[i]), most + above * (z - z[j]))
    return np.where(known, knots, np.where((number < i) | (number > j), outer, between))


def _make_atoms(knots: FloatArray, distinct: Distinct) -> None:
    """Give each value with a share of its own that no two knots are equal to the two that enclose it, in place."""
    atoms = distinct.several & (distinct.share > LEAST_ATOM)
    column, value = distinct.column[atoms], distinct.value[atoms]
    short = np.sum(knots[column] == value[:, None], axis=1) < 2
    touched = np.isin(column, column[short])
    for j, v in zip(column[touched], value[touched], strict=True):
        if np.sum(knots[j] == v) < 2:
            last = min(int(np.searchsorted(knots[j], v, side="right")), N_KNOTS - 1)
            knots[j, max(last - 1, 0) : max(last - 1, 0) + 2] = v
