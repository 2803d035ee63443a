r"""Ratios of the conditional densities that two members of an ensemble give to an event: :math:`p_k(x|c) / p_0(x|c)`.

An event that the nominal generator drew at context c, weighted by the ratio, stands for one that member k would draw
there: the mean of any function of x at c with these weights is member k's, in expectation, and the mean weight is 1.

- *Likelihood*: a flow tells both densities, and the ratio is exact.  Nothing bounds it: where the nominal density is
  too low, few events stand for many, which the user's `max_ratio` limits (truncated importance sampling: a little bias
  for a finite variance).  What the nominal generator can't draw at all has no event to stand for it.
- *Moments*: both generators draw events at the same contexts, with the same noise.  The ratio is a linear `tilt` of the
  nominal events, which gives them the member's means of hat functions of the columns and of products of two: nothing
  is trained or shrunk.  How much of the members' shifts is recovered is measured in other events, and below 0.9 the
  weights are refused.

Reference: Ionides, J. Comput. Graph. Stat. 17 (2008) 295 (truncated importance sampling).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calorefine import keys
from calorefine.errors import ConfigError, FitError
from calorefine.events import Arrays, Columns
from calorefine.models.base import GenerativeModel
from calorefine.reweighting.slopes import N_BINS, bin_edges, indicators
from calorefine.reweighting.tilt import COPIES, LEAST_SLOPE, Terms, Tilt, Weighted, shift_coefficients
from calorefine.simulator import AnySimulator
from calorefine.stats import FloatArray


class Ratios(ABC):
    """Ratios of several members' densities to the nominal one's."""

    @abstractmethod
    def ratios(self, values: Arrays) -> FloatArray:
        """Ratios (n, K) without a limit.

        Args:
            values: arrays (n,) by name of feature and of context column.
        """


@dataclass(frozen=True)
class LikelihoodRatios(Ratios):
    """Exact ratios of flows.

    Args:
        nominal: the denominator.
        members: K numerators by name.

    Raises:
        ConfigError: a value is an atom for one of them and not for the nominal one.
    """

    nominal: AnySimulator
    members: Mapping[str, AnySimulator]

    def __post_init__(self) -> None:
        """Refuse a density over a probability, or the other way round."""
        for name, simulator in self.members.items():
            for model, member in zip(self.nominal.models.values(), simulator.models.values(), strict=True):
                self._require_same_atoms(model, member, name)

    def _require_same_atoms(self, nominal: GenerativeModel, member: GenerativeModel, name: str) -> None:
        columns = self.nominal.columns.feature_names
        for column, first, other in zip(columns, _atoms(nominal), _atoms(member), strict=True):
            if odd := first ^ other:
                where = f"nominal, and not in {name}" if min(odd) in first else f"{name}, and not in nominal"
                msg = f"feature '{column}': {min(odd):g} has a probability of its own in {where}, so that there is "
                raise ConfigError(f"{msg}no ratio of likelihoods; draw samples of the members (calorefine sample)")

    def ratios(self, values: Arrays) -> FloatArray:
        """Ratios (n, K): 0 for what is impossible for the member, NaN for what is so for the nominal one."""
        nominal = self.nominal.log_prob(values)
        others = np.stack([simulator.log_prob(values) for simulator in self.members.values()], axis=1)
        with np.errstate(over="ignore"):
            return np.exp(others - np.where(np.isfinite(nominal), nominal, np.nan)[:, None])


@dataclass(frozen=True)
class MomentRatios(Ratios):
    """Ratios that give nominal events the members' means.

    Args:
        columns: features and context.
        tilt: of K members.
        slope: part of the members' shifts that it recovers, measured in other events.
    """

    columns: Columns
    tilt: Tilt
    slope: float

    def ratios(self, values: Arrays) -> FloatArray:
        """Ratios (n, K); a few may be negative, their means are right."""
        context = self.columns.encode_context(values, strict=False)
        return 1 + self.tilt(np.concatenate([self.columns.encode_features(values), context], axis=1))


@dataclass(frozen=True)
class DrawConditions:
    """Conditions to draw the events at that a classifier learns from.

    Args:
        context: arrays (m,) by name of context column.
        key: (m,) uint64.
        copies: how many events to draw at each.
    """

    context: Arrays
    key: keys.KeyArray
    copies: int

    def draw(self, simulator: AnySimulator, *, seed: int, copy: int) -> NDArray[np.float32]:
        """Features and encoded context (m * copies, d + c) of events of a generator; others for another `copy`."""
        key = keys.stream(self.key, "replica_weights", seed=seed, copy=copy)
        drawn = simulator.sample(self.context, seed=seed, key=key, n_per_event=self.copies)
        repeated = {name: np.repeat(values, self.copies) for name, values in self.context.items()}
        context = simulator.columns.encode_context(repeated or drawn, strict=False)
        return np.concatenate([simulator.columns.encode_features(drawn), context], axis=1)


def learn(nominal: AnySimulator, members: Sequence[AnySimulator], at: DrawConditions, *, seed: int) -> MomentRatios:
    """Learn the ratios of members to the nominal generator from events drawn at the same conditions.

    Args:
        nominal: the denominator.
        members: K numerators.
        at: the conditions.
        seed: of the events; those that the slope is measured with are others.

    Raises:
        FitError: less than 0.9 of the members' shifts in bins of the features is recovered.
    """
    n_free = nominal.columns.n_features
    own, held_out = (at.draw(nominal, seed=seed, copy=k) for k in range(2))
    ones = np.ones(len(own))
    terms = Terms.chosen((own, ones), (own, ones), n_free, COPIES)
    drawn, edges = Weighted(terms, own, ones), [bin_edges(column, ones, N_BINS) for column in own[:, :n_free].T]

    def judged(table: NDArray[np.float32]) -> FloatArray:
        return np.concatenate([indicators(*pair) for pair in zip(table.T, edges, strict=False)], axis=1)

    means, shifts, again = [], [], []
    for member in members:
        other, others = (at.draw(member, seed=seed, copy=k) for k in range(2))
        means.append(Weighted(terms, other, ones).means() - drawn.means())
        shifts.append(judged(other).mean(axis=0) - judged(own).mean(axis=0))
        again.append(judged(others).mean(axis=0) - judged(held_out).mean(axis=0))
    coefficients = shift_coefficients(drawn.squares(), np.stack(means, axis=1), terms.given)
    recovered = coefficients.T @ drawn.products(judged(own))
    slope = float(np.sum(recovered * again) / np.sum(np.multiply(shifts, again)))
    if not slope >= LEAST_SLOPE:
        msg = f"replica weights: {slope:.2f} of the members' shifts in ten bins of the features is recovered, expected "
        msg += f"at least {LEAST_SLOPE}: their spread would be too small; draw a sample of each member instead "
        raise FitError(f"{msg}(calorefine sample), or give a larger n_train")
    return MomentRatios(nominal.columns, Tilt(terms, coefficients), slope)


def _atoms(model: GenerativeModel) -> list[set[float]]:
    """Values of each feature that have a probability of their own."""
    return [set(values.tolist()) for values in model.features.atoms]
