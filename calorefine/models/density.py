"""Generators with a density: from that in network units to that of events, with atoms and integers."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar

import torch

from calorefine.data.piecewise import NormalWithin, UniformWithin
from calorefine.data.preprocessing import Preprocessing
from calorefine.errors import ConfigError
from calorefine.models.abilities import Likelihood
from calorefine.models.averaged import AveragedModel

MOST_DISCRETE = 10  # features of an event over which a lattice can integrate


class DensityModel(AveragedModel, Likelihood, recipe=False):
    """A generator that knows how probable an event is in network units."""

    lattice_points: ClassVar[int] = 256
    """Points over which the probability of atoms and integers is integrated."""

    @abstractmethod
    def network_log_prob(self, u: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Log density (..., n) at u (..., n, d) in network units given context (..., n, c), of what samples."""

    def log_prob(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        r"""Log density (n,) at x given context, in physical units, with every Jacobian.

        Atoms and integers have a probability, not a density: the integral over their intervals of z, by the mean over
        `lattice_points` points of a rank-1 lattice (a Kronecker sequence).

        Args:
            x: (n, d) events.
            context: (n, c) encoded conditions.

        Returns:
            (n,) float64: nats per event; -inf where x is impossible (outside of a bound, or no integer where it should
            be).

        Raises:
            ConfigError: an event has more than `MOST_DISCRETE` atoms and integers, as the empty cells of an array.
        """
        return self.log_prob_by(self.features, x, context, self.context(context))

    def log_prob_by(
        self, features: Preprocessing, x: torch.Tensor, context: torch.Tensor, c: torch.Tensor
    ) -> torch.Tensor:
        """As `log_prob`, with this map of x (n, k) at context (n, c) to network units; c is the context in these."""
        low, high = ends = features.intervals(x, context)
        discrete = (high > low).any(dim=1)
        if (most := int((high > low).sum(dim=1).max())) > MOST_DISCRETE:
            msg = f"log_prob: an event with {most} features that are atoms or integers found"
            raise ConfigError(f"{msg}, expected at most {MOST_DISCRETE}: beyond, their probability can't be integrated")
        log_density: torch.Tensor = low.new_full((len(x),), -torch.inf)
        possible = torch.isfinite(low).all(dim=1) & torch.isfinite(high).all(dim=1)
        for rows, points in (
            (~discrete, low.new_full((1, low.shape[1]), 0.5)),
            (discrete, self._lattice(low.shape[1]).to(low)),
        ):
            chosen = torch.nonzero(possible & rows)[:, 0]
            if len(chosen):
                within, where = features.spread_within(low[chosen], high[chosen]), c[chosen]
                terms = [self._term(features, within, point, where) for point in points]
                log_density[chosen] = torch.logsumexp(torch.stack(terms), dim=0) - math.log(len(points))
        slope = torch.where(possible, features.log_slope(x, ends, context).sum(dim=1), 0.0)
        return log_density + slope + features.log_whitening

    @property
    def unlikely(self) -> str | None:
        """A preprocessing whose slopes aren't known."""
        return self.features.no_slope

    def _term(
        self, features: Preprocessing, within: NormalWithin | UniformWithin, point: torch.Tensor, c: torch.Tensor
    ) -> torch.Tensor:
        """Log density (n,) at a point (d,) of the unit cube within intervals, over that with which it is drawn."""
        z = within.at(point)
        u = features.whiten(z).to(c.dtype)
        return self.network_log_prob(u, c).double() - within.log_density(z).sum(dim=1)

    def _lattice(self, d: int) -> torch.Tensor:
        """Points (`lattice_points`, d) that fill the unit cube evenly."""
        number = torch.arange(1, d + 1, dtype=torch.float64, device="cpu")
        steps = torch.exp(-number * math.log(_generalized_golden_ratio(d)))
        return (0.5 + torch.arange(self.lattice_points, dtype=torch.float64, device="cpu")[:, None] * steps) % 1


def _generalized_golden_ratio(d: int) -> float:
    """Root of x^(d+1) = x + 1: its inverse powers are good steps of a sequence in d dimensions (Roberts, 2018)."""
    x = 2.0
    for _ in range(64):
        x = (1 + x) ** (1 / (d + 1))
    return x


def standard_normal_log_prob(z: torch.Tensor) -> torch.Tensor:
    """Log density (n,) of independent standard normal numbers z (n, d)."""
    return -0.5 * (z.square() + math.log(2 * math.pi)).sum(dim=1)
