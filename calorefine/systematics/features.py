r"""Features of generated, reweighted and reference events, each of its own sum of weights, in the same bins.

A bin's value is its share of the sum of weights.  The band of the reweighted events is the spread of the bootstrap
replicas, so the calibration sample's statistics with the training's stochasticity.  The numbers compare with the
reference by `closure_bias`, whose covariance is that of the sample's own statistics, of the replicas where there are
some, and of the reference.  If the reference is the calibration sample that the generator was trained on, the two
fluctuate together, and the numbers are smaller than for an independent one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from calorefine.errors import BranchError, ConfigError, nearest
from calorefine.events import Column, Columns, unit_of
from calorefine.io.expressions import branches
from calorefine.io.provenance import read_provenance
from calorefine.io.root import RootFiles
from calorefine.observables import Histogram
from calorefine.shares import display_edges
from calorefine.systematics.assemble import assemble
from calorefine.systematics.bias import closure_bias
from calorefine.systematics.systematics import Bins
from calorefine.systematics.variations import Sample, Variables, Variations
from calorefine.twosample.context_check import warn_of_file_contexts
from calorefine.twosample.pair import file_expressions, read_rows

GENERATED, REWEIGHTED, REFERENCE = "generated", "reweighted", "reference"
REPLICAS = "weight_replica"
Test = tuple[float, float]


@dataclass(frozen=True)
class Features:
    """What was measured.

    Attributes:
        units: feature to its unit, if it has one.
        samples: by name, the reference last; each with the replicas that it has.
        tests: sample to feature to the reduced chi2 against the reference and its p-value.
        lacking: what is said of context columns that a sample lacks.
    """

    units: dict[str, str | None]
    samples: dict[str, Variables]
    tests: dict[str, dict[str, Test]]
    lacking: list[str]


def measure_features(
    samples: Mapping[str, Sample], calibration: Variations | None, *, tree: str, names: Sequence[str] | None, bins: int
) -> Features:
    """Measure all samples in the same bins.

    Args:
        samples: by the names above, the reference last.
        calibration: bootstrap replicas of the reweighted one; its branch `weight_replica`, if None and there is one.
        tree: name of the tree of samples that don't tell.
        names: columns to show; features and context that the generated files were made with, if left out.
        bins: number of bins.

    Raises:
        ConfigError: no bin, or nothing tells what the features are.
        BranchError: a sample lacks a feature, or a column that is asked for.
        CalorefineError: a file can't be read.

    Warns:
        CalorefineWarning: the contexts of generated and reference events are distributed differently.
    """
    if bins < 1:
        raise ConfigError(f"bins: {bins} found, expected at least 1")
    sources = {name: RootFiles(one.files, one.tree or tree) for name, one in samples.items()}
    described = _described(sources)
    texts, lacking = _expressions(sources, described, names)
    if REFERENCE in sources:
        other = REWEIGHTED if REWEIGHTED in sources else GENERATED
        weights = samples[other].weight, samples[REFERENCE].weight
        warn_of_file_contexts(sources[other], sources[REFERENCE], weights)
    last = list(sources)[-1]
    rows = read_rows(sources[last], {name: text[last] for name, text in texts.items()}, samples[last].weight)
    edges = {name: display_edges(rows.table[name], rows.weight, bins=bins).tolist() for name in texts}
    measured = {}
    for sample, source in sources.items():
        histograms = {
            name: Histogram(text[sample], edges=edges[name], normalize="unit") for name, text in texts.items()
        }
        found = calibration or (Variations(weights=REPLICAS) if REPLICAS in source.branch_names() else None)
        replicas = {"calibration": found} if found and sample == REWEIGHTED else {}
        measured[sample] = Variables(source, histograms, samples[sample].weight, replicas)
    known = described.feature_columns | described.context_columns if described else {}
    units = {name: unit_of(name, known.get(name, Column())) for name in texts}
    return Features(units, measured, _tests(measured), lacking)


def _described(sources: Mapping[str, RootFiles]) -> Columns | None:
    """Columns that the generated files were made with, if one of them tells."""
    provenances = [read_provenance(source.paths[0]) for name, source in sources.items() if name != REFERENCE]
    return next((Columns.from_dict(one["columns"]) for one in provenances if "columns" in one), None)


def _expressions(
    sources: Mapping[str, RootFiles], described: Columns | None, names: Sequence[str] | None
) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Column to sample to its expression there, and what is said of a context column that a sample lacks."""
    if described is None and not names:
        first = next(iter(sources.values()))
        raise ConfigError(f"{first}: has no provenance that names its features; name them by the option features")
    own = {sample: _own_expressions(described, source, sample) for sample, source in sources.items()}
    texts, lacking = {}, []
    for name in names or [*(described.features if described else ()), *(described.context if described else ())]:
        text = {sample: own[sample].get(name, name) for sample in sources}
        without = [k for k, source in sources.items() if not set(branches(text[k])) <= set(source.branch_names())]
        if not without:
            texts[name] = text
        elif not names and described is not None and name in described.context:
            lacking.append(f"context '{name}' isn't in the {' and '.join(without)} events")
        else:
            there = sources[without[0]]
            raise BranchError(f"{there}: there is no branch '{name}'{nearest(name, there.branch_names())}")
    return texts, lacking


def _own_expressions(columns: Columns | None, source: RootFiles, sample: str) -> dict[str, str]:
    """Expressions of the columns in one sample."""
    if columns is None:
        return {}
    if sample == REFERENCE:
        return columns.expressions("features", "context")
    names, by_name = set(source.branch_names()), "columns" in read_provenance(source.paths[0])
    features = file_expressions(columns, "features", names, by_name=by_name)
    return features | file_expressions(columns, "context", names, by_name=False)


def _tests(measured: Mapping[str, Variables]) -> dict[str, dict[str, Test]]:
    """Sample to feature to reduced chi2 and p-value against the reference."""
    if REFERENCE not in measured:
        return {}
    target = measured[REFERENCE].nominal
    tests: dict[str, dict[str, Test]] = {sample: {} for sample in measured if sample != REFERENCE}
    for sample, results in tests.items():
        own = measured[sample]
        bins = {name: Bins(np.asarray(o.edges), counts=False) for name, o in own.nominal.observables.items()}
        replicas = own.rows.get("calibration")
        systematics = assemble(own.nominal.values[0], bins, calibration=replicas, generated=own.nominal.statistics)
        for name in target.observables:
            part = target.part(name)
            truth = {"truth": target.values[0][part], "truth_covariance": target.statistics[part, part]}
            chi2 = closure_bias(systematics.only(name), **truth).chi2
            results[name] = (chi2.reduced, chi2.p_value)
    return tests
