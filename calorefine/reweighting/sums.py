r"""Sums over weighed events, gathered chunk by chunk: what `--apply` and unweighting report.

Events outside of the reweighter's cut are none that it is about: they are counted, and belong to no sum.  Events at
contexts without a correction have factor 1 and belong to the sums of weights, not to the mean factor.

The *mean factor* of the conditional case is 1 at each context as far as it is known (`mean_weight`).  In a file it is

.. math:: m = \frac{\sum_i v_i f_i}{\sum_i v_i} , \qquad
          \sigma^2 = \frac{\sum_i v_i^2 (f_i - m)^2}{\left(\sum_i v_i\right)^2}

with the weights v before, summed over events of equal key, copies at the same conditions or candidates, before they are
squared.  What N(c) was learned from has an error of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calorefine import keys, stats
from calorefine.keys import KeyArray
from calorefine.reweighting.reweighted_files import Weighed
from calorefine.reweighting.reweighter import Reweighter
from calorefine.stats import FloatArray


@dataclass(frozen=True)
class MeanFactor:
    """Mean factor and its error, where: of all events (context None), or of those with this column in [low, high]."""

    mean: float
    error: float
    context: str | None = None
    low: float | None = None
    high: float | None = None

    @property
    def pull(self) -> float:
        """Difference from 1 in errors; 0 without an error."""
        return (self.mean - 1) / self.error if self.error > 0 else 0.0

    def __str__(self) -> str:
        """For the terminal."""
        found = f"{self.mean:.4f} +- {self.error:.4f}"
        return found if self.context is None else f"{found} at {self.context} in [{self.low:.4g}, {self.high:.4g}]"


class MeanFactors:
    """Mean factor of all events, and in bins of each context column around the knots of the mean weight.

    Args:
        reweighter: whose factors; without rounds or in the joint case there is only the mean of all events.
    """

    def __init__(self, reweighter: Reweighter) -> None:
        """Start with empty bins."""
        knots = reweighter.rounds[0].mean.knots if reweighter.rounds else []
        self.names = reweighter.columns.context_names
        self.edges = [(points[1:] + points[:-1]) / 2 for points in knots]
        self.ranges = [np.r_[points[0], middles, points[-1]] for points, middles in zip(knots, self.edges, strict=True)]
        self.sums = [stats.WeightSums(2, len(middles) + 1) for middles in self.edges]
        self.all = stats.WeightSums(2)

    def add(self, context: NDArray[np.float32], weight: FloatArray, factor: FloatArray, event_key: KeyArray) -> None:
        """Count events with context (n, c), weights (n,) before, factors (n,) and keys (n,)."""
        weights, group = np.stack([weight, weight * factor], axis=1), keys.group(event_key)
        self.all.add(weights, group=group)
        for column, edges, sums in zip(context.T, self.edges, self.sums, strict=False):
            sums.add(weights, cell=np.searchsorted(edges, column), group=group)

    def overall(self) -> MeanFactor | None:
        """Mean of all; None without a positive sum of weights."""
        return next((MeanFactor(mean, error) for _, mean, error in _means(self.all)), None)

    def worst(self) -> MeanFactor | None:
        """Bin whose mean is furthest from 1 in errors; None if there is none."""
        found = [
            MeanFactor(mean, error, name, float(limits[k]), float(limits[k + 1]))
            for name, sums, limits in zip(self.names, self.sums, self.ranges, strict=False)
            for k, mean, error in _means(sums)
        ]
        return max(found, key=lambda one: abs(one.pull), default=None)


def _means(sums: stats.WeightSums) -> list[tuple[int, float, float]]:
    """Number, mean factor and its error of each cell with a positive sum of weights."""
    mean, error = (numbers[:, 1] for numbers in sums.ratios())
    return [(k, float(mean[k]), float(error[k])) for k in np.flatnonzero(np.isfinite(mean)).tolist()]


@dataclass
class Totals:
    """Sums over weighed events; all but the first three are of those within the cut.

    Attributes:
        means: their mean factors.
        n: number of events.
        n_cut: of those outside of the cut, whose factor is 1.
        n_outside: of those within the cut at contexts without a correction, whose factor is 1.
        sums: of the weights, and of those of events of equal key squared.
        largest_weight: the largest absolute one.
        largest_factor: the largest one; 0 without events.
    """

    means: MeanFactors = field(repr=False)
    n: int = 0
    n_cut: int = 0
    n_outside: int = 0
    sums: stats.WeightSums = field(default_factory=lambda: stats.WeightSums(1), repr=False)
    largest_weight: float = 0.0
    largest_factor: float = 0.0

    def add(self, part: Weighed, weight: FloatArray) -> None:
        """Count these events with these weights (n,)."""
        inside = ~part.cut
        self.n += len(part)
        self.n_cut += int(np.sum(part.cut))
        self.n_outside += int(np.sum(part.outside))
        own, known = weight[inside], inside & ~part.outside
        self.sums.add(own[:, None], group=keys.group(part.chunk.event_key[inside]))
        self.largest_weight = max(self.largest_weight, float(np.abs(own).max(initial=0.0)))
        self.largest_factor = max(self.largest_factor, float(part.factor[inside].max(initial=0.0)))
        self.means.add(
            part.context[known[inside]], part.generated[known], part.factor[known], part.chunk.event_key[known]
        )

    @property
    def n_inside(self) -> int:
        """Number of events within the cut."""
        return self.n - self.n_cut

    @property
    def n_keys(self) -> int:
        """Number of events within the cut, those of equal key in a chunk counted as one."""
        return int(self.sums.n[0])

    @property
    def sum_w(self) -> float:
        """Sum of the weights."""
        return float(self.sums.sum_w[0, 0])

    @property
    def n_eff(self) -> float:
        """Effective number of events, those of equal key counted as one; 0 where all weights are 0."""
        return float(self.sums.n_eff[0, 0])

    def to_dict(self) -> dict[str, Any]:
        """For the provenance."""
        overall, worst = self.means.overall(), self.means.worst()
        numbers = {name: value for name, value in vars(self).items() if name not in ("means", "sums")}
        numbers |= {"sum_w": self.sum_w, "sum_w2": float(self.sums.sum_w2[0, 0])}
        means = {"mean_factor": overall and vars(overall), "worst_mean_factor": worst and vars(worst)}
        return {**numbers, "n_eff": self.n_eff, **means}

    def left_out(self, cut: str | None) -> list[str]:
        """Lines for the terminal: events without a correction."""
        lines = []
        if cut is not None:
            share = self.n_cut / max(self.n, 1)
            lines.append(f"outside of the cut '{cut}' (factor 1, in no sum): {self.n_cut} events, {share:.2%}")
        share = self.n_outside / max(self.n, 1)
        lines.append(f"outside the domain of the training context (factor 1): {self.n_outside} events, {share:.2%}")
        return lines

    def mean_factors(self) -> list[str]:
        """Lines for the terminal: the mean factor where there is a correction, and the context furthest from 1."""
        overall, worst = self.means.overall(), self.means.worst()
        lines = [f"mean factor {overall}"] if overall else []
        return lines + ([f"furthest from 1: {worst} ({worst.pull:+.1f} sigma)"] if worst else [])


class ReplicaTotals:
    """Sums over the weights of each of K replicas, of the events within the cut.

    Args:
        n: K.
    """

    def __init__(self, n: int) -> None:
        """Start at 0."""
        self.sums = stats.WeightSums(n)

    def add(self, part: Weighed, weight: FloatArray) -> None:
        """Count these events with these weights (n, K)."""
        self.sums.add(weight[~part.cut], group=keys.group(part.chunk.event_key[~part.cut]))

    @property
    def sum_w(self) -> FloatArray:
        """Sum of the weights (K,)."""
        return np.asarray(self.sums.sum_w[0])

    @property
    def n_eff(self) -> FloatArray:
        """Effective number of events (K,), those of equal key counted as one; 0 where all weights are 0."""
        return np.asarray(self.sums.n_eff[0])

    def lines(self, branch: str) -> list[str]:
        """For the terminal; none without replicas."""
        if len(self.sum_w) == 0:
            return []
        low, high = self.n_eff.min(), self.n_eff.max()
        sums = f"sums of weights {self.sum_w.min():.6g} to {self.sum_w.max():.6g}"
        return [f"{branch}: {len(self.sum_w)} replicas, {sums}, effective number of events {low:.1f} to {high:.1f}"]

    def to_dict(self) -> dict[str, Any]:
        """For the provenance."""
        return {"n": len(self.sum_w), "sum_w": self.sum_w.tolist(), "n_eff": self.n_eff.tolist()}
