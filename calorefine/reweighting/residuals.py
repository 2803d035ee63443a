r"""What a reweighting leaves: histograms of every column and every pair of columns, compared by their covariance.

Cells are the reference's quantiles.  With the shares :math:`p_b` of the generated and :math:`q_b` of the reference
weights in cell b, the covariance of :math:`d = p - q` is the sum over events of equal key of their influences

.. math:: u_b = \sum_{i \in \mathrm{gen}} \frac{w_i}{\sum w} (1[i \in b] - p_b)
              - \sum_{j \in \mathrm{ref}} \frac{w_j}{\sum w} (1[j \in b] - q_b) ,

squared: for weights of any sign, and for events that share their conditions.  Then
:math:`\chi^2 = d^T C^{-1} d` with one degree of freedom less than cells.  Cells of few events are put together.

Weights count as given: the noise of the training, which a perfect reweighting of a finite sample has as well, is left
out, so that a small p-value says that these samples can tell, not how much it matters.  For that see the difference,
half of the sum of \|d\|.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.stats import chi2 as chi2_distribution

from calorefine import keys, stats
from calorefine.events import Events
from calorefine.stats import FloatArray
from calorefine.validation.efficiencies import sidak

COLUMN_CELLS, PAIR_CELLS, FEWEST = 20, 5, 20
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Residual:
    """A column, or a pair of columns, before and after.

    Attributes:
        columns: one name or two.
        chi2_before: of the cells.
        chi2: after the reweighting.
        ndf: degrees of freedom.
        p_value: of `chi2`.
        p_corrected: probability of one as small among as many independent tests.
        difference_before: half of the sum of the cells' absolute differences; not 0 by accident alone.
        difference: after the reweighting.
    """

    columns: tuple[str, ...]
    chi2_before: float
    chi2: float
    ndf: int
    p_value: float
    p_corrected: float
    difference_before: float
    difference: float


def residuals(
    generated: Events, reference: Events, factors: FloatArray, names: list[str], *, conditional: bool
) -> list[Residual]:
    """Residuals of all columns and pairs, the least probable first.

    Args:
        generated: weights before.
        reference: weights of any sign.
        factors: (n,) of the reweighting.
        names: of features and context.
        conditional: leave out what concerns the context alone.
    """
    group = np.unique(np.concatenate([generated.event_key, reference.event_key]), return_inverse=True)[1]
    tables = [e.table for e in (generated, reference)]
    d, n_features = len(names), generated.x.shape[1]
    wanted = [*((j,) for j in range(d)), *combinations(range(d), 2)]
    found = []
    for columns in wanted:
        if conditional and min(columns) >= n_features:
            continue
        cells = _cells([table[:, columns] for table in tables], reference.weight)
        before = compare_cells(cells, (generated.weight, reference.weight), group)
        after = compare_cells(cells, (generated.weight * factors, reference.weight), group)
        if after[1] > 0:
            found.append((tuple(names[j] for j in columns), before, after))
    return _ranked(found)


Compared = tuple[float, int, float]


def _ranked(found: list[tuple[tuple[str, ...], Compared, Compared]]) -> list[Residual]:
    out = []
    for names, before, after in found:
        p = float(chi2_distribution.sf(after[0], after[1]))
        numbers = {"p_value": p, "p_corrected": sidak(p, len(found))}
        differences = {"difference_before": before[2], "difference": after[2]}
        out.append(Residual(names, before[0], after[0], after[1], **numbers, **differences))
    return sorted(out, key=lambda one: (one.p_value, -one.chi2 / one.ndf))


def _cells(values: list[NDArray[np.float32]], weight: FloatArray) -> tuple[IntArray, IntArray]:
    """Cell of each generated (n,) and reference event (m,); those of few events are one cell, the last."""
    k = values[0].shape[1]
    size = COLUMN_CELLS if k == 1 else PAIR_CELLS
    levels = np.arange(1, size) / size
    edges = [np.unique(stats.quantile(column, weight, levels)) for column in values[1].T]
    numbers = []
    for table in values:
        cell = np.zeros(len(table), np.int64)
        for column, points in zip(table.T, edges, strict=True):
            cell = cell * size + np.searchsorted(points, column)
        numbers.append(cell)
    counts = np.bincount(np.concatenate(numbers))
    label = np.where(counts < FEWEST, -1, np.cumsum(counts >= FEWEST) - 1)
    label[label < 0] = label.max() + 1
    return label[numbers[0]], label[numbers[1]]


def compare_cells(
    cells: tuple[IntArray, IntArray], weights: tuple[FloatArray, FloatArray], group: keys.KeyArray | IntArray
) -> Compared:
    """Compare the shares of two samples in their cells.

    Args:
        cells: (n,) and (m,) numbers from 0.
        weights: (n,) and (m,), any sign, positive sums.
        group: (n + m,) numbers from 0, equal for events that are correlated.

    Returns:
        chi2, its degrees of freedom, and half of the sum of absolute differences.
    """
    k = int(max(one.max() for one in cells)) + 1
    parts = np.concatenate([w / stats.require_positive_sum(w, "residuals") for w in weights])
    columns = np.concatenate([cells[0], k + cells[1]])
    matrix = sparse.csr_array((parts, (group, columns)), shape=(int(group.max()) + 1, 2 * k))
    shares = np.bincount(columns, parts, 2 * k).reshape(2, k)
    centered = [np.eye(k) - share[:, None] for share in shares]
    influence = np.concatenate([centered[0], -centered[1]], axis=1)
    covariance = influence @ (matrix.T @ matrix).toarray() @ influence.T
    difference = shares[0] - shares[1]
    values, vectors = np.linalg.eigh(covariance)
    kept = values > 1e-9 * values.max(initial=0.0)
    projected = vectors[:, kept].T @ difference
    chi2 = float(np.sum(projected**2 / values[kept]))
    return chi2, int(kept.sum()), float(0.5 * np.abs(difference).sum())
