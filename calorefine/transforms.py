"""Invertible preprocessing of columns, fitted with weights, saved in the checkpoint.

Every column is mapped by a monotone piecewise linear function x(z) given by its values at K equidistant points z_k and
its slopes beyond the last of them.  A *quantile* column takes x(z_k) as the weighted quantile at the normal
distribution's level Phi(z_k), so that z is close to standard normal; a *standard* column takes mean + z * width, and is
exactly linear.  One form for both keeps the inverse, the part that runs for every generated event, to one gather.

Features are then whitened: the symmetric square root of their weighted covariance takes out linear correlations, so
that the network starts from a correlated normal distribution and the critic sees all directions at the same scale.

Weights matter here: the quantiles of an impure mixture stretch the tails of the signal.  With signed weights the levels
are those of `calorefine.stats.quantile`.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtr
from torch import nn

from calorefine import stats
from calorefine.errors import ValueRangeError

Kind = Literal["quantile", "standard", "identity"]
N_KNOTS = 121
Z_MAX = 3.0
Z_CLIP = 8.0
MIN_VARIANCE = 0.01
CHUNK = 100_000


class Preprocessing(nn.Module):
    """Column-wise map between physical units and network units.

    Args:
        knots: (d, K) values of the columns at the points z_k, nondecreasing.
        slopes: (d, 2) slopes dx/dz below the first and above the last point, positive.
        mixing: (d + 1, d) symmetric square root of the covariance of z, and below it the mean of z: z = u mixing + mean
            for whitened u.
    """

    knots: torch.Tensor
    slopes: torch.Tensor
    mixing: torch.Tensor
    unmixing: torch.Tensor

    def __init__(self, knots: torch.Tensor, slopes: torch.Tensor, mixing: torch.Tensor) -> None:
        """Store the map as buffers, which go to the checkpoint with the network."""
        super().__init__()
        self.register_buffer("knots", knots.to(torch.float32))
        self.register_buffer("slopes", slopes.to(torch.float32))
        self.register_buffer("mixing", mixing.to(torch.float32))
        self.register_buffer("unmixing", torch.linalg.inv(mixing[:-1].double()).to(torch.float32), persistent=False)

    @classmethod
    def fit(
        cls,
        values: NDArray[Any],
        weight: NDArray[np.float64],
        kinds: list[Kind],
        names: list[str],
        *,
        whiten: bool = False,
    ) -> Preprocessing:
        """Fit one map for each column, and on request the linear map that makes them uncorrelated.

        Args:
            values: (n, d) finite values.
            weight: (n,) weights, any sign, positive sum.
            kinds: d kinds of map.
            names: d names, for messages.
            whiten: remove the weighted correlations of the columns.

        Raises:
            ValueRangeError: a column takes a single value.
            WeightError: the weights don't have a positive sum.
        """
        knots = np.empty((len(kinds), N_KNOTS))
        slopes = np.empty((len(kinds), 2))
        for j, (kind, name) in enumerate(zip(kinds, names, strict=True)):
            knots[j], slopes[j] = _fit_column(np.asarray(values[:, j], np.float64), weight, kind, name)
        identity = torch.eye(len(kinds) + 1, len(kinds))
        mapped = cls(torch.from_numpy(knots), torch.from_numpy(slopes), identity)
        if not whiten:
            return mapped
        parts = np.array_split(values, 1 + len(values) // CHUNK)
        z = np.concatenate([mapped(torch.from_numpy(part)).numpy() for part in parts])
        return cls(torch.from_numpy(knots), torch.from_numpy(slopes), torch.from_numpy(_mixing(z, weight)))

    @property
    def n_columns(self) -> int:
        """Number of columns d."""
        return len(self.knots)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map physical values (n, d) to network values (n, d), float32."""
        if self.n_columns == 0:
            return x.to(torch.float32)
        z = torch.stack([self._to_network(x[:, j].contiguous(), j) for j in range(self.n_columns)], dim=1)
        return ((z - self.mixing[-1]) @ self.unmixing).clamp(-Z_CLIP, Z_CLIP)

    def inverse(self, z: torch.Tensor) -> torch.Tensor:
        """Map network values (n, d) to physical values (n, d), float32."""
        if self.n_columns == 0:
            return z
        z = z @ self.mixing[:-1] + self.mixing[-1]
        last = self.knots.shape[1] - 1
        inside = z.clamp(-Z_MAX, Z_MAX)
        position = (inside + Z_MAX) * (last / (2 * Z_MAX))
        index = position.to(torch.int32).clamp(max=last - 1)
        flat = (index + torch.arange(self.n_columns, dtype=torch.int32) * (last + 1)).flatten()
        low = self.knots.flatten().index_select(0, flat).view_as(z)
        step = self.knots.diff(dim=1, append=self.knots[:, -1:]).flatten().index_select(0, flat).view_as(z)
        beyond = z - inside
        return low + (position - index) * step + torch.where(beyond < 0, self.slopes[:, 0], self.slopes[:, 1]) * beyond

    def _to_network(self, x: torch.Tensor, j: int) -> torch.Tensor:
        knots, slopes = self.knots[j].double(), self.slopes[j].double()
        x = x.double()
        spacing = 2 * Z_MAX / (len(knots) - 1)
        index = torch.searchsorted(knots, x, right=True).clamp(1, len(knots) - 1) - 1
        low, step = knots[index], knots[index + 1] - knots[index]
        fraction = torch.where(step > 0, (x - low) / step.clamp_min(1e-300), 0.5)
        z = -Z_MAX + spacing * (index + fraction.clamp(0, 1))
        z = torch.where(x < knots[0], -Z_MAX + (x - knots[0]) / slopes[0], z)
        z = torch.where(x > knots[-1], Z_MAX + (x - knots[-1]) / slopes[1], z)
        return z.clamp(-Z_CLIP, Z_CLIP).float()


def _mixing(z: NDArray[np.float32], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """Symmetric square root of the weighted covariance of z (n, d), and the mean below it: (d + 1, d).

    With signed weights small eigenvalues can come out negative; all are at least 0.01, in units where the columns have
    width 1.
    """
    values, vectors = np.linalg.eigh(stats.covariance(z, weight))
    root = vectors @ np.diag(np.sqrt(np.maximum(values, MIN_VARIANCE))) @ vectors.T
    return np.concatenate([root, stats.mean(z, weight)[None]])


def _fit_column(
    values: NDArray[np.float64], weight: NDArray[np.float64], kind: Kind, name: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Knots (K,) and slopes (2,) of one column."""
    z = np.linspace(-Z_MAX, Z_MAX, N_KNOTS)
    if kind == "identity":
        return z, np.ones(2)
    if values.min() == values.max():
        raise ValueRangeError(f"column '{name}': all {len(values)} values are {values[0]:g}, expected it to vary")
    if kind == "standard":
        center = float(stats.mean(values, weight))
        width = np.sqrt(max(float(stats.covariance(values[:, None], weight)[0, 0]), 0.0)) or np.std(values)
        return center + width * z, np.full(2, width)
    knots = stats.quantile(values, weight, ndtr(z))
    outer = N_KNOTS // 6
    slopes = np.array([knots[outer] - knots[0], knots[-1] - knots[-1 - outer]]) / (z[outer] - z[0])
    return knots, np.maximum(slopes, 1e-3 * (knots[-1] - knots[0]) or np.ptp(values))
