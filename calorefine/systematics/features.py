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
from calorefine.io.sample import WeightedFiles
from calorefine.observables import Histogram
from calorefine.shares import display_edges
from calorefine.systematics.assemble import assemble
from calorefine.systematics.bias import closure_bias
from calorefine.systematics.systematics import ObservableBins
from calorefine.systematics.variations import Variables, Variations
from calorefine.twosample.context_check import warn_of_file_contexts

REWEIGHTED, REFERENCE = "reweighted", "reference"
REPLICAS = "weight_replica"
Test = tuple[float | None, float | None]


@dataclass(frozen=True)
class Features:
    """What was measured.

    Attributes:
        units: feature to its unit, if it has one.
        samples: by name, the reference last; each with the replicas that it has.
        tests: sample to feature to the reduced chi2 against the reference and its p-value; None with too few replicas.
        lacking: what is said of context columns that a sample lacks, and of features that can't be tested.
    """

    units: dict[str, str | None]
    samples: dict[str, Variables]
    tests: dict[str, dict[str, Test]]
    lacking: list[str]


def measure_features(
    samples: Mapping[str, WeightedFiles],
    calibration: Variations | None,
    *,
    tree: str,
    names: Sequence[str] | None,
    bins: int,
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
    samples = {name: sample.within(tree) for name, sample in samples.items()}
    described = next((files.columns for name, files in samples.items() if name != REFERENCE and _tells(files)), None)
    samples = {name: sample.within(tree, described) for name, sample in samples.items()}
    texts, lacking = _expressions(samples, described, names)
    for name in samples if REFERENCE in samples else ():
        if name != REFERENCE:
            warn_of_file_contexts(samples[name], samples[REFERENCE])
    last, files = list(samples.items())[-1]
    rows = files.rows(files.request(None, {name: text[last] for name, text in texts.items()}))
    edges = {name: display_edges(rows.table[name], rows.weight, bins=bins).tolist() for name in texts}
    measured = {}
    for sample, files in samples.items():
        histograms = {
            name: Histogram(text[sample], edges=edges[name], normalize="unit") for name, text in texts.items()
        }
        varied = calibration or (Variations(weights=REPLICAS) if REPLICAS in files.branches else None)
        replicas = {"calibration": varied} if varied and sample == REWEIGHTED else {}
        measured[sample] = Variables(files.source, histograms, files.weight, replicas)
    known = described.feature_columns | described.context_columns if described else {}
    units = {name: unit_of(name, known.get(name, Column())) for name in texts}
    return Features(units, measured, _tests(measured, lacking), lacking)


def _tells(files: WeightedFiles) -> bool:
    """Whether the files tell the columns that they were made with."""
    return "columns" in files.provenance


def _expressions(
    samples: Mapping[str, WeightedFiles], described: Columns | None, names: Sequence[str] | None
) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Column to sample to its expression there, and what is said of a context column that a sample lacks."""
    if described is None and not names:
        first = next(iter(samples.values()))
        raise ConfigError(
            f"{first.source}: has no provenance that names its features; name them by the option features"
        )
    own = {sample: _own_expressions(described, files, sample) for sample, files in samples.items()}
    texts, lacking = {}, []
    for name in names or [*(described.features if described else ()), *(described.context if described else ())]:
        text = {sample: own[sample].get(name, name) for sample in samples}
        without = [sample for sample, files in samples.items() if files.lacking([text[sample]])]
        if not without:
            texts[name] = text
        elif not names and described is not None and name in described.context:
            lacking.append(f"context '{name}' isn't in the {' and '.join(without)} events")
        else:
            there = samples[without[0]]
            raise BranchError(f"{there.source}: there is no branch '{name}'{nearest(name, there.branches)}")
    return texts, lacking


def _own_expressions(columns: Columns | None, files: WeightedFiles, sample: str) -> dict[str, str]:
    """Expressions of the columns in one sample."""
    if columns is None:
        return {}
    if sample == REFERENCE:
        return columns.expressions("features", "context")
    return files.texts(columns, "features", "context")


def _tests(measured: Mapping[str, Variables], lacking: list[str]) -> dict[str, dict[str, Test]]:
    """Sample to feature to reduced chi2 and p-value against the reference; says why one is lacking."""
    if REFERENCE not in measured:
        return {}
    target = measured[REFERENCE].nominal
    tests: dict[str, dict[str, Test]] = {sample: {} for sample in measured if sample != REFERENCE}
    for sample, results in tests.items():
        own = measured[sample]
        bins = {name: ObservableBins(np.asarray(o.edges), counts=False) for name, o in own.nominal.observables.items()}
        replicas = own.rows.get("calibration")
        systematics = assemble(
            own.nominal.values[0],
            bins,
            calibration=replicas,
            generated=own.nominal.statistics,
            own_noise=own.own_noise()[0],
        )
        for name in target.observables:
            part = target.part(name)
            truth = {"truth": target.values[0][part], "truth_covariance": target.statistics[part, part]}
            bias = closure_bias(systematics.only(name), **truth)
            results[name] = (bias.chi2.reduced, bias.chi2.p_value) if bias.chi2 else (None, None)
            lacking += [f"{sample} '{name}' isn't tested against the reference: {bias.untested}"] * bool(bias.untested)
    return tests
