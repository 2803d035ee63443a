"""Everything that `calorefine validate` computes from two samples.

A classifier (`classifier`), distances by column and sliced (`distances`), means, widths and efficiencies in bins of the
context (`binned`), and the distance to the nearest training event, which is too small if a generator has learned its
training sample by heart.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calorefine import keys, stats
from calorefine.errors import CalorefineWarning
from calorefine.events import Events
from calorefine.twosample.binned import (
    N_EFFICIENCY_BINS,
    N_MOMENT_BINS,
    Deviation,
    Efficiencies,
    PairedBins,
    binned_efficiencies,
    binned_moments,
    context_values,
    deviation,
)
from calorefine.twosample.classifier import classifier_test
from calorefine.twosample.comparison import compared
from calorefine.twosample.distances import Points, compare_columns, nearest_distances, sliced_wasserstein, standardized
from calorefine.twosample.estimates import median_estimate
from calorefine.twosample.pair import Samples
from calorefine.twosample.results import LatentDistance, Memorization, SampleNumbers, Validation

MOST_NEIGHBORS = 20_000  # events of each sample whose nearest training event is looked up
COPY_ROUNDING = 1e-4  # of a copied feature, in half-widths: float32 passes through a transform and back


def validation(
    samples: Samples,
    training: Events | None,
    numbers: tuple[SampleNumbers, SampleNumbers],
    *,
    outputs: tuple[Path, list[Path]],
    training_n_eff: float | None,
    latent_distance: LatentDistance | None,
    repetitions: int,
    seed: int,
) -> Validation:
    """Compute everything.

    Args:
        samples: generated and reference events, with weights of any sign.
        training: training events, to look for memorized ones.
        numbers: of the generated and the reference sample.
        outputs: names of the JSON file and the pictures, for the record.
        training_n_eff: effective number of events of the generator's training sample, if known.
        latent_distance: of the generator's codes of the reference, if known.
        repetitions: how often the classifier is trained on another half of the events.
        seed: of splits, multipliers and directions.
    """
    generated, reference = samples.generated, samples.reference
    columns = [Points(events.x, events.weight, events.event_key) for events in (generated, reference)]
    target, simulated = standardized(Points.of(reference), Points.of(generated))
    learned = numbers[1].n_eff / training_n_eff if training_n_eff else 0.0
    coarse, fine = (_bins(samples, n_bins, learned) for n_bins in (N_MOMENT_BINS, N_EFFICIENCY_BINS))
    names = samples.columns.feature_names
    features = zip(samples.features(generated), samples.features(reference), strict=True)
    pairs = dict(zip(names, features, strict=True))
    efficiencies = {name: binned_efficiencies(*pair, fine, weight=reference.weight) for name, pair in pairs.items()}
    return Validation(
        output=outputs[0],
        pictures=outputs[1],
        generated=numbers[0],
        reference=numbers[1],
        twins=samples.twins,
        classifier=classifier_test(generated, reference, repetitions=repetitions, seed=seed),
        distances=dict(zip(names, compare_columns(*columns, seed=seed), strict=True)),
        sliced=sliced_wasserstein(simulated, target, seed=seed),
        moment_bins={name: binning.bins for name, binning in coarse.items()},
        moments={name: binned_moments(*pair, coarse) for name, pair in pairs.items()},
        efficiency_bins={name: binning.bins for name, binning in fine.items()},
        efficiencies=efficiencies,
        deviations=_deviations(efficiencies),
        training_n_eff=training_n_eff,
        memorization=None if training is None else _memorization(samples, training, seed),
        latent_distance=latent_distance,
    )


def _bins(samples: Samples, n_bins: int, training: float) -> dict[str, PairedBins]:
    """Bins of each context column; of everything if there is none."""
    a, b = samples.generated, samples.reference
    simulated, target = (context_values(samples.columns, e) or {"all": np.zeros(len(e))} for e in (a, b))
    weights, event_keys = (a.weight, b.weight), (a.event_key, b.event_key)
    return {
        name: PairedBins(
            simulated[name], target[name], weights=weights, event_keys=event_keys, n_bins=n_bins, training=training
        )
        for name in target
    }


def _deviations(efficiencies: Mapping[str, Mapping[str, Efficiencies]]) -> dict[str, Deviation]:
    """Average deviation at each level, over features and bins of all context columns."""
    return {
        level: deviation([c for levels in efficiencies.values() for bins in levels[level].bins.values() for c in bins])
        for level in next(iter(efficiencies.values()))
    }


def _memorization(samples: Samples, training: Events, seed: int) -> Memorization:
    """Look up the nearest training events of as many events as is quick, the same ones of paired events."""
    generated, reference = (_some(events, seed) for events in (samples.generated, samples.reference))
    target, simulated, known = standardized(*map(Points.of, (reference, generated, training)))
    distances = [nearest_distances(points.values, known.values) for points in (simulated, target)]
    _warn_of_shared(np.isin(reference.event_key, training.event_key) & (distances[1] < COPY_ROUNDING))
    copied = [_copied(points.values, known.values, training.x.shape[1]) for points in (simulated, target)]
    nearest = Points(distances[0], simulated.weight, simulated.key), Points(distances[1], target.weight, target.key)
    medians = median_estimate(distances[0], simulated.weight), median_estimate(distances[1], target.weight)
    return Memorization(
        n_training=len(training),
        n_generated=len(generated),
        n_reference=len(reference),
        median=compared(*medians, keys.group(simulated.key, target.key)),
        ks=compare_columns(*nearest, seed=seed)[0].ks,
        zero_generated=copied[0],
        zero_reference=copied[1],
    )


def _warn_of_shared(shared: NDArray[np.bool_]) -> None:
    """Warn if reference events (m,) are training events: the same key, and the same values."""
    if shared.any():
        share = f"{100 * float(np.mean(shared)):.3g} % of the reference's events are in the training sample too"
        effect = "events learned by heart go unnoticed, and differences seem smaller"
        warnings.warn(f"{share}: {effect}; expected events that no training saw", CalorefineWarning, stacklevel=2)


def _copied(points: NDArray[np.floating], training: NDArray[np.floating], n_features: int) -> float:
    """Share of points (n, k) whose first columns, the features, are those of a training event (m, k)."""
    distance = nearest_distances(points[:, :n_features], training[:, :n_features])
    return float(stats.mean(distance < COPY_ROUNDING, np.ones(len(distance))))


def _some(events: Events, seed: int) -> Events:
    if len(events) <= MOST_NEIGHBORS:
        return events
    chosen = np.argsort(keys.stream(events.event_key, "nearest", seed=seed), kind="stable")[:MOST_NEIGHBORS]
    return events.take(np.sort(chosen))
