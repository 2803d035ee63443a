"""The algebra of weights from probabilities: sums over the events of each bin, an inverse matrix, and its checks."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calorefine.errors import FitError, SumRuleWarning
from calorefine.stats import FloatArray
from calorefine.weights.source import SUM_RULE_WARNING, sum_rules

MAX_CONDITION = 1e4
"""Of V with its diagonal scaled to 1.

Two species reach it when their yields have a correlation of -0.9998.  Then 10^6 events are equivalent to less than 400,
and fractions that are wrong by 0.01 hide all difference between the species.
"""


@dataclass(frozen=True)
class ProbabilityRows:
    """Probabilities (R, L) of the species, one row for all events that share them.

    `of_event` (n,) is each event's row, -1 outside of the bins; `cell` (R,) is bin times K plus sample.
    """

    of_event: NDArray[np.int64]
    cell: NDArray[np.int64]
    bin: NDArray[np.int64]
    probability: FloatArray


def moments(rows: ProbabilityRows, n: FloatArray, n_bins: int) -> tuple[FloatArray, FloatArray]:
    """Yields N (B, L) and matrix V (B, L, L) of each bin, for rows that hold n (R,) events."""
    weighted = n[:, None] * rows.probability
    yields, overlap = np.zeros((n_bins, weighted.shape[1])), np.zeros((n_bins, *[weighted.shape[1]] * 2))
    np.add.at(yields, rows.bin, weighted)
    np.add.at(overlap, rows.bin, weighted[:, :, None] * rows.probability[:, None, :])
    return yields, overlap


def inverse_of(
    overlap: FloatArray, species: Sequence[str], place: Callable[[int], str]
) -> tuple[FloatArray, FloatArray]:
    """Inverse of V (B, L, L), and the condition number (B,) of V scaled; 0 and NaN for V = 0."""
    diagonal = diagonal_of(overlap)
    filled: NDArray[np.bool_] = np.any(diagonal != 0, axis=1)
    scale = np.sqrt(np.where(filled[:, None], diagonal, 1.0))
    for number, index in np.argwhere(scale == 0):
        problem = f"species '{species[index]}' has fraction 0 in each sample with events in {place(number)}"
        raise FitError(f"label weights: {problem}, expected some; leave the species out, or use wider bins")
    product = scale[:, :, None] * scale[:, None, :]
    cosine = np.where(filled[:, None, None], overlap / product, np.eye(len(species)))
    level = np.linalg.eigvalsh(cosine)
    condition: FloatArray = level[:, -1] / np.maximum(level[:, 0], np.finfo(float).eps)
    worst = int(np.argmax(condition))
    if condition[worst] > MAX_CONDITION:
        raise FitError(_alike(cosine[worst], species, f"{place(worst)}: condition number {condition[worst]:.2g}"))
    inverse: FloatArray = np.linalg.inv(cosine) / product
    inverse[~filled], condition[~filled] = 0.0, np.nan
    return inverse, condition


def _alike(cosine: FloatArray, species: Sequence[str], where: str) -> str:
    pairs = np.abs(np.tril(cosine, -1))
    first, second = sorted(divmod(int(np.argmax(pairs)), len(species)))
    return (
        f"label weights can't separate the species in {where}, expected below {MAX_CONDITION:g}; most alike are "
        f"'{species[first]}' and '{species[second]}', their fractions have a correlation of {pairs.max():.5f} over the "
        "events; use samples that differ more, wider bins, or merge the two"
    )


def row_weights(rows: ProbabilityRows, factor: FloatArray) -> FloatArray:
    """Weights (R,) of a species whose row of ``diag(N) V^-1`` is `factor` (B, L)."""
    return np.asarray(np.einsum("rm,rm->r", factor[rows.bin], rows.probability))


def sum_rule_of(rows: ProbabilityRows, n: FloatArray, yields: FloatArray, inverse: FloatArray) -> list[float]:
    """Relative deviations, see `sum_rules`.

    Warns:
        SumRuleWarning: the probabilities don't sum to 1 well enough for how alike the species are.
    """
    factors = np.moveaxis(yields[:, :, None] * inverse, 1, 0)
    weight = np.stack([row_weights(rows, factor) for factor in factors])
    deviation = sum_rules(weight, n, yields.sum(axis=0))
    if max(deviation) > SUM_RULE_WARNING:
        problem = f"label weights: a sum rule is off by {max(deviation):.2g}, expected below {SUM_RULE_WARNING:g}"
        warnings.warn(f"{problem}: the probabilities do not sum to 1 well enough", SumRuleWarning, stacklevel=4)
    return deviation


def diagonal_of(matrices: FloatArray) -> FloatArray:
    """Diagonals (B, L) of matrices (B, L, L)."""
    return np.asarray(np.diagonal(matrices, axis1=1, axis2=2))


def ratio(top: FloatArray, bottom: FloatArray, *, empty: float = np.nan) -> FloatArray:
    """Ratio, `empty` where the lower number is 0."""
    out = np.full(np.broadcast(top, bottom).shape, empty)
    return np.asarray(np.divide(top, bottom, out=out, where=bottom != 0))
