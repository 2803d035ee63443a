r"""Scores of a spectator fit in cells of columns: how much each cell asks for shapes of its own, without fitting any.

With expected counts :math:`\mu_{qb} = \sum_k N_{qk} \, p_{kb}(\phi)` in cell q and spectator bin b, yields free in each
cell, the efficient score of a parameter is

.. math:: T_q = \sum_b n_{qb} \frac{d_{qb}}{\mu_{qb}} , \qquad I_q = \sum_b \frac{d_{qb} d_{qb}^T}{\mu_{qb}} ,

where d is :math:`\partial \mu / \partial \phi` less its projection on the :math:`p_k`, so that T doesn't change with
the yields.  :math:`I_q` is its variance for independent events; those that share a key are summed before they are
squared.  What the cells have in common, :math:`\phi = X \delta` with a design X, is taken away,

.. math:: R = T - I X \delta, \qquad \delta = (X^T I X)^{-1} X^T T,

and :math:`R^T \mathrm{Cov}(R)^{-1} R` is a chi2: Rao's score test, which is the likelihood ratio's to first order.

References: Rao, Proc. Camb. Phil. Soc. 44 (1948) 50; White, Econometrica 50 (1982) 1 (sums by key).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from iminuit import Minuit
from numpy.polynomial import chebyshev
from numpy.typing import NDArray
from scipy import linalg, sparse

from calorefine.stats import FloatArray, IntArray, summed
from calorefine.weights.mixture import Mixture
from calorefine.weights.splot_fit import SPlotFit

SPECTATOR_BINS, LEAST_YIELD, RANK = 200, 10.0, 1e-6


@dataclass(frozen=True)
class Scored:
    """Test of cells: chi2, degrees of freedom, and deviations (q, P) in standard deviations, NaN where not tested."""

    chi2: float
    ndf: int
    deviations: FloatArray


class Scores:
    """Derivatives of the counts in the spectator's bins at a fit.

    Attributes:
        names: (P,) probes (of species of a single term: mean and width of a peak, slope of an exponential), further
            terms, and other parameters, which all cells share.  Those that are fixed, constrained or at a limit keep
            their values.  Each species of several terms has a further one to test them with: the Chebyshev polynomial
            whose degree is the number of its terms, of either sign.
        n_tested: number of probes and further terms, which come first.
        n_probes: number of probes.
    """

    def __init__(self, fit: SPlotFit, m: FloatArray, group: IntArray | None) -> None:
        """Take a fit and its events.

        Args:
            fit: the result.
            m: (n,) spectator of the events, within its range.
            group: (n,) numbers from 0 of events of equal key; None if no two have one.
        """
        mixture, first = fit.mixture, len(fit.mixture.shapes)
        low, span = mixture.low, mixture.high - mixture.low
        self.bin = np.clip(((m - low) * (SPECTATOR_BINS / span)).astype(np.int64), 0, SPECTATOR_BINS - 1)
        self.group = group
        single = [terms[0] for terms in fit.terms.values() if len(terms) == 1]
        fixed = {
            *fit.fixed,
            *(f"{t}.{name}" for t, shape in mixture.shapes.items() for name in shape.constraints or {}),
        }
        probes = [name for t in single for name in (f"{t}.{p}" for p in mixture.shapes[t].probes) if name not in fixed]
        others = [name for name in fit.names[first:] if name not in {*fixed, *fit.at_limit, *probes}]
        edges = np.linspace(low, mixture.high, SPECTATOR_BINS + 1)
        self.shares = np.maximum(mixture.fractions(edges, fit.values), 1e-15)
        self.single = np.array([name in single for name in mixture.shapes])
        slopes = [_slope(fit, edges, name) for name in [*probes, *others]]
        further = _chebyshev_shares([len(terms) for terms in fit.terms.values() if len(terms) > 1])
        self.slopes = np.array([*slopes[: len(probes)], *further, *slopes[len(probes) :]]).reshape(-1, SPECTATOR_BINS)
        self.names = [*probes, *(f"further term {k + 1}" for k in range(len(further))), *others]
        self.n_probes, self.n_tested = len(probes), len(probes) + len(further)
        terms = list(mixture.shapes)
        self.owner = np.array([terms.index(name.rpartition(".")[0]) if "." in name else -1 for name in self.names], int)

    def test(self, cell: IntArray, n_cells: int, design: FloatArray) -> Scored:
        """Test whether cells have probes of their own beyond a design, or further terms.

        Args:
            cell: (n,) number of each event's cell.
            n_cells: q, their number.
            design: (q, k) how the probes may differ between cells: a column of ones if not at all.
        """
        size = len(self.names)
        counts = np.bincount(cell * SPECTATOR_BINS + self.bin, minlength=n_cells * SPECTATOR_BINS)
        scaled, expected, tested = self._efficient(counts.reshape(n_cells, SPECTATOR_BINS).astype(np.float64))
        score = np.einsum("qb,qpb->qp", counts.reshape(n_cells, SPECTATOR_BINS), scaled).ravel()
        blocks = np.einsum("qpb,qrb,qb->qpr", scaled, scaled, expected)
        information, unit = linalg.block_diag(*blocks), np.eye(size)
        probes = np.kron(design, unit[:, : self.n_probes])
        shared = np.hstack([probes, np.kron(np.ones((n_cells, 1)), unit[:, self.n_tested :])])
        reach = information @ shared
        project = np.eye(len(score)) - reach @ linalg.pinvh(shared.T @ reach) @ shared.T
        left, variance = project @ score, project @ (information + self._within_keys(cell, scaled)) @ project.T
        chi2, ndf = _quadratic(left, variance, np.sqrt(np.diagonal(information)), tested.ravel())
        return Scored(chi2, ndf, _deviations(left.reshape(n_cells, size), blocks, tested))

    def _efficient(self, counts: FloatArray) -> tuple[FloatArray, FloatArray, NDArray[np.bool_]]:
        """Efficient scores per event (q, P, b), expected counts (q, b), and which parameters are tested (q, P)."""
        yields = profiled_yields(self.shares, counts, self.single)
        expected = np.maximum(yields @ self.shares, 1e-9 + 1e-9 * counts.sum(axis=1, keepdims=True))
        slopes = np.where(self.owner >= 0, yields[:, self.owner], 1.0)[:, :, None] * self.slopes
        densities = self.shares * ((yields > 0) | ~self.single)[:, :, None]
        overlap = np.einsum("qkb,qlb->qkl", densities / expected[:, None], densities)
        inverse = np.linalg.pinv(overlap, hermitian=True)
        along = np.einsum("qpb,qkb->qpk", slopes / expected[:, None], densities) @ inverse
        seen = yields > LEAST_YIELD * np.sqrt(np.diagonal(inverse, axis1=1, axis2=2))
        enough = counts.sum(axis=1) > LEAST_YIELD**2
        tested = np.where(self.owner >= 0, seen[:, self.owner], enough[:, None])
        tested[:, self.n_tested :] = False
        tested[:, : self.n_probes] &= tested[:, : self.n_probes].sum(axis=0) > 1
        scaled = (slopes - along @ densities) / expected[:, None] * (counts.sum(axis=1) > 0)[:, None, None]
        return scaled, expected, tested

    def _within_keys(self, cell: IntArray, scaled: FloatArray) -> FloatArray | float:
        """What events of equal key add to the variance of the scores, (q P, q P)."""
        if self.group is None:
            return 0.0
        rows = np.flatnonzero(np.bincount(self.group)[self.group] > 1)
        size, cells = scaled.shape[1], cell[rows]
        values = scaled[cells, :, self.bin[rows]]
        place = cells[:, None] * size + np.arange(size)
        n_columns = scaled.shape[0] * size

        def squares(index: IntArray) -> FloatArray:
            at = np.repeat(index, size), place.ravel()
            sums = sparse.csr_array((values.ravel(), at), shape=(int(index.max(initial=-1)) + 1, n_columns))
            return np.asarray((sums.T @ sums).todense())

        return squares(self.group[rows]) - squares(np.arange(len(rows)))


def covariance_by_key(mixture: Mixture, minuit: Minuit, m: FloatArray, group: IntArray) -> FloatArray:
    r"""Covariance :math:`C (\sum_g s_g s_g^T) C` of the parameters, with the scores s summed over events of equal key.

    C is the inverse of the second derivatives, and numbers of events are Poisson: White, Econometrica 50 (1982) 1.
    """
    values, covariance, scores = np.array(minuit.values), np.array(minuit.covariance), []
    for k, (name, error) in enumerate(zip(minuit.parameters, minuit.errors, strict=True)):
        ends = np.repeat(values[None], 2, axis=0)
        ends[:, k] = np.clip(values[k] + 0.1 * error * np.array([-1, 1]), *minuit.limits[name])
        low, high = (mixture.scaled_log_pdf(m, *end)[1] for end in ends.tolist())
        score = np.zeros(len(m)) if minuit.fixed[name] else (high - low) / (ends[1, k] - ends[0, k])
        scores.append(summed(score, group))
    return np.asarray(covariance @ (np.array(scores) @ np.array(scores).T) @ covariance)


def _quadratic(
    left: FloatArray, variance: FloatArray, scale: FloatArray, tested: NDArray[np.bool_]
) -> tuple[float, int]:
    """Quadratic form of the tested entries with the inverse of their variance, and its rank."""
    tested = tested & (scale > 0)
    scale = scale[tested]
    level, axes = np.linalg.eigh(variance[np.ix_(tested, tested)] / scale[:, None] / scale)
    used = level > RANK
    along = axes.T[used] @ (left[tested] / scale)
    return float(np.sum(along**2 / level[used])), int(np.sum(used))


def _deviations(left: FloatArray, blocks: FloatArray, tested: NDArray[np.bool_]) -> FloatArray:
    """What each cell's own parameters (q, P) would be off by, in standard deviations; NaN where not tested."""
    out = np.full(left.shape, np.nan)
    for row, rest, block, free in zip(out, left, blocks, tested, strict=True):
        inverse = np.linalg.pinv(block[np.ix_(free, free)], hermitian=True)
        error = np.sqrt(np.diagonal(inverse))
        row[free] = np.divide(inverse @ rest[free], error, out=np.full(len(error), np.nan), where=error > 0)
    return out


