r"""Quantiles and widths of a quantity in bins of a variable.

The weighted distribution function F of the quantity is known at the edges of fine sub-cells (`grid`) and linear
between.  Signed weights make it fall here and there; the nearest monotone function in the least squares sense over the
sub-cells with events takes its place (isotonic regression, as in `calorefine.stats.quantile`).  A quantile of level p
is the lowest q with F(q) = p; a width is half the distance of the two that hold the central part.

Their covariance is that of F, divided by the density (Woodruff),

.. math:: \operatorname{cov}(q_p, q_r) = \frac{1}{f(q_p) f(q_r)} \frac{\sum_i w_i^2 (1[v_i \le q_p] - p)
    (1[v_i \le q_r] - r)}{(\sum_i w_i)^2},

where 1 / f is the slope of the quantiles within two standard errors of p; the exact derivative of F inside one sub-cell
would be that of a handful of events.

References: Woodruff, J. Am. Stat. Assoc. 47 (1952) 635; Bahadur, Ann. Math. Stat. 37 (1966) 577.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calorefine.errors import ConfigError, ValueRangeError
from calorefine.io import reductions
from calorefine.observables.distribution import distribution, inverse, share_below, slope
from calorefine.observables.grid import N_CELLS, Grid
from calorefine.observables.observable import Observable, Regular
from calorefine.stats import FloatArray, IntArray

CENTRAL = 0.6826894921370859  # of a Gaussian within one standard deviation


class Quantile(Observable):
    """Weighted quantiles of a quantity in bins of a variable; the levels run fastest."""

    def __init__(
        self,
        of: str,
        expression: str,
        *,
        levels: list[float],
        bins: Regular | None = None,
        edges: list[float] | None = None,
        selection: str | None = None,
        range: tuple[float, float] | None = None,
        n_cells: int = N_CELLS,
        title: str | None = None,
        unit: str | None = None,
    ) -> None:
        """Check the options.

        Args:
            of: the quantity.
            expression: the variable.
            levels: between 0 and 1, increasing.
            bins: bins of equal width; or else
            edges: edges of the bins.
            selection: condition on events.
            range: lowest and highest value of the quantity, between which the sub-cells are of equal width; if left
                out, sub-cells are chosen by a look at the first events of each bin.
            n_cells: number of sub-cells of each bin, at least 2000.
            title: name of the variable in plots; the expression if left out.
            unit: its unit; taken from the suffix of a branch such as `p_gev` if left out.

        Raises:
            ConfigError: levels outside of 0 to 1, a reversed range, too few sub-cells, or as `Binning.of`.
        """
        super().__init__(expression, bins=bins, edges=edges, selection=selection, title=title, unit=unit)
        reductions.branches(of)
        self.of, self.levels, self.range, self.n_sub = of, np.asarray(levels, np.float64), range, n_cells + 2
        if not (len(levels) and np.all(np.diff([0.0, *levels, 1.0]) > 0)):
            raise ConfigError(f"{self}: levels {levels} found, expected increasing numbers between 0 and 1")
        if n_cells < N_CELLS // 2:
            raise ConfigError(f"{self}: n_cells {n_cells} found, expected at least {N_CELLS // 2}")
        if range and not range[0] < range[1]:
            raise ConfigError(f"{self}: range {list(range)} found, expected lowest < highest")
        self._grid = Grid.on_range(*range, n_bins=self.n_bins, n_cells=n_cells) if range else None

    @property
    def grid(self) -> Grid | None:
        """The sub-cells; None before they are chosen."""
        return self._grid

    def with_grid(self, grid: Grid) -> Quantile:
        """The same observable with sub-cells."""
        found = copy.copy(self)
        found._grid = grid
        return found

    @property
    def n_values(self) -> int:
        """Bins times levels."""
        return self.n_bins * len(self.levels)

    @property
    def value_label(self) -> str:
        """What the values are."""
        return f"quantiles of {self.of}"

    def labels(self) -> list[str]:
        """What each value is."""
        return [f"{one}, quantile {level:g}" for one in super().labels() for level in self.levels]

    def expressions(self) -> list[str]:
        """The variable and the quantity."""
        return [self.binning.expression, self.of]

    def fill(
        self,
        values: Sequence[FloatArray],
        conditions: Sequence[NDArray[np.bool_]],  # noqa: ARG002
    ) -> tuple[IntArray, list[FloatArray | None]]:
        """The bin and the sub-cell; see `Observable.fill`."""
        bins = self.binning.index(values[0])
        return bins * self.n_sub + self._known().index(bins, values[1]), [None]

    def totals(self, sums: FloatArray) -> FloatArray:
        """The sums of weights: (..., n_bins)."""
        return np.asarray(self._inside(sums).sum(axis=-1))

    def evaluate(self, sums: FloatArray) -> FloatArray:
        """Quantiles (..., n_values); see `Observable.values`.

        Raises:
            ValueRangeError: one lies beyond the sub-cells.
        """
        found = self._quantiles(sums)
        return found.reshape(*sums.shape[:-1], self.n_values)

    def covariance(self, sums: FloatArray, sums2: FloatArray) -> FloatArray:
        """Covariance (n_values, n_values), of one block for each bin; see `Observable.covariance`."""
        n = len(self.levels)
        blocks = self._blocks(sums, sums2)
        whole = np.zeros((self.n_bins, n, self.n_bins, n))
        whole[np.arange(self.n_bins), :, np.arange(self.n_bins), :] = blocks
        return whole.reshape(self.n_values, self.n_values)

    def off_grid(self, per_cell: NDArray[Any]) -> NDArray[Any]:
        """Sum what is known of each cell over those below and above the sub-cells: (n_bins,)."""
        return np.asarray(self._inside(per_cell)[:, [0, -1]].sum(axis=1))

    def options(self) -> dict[str, Any]:
        """Quantity, levels and sub-cells."""
        given = {"of": self.of, "n_cells": self.n_sub - 2, "range": list(self.range) if self.range else None}
        return given | {"levels": self.levels.tolist()}

    def _known(self) -> Grid:
        if self._grid is None:
            raise ConfigError(f"{self}: no sub-cells yet; give a range, or let `measure` choose them")
        return self._grid

    def _inside(self, sums: NDArray[Any]) -> NDArray[Any]:
        """Sums in sub-cells (..., n_bins, n_sub)."""
        return np.asarray(self._cells(sums)[..., 1:-1, :, 0])

    def _quantiles(self, sums: FloatArray) -> FloatArray:
        """Quantiles (..., n_bins, levels)."""
        edges = self._known().edges()[1:-1]
        inside = self._inside(sums)
        bins = []
        for k, label in enumerate(self.binning.labels()):
            function = distribution(inside[..., k, :])
            found = inverse(function, edges[k], self.levels)
            if len(beyond := np.argwhere(~np.isfinite(found))):
                msg = f"{self}: the quantile {self.levels[beyond[0][-1]]:g} of {label} lies beyond "
                raise ValueRangeError(f"{msg}[{edges[k][0]:g}, {edges[k][-1]:g}]; give a wider `range`")
            bins.append(found)
        return np.stack(bins, axis=-2)

    def _blocks(self, sums: FloatArray, sums2: FloatArray) -> FloatArray:
        """Covariances (n_bins, levels, levels) of each bin's quantiles."""
        edges = self._known().edges()[1:-1]
        found = []
        for k, (one, squares) in enumerate(zip(self._inside(sums), self._inside(sums2[:, 0, 0]), strict=True)):
            function = distribution(one)
            at = inverse(function, edges[k], self.levels)
            # share of each sub-cell that lies below the quantile, minus p
            moved = share_below(at, edges[k]) - self.levels[:, None]
            variance = (moved * squares) @ moved.T / one.sum() ** 2
            moving = slope(function, edges[k], self.levels, np.sqrt(np.diag(variance)))
            found.append(moving[:, None] * variance * moving)
        return np.array(found)


