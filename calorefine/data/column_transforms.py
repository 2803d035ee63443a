"""The default preprocessing: invertible maps of columns, fitted with weights, then whitened.

Every column is mapped by a monotone piecewise linear function x(z) given by its values at K equidistant points z_k and
its slopes beyond the last of them.  A *quantile* column takes x(z_k) as the weighted quantile at the normal
distribution's level Phi(z_k), so that z is close to standard normal; a *standard* column takes mean + z * width, and is
exactly linear.  One form for both keeps the inverse, the part that runs for every generated event, to one gather.

Features are then whitened: the symmetric square root of their weighted covariance takes out linear correlations, so
that the network starts from a correlated normal distribution and the critic sees all directions at the same scale.
That is for scalars.  The cells of an array are each set to mean 0 and width 1, without a matrix of d x d.

A *bounded* quantile column approaches its bounds beyond the last points like an exponential, so that no generated value
lies outside.  An *atom*, a value with a probability of its own (an exact zero, a saturated value), takes an interval of
z, where its knots are equal; an *integer* column is spread by half a unit to either side and rounded on the way back.
Either makes x(z) constant on intervals of z; `dequantize` spreads events over them, `intervals` tells them, and the z
of an atom is the middle of its own.  A cell that is constant, a dead one, is an atom and nothing else.

Weights matter here: the quantiles of an impure mixture stretch the tails of the signal.  With signed weights the levels
are those of `calorefine.stats.quantile`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from calorefine import stats
from calorefine.data.knots import NO_MAPS, Z_MAX, Bounds, Maps, Transform, fit_maps
from calorefine.data.occupancy import Occupancy, Parts
from calorefine.data.piecewise import NormalWithin, Piecewise, UniformWithin
from calorefine.data.preprocessing import ALONE, Preprocessing
from calorefine.ddp import Ranks
from calorefine.events import Column, Columns, Events

Z_CLIP = 8.0
Z_LIMIT = 1000.0  # of `exact`: a value at a bound of its column is at infinity
MIN_VARIANCE = 0.01
CHUNK = 100_000
CHUNK_VALUES = 4_000_000
MOST_COLUMNS = 256
HALF_ULP = 2.0**-25  # relative; float32 can't tell values that near to a bound from it


class ColumnTransforms(Preprocessing):
    """Column-wise map between physical units and network units.

    Attributes:
        knots: (d, K) values of the columns at the points z_k, nondecreasing.
        slopes: (d, 2) slopes dx/dz below the first and above the last point, positive.
        mixing: (s + 1, s) symmetric square root of the covariance of z of the s scalars, and below it the mean of z:
            z = u mixing + mean for whitened u.
        bounds: (d, 2) lowest and highest possible value, infinite if there is none.
        integer: (d,) whether values are integers.
        normal_spread: that atoms and integers are spread as a normal law; absent in the first checkpoints (uniformly).
        scalars: (s,) numbers of the columns that are no cells of an array; where there is an array.
        scales: (2, d) mean and width of z of the cells, 0 and 1 for scalars; where there is an array.
    """

    knots: torch.Tensor
    slopes: torch.Tensor
    mixing: torch.Tensor
    bounds: torch.Tensor
    integer: torch.Tensor
    normal_spread: torch.Tensor
    scalars: torch.Tensor
    scales: torch.Tensor
    unmixing: torch.Tensor
    atom_ends: torch.Tensor
    mask_ends: torch.Tensor

    def restore(self, state: Mapping[str, torch.Tensor]) -> Self:
        """Store the map as buffers, which go to the checkpoint with the network.

        Raises:
            ValueError: their shapes don't fit together.
        """
        for name in ("bounds", "integer", "knots", "slopes", "mixing"):
            self.register_buffer(name, state[name].to(torch.bool if name == "integer" else torch.float32))
        n = len(self.knots)
        if {self.slopes.shape, self.bounds.shape} != {(n, 2)} or len(self.integer) != n:
            shapes = {name: tuple(state[name].shape) for name in ("bounds", "integer", "knots", "slopes")}
            raise ValueError(f"maps of shapes {shapes} found, expected (d, 2), (d,), (d, k) and (d, 2)")
        unmixing = torch.linalg.inv(state["mixing"][:-1].double()).to(torch.float32)
        self.register_buffer("unmixing", unmixing, persistent=False)
        self.has_arrays = "scalars" in state
        if self.has_arrays:
            self.register_buffer("scalars", state["scalars"])
            self.register_buffer("scales", state["scales"].to(torch.float32))
        if "normal_spread" in state:
            self.register_buffer("normal_spread", state["normal_spread"])
        self.spread_within = NormalWithin if "normal_spread" in state else UniformWithin
        atoms = torch.where(self.integer[:, None], 0.0, self.maps.atoms())
        self.register_buffer("atom_ends", atoms, persistent=False)
        self.register_buffer("mask_ends", torch.stack(Occupancy.of(atoms)), persistent=False)
        self.is_bounded, self.is_integer = bool(self.bounds.isfinite().any()), bool(self.integer.any())
        return self

    def fit(self, events: Events, columns: Columns) -> Self:
        """Fit a map for each feature, and the linear one that makes scalars uncorrelated; arguments as in the base."""
        return self.fit_described(events.x, events.weight, columns.feature_columns)

    def fit_described(self, values: NDArray[Any], weight: NDArray[np.float64], described: Mapping[str, Column]) -> Self:
        """Fit to values (n, d) of these columns, with weights (n,)."""
        given = described.values()
        kinds: list[Transform] = [column.transform for column in given]
        offsets = [column.offset or 0.0 for column in given]
        names = [f"{name} - {offset:.15g}" if offset else name for name, offset in zip(described, offsets, strict=True)]
        bounds: list[Bounds | None] = [
            column.bounds and (*(None if end is None else end - offset for end in column.bounds),)  # type: ignore[misc]
            for column, offset in zip(given, offsets, strict=True)
        ]
        sizes = [column.size for column in given]
        return self.fit_columns(values, weight, kinds, names, whiten=True, bounds=bounds, sizes=sizes)

    def fit_columns(
        self,
        values: NDArray[Any],
        weight: NDArray[np.float64],
        kinds: Sequence[Transform],
        names: Sequence[str],
        *,
        whiten: bool = False,
        bounds: Sequence[Bounds | None] | None = None,
        sizes: Sequence[int | None] | None = None,
    ) -> Self:
        """Fit one map for each column, and on request the linear map that makes them uncorrelated.

        Args:
            values: (n, d) finite values.
            weight: (n,) weights, any sign, positive sum.
            kinds: kind of map of each of k scalars and arrays.
            names: k names, for messages.
            whiten: remove the weighted correlations of the scalars, standardize the cells of arrays.
            bounds: k pairs of lowest and highest possible value, each or both None for no bound.
            sizes: k numbers of cells, None for a scalar.

        Raises:
            ValueRangeError: a scalar takes a single value, values lie outside the bounds, or are no integers where they
                should be.
            WeightError: the weights don't have a positive sum.
        """
        sizes, bounds = sizes or [None] * len(kinds), bounds or [None] * len(kinds)
        ends = np.cumsum([size or 1 for size in sizes], dtype=int)
        maps = [NO_MAPS]
        for kind, name, limits, size, end in zip(kinds, names, bounds, sizes, ends, strict=True):
            for block in _blocks(values[:, end - (size or 1) : end]):
                maps.append(fit_maps(block, weight, kind, limits, name, array=size is not None))
        joined = (np.concatenate(parts) for parts in zip(*maps, strict=True))
        state = {name: torch.from_numpy(part) for name, part in zip(Maps._fields, joined, strict=True)}
        cell = np.repeat([size is not None for size in sizes], [size or 1 for size in sizes])
        scalars = torch.from_numpy(np.flatnonzero(~cell.astype(bool)))
        state["normal_spread"] = torch.tensor(data=True)
        state["mixing"] = torch.eye(len(scalars) + 1, len(scalars))
        if cell.any():
            state |= {"scalars": scalars, "scales": torch.tensor([[0.0], [1.0]]).repeat(1, len(cell))}
        self.restore(state)
        return self.restore(state | self._whitening(values, weight)) if whiten else self

    def _whitening(self, values: NDArray[Any], weight: NDArray[np.float64]) -> dict[str, torch.Tensor]:
        """`mixing`, and with arrays `scales`, of values (n, d)."""
        scalars = self.scalars.numpy() if self.has_arrays else slice(None)
        centers, sums = [], np.zeros((3, self.n_columns))
        for rows in row_blocks(len(values), self.n_columns):
            ends = self.intervals(torch.from_numpy(values[rows])).clamp(-Z_CLIP, Z_CLIP)
            mean, variance = (moment.numpy() for moment in _moments_within(*ends))
            centers.append(mean[:, scalars])
            sums += np.stack([weight[rows] @ moment for moment in (mean, mean**2 + variance, variance)])
        mean, square, within = sums / stats.sum_w(weight)
        state = {"mixing": torch.from_numpy(_mixing(np.concatenate(centers), weight, within[scalars]))}
        if self.has_arrays:
            scales = np.stack([mean, np.sqrt(np.maximum(square - mean**2, MIN_VARIANCE))])
            scales[:, scalars] = [[0.0], [1.0]]
            state["scales"] = torch.from_numpy(scales)
        return state

    @property
    def atoms(self) -> list[torch.Tensor]:
        """Of each column the values (k,) that have an interval of z; none of an integer column."""
        repeated = self.atom_ends[1] > self.atom_ends[0]
        return [knots[mask].unique() for knots, mask in zip(self.knots, repeated, strict=True)]

    @property
    def discrete(self) -> torch.Tensor:
        """Whether each column (d,) has atoms or is integer."""
        return self.integer | (self.atom_ends[1] > self.atom_ends[0]).any(dim=1)

    @property
    def is_discrete(self) -> bool:
        """Whether any column has atoms or is integer."""
        return bool(self.discrete.any())

    @property
    def n_columns(self) -> int:
        """Number of columns d."""
        return len(self.knots)

    @property
    def maps(self) -> Piecewise:
        """The maps of the columns, before whitening."""
        return Piecewise(self.knots, self.slopes, self.bounds)

    def forward(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:  # noqa: ARG002
        """Map physical values (n, d) to network values (n, d), float32."""
        if self.n_columns == 0:
            return x.to(torch.float32)
        return self.whiten(self.to_normal(x).clamp(-Z_CLIP, Z_CLIP).float()).clamp(-Z_CLIP, Z_CLIP)

    def exact(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:  # noqa: ARG002
        """Network values (n, d) whose inverse is x (n, d), within the precision of float32 at the column's scale."""
        return self.whiten(self.to_normal(x).clamp(-Z_LIMIT, Z_LIMIT)).float()

    def to_normal(self, x: torch.Tensor) -> torch.Tensor:
        """Map physical values (n, d) to z (n, d), float64, before whitening and without a limit."""
        columns = x.T.contiguous().double()
        low, high = self.maps.at_atoms(columns, self.atom_ends.double())
        return torch.where(high > low, (low + high) / 2, self.maps.to_normal(columns)).T.contiguous()

    def whiten(self, z: torch.Tensor) -> torch.Tensor:
        """Take out mean and correlations: z (n, d) to network values (n, d)."""
        return self._whitened(z, lambda s: (s - self.mixing[-1].to(z.dtype)) @ self.unmixing.to(z.dtype))

    def _whitened(self, z: torch.Tensor, unmix: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Network values (n, d) of z (n, d), the scalars (n, s) by this function."""
        if not self.has_arrays:
            return unmix(z)
        mean, width = self.scales.to(z.dtype)
        scaled: torch.Tensor = (z - mean) / width
        return scaled.index_copy(1, self.scalars, unmix(z[:, self.scalars]))

    def unwhiten(self, u: torch.Tensor) -> torch.Tensor:
        """Put mean and correlations back in: network values (n, d) to z (n, d)."""
        if not self.has_arrays:
            return u @ self.mixing[:-1] + self.mixing[-1]
        mixed = u[:, self.scalars] @ self.mixing[:-1] + self.mixing[-1]
        return (u * self.scales[1] + self.scales[0]).index_copy(1, self.scalars, mixed)

    @property
    def log_whitening(self) -> torch.Tensor:
        """Log of the determinant () of `whiten`."""
        scalars: torch.Tensor = torch.linalg.slogdet(self.unmixing.double())[1]
        return scalars - self.scales[1].double().log().sum() if self.has_arrays else scalars

    @property
    def maskable(self) -> torch.Tensor:
        """Whether each column (d,) has an atom; not those of integers."""
        return Occupancy(*self.mask_ends).maskable

    def parts(self, u: torch.Tensor) -> Parts:
        """Values of the columns before whitening, on a normal scale without their largest atoms; see `occupancy`."""
        return Occupancy(*self.mask_ends.to(u.dtype)).parts(self.unwhiten(u))

    def joined(self, y: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
        """Network values (n, d) of such values and masks."""
        return self._solved(Occupancy(*self.mask_ends.to(y.dtype)).joined(y, masked))

    def with_discrete(self, u: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Network values u (n, d), with the discrete columns of another event (n, d)."""
        return self._solved(torch.where(self.discrete, self.unwhiten(other), self.unwhiten(u)))

    def _solved(self, z: torch.Tensor) -> torch.Tensor:
        """Whiten z (n, d) by `mixing`, which has the same bits after save and load: `unmixing` doesn't."""
        mixing = self.mixing.to(z.dtype)
        return self._whitened(z, lambda s: torch.linalg.solve(mixing[:-1], s - mixing[-1], left=False))

    def intervals(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:  # noqa: ARG002
        """Lower and upper end (2, n, d) of the z that are mapped to x (n, d), float64; equal where x is continuous.

        They are infinite for what is impossible: beyond a bound, or no integer in an integer column.
        """
        columns = self._off_bounds(x).T.contiguous()
        ends = self.maps.at_atoms(columns, self.atom_ends.double())
        ends = torch.where(ends[1] > ends[0], ends, self.maps.to_normal(columns))
        ends[:, self.integer] = self.maps.of(self.integer).unit_ends(columns[self.integer])
        return ends.mT.contiguous()

    def dequantize(
        self,
        u: torch.Tensor,
        noise: torch.Generator,
        context: torch.Tensor | None = None,  # noqa: ARG002
        ranks: Ranks = ALONE,
    ) -> torch.Tensor:
        """Spread network values (n, d) of atoms and integers over the z that belong to them, as a normal law would."""
        if not self.is_discrete:
            return u
        z = self.unwhiten(u)
        x, cell = self._look_up(z)
        knots, x = self.knots.flatten(), x.flatten()
        knot = torch.where(knots.index_select(0, cell) == x, cell, cell + 1)
        equal = knots.index_select(0, knot) == x
        ends = [
            torch.where(equal, end.flatten().index_select(0, knot), 0.0).view_as(z) for end in self.atom_ends.double()
        ]
        if self.is_integer:
            counts = x.view_as(z)[:, self.integer].T.contiguous().double()
            for end, values in zip(ends, self.maps.of(self.integer).unit_ends(counts), strict=True):
                end[:, self.integer] = values.T
        low, high = ends
        uniform = ranks.own(torch.rand(ranks.whole(low.shape), generator=noise, dtype=low.dtype, device=noise.device))
        spread = self.spread_within(low, high).at(uniform.to(low.device))
        return self.whiten(torch.where(high > low, spread.to(u.dtype), z)).clamp(-Z_CLIP, Z_CLIP)

    def log_slope(self, x: torch.Tensor, ends: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:  # noqa: ARG002
        """Log of dz/dx (n, d) at x (n, d) with these `intervals` (2, n, d), float64; 0 for atoms and integers."""
        slope = self.maps.slope(self._off_bounds(x).T.contiguous()).T
        return torch.where(ends[1] > ends[0], 0.0, -slope.log())

    def inverse(self, u: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:  # noqa: ARG002
        """Map network values (n, d) to physical values (n, d), float32."""
        if self.n_columns == 0:
            return u
        return self._look_up(self.unwhiten(u))[0]

    def _look_up(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Physical values (n, d) of z (n, d), and the number (n * d,) of the knot below each, of all columns' knots."""
        last = self.maps.last
        inside = z.clamp(-Z_MAX, Z_MAX)
        position = (inside + Z_MAX) * (last / (2 * Z_MAX))
        index = position.to(torch.int32).clamp(0, last - 1)  # NaN has some index, and stays NaN
        first = torch.arange(self.n_columns, dtype=torch.int32, device=z.device) * (last + 1)
        flat = (index + first).flatten()
        low = self.knots.flatten().index_select(0, flat).view_as(z)
        step = self.knots.diff(dim=1, append=self.knots[:, -1:]).flatten().index_select(0, flat).view_as(z)
        beyond = z - inside
        x = low + (position - index) * step + self._beyond(beyond)
        return (torch.where(self.integer, x.round() + 0.0, x) if self.is_integer else x), flat  # + 0: no negative zero

    def _beyond(self, beyond: torch.Tensor) -> torch.Tensor:
        """Distance (n, d) in x of points beyond the last knots by `beyond` in z: linear, or towards a bound."""
        distance = torch.where(beyond < 0, self.slopes[:, 0], self.slopes[:, 1]) * beyond
        if not self.is_bounded:
            return distance
        room = torch.where(beyond < 0, self.bounds[:, 0] - self.knots[:, 0], self.bounds[:, 1] - self.knots[:, -1])
        bends = room.isfinite() & (room != 0)
        length = torch.where(bends, room, 1.0)  # of the others a gradient would be NaN, although they aren't taken
        bent = length * -torch.expm1(-distance / length)
        return torch.where(bends, bent, torch.where(room == 0, 0.0, distance))

    def _off_bounds(self, x: torch.Tensor) -> torch.Tensor:
        """Values (n, d), float64: those at a bound, which is at infinite z, as far inside as float32 can't tell."""
        x = x.double()
        if not self.is_bounded:
            return x
        bounds = self.bounds.double().T
        room = (bounds - self.knots[:, [0, -1]].double().T).abs()
        open_end = room.isfinite() & (room > 0) & ~self.integer
        least = torch.where(open_end, HALF_ULP * torch.maximum(room, bounds.abs()), 0.0)
        inside = x.clamp(bounds[0] + least[0], bounds[1] - least[1])
        return torch.where((x < bounds[0]) | (x > bounds[1]), x, inside)


class Conditions(ColumnTransforms):
    """Map of the context, which is never inverted: an atom is at the upper end of its interval, not in its middle."""

    def fit(self, events: Events, columns: Columns) -> Self:
        """Fit a map for each numeric column of the context; categories, one-hot encoded, are left as they are."""
        kinds: list[Transform] = []
        names: list[str] = []
        for name, column in columns.context_columns.items():
            kinds += [column.transform] if column.categories is None else ["identity"] * len(column.categories)
            names += [name] * (len(kinds) - len(names))
        return self.fit_columns(events.context, events.weight, kinds, names)

    def to_normal(self, x: torch.Tensor) -> torch.Tensor:
        """Map physical values (n, d) to z (n, d), float64, before whitening and without a limit."""
        return self.maps.to_normal(x.T.contiguous().double()).T.contiguous()


def row_blocks(n: int, d: int) -> Iterator[slice]:
    """Rows of n, so many at a time that arrays of d columns stay small."""
    size = max(1, min(CHUNK, CHUNK_VALUES // max(d, 1)))
    return (slice(first, first + size) for first in range(0, n, size))


def _blocks(values: NDArray[Any]) -> Iterator[NDArray[np.float64]]:
    """Columns (m, n), float64, of values (n, d), so many at a time that they stay small."""
    size = max(1, min(MOST_COLUMNS, CHUNK_VALUES // max(len(values), 1)))
    for first in range(0, values.shape[1], size):
        yield np.ascontiguousarray(values[:, first : first + size].T, np.float64)


def _moments_within(low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of a standard normal number that is known to lie between these ends, float64."""
    share = (torch.special.ndtr(high) - torch.special.ndtr(low)).clamp_min(1e-300)
    density = [(-0.5 * end.square()).exp() / math.sqrt(2 * math.pi) for end in (low, high)]
    shift = (density[0] - density[1]) / share
    variance = 1 + (low * density[0] - high * density[1]) / share - shift.square()
    wide = high - low > 1e-6
    return torch.where(wide, shift, (low + high) / 2), torch.where(wide, variance.clamp(0, 1), 0.0)


def _mixing(z: NDArray[np.float64], weight: NDArray[np.float64], within: NDArray[np.float64]) -> NDArray[np.float64]:
    """Symmetric square root of the weighted covariance of z (n, d), and the mean below it: (d + 1, d).

    The variances within atoms (d,) are added.  With signed weights small eigenvalues can come out negative; all are at
    least 0.01, in units where the columns have width 1.
    """
    values, vectors = np.linalg.eigh(stats.covariance(z, weight) + np.diag(within))
    root = vectors @ np.diag(np.sqrt(np.maximum(values, MIN_VARIANCE))) @ vectors.T
    return np.concatenate([root, stats.mean(z, weight)[None]])
