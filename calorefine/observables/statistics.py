r"""The sample's own statistics: the joint covariance of all values of all observables of the same events.

With the derivatives :math:`\partial y / \partial S` of all values with respect to all sums, an event has the influence
:math:`u_i = w_i \, a_i \, \partial y / \partial S` on them.  Rows of equal key g (copies of a condition, candidates of
an event) are not independent: their influences are summed before they are squared,

.. math:: V = \sum_g U_g U_g^T, \qquad U_g = \sum_{i \in g} u_i .

V is the covariance of y to first order for groups that are independent and whose number is Poisson distributed, for
weights of any sign; it correlates observables as the events that they share do.  To it comes what events that a bin
happens not to hold may do (`Observable.unseen`), so that no variance is 0 because a bin is empty.

How well a variance is known follows from the fourth moments: :math:`\sum U^2` has the variance :math:`\sum U^4`, so
that it is known as from

.. math:: \nu = 2 \, \Big(\sum_g U_g^2\Big)^2 \Big/ \sum_g U_g^4

degrees of freedom (Satterthwaite), 2n for n events of equal influence; the part of events that are not there is known.

The influences need the values, so the files are read twice.  Sums of a key whose rows lie in several chunks are held
until the end; so memory grows with the number of such keys (one for each chunk where copies follow one another, as
`calorefine sample` writes them), and by 8 bytes for each event that has a key.

References: Barlow, Statistics (1989), 4.3; Bohm and Zech, arXiv:1309.1287; Satterthwaite, doi:10.2307/3002019.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.linalg import block_diag

from calorefine.keys import KeyArray
from calorefine.observables.observable import Mask
from calorefine.observables.sums import Entries, ObservableSums
from calorefine.stats import FloatArray, row_sums

ROUNDING = 1e-9
DENSE = 0.1  # share of influences that are not 0 from which on a full matrix is faster


@dataclass(frozen=True)
class Statistics:
    """Of the nominal weight.

    Attributes:
        covariance: (n, n) of all values.
        dof: (n,) degrees of freedom of the variances.
        intervals: (2, n) ends of central 68.27 % intervals.
        unmoved: (n,) values that no event moves.
        entries: numbers of events by observable.
    """

    covariance: FloatArray
    dof: FloatArray
    intervals: FloatArray
    unmoved: Mask
    entries: dict[str, Entries]


class SpreadKeys:
    """Finds the keys whose rows are in more than one chunk."""

    def __init__(self) -> None:
        """Start with none."""
        self._seen: list[KeyArray] = []

    def add(self, key: KeyArray | None) -> None:
        """Look at the keys (n,) of a chunk."""
        if key is not None:
            self._seen.append(np.unique(key))

    def keys(self) -> KeyArray:
        """Those keys, sorted."""
        seen = np.sort(np.concatenate([*self._seen, np.empty(0, np.uint64)]))
        return np.unique(seen[1:][seen[1:] == seen[:-1]])


class Influences:
    """Sums of squares of the influences of all events on all values.

    Args:
        sums: of each observable, complete.
        spread: keys of rows in more than one chunk, sorted.
    """

    def __init__(self, sums: Sequence[ObservableSums], spread: KeyArray) -> None:
        """Start at 0."""
        self._sums, self._spread = sums, spread
        self._values = sparse.block_diag([part.jacobian() for part in sums], format="csr").T.tocsr()
        self._totals = sparse.block_diag([part.totals() for part in sums], format="csr").T.tocsr()
        n = self._values.shape[1]
        self._covariance, self._fourth = np.zeros((n, n)), np.zeros(n)
        self._squares, self._n = np.zeros(self._totals.shape[1]), np.zeros(self._totals.shape[1], np.int64)
        self._held: list[tuple[KeyArray, sparse.csr_array]] = []
        self._merged = 0

    def add(self, amounts: sparse.csr_array, weight: FloatArray, key: KeyArray | None) -> None:
        """Count events.

        Args:
            amounts: (n, sums) of all observables.
            weight: (n,) nominal.
            key: (n,) equal for correlated events; None if there are none.
        """
        weighted = (sparse.diags_array(weight) @ amounts).tocsr()
        weighted.eliminate_zeros()
        if key is None:
            self._square(weighted)
            return
        key, weighted = _by_key(key, weighted)
        spread = np.isin(key, self._spread)
        self._square(weighted[~spread])
        self._held.append((key[spread], weighted[spread]))
        if sum(len(held) for held, _ in self._held) > 2 * self._merged:
            self._merge()

    def result(self) -> Statistics:
        """What the events have shown."""
        for _, weighted in self._merge():
            self._square(weighted)
        variance, first, last = np.diag(self._covariance), 0, 0
        unseen: list[FloatArray] = []
        ends, entries = [], {}
        for part in self._sums:
            at, of_totals = slice(first, first + part.observable.n_values), slice(last, last + part.n_totals)
            first, last = at.stop, of_totals.stop
            values, bins = part.nominal, part.bins(self._n[of_totals], self._squares[of_totals])
            unseen.append(part.observable.unseen(part.sums[:, 0], part.squares, variance[at], bins))
            errors = np.sqrt(variance[at] + np.diag(unseen[-1]))
            ends.append(part.observable.interval(values, variance[at], errors, bins))
            entries[part.name] = part.entries(bins, self._squares[of_totals])
        covariance = self._covariance + block_diag(*unseen)
        known = np.full(len(variance), np.inf)
        dof = np.divide(2 * np.diag(covariance) ** 2, self._fourth, out=known, where=self._fourth > 0)
        unmoved = variance <= ROUNDING * np.diag(covariance)
        return Statistics(covariance, dof, np.concatenate(ends, axis=1), unmoved, entries)

    def _merge(self) -> list[tuple[KeyArray, sparse.csr_array]]:
        """Sum what is held of equal key."""
        if self._held:
            key, rows = zip(*self._held, strict=True)
            self._held = [_by_key(np.concatenate(key), sparse.vstack(rows, format="csr"))]
            self._merged = len(self._held[0][0])
        return self._held

    def _square(self, weighted: sparse.csr_array) -> None:
        """Add the squares of independent groups (g, sums)."""
        influence, totals = weighted @ self._values, weighted @ self._totals
        if influence.nnz > DENSE * np.prod(influence.shape):
            influence = influence.toarray()
            self._fourth += np.sum(influence**4, axis=0)
            self._covariance += influence.T @ influence
        else:
            self._fourth += influence.power(4).sum(axis=0)
            self._covariance += (influence.T @ influence).toarray()
        self._squares += totals.power(2).sum(axis=0)
        self._n += np.bincount(totals.indices, minlength=len(self._n))


def _by_key(key: KeyArray, rows: sparse.csr_array) -> tuple[KeyArray, sparse.csr_array]:
    """Distinct keys (g,), and sums (g, k) of the rows (n, k) of each."""
    distinct, group = np.unique(key, return_inverse=True)
    return distinct, row_sums(rows, group, len(distinct))
