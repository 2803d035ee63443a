r"""Where an event's weight comes from: a `WeightSource` is fitted to a table of events and gives a `WeightFit`.

All sources of this room give weights of one kind.  Something about an event, a spectator or the sample it is in, tells
the probability :math:`P_l` of each species l.  The weight of species l is

.. math:: w_l = N_l \sum_m (V^{-1})_{lm} P_m, \qquad V_{lm} = \sum_i n_i P_{il} P_{im}, \qquad
          N_l = \sum_i n_i P_{il} ,

with :math:`n_i = 1`, or the bootstrap count of event i.  With the species' densities :math:`g_l` of a spectator m,
:math:`P_l = N_l g_l(m) / f(m)` makes these the sWeights (`splot`); with fractions of labelled samples they are the
weights of `fractions`.  They sum to :math:`N_l` over the events and to 1 over the species, some are negative, and

.. math:: E[w_l | x, \mathrm{context}] = P(l | x, \mathrm{context}),

a number between 0 and 1 (`positive` estimates it), if x and context together are independent of the spectator or sample
within each species.

References: Pivk and Le Diberder, arXiv:physics/0402083; Dembinski, Kenzie, Langenbruch and Schmelling,
arXiv:2112.04574.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from calorefine import keys
from calorefine.errors import BranchError, ConfigError, ValueRangeError, nearest
from calorefine.events import Arrays
from calorefine.io.provenance import Configured
from calorefine.stats import FloatArray, IntArray

Dependence = Literal["error", "warn"]
EVENT = "\0event"
"""Name in a table of the events' keys (n,): what shares one, as candidates do, doesn't count as independent."""
SUM_RULE_WARNING = 5e-3
"""Relative deviation from what the weights should sum to, above which there is a warning."""


class WeightFit(ABC):
    """What a source found in a table: a weight function for each species."""

    target: str
    """Species whose weight is *the* weight."""

    @property
    @abstractmethod
    def species(self) -> tuple[str, ...]:
        """Names of the species."""

    @abstractmethod
    def weights(self, table: Arrays, species: str | None = None) -> FloatArray:
        """Weight (n,) of each event of the table, any sign; 0 for those outside of what was fitted.

        Args:
            table: name to (n,) values, with the names of `WeightSource.branches`.
            species: whose weight; the target's if left out.

        Raises:
            ConfigError: no such species.
        """

    @property
    def refits(self) -> list[str]:
        """Of a replica, what was done about fits that ran away, in plain words; empty if nothing."""
        return []

    @abstractmethod
    def summary(self) -> str:
        """Fixed-width tables for the terminal."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Results and checks as JSON types."""


class WeightSource(Configured, ABC):
    """Where an event's weight comes from."""

    target: str
    """Species whose weight is *the* weight."""

    @property
    @abstractmethod
    def branches(self) -> dict[str, str]:
        """Name in the table to the branch or expression that it is read from."""

    @abstractmethod
    def fit(
        self, table: Arrays, *, multiplicity: NDArray[Any] | None = None, near: WeightFit | None = None
    ) -> WeightFit:
        """Find the weight functions.

        Args:
            table: name to (n,) values, with the names of `branches`; and keys of the events under `EVENT`, if known.
            multiplicity: (n,) bootstrap counts: each event counts that often, as if repeated.  The weight functions
                do not include the count.
            near: an earlier result for almost the same events, from which a minimization may start.
        """

    def check(
        self, fit: WeightFit, table: Arrays, columns: Arrays, *, dependence: Dependence = "error", what: str = ""
    ) -> list[Any]:
        """Test what the weights assume about these columns, warn, and raise beyond doubt; nothing is tested by default.

        Args:
            fit: result of `fit` for the table, without bootstrap counts.
            table: what it was fitted to.
            columns: name to (n,) values of the features and the context.
            dependence: "warn" to go on beyond doubt, too.
            what: what is tested, to begin messages with.

        Returns:
            One record for each test.
        """
        del fit, table, columns, dependence, what
        return []

    def varied(self, replica: int, seed: int = 0) -> WeightSource:  # noqa: ARG002 (for subclasses)
        """Return the source with its own uncertain inputs drawn for this replica; itself if it has none."""
        return self

    def weights(self, table: Arrays, *, multiplicity: NDArray[Any] | None = None) -> FloatArray:
        """Fit, and return the target's weights (n,) for the same table; arguments as for `fit`."""
        return self.fit(table, multiplicity=multiplicity).weights(table)


def shared_keys(key: NDArray[Any] | None) -> IntArray | None:
    """Numbers (n,) from 0, equal for events of equal key; None if no two events share one, or no keys are known."""
    group = None if key is None else keys.group(key)
    return group if group is not None and group.max(initial=-1) + 1 < len(group) else None


def known_name(name: str, names: Collection[str], what: str) -> str:
    """Return the name, or raise `ConfigError`, which says `what` it should name, if it is not among `names`."""
    if name not in names:
        raise ConfigError(f"{what} '{name}' is not among {', '.join(names) or 'none'}{nearest(name, names)}")
    return name


def column_of(table: Arrays, name: str, what: str) -> FloatArray:
    """Return a column (n,) of the table, or raise `BranchError`, which says `what` it should be, if there is none."""
    if name not in table:
        raise BranchError(f"{what} '{name}' is not among {', '.join(table)}{nearest(name, table)}")
    return np.asarray(table[name], np.float64)


def checked_counts(multiplicity: NDArray[Any] | None, n_events: int) -> NDArray[np.int64]:
    """Bootstrap counts (n,), 1 where none are given.

    Raises:
        ValueRangeError: another number of them, or values that are no counts.
    """
    if multiplicity is None:
        return np.ones(n_events, np.int64)
    counts = np.asarray(multiplicity)
    if counts.shape != (n_events,):
        raise ValueRangeError(f"multiplicity has shape {counts.shape}, expected ({n_events},), one count per event")
    if not np.all((counts >= 0) & (counts == np.floor(counts))):
        problem = "values that are no counts (negative, fractional or NaN)"
        raise ValueRangeError(f"multiplicity holds {problem}, expected 0, 1, 2, ...")
    return counts.astype(np.int64)


def sum_rules(weight: FloatArray, n: FloatArray, yields: FloatArray) -> list[float]:
    """Relative deviations of the sums of the species' weights from their yields; the largest of an event's sum from 1.

    A yield below the root of the number of events counts as that.

    Args:
        weight: (L, R) weights of the species, any sign.
        n: (R,) how often each of them counts.
        yields: (L,) what they should sum to.
    """
    off = np.abs(weight @ n - yields) / np.maximum(np.abs(yields), np.sqrt(n.sum()))
    return [*off.tolist(), float(np.max(np.abs(weight.sum(axis=0) - 1), where=n > 0, initial=0.0))]


def check_lines(sum_rule: Mapping[str, float], n_effective: Mapping[str, float]) -> list[str]:
    """Lines for the terminal: deviations of the sum rules, and the effective number of events of each species."""
    sums = ", ".join(f"{name} {deviation:.1e}" for name, deviation in sum_rule.items())
    sizes = ", ".join(f"{name} {size:.0f}" for name, size in n_effective.items())
    return [f"sum rules, relative deviation: {sums}", f"effective number of events: {sizes}"]
