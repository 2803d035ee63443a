"""Weighted distributions of samples laid over each other, feature by feature."""

from __future__ import annotations

from dataclasses import dataclass

import matplotlib as mpl
import mplhep
import numpy as np
from hist import Hist
from hist.axis import Regular
from hist.storage import Weight
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import sparse

from calorefine import stats
from calorefine.keys import KeyArray
from calorefine.stats import FloatArray

PANELS_PER_ROW = 4
STYLE = {
    **mplhep.style.ATLAS,
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "axes.labelsize": 10,
    "legend.fontsize": 9,
}


@dataclass(frozen=True)
class Sample:
    """What is drawn of one sample: columns (n,) by name, weights (n,) of any sign and event keys (n,)."""

    table: dict[str, FloatArray]
    weight: FloatArray
    event_key: KeyArray


def compare(names: list[str], generated: Sample, reference: Sample, *, bins: int = 40) -> Figure:
    """Draw all features, each with the ratio generated over reference below it.

    In the errors, the weights of equal event key in a bin are summed before squaring: copies of an event, and an event
    and its twin in the ratio, count as correlated.
    """
    columns = min(len(names), PANELS_PER_ROW)
    rows = -(-len(names) // columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.6 * columns, 3.9 * rows))
        grid = figure.add_gridspec(
            rows, columns, wspace=0.3, hspace=0.25, left=0.05, right=0.99, top=0.98, bottom=0.32 / (3.9 * rows) + 0.04
        )
        for number, name in enumerate(names):
            cell = grid[number // columns, number % columns].subgridspec(2, 1, height_ratios=[3, 1], hspace=0.08)
            (upper,), (lower,) = cell.subplots(sharex=True, squeeze=False)
            _panel(upper, lower, name, (generated, reference), bins)
        figure.axes[0].legend(frameon=False, loc="upper right")
        return figure


def _panel(upper: Axes, lower: Axes, name: str, samples: tuple[Sample, Sample], bins: int) -> None:
    axis = Regular(bins, *_range(samples[1].table[name], samples[1].weight), name=name)
    shares = _shares(axis, name, samples)
    made, target = (_histogram(axis, share) for share in shares)
    mplhep.histplot(target, ax=upper, histtype="errorbar", color="black", label="reference", markersize=3, flow="none")
    mplhep.histplot(made, ax=upper, histtype="step", color="tab:red", label="generated", flow="none")
    top = 1.3 * max(target.values().max(), made.values().max())
    upper.set(xlabel="", ylabel="events / bin", ylim=(min(0.0, 1.1 * target.values().min()), top))
    upper.tick_params(labelbottom=False)
    lower.ticklabel_format(axis="x", style="plain", useOffset=False)
    known = target.values() > 3 * np.sqrt(target.variances())
    ratio, error = np.full(bins, np.nan), np.full(bins, np.nan)
    ratio[known] = made.values()[known] / target.values()[known]
    difference = shares[0] - sparse.diags_array(np.nan_to_num(ratio)) @ shares[1]
    error[known] = np.sqrt(_squares(difference)[known]) / target.values()[known]
    lower.axhline(1, color="gray", linewidth=0.8)
    lower.errorbar(axis.centers, ratio, error, fmt=".", color="tab:red", markersize=3, linewidth=0.8)
    lower.set(
        xlabel=name, ylabel="gen. / ref.", ylim=(0.5, 1.5), yticks=[0.6, 1.0, 1.4], xlim=(axis.edges[0], axis.edges[-1])
    )


def _shares(axis: Regular, name: str, samples: tuple[Sample, Sample]) -> list[sparse.csr_array]:
    """Sum of weights (bins, events) of each event in each bin, normalized to the reference; the same events in both."""
    group = np.unique(np.concatenate([one.event_key for one in samples]), return_inverse=True)[1]
    groups = np.split(group, [len(samples[0].weight)])
    total = stats.sum_w(samples[1].weight)
    found = []
    for one, event in zip(samples, groups, strict=True):
        cell = np.searchsorted(axis.edges, one.table[name], side="right") - 1
        inside = (cell >= 0) & (cell < axis.size)
        weight = one.weight[inside] * (total / stats.sum_w(one.weight))
        entries = (weight, (cell[inside], event[inside]))
        found.append(sparse.coo_array(entries, shape=(axis.size, group.max() + 1)).tocsr())
    return found


def _histogram(axis: Regular, share: sparse.csr_array) -> Hist[Weight]:
    histogram = Hist(axis, storage=Weight())
    histogram[...] = np.stack([share.sum(axis=1), _squares(share)], axis=-1)
    return histogram


def _squares(share: sparse.csr_array) -> FloatArray:
    """Variance of each bin (bins,)."""
    return np.asarray(share.power(2).sum(axis=1))


def _range(values: NDArray[np.float64], weight: NDArray[np.float64]) -> tuple[float, float]:
    """Central 99.6 % of the reference and a margin."""
    low, high = stats.quantile(values, weight, [0.002, 0.998])
    margin = 0.05 * (high - low) or 0.5
    return float(low - margin), float(high + margin)
