"""Measured observables as `hist` objects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import hist
import numpy as np

from calorefine.observables.histogram import Histogram
from calorefine.observables.observable import Observable
from calorefine.observables.quantiles import Quantile
from calorefine.stats import FloatArray

if TYPE_CHECKING:
    from calorefine.observables.measure import Entries


def histogram_of(observable: Observable, values: FloatArray, variances: FloatArray, entries: Entries) -> hist.Hist[Any]:
    """Fill a `hist` object.

    Args:
        observable: what was measured.
        values: (n_values,).
        variances: (n_values,).
        entries: what lies beyond the edges.

    Returns:
        Values and variances in a Weight storage; a second axis for several levels of a quantile.
    """
    axes: list[Any] = [hist.axis.Variable(observable.edges, label=observable.axis_label)]
    shape: tuple[int, ...] = (observable.n_bins,)
    if isinstance(observable, Quantile) and observable.n_values > observable.n_bins:
        axes.append(hist.axis.StrCategory([f"{level:g}" for level in observable.levels], label="level"))
        shape = (*shape, len(observable.levels))
    found: hist.Hist[Any] = hist.Hist(*axes, storage=hist.storage.Weight(), label=observable.value_label)
    view: Any = found.view()
    view["value"], view["variance"] = values.reshape(shape), variances.reshape(shape)
    if isinstance(observable, Histogram):
        flow: Any = found.view(flow=True)
        for k, (value, variance) in zip((0, -1), _flow(observable, entries), strict=True):
            flow["value"][k], flow["variance"][k] = value, variance
    return found


def _flow(observable: Histogram, entries: Entries) -> list[tuple[float, float]]:
    """Value and variance of what lies below and above the edges; of a share as in `Histogram.with_flow`."""
    parts = [entries.underflow, entries.overflow]
    if observable.normalize == "none":
        return [(part.sum_w, part.sum_w2) for part in parts]
    shares = np.array([part.sum_w for part in parts]) / entries.sum_w
    squares = np.array([part.sum_w2 for part in parts])
    variances = (squares * (1 - 2 * shares) + shares**2 * entries.sum_w2) / entries.sum_w**2
    return list(zip(shares.tolist(), variances.tolist(), strict=True))
