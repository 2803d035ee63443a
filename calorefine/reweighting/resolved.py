r"""How much of a calibration sample's statistics the weights of replicas carry to the observables of a sample.

Weights of replicas that are linear tilts (`tilt`) move a value y as far as their terms b resolve it.  Let
:math:`u_i = \partial y / \partial w_i` be the influence of event i, and P the projection on functions, within the
weighted sample: on all terms (b), or on those of the context alone (c).  Of a shift at given context the part

.. math:: s = \frac{|P_b u|^2 - |P_c u|^2}{|u|^2 - |P_c u|^2}, \qquad |u|^2 = \sum_i w_i u_i^2,

is recovered, the *slope*; the replicas' variance of y is too small by the same factor.  What is left,
:math:`u - P_b u`, is known to no better than its own statistics in the calibration sample, so that the covariance that
the replicas miss is :math:`\kappa \sum_i w_i (u - P_b u)_i (u - P_b u)_i^T`, with the :math:`\kappa` by which the
replicas' own covariance compares with that of :math:`(P_b - P_c) u`.

|u - P_b u|^2 is divided by 1 - p / n_eff for p terms, as in any linear regression.  Values that the context alone
decides don't move in replicas, and their slope is 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, sparse

from calorefine import stats
from calorefine.errors import FitError
from calorefine.events import Columns
from calorefine.io.chunks import CHUNK_ROWS
from calorefine.io.root import undamaged
from calorefine.io.sample import WeightedFiles
from calorefine.observables import Observable, Weights
from calorefine.observables.reading import chunks
from calorefine.observables.sums import ObservableSums
from calorefine.reweighting.reweighted_files import CUT, within_cut
from calorefine.reweighting.tilt import EPSILON, LEAST_SLOPE, Terms
from calorefine.stats import FloatArray

TERMS = "replica_terms"  # in the provenance: branch of weights to the terms of their tilts
TABLE_ROWS = 20_000  # whose terms are held at a time
FEWEST_PER_TERM = 5  # effective events, to tell what terms resolve
BY_CONTEXT = 0.1  # of |u|^2: what is left of a value that the context decides, since terms are no steps


def terms_record(columns: Columns, terms: Terms) -> dict[str, Any]:
    """What the provenance of a file says of weights that are tilts in these terms."""
    return {"columns": columns.to_dict(), "terms": terms.to_dict()}


@dataclass(frozen=True)
class Resolved:
    """What replicas hold of each value's statistics.

    Attributes:
        moved: (n,) squares of what the terms resolve at given context; 0 for values that the context decides.
        rest: (n, n) products of what they don't, likewise.
    """

    moved: FloatArray
    rest: FloatArray

    @property
    def slope(self) -> FloatArray:
        """Part (n,) of a shift that is recovered; 1 for values that the context decides."""
        every = self.moved + np.diag(self.rest)
        return np.divide(self.moved, every, out=np.ones(len(every)), where=every > 0)

    def slope_of(self, part: slice) -> float:
        """Recovered part of the shifts of all bins of an observable."""
        moved, rest = np.sum(self.moved[part]), np.sum(np.diag(self.rest)[part])
        return float(moved / (moved + rest)) if moved + rest > 0 else 1.0

    def missing(self, covariance: FloatArray) -> FloatArray:
        """Covariance (n, n) that replicas with this covariance lack."""
        known = self.moved > 0
        unit = np.median(np.diag(covariance)[known] / self.moved[known]) if known.any() else 0.0
        return unit * self.rest

    def require(self, parts: Mapping[str, slice], branch: str) -> None:
        """Refuse replicas that recover less than 0.9 of the shifts of all bins of an observable.

        Raises:
            FitError: with the observable, and what to do instead.
        """
        for name, part in parts.items():
            if not (slope := self.slope_of(part)) >= LEAST_SLOPE:
                msg = (
                    f"'{branch}': of a shift of '{name}' {slope:.2f} is recovered by these weights, expected at least "
                )
                msg += f"{LEAST_SLOPE}: the errors would be too small; take samples of the members of an ensemble "
                raise FitError(f"{msg}(calorefine ensemble) for this observable, or leave it out")


class _Moments:
    """Sums of products of terms (p,) and influences (n,) over the events that replicas move."""

    def __init__(self) -> None:
        """Start at 0."""
        self.squares = self.products = self.total = np.zeros(())
        self.weights = stats.WeightSums(1)

    def add(self, b: FloatArray, u: sparse.csr_array, weight: FloatArray) -> None:
        """Count events with terms (m, p), influences (m, n) and weights (m,)."""
        weighted = (sparse.diags_array(weight) @ u).T
        self.squares, self.products = self.squares + b.T @ (b * weight[:, None]), self.products + weighted @ b
        self.total = self.total + (weighted @ u).toarray()
        self.weights.add(weight[:, None])

    def resolved(self, given: NDArray[np.bool_]) -> Resolved:
        """What the terms resolve, those of the context alone told by a mask (p,)."""
        share = len(given) / float(self.weights.n_eff[0, 0])
        of_context = self.squares * np.outer(given, given)
        every, fixed = (
            self.products @ linalg.pinvh(matrix, rtol=EPSILON) @ self.products.T
            for matrix in (self.squares, of_context)
        )
        shifts, rest = np.diag(self.total - fixed), (self.total - every) / (1 - share)
        free = shifts > BY_CONTEXT * np.diag(self.total)
        return Resolved(np.where(free, np.maximum(shifts - np.diag(rest), 0), 0), rest * np.outer(free, free))


def resolved(sample: WeightedFiles, observables: Mapping[str, Observable], branch: str) -> Resolved | None:
    """Find out how much of the observables' statistics the weights of a branch can hold.

    Args:
        sample: the nominal sample with its weight.
        observables: with their sub-cells chosen.
        branch: array of the replicas' weights.

    Returns:
        None where the file's provenance doesn't say that the weights are tilts.

    Raises:
        FitError: too few events to tell.
    """
    record = sample.provenance.get(TERMS, {}).get(branch)
    if record is None:
        return None
    with undamaged(f"{sample.source}: provenance: {TERMS}"):
        columns, terms = Columns.from_dict(record["columns"]), Terms.from_dict(record["terms"])
    sums = [ObservableSums(name, observable, 1) for name, observable in observables.items()]
    texts = [text for observable in observables.values() for text in observable.texts()]
    for chunk in chunks(sample.source, [*texts, Weights(sample.weight).text], CHUNK_ROWS):
        weights = np.repeat(chunk.weights([Weights(sample.weight)]), 2, axis=1)
        for part in sums:
            part.add(chunk, weights, np.ones(chunk.n, bool), Counter())
    derivatives = sparse.block_diag([part.jacobian() for part in sums], format="csr").T.tocsr()
    moments = _Moments()
    for chunk, (weight, table) in zip(chunks(sample.source, texts, TABLE_ROWS), _tables(sample, columns), strict=True):
        u = sparse.hstack([part.amounts(chunk) for part in sums], format="csr") @ derivatives
        moments.add(terms(table), u, weight)
    n_eff, p = float(moments.weights.n_eff[0, 0]), len(terms.given)
    if n_eff < FEWEST_PER_TERM * p:
        msg = f"{sample}: an effective number of {n_eff:.0f} events found, expected at least {FEWEST_PER_TERM * p} to "
        raise FitError(f"{msg}tell what '{branch}' with its {p} functions resolves; generate more")
    return moments.resolved(terms.given)


def _tables(sample: WeightedFiles, columns: Columns) -> Iterator[tuple[FloatArray, NDArray[np.float32]]]:
    """Weights (n,), 0 for events that replicas don't move, and columns (n, d) of consecutive rows."""
    wanted = within_cut(columns, sample.texts(columns, "features", "context"))
    for chunk in sample.source.chunks(sample.request(columns, wanted, cut=None), rows=TABLE_ROWS):
        features, context = columns.encode_features(chunk.values), columns.encode_context(chunk.values, strict=False)
        weight = np.where(chunk.values.get(CUT, np.zeros(len(chunk))), 0, sample.weights(chunk))
        yield weight, np.concatenate([features, context], axis=1)
