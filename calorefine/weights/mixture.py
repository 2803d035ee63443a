"""Sums of species in a spectator variable, each with a yield for every one of its terms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from calorefine.errors import ConfigError
from calorefine.stats import FloatArray
from calorefine.weights.shapes import Guess, Parameter, Shape, SpectatorModel


@dataclass(frozen=True)
class Mixture:
    r"""Extended sum of terms :math:`\sum_k N_k \, p_k(m; \theta_k)` on a range; a species has one or several terms.

    Parameters are ordered as all yields, then the parameters of the first term, and so on; they are named ``n_<term>``
    and ``<term>.<parameter>``.

    Args:
        species: name to its shape, or sum of shapes.
        low: lower end of the range.
        high: upper end.
    """

    species: Mapping[str, SpectatorModel]
    low: float
    high: float

    @cached_property
    def terms(self) -> dict[str, tuple[str, ...]]:
        """Species to the names of its terms: its own, or numbered."""
        sizes = {name: len(model.terms()) for name, model in self.species.items()}
        return {name: (name,) if n == 1 else tuple(f"{name}_{k}" for k in range(n)) for name, n in sizes.items()}

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """All K terms by name."""
        shapes = [shape for model in self.species.values() for shape in model.terms()]
        return dict(zip([term for terms in self.terms.values() for term in terms], shapes, strict=True))

    def by_species(self, of_terms: Iterable[Any]) -> dict[str, Any]:
        """Sum over the terms of each species, of one value or array for each of the K terms (further ones are left)."""
        named = dict(zip(self.shapes, of_terms, strict=False))
        return {name: sum(named[term] for term in terms) for name, terms in self.terms.items()}

    def parameters(self, guess: Guess) -> list[Parameter]:
        """Start values, limits and state of the shape parameters (not the yields), with full names.

        Raises:
            ConfigError: more than one peak would start at the same guess, or a shape's own complaint.
        """
        guessed = [name for name, shape in self.shapes.items() if shape.peaked and shape.starts["mean"] is None]
        if len(guessed) > 1:
            peaks = ", ".join(guessed)
            raise ConfigError(f"species {peaks} are all peaks without a `mean`; give it for all of them but one")
        return [
            replace(p, name=f"{name}.{p.name}") for name, shape in self.shapes.items() for p in shape.parameters(guess)
        ]

    def split(self, values: tuple[float, ...]) -> tuple[FloatArray, list[tuple[float, ...]]]:
        """Yields (K,), and the parameter values of each term."""
        yields, rest, groups = np.array(values[: len(self.shapes)]), tuple(values[len(self.shapes) :]), []
        for shape in self.shapes.values():
            groups.append(rest[: len(shape.starts)])
            rest = rest[len(shape.starts) :]
        return yields, groups

    def _each(self, function: Literal["pdf", "cdf"], m: FloatArray, values: tuple[float, ...]) -> FloatArray:
        shapes = zip(self.shapes.values(), self.split(values)[1], strict=True)
        return np.stack([getattr(shape, function)(m, self.low, self.high, *group) for shape, group in shapes])

    def pdfs(self, m: FloatArray, values: tuple[float, ...]) -> FloatArray:
        """Normalized density of each term at `m` (n,): (K, n)."""
        return self._each("pdf", m, values)

    def fractions(self, edges: FloatArray, values: tuple[float, ...]) -> FloatArray:
        """Share of each term in each bin: (K, len(edges) - 1)."""
        return np.diff(self._each("cdf", edges, values))

    def total(self, m: FloatArray, values: tuple[float, ...]) -> FloatArray:
        """Expected number of events per unit of the spectator at `m` (n,)."""
        return self.split(values)[0] @ self.pdfs(m, values)

    def scaled_log_pdf(self, m: FloatArray, *values: float) -> tuple[float, FloatArray]:
        """Expected number of events, and log of its density at `m`: what `iminuit.cost.ExtendedUnbinnedNLL` takes.

        With the logarithm taken here that cost is four times as fast: it sorts and compiles otherwise.
        """
        return sum(values[: len(self.shapes)]), np.log(np.maximum(self.total(m, values), 1e-300))

    def scaled_cdf(self, edges: FloatArray, *values: float) -> FloatArray:
        """Expected number of events below each edge: what `iminuit.cost.ExtendedBinnedNLL` takes."""
        return np.asarray(np.sum(self.split(values)[0][:, None] * self._each("cdf", edges, values), axis=0))

    def yields_only(self, m: FloatArray, starts: tuple[float, ...], *, steps: int = 30) -> FloatArray:
        """Yields (K,) for given shapes by expectation maximization on a histogram: start values that can't diverge."""
        counts, edges = np.histogram(m, 500, (self.low, self.high))
        yields = np.full(len(self.shapes), len(m) / len(self.shapes))
        fractions = self.fractions(edges, (*yields, *starts))
        for _ in range(steps):
            yields = yields * (fractions @ (counts / np.maximum(yields @ fractions, 1e-12)))
        return yields
