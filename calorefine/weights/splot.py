r"""sWeights and COWs: a fit of the spectator, and per event the weight that makes a sample of one species of the whole.

With densities :math:`g_k` of the spectator :math:`m`, yields :math:`N_k` and total :math:`f = \sum_k N_k g_k`

.. math:: w_k(m) = \sum_l A_{kl} \, g_l(m) / f(m), \qquad (A^{-1})_{kl} = \sum_i n_i \, g_k(m_i) g_l(m_i) / f(m_i)^2 ,

with :math:`n_i = 1`, or the bootstrap count of event :math:`i`.  Estimand: for a control variable x that is
independent of m within each species, the histogram of x with weights :math:`w_k` is the one of species k, in
expectation.  Independence is what `calorefine.weights.factorization` tests.  The sum runs over the whole fitted sample:
weigh first, cut later.

A background whose spectator shape depends on x is written as a sum of several terms, each with a yield of its own
(`Sum`, `Bernstein`): x then has to be independent of m only within each term, and the shares of the terms may vary with
x.  The weight of the species is the sum over its terms.  These are custom orthogonal weight functions (COWs) with the
fitted density as their variance function.  A *signal* shape that depends on context is not cured by that: fit in bins
(`in_bins_of`).

References: Pivk and Le Diberder, arXiv:physics/0402083; Dembinski, Kenzie, Langenbruch and Schmelling,
arXiv:2112.04574 (variant B of the W matrix; section 3.4 for several terms).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calorefine.errors import ConfigError, EmptySelectionError, FitError
from calorefine.events import Arrays
from calorefine.stats import FloatArray
from calorefine.weights.bins import ContextBins
from calorefine.weights.factorization import FactorizationResult, factorization_test, reject_if_dependent
from calorefine.weights.mixture import Mixture
from calorefine.weights.refits import refit
from calorefine.weights.shapes import SpectatorModel
from calorefine.weights.source import EVENT, Dependence, WeightFit, WeightSource, checked_counts, column_of, known_name
from calorefine.weights.spectator import SpectatorFit
from calorefine.weights.splot_fit import SPlotFit

__all__ = ["SPlot", "SPlotFit", "SPlotResult"]


class SPlot(WeightSource):
    """Extended maximum-likelihood fit of the spectator, and sWeights from it."""

    def __init__(
        self,
        *,
        spectator: str,
        range: tuple[float, float],
        species: dict[str, SpectatorModel],
        target: str = "signal",
        in_bins_of: dict[str, list[float]] | None = None,
        alternatives: dict[str, dict[str, SpectatorModel]] | None = None,
        max_unbinned: int = 200_000,
        bins: int = 2000,
    ) -> None:
        """Describe the fit.

        Args:
            spectator: branch or expression.
            range: lowest and highest value fitted, both included, in the spectator's unit.
            species: name to shape, at least two; a `Sum` or `Bernstein` where the shape depends on the features.
            target: species whose weight `weights` returns.
            in_bins_of: column (branch or expression) to the edges of its bins: each bin is fitted by itself.
            alternatives: name to the species whose shapes it replaces: other descriptions of the same data, whose
                weights differ by the uncertainty that the choice of shapes brings.
            max_unbinned: events above which the fit is binned.  Measured for a double Gaussian on an exponential, on
                one core: unbinned, 31 000 events take 0.15 s, 200 000 take 1.3 s and 10^6 take 6 s; binned, 10^6 take
                0.4 s (and once per installation 4 s for the compilation of iminuit's cost function).
            bins: number of bins then; they should be much narrower than the narrowest peak.

        Raises:
            ConfigError: the range is reversed, species are too few or don't include the target, edges don't increase,
                or an alternative replaces nothing.
        """
        if not range[0] < range[1]:
            ends = f"[{range[0]:g}, {range[1]:g}]"
            raise ConfigError(f"range of the spectator {spectator} is {ends}, expected lowest < highest")
        if len(species) < 2:
            raise ConfigError(f"sWeights need at least two species, found {', '.join(species) or 'none'}")
        self.spectator, self.range, self.species = spectator, (float(range[0]), float(range[1])), dict(species)
        self.target = known_name(target, species, "species")
        self.context_bins = ContextBins(in_bins_of or {})
        self.alternatives = dict(alternatives or {})
        self.max_unbinned, self.bins, self.drawn = max_unbinned, bins, (0, 0)
        for name, replaced in self.alternatives.items():
            if not replaced:
                raise ConfigError(f"alternative '{name}' replaces no shape, expected some of {', '.join(species)}")
            for changed in replaced:
                known_name(changed, species, "species")

    @property
    def branches(self) -> dict[str, str]:
        """The spectator and the columns of the bins, under their own names."""
        return {self.spectator: self.spectator} | self.context_bins.branches

    def tests(self, fit: SPlotResult, table: Arrays, columns: Arrays) -> list[FactorizationResult]:
        """Test whether the spectator's shape depends on these columns, the bins' or pairs of them; see `check`."""
        tested = {**columns, **{name: table[name] for name in self.context_bins.edges}}
        spectator = column_of(table, self.spectator, "spectator")
        return factorization_test(self, spectator, tested, result=fit, pairs=True, key=table.get(EVENT))

    def check(
        self, fit: WeightFit, table: Arrays, columns: Arrays, *, dependence: Dependence = "error", what: str = ""
    ) -> list[FactorizationResult]:
        """Test factorization; see `WeightSource.check` and `reject_if_dependent`.

        Raises:
            FactorizationError: beyond doubt (p < 1e-3), if `dependence` is "error".

        Warns:
            FactorizationWarning: p < 1e-2.
        """
        if not isinstance(fit, SPlotResult):
            raise TypeError(type(fit))
        tests = self.tests(fit, table, columns)
        reject_if_dependent(tests, what=what, raise_below=1e-3 if dependence == "error" else 0.0)
        return tests

    def varied(self, replica: int, seed: int = 0) -> SPlot:
        """The fit with the values of constraints drawn from their errors for this replica."""
        other = copy.copy(self)
        other.drawn = replica, seed
        return other

    def alternative(self, name: str) -> SPlot:
        """Return the same fit with the shapes of an alternative.

        Raises:
            ConfigError: no such alternative.
        """
        replaced = self.alternatives[known_name(name, self.alternatives, "alternative")]
        other = copy.copy(self)
        other.species, other.alternatives = {**self.species, **replaced}, {}
        return other

    def fit(
        self, table: Arrays, *, multiplicity: NDArray[Any] | None = None, near: WeightFit | None = None
    ) -> SPlotResult:
        """Fit the table's spectator, in each bin by itself; see `fit_spectator` and `WeightSource.fit`.

        Raises:
            BranchError: the spectator or a column of the bins is not in the table.
            FitError: a fit fails; the message names the bin.
        """
        m = column_of(table, self.spectator, "spectator")
        counts = None if multiplicity is None else checked_counts(multiplicity, len(m))
        index = self.context_bins.index(table, len(m))
        starts = near.fits if isinstance(near, SPlotResult) else (None,) * len(self.context_bins)
        fits = []
        for number, label in enumerate(self.context_bins.labels):
            inside = index == number
            repeated = None if counts is None else counts[inside]
            try:
                key = table[EVENT][inside] if EVENT in table else None
                fits.append(self.fit_spectator(m[inside], multiplicity=repeated, near=starts[number], key=key))
            except (FitError, EmptySelectionError) as error:
                if not self.context_bins.edges:
                    raise
                raise type(error)(f"bin {label}: {error}") from error
        return SPlotResult(self.target, self.context_bins, tuple(fits), int(np.sum(index < 0)))

    def fit_spectator(
        self,
        spectator: NDArray[Any],
        *,
        multiplicity: NDArray[Any] | None = None,
        near: SPlotFit | None = None,
        key: NDArray[Any] | None = None,
    ) -> SPlotFit:
        """Fit all values together, whatever the bins; see `SpectatorFit.fit` for arguments, result and errors."""
        mixture = Mixture(self.species, *self.range)
        model = SpectatorFit(self.spectator, mixture, self.target, self.max_unbinned, self.bins, self.drawn)
        if near is None:
            return model.fit(spectator, multiplicity=multiplicity, key=key)
        return refit(model, spectator, multiplicity=multiplicity, near=near, key=key)


@dataclass(frozen=True)
class SPlotResult(WeightFit):
    """Spectator fits, one in each bin of context (or just one), and the weights from them.

    Attributes:
        target: species whose weight is *the* weight.
        bins: bins of context.
        fits: one for each.
        n_outside_bins: events outside of the bins; their weight is 0.
    """

    target: str
    bins: ContextBins
    fits: tuple[SPlotFit, ...]
    n_outside_bins: int

    @property
    def species(self) -> tuple[str, ...]:
        """Names of the species."""
        return tuple(self.fits[0].yields)

    @property
    def yields(self) -> dict[str, float]:
        """Fitted number of events of each species in all bins."""
        return {name: sum(fit.yields[name] for fit in self.fits) for name in self.species}

    @property
    def n_effective(self) -> dict[str, float]:
        """Effective number of events of each species' weights in all bins."""
        return {
            name: size**2 / sum(fit.yields[name] ** 2 / fit.n_effective[name] for fit in self.fits)
            for name, size in self.yields.items()
        }

    @property
    def refits(self) -> list[str]:
        """What was done about fits of a replica that ran away, by bin."""
        return [f"{label}{fit.refit}" for label, fit in self._labelled() if fit.refit]

    def _labelled(self) -> Iterator[tuple[str, SPlotFit]]:
        """The fits, with the name of their bin for messages."""
        return zip([f"{label}: " for label in self.bins.labels] if self.bins.edges else [""], self.fits, strict=True)

    @property
    def warnings(self) -> list[str]:
        """What is off, in plain words: species hardly seen, parameters at limits, events outside of the bins."""
        warnings = [f"{label}{text}" for label, fit in self._labelled() for text in fit.warnings]
        n_all = self.n_outside_bins + sum(fit.n_events + fit.n_outside for fit in self.fits)
        if self.n_outside_bins > 0.01 * n_all:
            warnings.append(f"{self.n_outside_bins} of {n_all} events are outside of the bins and have weight 0")
        return warnings

    def weights(self, table: Arrays, species: str | None = None) -> FloatArray:
        """Weights (n,) of any sign; 0 outside the range and the bins; see `WeightFit.weights`."""
        m = column_of(table, self.fits[0].spectator, "spectator")
        index = self.bins.index(table, len(m))
        result = np.zeros(len(m))
        for number, fit in enumerate(self.fits):
            result[index == number] = fit.weights(m[index == number], species)
        return result

    def summary(self) -> str:
        """Fixed-width tables of parameters and checks."""
        if not self.bins.edges:
            return self.fits[0].summary()
        parts = [f"--- {label}\n{fit.summary()}" for label, fit in zip(self.bins.labels, self.fits, strict=True)]
        sizes = [f"{name} {size:.0f} (n_eff {self.n_effective[name]:.0f})" for name, size in self.yields.items()]
        parts.append(f"--- all bins: {', '.join(sizes)}; {self.n_outside_bins} events outside, weight 0")
        return "\n".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """The fit as JSON types; with bins their totals, and a list of the fits."""
        if not self.bins.edges:
            return self.fits[0].to_dict()
        edges = {name: list(values) for name, values in self.bins.edges.items()}
        totals = {"yields": self.yields, "n_effective": self.n_effective, "n_outside_bins": self.n_outside_bins}
        fits = [{"bin": label} | fit.to_dict() for label, fit in zip(self.bins.labels, self.fits, strict=True)]
        return {"target": self.target, "in_bins_of": edges, **totals, "bins": fits}