class Width(Quantile):
    """Half the distance between the quantiles that hold the central part of a quantity, in bins of a variable.

    For a Gaussian and 68.27 % it is the standard deviation.
    """

    def __init__(
        self,
        of: str,
        expression: str,
        *,
        bins: Regular | None = None,
        edges: list[float] | None = None,
        selection: str | None = None,
        central: float = CENTRAL,
        range: tuple[float, float] | None = None,
        n_cells: int = N_CELLS,
        title: str | None = None,
        unit: str | None = None,
    ) -> None:
        """Check the options.

        Args:
            of: the quantity.
            expression: the variable.
            bins: bins of equal width; or else
            edges: edges of the bins.
            selection: condition on events.
            central: share of the events between the two quantiles.
            range: as for `Quantile`.
            n_cells: as for `Quantile`.
            title: name of the variable in plots; the expression if left out.
            unit: its unit; taken from the suffix of a branch such as `p_gev` if left out.
        """
        super().__init__(
            of,
            expression,
            levels=[(1 - central) / 2, (1 + central) / 2],
            bins=bins,
            edges=edges,
            selection=selection,
            range=range,
            n_cells=n_cells,
            title=title,
            unit=unit,
        )
        self.central = central

    @property
    def n_values(self) -> int:
        """One for each bin."""
        return self.n_bins

    @property
    def value_label(self) -> str:
        """What the values are."""
        return f"{100 * self.central:.4g} % half-width of {self.of}"

    def labels(self) -> list[str]:
        """What each value is."""
        return self.binning.labels()

    def evaluate(self, sums: FloatArray) -> FloatArray:
        """Half-widths (..., n_bins); see `Observable.values`."""
        found = self._quantiles(sums)
        return (found[..., 1] - found[..., 0]) / 2

    def covariance(self, sums: FloatArray, sums2: FloatArray) -> FloatArray:
        """Covariance (n_bins, n_bins), diagonal; see `Observable.covariance`."""
        blocks = self._blocks(sums, sums2)
        return np.diag((blocks[:, 0, 0] - 2 * blocks[:, 0, 1] + blocks[:, 1, 1]) / 4)

    def options(self) -> dict[str, Any]:
        """Quantity, central part and sub-cells."""
        given = super().options()
        del given["levels"]
        return given | {"central": self.central}
