"""Distances of two weighted samples of showers: separation powers, FPD and KPD, neighbors, and the training showers.

What has a floor that depends on the number of showers is given with it: one half of the reference against the other.
Neighbors are looked up among at most `MOST_NEIGHBORS` showers of each sample, chosen by key.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calorefine import keys, shower_observables
from calorefine.errors import CalorefineWarning, WeightError
from calorefine.geometry import Geometry
from calorefine.io.sample import SampleRows
from calorefine.shares import display_edges
from calorefine.stats import FloatArray
from calorefine.twosample.distances import Points, standardized
from calorefine.twosample.embedding import (
    PhysicsDistance,
    frechet_physics_distance,
    halves,
    kernel_physics_distance,
)
from calorefine.twosample.neighbors import PrecisionRecall, TrainingDistances, memorization, precision_recall
from calorefine.twosample.overlay import Overlay, overlay
from calorefine.twosample.separation_power import SeparationPower, separation_power
from calorefine.twosample.showers import Showers, challenge_features, frame_inputs, linear_inputs

MOST_NEIGHBORS = 20_000
Pair = tuple[Showers, Showers]


@dataclass(frozen=True)
class WithFloor:
    """A distance, and that of one half of the reference from the other, which has half as many showers."""

    value: PhysicsDistance
    floor: PhysicsDistance


@dataclass(frozen=True)
class Overlap:
    """Precision, recall, density and coverage, and those of one half of the reference and the other."""

    found: PrecisionRecall
    floor: PrecisionRecall


@dataclass(frozen=True)
class Observable:
    """An observable of both samples.

    Attributes:
        name: as in `calorefine.shower_observables`.
        separation: its separation power; None if weights of a bin don't have a positive sum.
        overlay: both distributions.
        refused: why there is no separation power.
    """

    name: str
    separation: SeparationPower | None
    overlay: Overlay
    refused: str = ""


def observable_names(geometry: Geometry) -> list[str]:
    """All observables, but for the sparsities: 1 - occupancy tells nothing more."""
    return [name for name in shower_observables.names(geometry) if not name.startswith("sparsity_")]


def observables(samples: Pair, geometry: Geometry) -> Iterator[Observable]:
    """Compare all observables, one after the other; weights of any sign."""
    for name in observable_names(geometry):
        values = [shower_observables.evaluate(name, s.cells, geometry, s.e_inc) for s in samples]
        edges = _edges(name, values[1], samples[1].weight, geometry)
        points = [Points(v, s.weight, s.key) for v, s in zip(values, samples, strict=True)]
        rows = [SampleRows({name: v}, s.weight, s.key, s.key) for v, s in zip(values, samples, strict=True)]
        drawn = overlay(name, rows[0], rows[1], edges=edges)
        try:
            yield Observable(name, separation_power(points[0], points[1], edges), drawn)
        except WeightError as error:
            yield Observable(name, None, drawn, str(error))


def _edges(name: str, values: FloatArray, weight: FloatArray, geometry: Geometry) -> FloatArray:
    """Bins of an observable; of an occupancy whole numbers of cells."""
    quantity, _, number = name.rpartition("_")
    if quantity != "occupancy":
        return display_edges(values, weight)
    n_cells = next(len(layer) for layer in geometry.layers if layer.number == int(number))
    return display_edges(np.rint(values * n_cells), weight) / n_cells


def physics_distances(samples: Pair, geometry: Geometry, *, seed: int) -> dict[str, WithFloor]:
    """FPD and KPD on the observables of the CaloChallenge, with their floors; weights of any sign.

    Raises:
        WeightError: signed weights give a covariance that is none.
    """
    made, target = (challenge_features(showers, geometry) for showers in samples)
    distances: dict[str, Callable[[Points, Points], PhysicsDistance]] = {
        "fpd": lambda a, b: frechet_physics_distance(a, b, seed=seed),
        "kpd": lambda a, b: kernel_physics_distance(a, b, seed=seed),
    }
    floor = halves(target, seed=seed)
    return {name: WithFloor(distance(made, target), distance(*floor)) for name, distance in distances.items()}


def overlap(samples: Pair, geometry: Geometry, *, seed: int) -> Overlap:
    """Precision, recall, density and coverage on the same observables, in units of their widths in the reference.

    Raises:
        ConfigError: too few showers.
        WeightError: negative weights.
    """
    few = [_some(showers, seed) for showers in samples]
    made, target = (challenge_features(showers, geometry) for showers in few)
    target, made = standardized(target, made)
    return Overlap(precision_recall(made, target), precision_recall(*halves(target, seed=seed)))


def training_distances(samples: Pair, training: Showers, geometry: Geometry, *, seed: int) -> TrainingDistances:
    """Distances to the nearest training shower, of cells in logarithms of their energy over the threshold.

    Without a threshold, of cells over the incident energy.

    Args:
        samples: generated showers, and reference ones that were not trained on; weights that are not negative.
        training: all showers that were trained on; their weights play no part.
        geometry: of the cells.
        seed: of the choice of showers, where there are many.

    Raises:
        WeightError: negative weights.

    Warns:
        CalorefineWarning: some of the reference's showers are training showers.
    """
    _warn_of_shared(samples[1], training)
    inputs = frame_inputs if geometry.threshold_mev > 0 else linear_inputs
    made, target = (inputs(_some(showers, seed), geometry) for showers in samples)
    return memorization(made, target, inputs(training, geometry).values)


def _warn_of_shared(reference: Showers, training: Showers) -> None:
    """Warn of cells that are the same to the last bit."""
    known = {row.tobytes() for row in _single(training.cells)}
    shared = np.mean([row.tobytes() in known for row in _single(reference.cells)])
    if shared > 0:
        share = f"{100 * float(shared):.3g} % of the reference's showers are in the training sample too"
        effect = "showers learned by heart go unnoticed, and differences seem smaller"
        warnings.warn(f"{share}: {effect}; expected showers that no training saw", CalorefineWarning, stacklevel=3)


def _single(cells: NDArray[np.floating]) -> NDArray[np.float32]:
    return np.ascontiguousarray(cells, np.float32)


def _some(showers: Showers, seed: int) -> Showers:
    """As many showers as are quick to look up, the same ones of paired samples."""
    if len(showers.key) <= MOST_NEIGHBORS:
        return showers
    chosen = np.argsort(keys.stream(showers.key, "nearest", seed=seed), kind="stable")[:MOST_NEIGHBORS]
    return showers.take(np.sort(chosen))
