r"""Ratios of the conditional densities that two members of an ensemble give to an event: :math:`p_k(x|c) / p_0(x|c)`.

An event that the nominal generator drew at context c, weighted by the ratio, stands for one that member k would draw
there: the mean of any function of x at c with these weights is member k's, in expectation, and the mean weight is 1.

- *Likelihood*: a flow tells both densities, and the ratio is exact.  Nothing bounds it: where the nominal density is
  too low, few events stand for many, which the user's `max_ratio` limits (truncated importance sampling: a little bias
  for a finite variance).  What the nominal generator can't draw at all has no event to stand for it.
- *Classifier*: both generators draw events at the same contexts, and `fit_ratio` learns to tell them apart.  They are
  drawn anew, with noise of their own for each member: none of the events to be weighted was trained on, and the errors
  of two ratios are independent.  The ratio is divided by its mean at each context (`MeanWeight`), from a third sample.
  What the classifier can't see is missing from the spread of the weights, and its noise adds to it.

Reference: Ionides, J. Comput. Graph. Stat. 17 (2008) 295 (truncated importance sampling).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calorefine import keys
from calorefine.ensemble.members import Member
from calorefine.errors import ConfigError
from calorefine.events import Arrays, Columns
from calorefine.reweighting.mean_weight import MeanWeight
from calorefine.reweighting.ratio import Ratio, RatioEstimator, WeightedRows, fit_ratio
from calorefine.simulator import Simulator
from calorefine.stats import FloatArray


class Ratios(ABC):
    """Log ratios of several members' densities to the nominal one's."""

    @abstractmethod
    def log_ratios(self, values: Arrays) -> FloatArray:
        """Log ratios (n, K) without a limit.

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

    nominal: Simulator
    members: Mapping[str, Simulator]

    def __post_init__(self) -> None:
        """Refuse a density over a probability, or the other way round."""
        for name, simulator in self.members.items():
            pairs = zip(self.nominal.columns.feature_names, _atoms(self.nominal), _atoms(simulator), strict=True)
            for column, first, other in pairs:
                if odd := first ^ other:
                    where = f"nominal, and not in {name}" if min(odd) in first else f"{name}, and not in nominal"
                    msg = f"feature '{column}': {min(odd):g} has a probability of its own in {where}, so that there is "
                    raise ConfigError(f"{msg}no ratio of likelihoods; give an --estimator, which learns it")

    def log_ratios(self, values: Arrays) -> FloatArray:
        """Log ratios (n, K): -inf for what is impossible for the member, NaN for what is so for the nominal one."""
        nominal = self.nominal.log_prob(values)
        others = np.stack([simulator.log_prob(values) for simulator in self.members.values()], axis=1)
        return others - np.where(np.isfinite(nominal), nominal, np.nan)[:, None]


@dataclass(frozen=True)
class Learned:
    """One ratio learned from events of both generators, and its mean at each context."""

    ratio: Ratio
    mean: MeanWeight

    def __call__(self, table: NDArray[np.float32], context: NDArray[np.float32]) -> FloatArray:
        """Log ratios (n,) of rows (n, d + c) that were not trained on: the mean of all networks."""
        return self.ratio(table) - self.mean.log(context)


@dataclass(frozen=True)
class ClassifierRatios(Ratios):
    """Ratios learned from events of both generators.

    Args:
        columns: features and context.
        learned: K of them.
    """

    columns: Columns
    learned: list[Learned]

    def log_ratios(self, values: Arrays) -> FloatArray:
        """Log ratios (n, K)."""
        context = self.columns.encode_context(values, strict=False)
        table = np.concatenate([self.columns.encode_features(values), context], axis=1)
        return np.stack([learned(table, context) for learned in self.learned], axis=1)


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

    def draw(self, simulator: Simulator, key: keys.KeyArray, *, seed: int) -> WeightedRows:
        """Events (m * copies, d + c) of a generator with the noise of these keys (m,), and their event's keys."""
        drawn = simulator.sample(self.context, seed=seed, key=key, n_per_event=self.copies)
        repeated = {name: np.repeat(values, self.copies) for name, values in self.context.items()}
        x = simulator.columns.encode_features(drawn)
        context = simulator.columns.encode_context(repeated or drawn, strict=False)
        return WeightedRows(np.concatenate([x, context], axis=1), np.ones(len(x)), np.repeat(self.key, self.copies))


def learn(
    nominal: Simulator, other: Simulator, at: DrawConditions, estimator: RatioEstimator, *, member: Member, seed: int
) -> Learned:
    """Learn the ratio of two generators from events drawn at the same conditions.

    Args:
        nominal: the denominator.
        other: the numerator.
        at: the conditions.
        estimator: of the density ratio.
        member: who the numerator is; noise and training go by it.
        seed: of both.
    """
    seed = member.seed(seed)
    keyed = [keys.stream(at.key, "replica_weights", seed=seed, copy=copy) for copy in range(3)]
    drawn = [at.draw(model, key, seed=seed) for model, key in zip((nominal, other, nominal), keyed, strict=True)]
    ratio = fit_ratio(drawn[0], drawn[1], estimator, seed=seed % 2**31)
    context = drawn[2].values[:, nominal.columns.n_features :]
    return Learned(ratio, MeanWeight.fit(context, np.exp(ratio(drawn[2].values)), drawn[2].weight))


def _atoms(simulator: Simulator) -> list[set[float]]:
    """Values of each feature that have a probability of their own."""
    return [set(values.tolist()) for values in simulator.model.features.atoms]
