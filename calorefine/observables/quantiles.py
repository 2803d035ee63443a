r"""Quantiles and widths of a quantity in bins of a variable.

The weighted distribution function F of the quantity is known at the edges of fine sub-cells (`grid`) and linear
between.  Signed weights make it fall here and there; the nearest monotone function in the least squares sense over the
sub-cells with events takes its place (isotonic regression, as in `calorefine.stats.quantile`).  A quantile of level p
is the lowest q with F(q) = p; a width is half the distance of the two that hold the central part.

Their covariance is that of F, divided by the density (Woodruff),

.. math:: \operatorname{cov}(q_p, q_r) = \frac{1}{f(q_p) f(q_r)} \frac{\sum_i w_i^2 (1[v_i \le q_p] - p)
    (1[v_i \le q_r] - r)}{(\sum_i w_i)^2},

where 1 / f is the slope of the quantiles within two standard errors of p; the exact derivative of F inside one sub-cell
would be that of a handful of events.  Events of equal key are summed before they are squared.  For the slope a bin has
`UNSEEN` more events of the mean weight, spread over the sub-cells as those of all bins are: where a bin holds a
single event the quantile's error is about the width of that distribution, and with many it makes no difference.

References: Woodruff, J. Am. Stat. Assoc. 47 (1952) 635; Bahadur, Ann. Math. Stat. 37 (1966) 577.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.linalg import block_diag

from calorefine.errors import ConfigError, ValueRangeError
from calorefine.intervals import UNSEEN
from calorefine.observables.distribution import distribution, inverse, share_below, slope
from calorefine.observables.grid import N_CELLS, Grid
from calorefine.observables.observable import BinStatistics, Mask, Observable
from calorefine.stats import FloatArray, IntArray

CENTRAL = 0.6826894921370859  # of a Gaussian within one standard deviation


@dataclass(eq=False, repr=False)
class Quantile(Observable):
    """Weighted quantiles of a quantity in bins of a variable; the levels run fastest.

    Args:
        of: the quantity.
        expression: the variable.
        levels: between 0 and 1, increasing.
        range: lowest and highest value of the quantity, between which the sub-cells are of equal width; if left
            out, sub-cells are chosen by a look at the first events of each bin.
        n_cells: number of sub-cells of each bin, at least 2000.

    Attributes:
        grid: the sub-cells; None before they are chosen.
        combination: (per_bin, levels) by which the values of a bin are made of its quantiles.

    Raises:
        ConfigError: levels outside of 0 to 1, a reversed range, too few sub-cells, or as `Observable`.
    """

    of: str
    expression: str
    _: KW_ONLY
    levels: list[float]
    range: tuple[float, float] | None = None
    n_cells: int = N_CELLS
    grid: Grid | None = field(init=False, default=None)
    combination: FloatArray = field(init=False)

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        if not (len(self.levels) and np.all(np.diff([0.0, *self.levels, 1.0]) > 0)):
            raise ConfigError(f"{self}: levels {self.levels} found, expected increasing numbers between 0 and 1")
        if self.n_cells < N_CELLS // 2:
            raise ConfigError(f"{self}: n_cells {self.n_cells} found, expected at least {N_CELLS // 2}")
        if self.range and not self.range[0] < self.range[1]:
            raise ConfigError(f"{self}: range {list(self.range)} found, expected lowest < highest")
        self.combination = np.eye(len(self.levels))
        self.n_sub, self.per_bin = self.n_cells + 2, len(self.levels)
        if self.range:
            self.grid = Grid.on_range(*self.range, n_bins=self.n_bins, n_cells=self.n_cells)

    def with_grid(self, grid: Grid) -> Quantile:
        """The same observable with sub-cells."""
        other = copy.copy(self)
        other.grid = grid
        return other

    @property
    def value_label(self) -> str:
        """What the values are."""
        return f"quantiles of {self.of}"

    def labels(self) -> list[str]:
        """What each value is."""
        return [f"{label}, quantile {level:g}" for label in self.bin_labels() for level in self.levels]

    def expressions(self) -> list[str]:
        """The variable and the quantity."""
        return [self.expression, self.of]

    def fill(self, values: Sequence[FloatArray], conditions: Sequence[Mask]) -> tuple[IntArray, list[FloatArray]]:  # noqa: ARG002
        """The bin and the sub-cell; see `Observable.fill`."""
        bins = self.bin_of(values[0])
        return bins * self.n_sub + self._chosen_grid().index(bins, values[1]), [np.ones(len(bins))]

    def totals(self, sums: FloatArray) -> FloatArray:
        """The sums of weights: (..., n_bins)."""
        return np.asarray(self._inside(sums)[..., 0].sum(axis=-1))

    def evaluate(self, sums: FloatArray) -> FloatArray:
        """Values (..., n_values); see `Observable.values`.

        Raises:
            ValueRangeError: a quantile lies beyond the sub-cells.
        """
        inside, bins = self._inside(sums)[..., 0], []
        for k, (label, edges) in enumerate(zip(self.bin_labels(), self._edges(), strict=True)):
            quantiles = inverse(distribution(inside[..., k, :]), edges, np.array(self.levels))
            if len(beyond := np.argwhere(~np.isfinite(quantiles))):
                msg = f"{self}: the quantile {self.levels[beyond[0][-1]]:g} of {label} lies beyond "
                raise ValueRangeError(f"{msg}[{edges[0]:g}, {edges[-1]:g}]; give a wider `range`")
            bins.append(quantiles @ self.combination.T)
        return np.concatenate(bins, axis=-1)

    def jacobian(self, sums: FloatArray, squares: FloatArray) -> sparse.csr_array:
        """Derivatives (n_values, cell_count), of one block for each bin; see `Observable.jacobian`."""
        blocks = [-slopes @ moved for slopes, moved in self._slopes(sums, squares)]
        beyond = sparse.csr_array((0, self.n_sub))
        return sparse.block_diag([beyond, *blocks, beyond], format="csr")

    def unseen(self, sums: FloatArray, squares: FloatArray, variance: FloatArray, bins: BinStatistics) -> FloatArray:  # noqa: ARG002
        """A few more events on either side of each quantile; see `Observable.unseen`."""
        levels = np.array(self.levels)
        spread = np.minimum.outer(levels, levels) - np.outer(levels, levels)
        slopes = [slopes for slopes, _ in self._slopes(sums, squares)]
        blocks = (more * own @ spread @ own.T for more, own in zip(bins.unseen[1:-1], slopes, strict=True))
        return np.asarray(block_diag(*blocks))

    def _slopes(self, sums: FloatArray, squares: FloatArray) -> Iterator[tuple[FloatArray, FloatArray]]:
        """Of each bin: changes of its values (per_bin, k) by an event below each quantile, shares below minus p."""
        levels, inside, squares = np.array(self.levels), self._inside(sums)[..., 0], self._inside(squares)[..., 0]
        unit = squares.sum() / inside.sum()
        more = inside.sum(axis=0) * (UNSEEN * unit / inside.sum())
        for own, square, edges in zip(inside, squares, self._edges(), strict=True):
            moved = share_below(inverse(distribution(own), edges, levels), edges) - levels[:, None]
            error = np.sqrt(moved**2 @ square + UNSEEN * unit**2 * levels * (1 - levels)) / own.sum()
            slopes = slope(distribution(own + more), edges, levels, error) / own.sum()
            yield self.combination * slopes, moved

    def off_grid(self, per_cell: NDArray[Any]) -> NDArray[Any]:
        """Sum what is known of each cell over those below and above the sub-cells: (n_bins,)."""
        return np.asarray(self._inside(per_cell)[:, [0, -1], 0].sum(axis=1))

    def _chosen_grid(self) -> Grid:
        if self.grid is None:
            raise ConfigError(f"{self}: no sub-cells yet; give a range, or let `measure` choose them")
        return self.grid

    def _edges(self) -> FloatArray:
        """Edges (n_bins, n_cells + 1) of the sub-cells."""
        return self._chosen_grid().edges()[1:-1]


@dataclass(eq=False, repr=False)
class Width(Quantile):
    """Half the distance between the quantiles that hold the central part of a quantity, in bins of a variable.

    For a Gaussian and 68.27 % it is the standard deviation.

    Args:
        of: the quantity.
        expression: the variable.
        central: share of the events between the two quantiles.
    """

    levels: list[float] = field(init=False)
    central: float = field(default=CENTRAL, kw_only=True)

    def __post_init__(self) -> None:
        """Check the options."""
        self.levels = [(1 - self.central) / 2, (1 + self.central) / 2]
        super().__post_init__()
        self.combination, self.per_bin = np.array([[-0.5, 0.5]]), 1

    @property
    def value_label(self) -> str:
        """What the values are."""
        return f"{100 * self.central:.4g} % half-width of {self.of}"

    def labels(self) -> list[str]:
        """What each value is."""
        return self.bin_labels()
