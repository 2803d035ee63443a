"""Everything that `calorefine validate --showers true` computes from two samples of showers, and from others.

Weights of both samples take part in everything, and are signed where that makes sense: classifiers and nearest
neighbors refuse negative ones, and the record says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from calorefine import shower_observables
from calorefine.errors import WeightError
from calorefine.geometry import Geometry
from calorefine.twosample import shower_distances, shower_judges, shower_means
from calorefine.twosample.binned import BinWidths, ContextBin, PairedBins, binned_moments
from calorefine.twosample.neighbors import TrainingDistances
from calorefine.twosample.pair import Twins
from calorefine.twosample.results import SampleNumbers
from calorefine.twosample.shower_classifier import LogPosterior, NetworkOptions
from calorefine.twosample.shower_distances import Observable, Pair
from calorefine.twosample.shower_judges import Tell
from calorefine.twosample.shower_means import Means
from calorefine.twosample.shower_results import ShowerValidation, Times
from calorefine.twosample.showers import Showers

MOST_ENERGIES, ENERGY_BINS = 20, 8  # energies that are looked at one by one; bins where there are more
_T = TypeVar("_T")


@dataclass(frozen=True)
class ShowerSamples:
    """What is compared.

    Attributes:
        generated: showers of the model.
        reference: those that they should be like; events of equal key share their conditions.
        geometry: of the cells of both.
        twins: how showers that share their conditions are known.
        training: showers that the model was trained on, if known.
        others: name of another model to its showers.
    """

    generated: Showers
    reference: Showers
    geometry: Geometry
    twins: Twins
    training: Showers | None
    others: Mapping[str, Showers]

    @property
    def pair(self) -> Pair:
        """Generated and reference showers."""
        return self.generated, self.reference


def shower_validation(
    samples: ShowerSamples,
    numbers: tuple[SampleNumbers, SampleNumbers],
    *,
    outputs: tuple[Path, Path],
    training_n_eff: float | None,
    times: Times | None,
    options: NetworkOptions,
    n_trainings: int,
    seed: int,
    tell: Tell,
) -> ShowerValidation:
    """Compute everything.

    Args:
        samples: with weights of any sign.
        numbers: of the generated and the reference sample.
        outputs: names of the JSON file and the page, for the record.
        training_n_eff: effective number of the generator's training showers, if known.
        times: of the generator, if it is known.
        options: of the networks of the classifiers.
        n_trainings: how many of each classifier.
        seed: of all that is random.
        tell: is told what begins.

    Raises:
        EmptySelectionError: too few showers for a classifier, or no energy in the reference.
        ValueRangeError: cells that are NaN or infinite.
    """
    pair, geometry, refused = samples.pair, samples.geometry, Refusals({})
    bins, responses = _responses(pair, geometry, numbers[1].n_eff / training_n_eff if training_n_eff else 0.0)
    tell("observables and profiles")
    observables = sorted(shower_distances.observables(pair, geometry), key=_order)
    means = _means(pair, geometry)
    tell("distances")
    distances = refused.unless("fpd, kpd", lambda: shower_distances.physics_distances(pair, geometry, seed=seed))
    overlap = refused.unless("overlap", lambda: shower_distances.overlap(pair, geometry, seed=seed))
    training = _training_distances(samples, refused, seed)
    random: Any = {"n_trainings": n_trainings, "seed": seed}
    classifiers = refused.unless(
        "classifiers", lambda: shower_judges.judgments(pair, geometry, options, tell=tell, **random)
    )
    posterior = _posterior(samples, refused, options, tell, **random)
    return ShowerValidation(
        output=outputs[0],
        page=outputs[1],
        generated=numbers[0],
        reference=numbers[1],
        twins=samples.twins,
        n_cells=geometry.n_cells,
        layers=[layer.number for layer in geometry.layers],
        threshold_mev=geometry.threshold_mev,
        classifiers=classifiers or {},
        observables=observables,
        energy_bins=bins,
        responses=responses,
        means=means,
        distances=distances or {},
        overlap=overlap,
        training=training,
        posterior=posterior,
        times=times,
        refused=refused.reasons | {found.name: found.refused for found in observables if found.refused},
    )


@dataclass(frozen=True)
class Refusals:
    """What weights don't allow, to the reason why."""

    reasons: dict[str, str]

    def unless(self, name: str, compute: Callable[[], _T]) -> _T | None:
        """Return the result, or note the reason and return None where the weights don't allow it."""
        try:
            return compute()
        except WeightError as error:
            self.reasons[name] = str(error)
            return None


def _posterior(
    samples: ShowerSamples, refused: Refusals, options: NetworkOptions, tell: Tell, **random: Any
) -> LogPosterior | None:
    if not samples.others:
        return None
    tell("classifier of models")
    models = {"generated": samples.generated, **samples.others}
    rank = shower_judges.ranked
    return refused.unless("posterior", lambda: rank(models, samples.reference, samples.geometry, options, **random))


def _training_distances(samples: ShowerSamples, refused: Refusals, seed: int) -> TrainingDistances | None:
    training = samples.training
    if training is None:
        return None
    distances = shower_distances.training_distances
    return refused.unless("training", lambda: distances(samples.pair, training, samples.geometry, seed=seed))


def _order(found: Observable) -> float:
    """Worst first; those without a separation power last."""
    return -found.separation.value if found.separation else 0.0


def _responses(pair: Pair, geometry: Geometry, learned: float) -> tuple[list[ContextBin], list[BinWidths]]:
    """Moments of the response at each energy, or in bins."""
    generated, reference = pair
    distinct = len(np.unique(reference.e_inc))
    bins = PairedBins(
        generated.e_inc,
        reference.e_inc,
        weights=(generated.weight, reference.weight),
        event_keys=(generated.key, reference.key),
        n_bins=distinct if distinct <= MOST_ENERGIES else ENERGY_BINS,
        training=learned,
    )
    values = [shower_observables.evaluate("response", showers.cells, geometry, showers.e_inc) for showers in pair]
    return bins.bins, binned_moments(values[0], values[1], {"e_inc": bins})["e_inc"]


def _means(pair: Pair, geometry: Geometry) -> dict[str, Means]:
    """All mean numbers per shower."""
    laterals = {f"lateral_{name}": found for name, found in shower_means.laterals(pair, geometry).items()}
    return {
        "longitudinal": shower_means.longitudinal(pair, geometry),
        **laterals,
        "occupancy": shower_means.occupancies(pair, geometry),
        "spectrum": shower_means.spectrum(pair, geometry),
    }
