r"""Boosted trees of weighted events: scikit-learn's histogram gradient boosting, with the bins of a column by one sort.

The bins are cut at a column's weighted quantiles.  Sorted, with the weights cumulated to W(i), the quantile k of K is

.. math:: q_k = x_i \quad \text{for the first } i \text{ with } W(i) \ge \tfrac{k}{K} \sum w ,

and the mean of this and the next value where the two are equal.  scikit-learn sorts anew for each of its 254 quantiles,
which takes several times as long as all trees.  Sums and their order are the same here, so that bins, trees and
predictions are the same to the last bit.

Only the function that cuts one column is replaced, while trees are fitted, and only in a version of scikit-learn that
is seen to cut a difficult column in the same way (`same_bins`).  Any other version uses its own.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calorefine.stats import FloatArray

_MODULE, _FUNCTION = "sklearn.ensemble._hist_gradient_boosting.binning", "_find_binning_thresholds"
_ALMOST_INFINITE = 1e300  # of an edge: values beyond are in one bin with infinity


def fitted(model: Any, table: NDArray[np.floating], target: NDArray[Any], weight: FloatArray) -> Any:
    """Fit one of scikit-learn's histogram gradient boosting models to weighted events: the same trees, faster.

    Args:
        model: `HistGradientBoostingClassifier` or `HistGradientBoostingRegressor`.
        table: (n, d) columns; NaN is missing.
        target: (n,) classes or values.
        weight: (n,) not negative.

    Returns:
        The model.
    """
    with one_sort():
        return model.fit(table, target, sample_weight=weight)


@contextmanager
def one_sort() -> Iterator[None]:
    """Find the bins of weighted columns by one sort, in whatever is fitted within this context."""
    if not same_bins():
        yield
        return
    module, plain = importlib.import_module(_MODULE), scikit_learn_cut()
    setattr(module, _FUNCTION, thresholds)
    try:
        yield
    finally:
        setattr(module, _FUNCTION, plain)


def thresholds(col_data: FloatArray, max_bins: int, sample_weight: FloatArray | None = None) -> FloatArray:
    """Cut a column into bins; names and order of the arguments are scikit-learn's.

    Args:
        col_data: (n,) values; NaN is left out.
        max_bins: most bins.
        sample_weight: (n,) not negative; events of weight 0 are left out.

    Returns:
        Upper edges of all bins but the last, increasing; fewer where quantiles, or all values, are equal.
    """
    plain = scikit_learn_cut()
    if sample_weight is None or np.any(sample_weight < 0):
        return np.asarray(plain(col_data, max_bins, sample_weight))
    used = ~np.isnan(col_data) & (sample_weight != 0)
    values, weight = col_data[used], sample_weight[used]
    order = np.argsort(values)
    values, weight = values[order], weight[order]
    if np.count_nonzero(values[1:] != values[:-1]) < max_bins:  # a bin for each distinct value: no quantiles
        return np.asarray(plain(values, max_bins))
    levels = np.linspace(0, 100, num=max_bins + 1)[1:-1]
    return np.minimum(np.unique(_quantiles(values, weight, levels)), _ALMOST_INFINITE)


def _quantiles(values: FloatArray, weight: FloatArray, percent: FloatArray) -> FloatArray:
    """Weighted quantiles (k,) of sorted values (n,) with positive weights."""
    order = np.argsort(values)  # equal values may change places, as they do in scikit-learn's sums
    cumulated = np.cumsum(weight[order])
    wanted = percent / 100 * cumulated[-1]
    last = len(values) - 1
    index = np.minimum(np.searchsorted(cumulated, wanted), last)
    lower, upper = values[order[index]], values[order[np.minimum(index + 1, last)]]
    inside = cumulated[index] - wanted > np.finfo(np.float64).eps
    return np.asarray(np.where(inside, lower, (lower + upper) / 2))


@cache
def same_bins() -> bool:
    """Whether the installed scikit-learn cuts weighted columns, and as `thresholds` does, to the last bit."""
    plain = scikit_learn_cut()
    if plain is None or [*inspect.signature(plain).parameters] != ["col_data", "max_bins", "sample_weight"]:
        return False
    random = np.random.default_rng(0)
    column, weight = random.normal(size=400), 0.3 * random.integers(4, size=400).astype(np.float64)
    column[:150], column[150:160], column[160:180] = column[:150].round(1), np.nan, np.inf
    weight[200:] = random.gamma(1.0, size=200)
    return all(np.array_equal(thresholds(column, n, weight), plain(column, n, weight)) for n in (20, 40))


@cache
def scikit_learn_cut() -> Any:
    """scikit-learn's function that `thresholds` stands in for; None where there is none of this name."""
    try:
        module = importlib.import_module(_MODULE)
    except ImportError:
        return None
    return getattr(module, _FUNCTION, None)
