r"""Do more label samples than species agree with each other?  A chi2 for each column, without truth.

Sample k holds the shares :math:`p_{kq}` of its events in the bins q of a column, and :math:`p_{kq} = \sum_l F_{kl}
g_{lq}` with the same :math:`g_l` in all samples, if the fractions are right and the column is independent of the sample
within each species.  L distributions describe K > L samples: generalized least squares leave :math:`(K - L)(q - 1)`
degrees of freedom.  The shares' covariance is multinomial, by sums over events of equal key where there are any, plus
that of the errors of the fractions.  Bins of context are tested each by itself, and the statistics added up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from calorefine.events import Arrays
from calorefine.stats import FloatArray, IntArray
from calorefine.weights.bins import ContextBins
from calorefine.weights.column_bins import ColumnBins
from calorefine.weights.factorization import FactorizationResult, added, corrected
from calorefine.weights.linear_weights import ProbabilityRows, ratio
from calorefine.weights.source import EVENT, shared_keys

N_BINS, LEAST_EVENTS = 5, 50


class Fractions(Protocol):
    """Samples of known fractions: a `LabelFractions`."""

    samples: tuple[str, ...]
    bins: ContextBins
    values: FloatArray
    variances: FloatArray

    def rows(self, table: Arrays) -> ProbabilityRows:
        """Probabilities of the table's events."""


def consistency_test(
    source: Fractions, table: Arrays, columns: Mapping[str, NDArray[Any]]
) -> list[FactorizationResult]:
    """Test for each column whether the samples are mixtures of the same species; nothing for as many as species.

    Args:
        source: the fractions and their errors.
        table: what the weights are found from, with the events' keys under `EVENT`, if known.
        columns: name to (n,) values.
    """
    row = source.rows(table).of_event
    n_samples = len(source.samples)
    tests: dict[str, list[FactorizationResult]] = {}
    for number, label in enumerate(source.bins.labels):
        inside = (row >= 0) & (row // n_samples == number)
        sample = row[inside] % n_samples
        used = np.flatnonzero(np.bincount(sample, minlength=n_samples) >= LEAST_EVENTS)
        rank = np.linalg.matrix_rank(source.values[number][used]) if len(used) else 0
        if len(used) <= rank:
            continue
        group = shared_keys(table[EVENT][inside]) if EVENT in table else None
        for name, values in columns.items():
            bins = ColumnBins.of(np.asarray(values, np.float64)[inside], N_BINS)
            if len(bins) > 1:
                test = _test(name, source, number, used, sample, bins, group)
                tests.setdefault(name, []).append(replace(test, where=label if source.bins.edges else ""))
    return corrected([added(parts) for parts in tests.values()])


def _test(
    name: str,
    source: Fractions,
    number: int,
    used: IntArray,
    sample: IntArray,
    bins: ColumnBins,
    group: IntArray | None,
) -> FactorizationResult:
    """Chi2 of one column in one bin of context, for the samples that are used."""
    n_bins, fractions = len(bins), source.values[number][used]
    counts = np.bincount(sample * n_bins + bins.number, minlength=len(source.samples) * n_bins)
    counts = counts.reshape(-1, n_bins)[used].astype(np.float64)
    size = counts.sum(axis=1, keepdims=True)
    shares, free = counts / size, np.s_[:, :-1]
    design, guess = np.kron(fractions, np.eye(n_bins - 1)), (counts + 1) / (size + n_bins)
    for _ in range(3):
        species = np.linalg.lstsq(fractions, guess, rcond=None)[0]
        blocks = [np.diag(p) - np.outer(p, p) for p in guess]
        variance = linalg.block_diag(*(block[:-1, :-1] / n for block, n in zip(blocks, size[:, 0], strict=True)))
        variance += _within_keys(sample, used, bins.number, group, size, shares)
        variance += linalg.block_diag(*(_of_errors(a, species)[:-1, :-1] for a in source.variances[number][used]))
        inverse = linalg.pinvh(variance)
        found = linalg.pinvh(design.T @ inverse @ design) @ design.T @ inverse @ shares[free].ravel()
        rest = shares[free].ravel() - design @ found
        guess[free] = np.maximum((design @ found).reshape(len(used), -1), 0.1 / size)
        guess[:, -1] = np.maximum(1 - guess[free].sum(axis=1), 0.1 / size[:, 0])
    ndf = rest.size - int(np.linalg.matrix_rank(design))
    pulls = (rest / np.sqrt(np.diagonal(variance))).reshape(len(used), -1)
    named = {source.samples[k]: (*row, None) for k, row in zip(used, pulls.tolist(), strict=True)}
    cells = tuple(f"{name} in {label}" for label in bins.labels)
    return FactorizationResult.of(name, float(rest @ inverse @ rest), ndf, bins.edges, named, cells)


def _within_keys(
    sample: IntArray, used: IntArray, number: IntArray, group: IntArray | None, size: FloatArray, shares: FloatArray
) -> FloatArray | float:
    """What events of equal key add to the covariance of the shares (K (q - 1), K (q - 1))."""
    if group is None:
        return 0.0
    rows = np.flatnonzero(np.isin(sample, used) & (np.bincount(group)[group] > 1))
    place, event = np.searchsorted(used, sample[rows]), np.arange(len(rows))
    off = np.zeros((len(rows), *shares.shape))
    off[event, place] = -shares[place]
    off[event, place, number[rows]] += 1
    flat = (off / size)[:, :, :-1].reshape(len(rows), -1)
    sums = np.zeros((len(group), flat.shape[1]))
    np.add.at(sums, group[rows], flat)
    return np.asarray(sums.T @ sums - flat.T @ flat)


def _of_errors(variances: FloatArray, species: FloatArray) -> FloatArray:
    """Covariance (q, q) of a sample's shares from the errors of its fractions, whose sum has none."""
    centred = species - ratio(variances @ species, variances.sum(keepdims=True), empty=0.0)
    return np.asarray((centred * variances[:, None]).T @ centred)
