"""`calorefine validate`: generated events against a weighted reference, in numbers with errors and in pictures.

Each number answers "do they differ?" with its error, its p-value or its floor, for weights of any sign on either side:
a classifier (`classifier`), distances by column and sliced (`distances`), means, widths and efficiencies in bins of the
context (`efficiencies`), and the distance to the nearest training event, which is too small if a generator has learned
its training sample by heart.

Events of both samples that have the same key, or are rows of files made one from the other by `calorefine sample`,
share their conditions.  All errors and p-values take that into account, those of the pictures included.  A warning
tells if their contexts are distributed differently (`contexts`), which then shows in all other numbers.

Errors and pulls of means, widths and efficiencies hold the statistics of the generator's training sample where the
generated file's provenance tells its effective number of events.  The other p-values and the AUC's error don't: they
say whether the two samples differ, and those of a perfect generator, trained on finite data, do so a little.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from calorefine import keys, stats
from calorefine.errors import CalorefineWarning, ConfigError
from calorefine.events import Columns, Events
from calorefine.io.provenance import read_provenance, recorded
from calorefine.io.root import RootFiles
from calorefine.io.writer import replacing
from calorefine.pages.validation import efficiency_figure, overlay_figure, widths_figure
from calorefine.twosample.binned import (
    N_EFFICIENCY_BINS,
    N_MOMENT_BINS,
    Binning,
    Deviation,
    Efficiencies,
    binned_efficiencies,
    binned_moments,
    compared,
    context_values,
    deviation,
    median_estimate,
)
from calorefine.twosample.classifier import classifier_test
from calorefine.twosample.context_check import warn_of_contexts
from calorefine.twosample.distances import Points, compare_columns, nearest_distances, sliced_wasserstein, standardized
from calorefine.twosample.overlay import overlay
from calorefine.twosample.pair import Rows, Samples, provenance_columns, read_samples, read_training
from calorefine.twosample.results import Memorization, SampleNumbers, Validation

MOST_NEIGHBORS = 20_000  # events of each sample whose nearest training event is looked up
ROUNDING = 1e-4  # of a copied feature, in half-widths: float32 passes through a transform and back


@recorded("validate")
def validate_files(
    *,
    generated: str,
    reference: str,
    output: str,
    columns: Columns | None = None,
    tree: str = "events",
    reference_tree: str | None = None,
    generated_weight: str = "none",
    reference_weight: str = "none",
    training: str | None = None,
    repetitions: int = 10,
    seed: int = 0,
    overwrite: bool = False,
) -> Validation:
    """Compare a generated sample with a weighted reference: numbers with errors and p-values as JSON, and pictures.

    If the generated file lacks the context, it has to be the output of `calorefine sample` for the reference file: its
    context is that of the same event key, where both files have the key branches, or of the same row.

    Args:
        generated: ROOT file of generated events.
        reference: ROOT file of reference events.
        output: JSON file to write; pictures with the same stem go beside it.
        columns: features, context, key and cut; those that the generated file was made with, without their cut, if
            left out.
        tree: name of the tree in the generated file.
        reference_tree: name of the tree in the reference and training files, if it is another one.
        generated_weight: branch or expression of the generated events' weight, signed ones included, or "none".
        reference_weight: branch or expression of the reference events' weight, signed ones included, or "none".
        training: ROOT file that the generator was trained on, to look for memorized events.
        repetitions: how often the classifier is trained on another half of the events.
        seed: of splits, multipliers and directions.
        overwrite: replace existing outputs.

    Returns:
        All numbers.

    Raises:
        CalorefineError: bad input; nothing is written.
        WeightError: weights without a positive sum.
    """
    if Path(output).suffix != ".json":
        raise ConfigError(f"output: {output} found, expected a name that ends in .json; pictures go beside it")
    sources = RootFiles(generated, tree), RootFiles(reference, reference_tree or tree)
    weights = generated_weight, reference_weight
    samples = read_samples(*sources, columns=columns, weights=weights)
    warn_of_contexts(samples, weights)
    names = samples.columns.feature_names
    paths = _pictures(Path(output), names)
    with ExitStack() as stack:
        beside = [stack.enter_context(replacing(path, overwrite=overwrite)) for path in (Path(output), *paths)]
        provenance = read_provenance(sources[0].paths[0])
        known = None
        if training:
            own = columns or provenance_columns(provenance, sources[0])
            known = read_training(training, reference_tree or tree, own)
        numbers = [
            _numbers(events, source, weight)
            for events, source, weight in zip((samples.generated, samples.reference), sources, weights, strict=True)
        ]
        found = _validated(
            samples, known, numbers, (Path(output), paths), _n_eff(provenance), repetitions=repetitions, seed=seed
        )
        beside[0].write_text(json.dumps(found.to_dict(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        for path, figure in zip(beside[1:], _figures(samples, found), strict=True):
            figure.savefig(path, format="png", dpi=110)
    return found


def _pictures(output: Path, features: list[str]) -> list[Path]:
    """Names of the pictures."""
    parts = ["features", "widths", *(f"efficiency_{re.sub(r'[^0-9A-Za-z_.-]', '_', name)}" for name in features)]
    return [output.with_name(f"{output.stem}_{part}.png") for part in parts]


def _numbers(events: Events, source: RootFiles, weight: str) -> SampleNumbers:
    sizes = len(events), stats.sum_w(events.weight), stats.n_eff(events.weight)
    return SampleNumbers([str(path) for path in source.paths], source.tree, weight, *sizes)


def _n_eff(provenance: dict[str, Any]) -> float | None:
    """Effective number of training events, of the signed weights where positive ones were made of them."""
    training = provenance.get("training", {})
    n_eff = training.get("n_eff_signed") or training.get("n_eff")
    return None if n_eff is None else float(n_eff)


def _validated(
    samples: Samples,
    training: Events | None,
    numbers: list[SampleNumbers],
    outputs: tuple[Path, list[Path]],
    n_eff: float | None,
    *,
    repetitions: int,
    seed: int,
) -> Validation:
    """Compute everything."""
    made, target, names = samples.generated, samples.reference, samples.columns.feature_names
    columns = [Points(events.x, events.weight, events.event_key) for events in (made, target)]
    points = standardized(_points(target), _points(made))
    learned = numbers[1].n_eff / n_eff if n_eff else 0.0
    coarse, fine = (_binnings(samples, n_bins, learned) for n_bins in (N_MOMENT_BINS, N_EFFICIENCY_BINS))
    pairs = {name: (made.x[:, k].astype(np.float64), target.x[:, k].astype(np.float64)) for k, name in enumerate(names)}
    efficiencies = {name: binned_efficiencies(*pair, fine, weight=target.weight) for name, pair in pairs.items()}
    return Validation(
        output=outputs[0],
        pictures=outputs[1],
        generated=numbers[0],
        reference=numbers[1],
        twins=samples.twins,
        classifier=classifier_test(made, target, repetitions=repetitions, seed=seed),
        distances=dict(zip(names, compare_columns(*columns, seed=seed), strict=True)),
        sliced=sliced_wasserstein(points[1], points[0], seed=seed),
        moment_bins={name: one.bins for name, one in coarse.items()},
        moments={name: binned_moments(*pair, coarse) for name, pair in pairs.items()},
        efficiency_bins={name: one.bins for name, one in fine.items()},
        efficiencies=efficiencies,
        deviations=_deviations(efficiencies),
        training_n_eff=n_eff,
        memorization=None if training is None else _memorization(samples, training, seed),
    )


def _points(events: Events) -> Points:
    """Features and context."""
    return Points(events.table, events.weight, events.event_key)


def _binnings(samples: Samples, n_bins: int, training: float) -> dict[str, Binning]:
    """Bins of each context column; of everything if there is none."""
    made, target = samples.generated, samples.reference
    values = [context_values(samples.columns, events) or {"all": np.zeros(len(events))} for events in (made, target)]
    weights, event_keys = (made.weight, target.weight), (made.event_key, target.event_key)
    return {
        name: Binning(*pair, weights=weights, event_keys=event_keys, n_bins=n_bins, training=training)
        for name, pair in {name: (values[0][name], values[1][name]) for name in values[0]}.items()
    }


def _deviations(efficiencies: dict[str, dict[str, Efficiencies]]) -> dict[str, Deviation]:
    """Average deviation at each level, over features and bins of all context columns."""
    levels = next(iter(efficiencies.values()))
    return {
        level: deviation([one for f in efficiencies.values() for bins in f[level].bins.values() for one in bins])
        for level in levels
    }


def _memorization(samples: Samples, training: Events, seed: int) -> Memorization:
    """Look up the nearest training events of as many events as is quick, the same ones of twins."""
    made, target = (_some(events, seed) for events in (samples.generated, samples.reference))
    reference, *others = (one.values for one in standardized(*map(_points, (target, made, training))))
    distances = [nearest_distances(values, others[1]) for values in (others[0], reference)]
    copied = [_copied(values, others[1], training.x.shape[1]) for values in (others[0], reference)]
    _warn_of_shared(np.isin(target.event_key, training.event_key) & (distances[1] < ROUNDING))
    a, b = (
        Points(values, events.weight, events.event_key)
        for values, events in zip(distances, (made, target), strict=True)
    )
    estimates = [
        median_estimate(values, events.weight) for values, events in zip(distances, (made, target), strict=True)
    ]
    group = np.unique(np.concatenate([a.key, b.key]), return_inverse=True)[1]
    return Memorization(
        n_training=len(training),
        n_generated=len(made),
        n_reference=len(target),
        median=compared(estimates[0], estimates[1], group),
        ks=compare_columns(a, b, seed=seed)[0].ks,
        zero_generated=copied[0],
        zero_reference=copied[1],
    )


def _warn_of_shared(shared: NDArray[np.bool_]) -> None:
    """Warn if reference events (m,) are training events: the same key, and the same values."""
    if shared.any():
        msg = f"{100 * float(np.mean(shared)):.3g} % of the reference's events are in the training sample too: events "
        msg += "learned by heart go unnoticed, and differences seem smaller; expected events that no training saw"
        warnings.warn(msg, CalorefineWarning, stacklevel=2)


def _copied(points: NDArray[np.floating], training: NDArray[np.floating], n_features: int) -> float:
    """Share of points (n, k) whose first columns, the features, are those of a training event (m, k)."""
    distance = nearest_distances(points[:, :n_features], training[:, :n_features])
    return float(stats.mean(distance < ROUNDING, np.ones(len(distance))))


def _some(events: Events, seed: int) -> Events:
    if len(events) <= MOST_NEIGHBORS:
        return events
    chosen = np.argsort(keys.stream(events.event_key, "nearest", seed=seed), kind="stable")[:MOST_NEIGHBORS]
    return events.take(np.sort(chosen))


def _figures(samples: Samples, found: Validation) -> Iterator[Figure]:
    """In the order of `_pictures`."""
    names = samples.columns.feature_names
    rows = [
        Rows(dict(zip(names, one.x.T.astype(np.float64), strict=True)), one.weight, one.key, one.event_key)
        for one in (samples.generated, samples.reference)
    ]
    yield overlay_figure({name: overlay(name, *rows) for name in names})
    yield widths_figure(found.moments, found.moment_bins)
    for name in names:
        yield efficiency_figure(name, found.efficiencies[name], found.efficiency_bins)