def _slope(fit: SPlotFit, edges: FloatArray, name: str) -> FloatArray:
    """Derivative (b,) of the shares of a parameter's term by the parameter, from a tenth of its error."""
    place = fit.names.index(name)
    value, error, (low, high) = fit.values[place], fit.errors[place], fit.limits[place]
    step = 0.1 * error if 0 < error < high - low else 1e-3 * (high - low)
    owner = list(fit.mixture.shapes).index(name.rpartition(".")[0])
    ends = max(value - step, low), min(value + step, high)
    shares = [fit.mixture.fractions(edges, (*fit.values[:place], end, *fit.values[place + 1 :]))[owner] for end in ends]
    return np.asarray((shares[1] - shares[0]) / (ends[1] - ends[0]))


def _information(fractions: FloatArray, counts: FloatArray, yields: FloatArray) -> FloatArray:
    """Minus the second derivatives of ln L by the yields: (q, K, K)."""
    pairs = fractions[:, None] * fractions[None, :]
    curvature = np.where(counts > 0, counts / np.maximum(yields @ fractions, 1e-150) ** 2, 0.0)
    return np.tensordot(curvature, pairs, axes=(1, 2))


def _chebyshev_shares(degrees: list[int]) -> FloatArray:
    """Integrals (E, b) of Chebyshev polynomials over the spectator's bins, for a range of length 1."""
    edges = np.linspace(-1, 1, SPECTATOR_BINS + 1)
    primitives = [chebyshev.chebval(edges, chebyshev.chebint(np.eye(degree + 1)[degree])) / 2 for degree in degrees]
    return np.diff(np.array(primitives).reshape(-1, len(edges)), axis=1)


