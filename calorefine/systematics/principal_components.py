r"""Principal components of each source: the up and down shapes of statistics tools.

Bins of several observables have different units, so that each is first divided by its total error: with D the total
errors and :math:`D^{-1} V_s D^{-1} = \sum_k \lambda_k e_k e_k^T`, the shapes are :math:`\sqrt{\lambda_k} D e_k`, and
the sum of their outer products is V_s.  A covariance from K replicas has K - 1 of them at most.  Shapes are kept until
they make up a fraction of the source's trace, and so is any other shape s that is a noticeable part of the variance of
some combination of bins, as their sum: with the total covariance V, its largest part is :math:`s^T V^{-1} s`.  What is
left over is not lost: its diagonal becomes an uncorrelated error of each bin, so that shapes and remainder reproduce
the variance of every bin exactly.  A bin that is correlated with no
other one (the statistics of a histogram) has no shape: its variance is all remainder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calorefine.errors import ConfigError
from calorefine.stats import FloatArray
from calorefine.systematics.hotelling import DEPENDENT, whiten
from calorefine.systematics.sources import ErrorSource

UNCORRELATED = 1e-12
FRACTION = 0.99
LEAST_PART = 0.01


@dataclass(frozen=True)
class Component:
    """One nuisance parameter: up is nominal + shape, down is nominal - shape.

    Attributes:
        name: `<source>_<k>`, k from 1, largest first.
        source: its source.
        shape: (n,) deviation at one standard deviation.
        share: of the source's variance, in units of the total.
    """

    name: str
    source: str
    shape: FloatArray
    share: float


@dataclass(frozen=True)
class Decomposition:
    """Shapes and uncorrelated rest.

    Attributes:
        components: of all sources.
        remainder: source to variances (n,) of each bin by itself.
    """

    components: tuple[Component, ...]
    remainder: dict[str, FloatArray]

    def uncorrelated(self, n: int) -> FloatArray:
        """Variance (n,) that isn't in any shape."""
        return sum(self.remainder.values(), np.zeros(n))


def decompose(sources: Mapping[str, ErrorSource], *, fraction: float = FRACTION) -> Decomposition:
    """Components of the sources that add up to the total.

    Args:
        sources: those that are part of another one are left out.
        fraction: of each source's variance that shapes have to make up at least; 1 keeps all.

    Raises:
        ConfigError: the fraction is not in (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ConfigError(f"fraction {fraction}: expected more than 0, at most 1")
    added = [source for source in sources.values() if source.part_of is None]
    if not added:
        return Decomposition((), {})
    total = np.sum([source.covariance for source in added], axis=0)
    sigma, whitening = np.sqrt(np.diag(total)), whiten(total).matrix
    shapes = {source.name: _components(source, sigma, whitening, fraction) for source in added}
    remainder = {source.name: _remainder(source.covariance, shapes[source.name]) for source in added}
    return Decomposition(tuple(part for parts in shapes.values() for part in parts), remainder)


def _components(source: ErrorSource, sigma: FloatArray, whitening: FloatArray, fraction: float) -> list[Component]:
    """Shapes of one source, largest first."""
    coupled = _coupled(source.covariance)
    if not coupled.any():
        return []
    errors = sigma[coupled]
    values, vectors = np.linalg.eigh(source.covariance[np.ix_(coupled, coupled)] / np.outer(errors, errors))
    values, vectors = values[::-1], vectors[:, ::-1]
    significant = int(np.sum(values > DEPENDENT * values[0]))
    shares = values / values[:significant].sum()
    needed = int(np.searchsorted(np.cumsum(shares[:significant]), fraction * (1 - 1e-12))) + 1
    components: list[Component] = []
    for k in range(significant):
        shape = np.zeros(len(sigma))
        sign = 1.0 if vectors[:, k].sum() >= 0 else -1.0
        shape[coupled] = sign * np.sqrt(values[k]) * vectors[:, k] * errors
        if k < needed or np.sum((whitening @ shape) ** 2) > LEAST_PART:
            components.append(Component(f"{source.name}_{len(components) + 1}", source.name, shape, float(shares[k])))
    return components


def _coupled(covariance: FloatArray) -> NDArray[np.bool_]:
    """(n,) whether a bin is correlated with another one, or the only one of several that varies."""
    sigma = np.sqrt(np.diag(covariance))
    if len(sigma) > 1 and np.sum(sigma > 0) == 1:
        return np.asarray(sigma > 0)
    off = np.abs(covariance - np.diag(np.diag(covariance)))
    coupled: NDArray[np.bool_] = np.any(off > UNCORRELATED * np.outer(sigma, sigma), axis=1)
    return coupled


def _remainder(covariance: FloatArray, components: list[Component]) -> FloatArray:
    """Variances that the shapes leave; rounding below 0, or below 1e-9 of the variance, is 0."""
    variance = np.diag(covariance)
    left = variance - sum((part.shape**2 for part in components), np.zeros(len(variance)))
    return np.where(left > DEPENDENT * variance, left, 0.0)