def profiled_yields(fractions: FloatArray, counts: FloatArray, single: NDArray[np.bool_]) -> FloatArray:
    """Yields (q, K) of the greatest likelihood for given shapes (K, b): projected Newton on a concave function.

    Yields of species of a single term (K,) are not negative.
    """
    lowest = np.where(single, 0.0, -np.inf)
    norm, densities = fractions.sum(axis=1), np.all(fractions >= 0, axis=1)
    yields = np.where(densities, counts.sum(axis=1, keepdims=True) / densities.sum(), 0.0)
    for _ in range(5):
        yields = (
            yields * ((counts / np.maximum(yields @ fractions, 1e-300)) @ fractions.T) / np.where(densities, norm, 1.0)
        )
    for _ in range(50):
        ratio = np.where(counts > 0, counts / np.maximum(yields @ fractions, 1e-300), 0.0)
        score = ratio @ fractions.T - norm
        held = (yields <= lowest) & (score <= 0)
        matrix = _information(fractions, counts, yields)
        matrix = np.where(held[:, :, None] | held[:, None, :], np.eye(len(norm)), matrix)
        inverse = np.linalg.pinv(matrix, hermitian=True)  # singular where fewer events than terms are in a cell
        step: FloatArray = (inverse @ np.where(held, 0.0, score)[..., None])[..., 0].astype(np.float64)
        moved = _uphill(fractions, counts, yields, step, lowest)
        change = np.max(np.abs(moved - yields) / (1 + yields))
        yields = moved
        if change < 1e-10:
            break
    return yields


def _uphill(
    fractions: FloatArray, counts: FloatArray, yields: FloatArray, step: FloatArray, lowest: FloatArray
) -> FloatArray:
    """Yields after a step, kept above the lowest, and halved in each row until the likelihood does not decrease."""
    before = _log_likelihood(fractions, counts, yields)
    for _ in range(30):
        moved = np.maximum(yields + step, lowest)
        worse = _log_likelihood(fractions, counts, moved) < before - 1e-9 * np.abs(before)
        if not worse.any():
            return moved
        step = np.where(worse[:, None], step / 2, step)
    return np.where(worse[:, None], yields, moved)


def _log_likelihood(fractions: FloatArray, counts: FloatArray, yields: FloatArray) -> FloatArray:
    """Of each row, (q,); minus infinity where a bin is expected to hold fewer than no events."""
    expected = yields @ fractions
    terms = np.sum(counts * np.log(np.maximum(expected, 1e-300)) - expected, axis=1)
    return np.where((expected >= 0).all(axis=1), terms, -np.inf)
