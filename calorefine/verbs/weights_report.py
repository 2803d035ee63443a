"""`calorefine weights-report`: what the weights of a file are worth, on one page, whoever made them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calorefine.errors import ConfigError, KeyWarning
from calorefine.events import Columns
from calorefine.io.chunks import NonFinite, Request
from calorefine.io.formats import open_source
from calorefine.io.provenance import read_provenance, recorded
from calorefine.io.sources import Source
from calorefine.io.table import read_table
from calorefine.io.writer import replacing
from calorefine.keys import KeyArray
from calorefine.pages.page import write_page
from calorefine.pages.weights import lead, weights_sections
from calorefine.stats import FloatArray
from calorefine.text import first_three
from calorefine.weights import summary
from calorefine.weights.column_bins import column_edges
from calorefine.weights.source import EVENT, shared_keys
from calorefine.weights.splot import SPlot
from calorefine.weights.stored import dependence, stored_part, stored_tests, stored_yields
from calorefine.weights.summary import Dependence, SpeciesNumbers, WeightsReport


@dataclass(frozen=True)
class _Sample:
    """Columns and what the spectator fit needs, by name; weights by species; keys; all (n,)."""

    table: dict[str, FloatArray]
    weights: dict[str, FloatArray]
    key: KeyArray


@recorded("weights-report")
def weights_report(
    *,
    files: str | list[str],
    tree: str,
    columns: Columns,
    weights: dict[str, str],
    output: str,
    splot: SPlot | None = None,
    nonfinite: NonFinite = "error",
    overwrite: bool = False,
) -> WeightsReport:
    """Report on the weights of a ROOT file, whoever wrote it: one page with tables and pictures, and its numbers.

    The page is a single HTML file; a JSON file of the same stem beside it has all numbers.

    Args:
        files: ROOT files; a path, a glob, or a list.
        tree: name of the tree.
        columns: features and context to show by weight, key and cut.
        weights: species to its weight, a branch or expression; any sign, and a single species will do.
        output: the page to write, an .html file.
        splot: spectator and shapes, to test factorization; without it, tests found in the file are shown.
        nonfinite: what to do about rows with NaN or infinite values in the columns, weights or the spectator.
        overwrite: replace existing outputs.

    Returns:
        All numbers.

    Raises:
        CalorefineError: bad input.
        ConfigError: no weights are given, or the output exists or is no .html file.
        FitError: the fit for the factorization test fails.
    """
    target = Path(output)
    if not weights:
        raise ConfigError("weights: none given, expected species and branches, such as {signal: sw_signal}")
    if target.suffix != ".html":
        raise ConfigError(f"{output}: expected the name of an .html file")
    source = open_source(files, tree)
    with (
        replacing(target, overwrite=overwrite) as page,
        replacing(target.with_suffix(".json"), overwrite=overwrite) as numbers,
    ):
        sample = _read(source, columns, weights=weights, splot=splot, nonfinite=nonfinite)
        report = _report(target, source, columns=columns, expressions=weights, splot=splot, sample=sample)
        numbers.write_text(json.dumps(report.to_dict(), indent=1, allow_nan=False), encoding="utf-8")
        title = f"Weights of {first_three(report.files)}"
        write_page(page, title, sections=weights_sections(report, columns), lead=lead(report))
    return report


def _read(
    source: Source, columns: Columns, *, weights: Mapping[str, str], splot: SPlot | None, nonfinite: NonFinite
) -> _Sample:
    hidden = {f"\0weight of {name}": text for name, text in weights.items()}
    wanted = columns.expressions("features", "context") | (splot.branches if splot else {}) | hidden
    request = Request.of(columns, wanted, nonfinite=nonfinite)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", KeyWarning)  # nothing here goes by the key
        table, key, event = read_table(source, request)
    table[EVENT] = event
    return _Sample(table, {name: table.pop(column) for name, column in zip(weights, hidden, strict=True)}, key)


def _report(
    output: Path,
    source: Source,
    *,
    columns: Columns,
    expressions: Mapping[str, str],
    splot: SPlot | None,
    sample: _Sample,
) -> WeightsReport:
    parts = [_stored(path) for path in source.paths]
    tests = _tests(splot, columns, sample.table) if splot else stored_tests(parts)
    shown = columns.totals(sample.table)
    return WeightsReport(
        output=output,
        files=[path.name for path in source.paths],
        tree=source.tree,
        cut=columns.cut,
        n_rows=source.n_entries(),
        n_events=len(sample.key),
        species=_species(source, columns, shown, expressions=expressions, sample=sample),
        sum_rules=summary.sum_rules(sample.weights, stored_yields(expressions, parts)),
        factorization_from="test" if splot else "file" if tests else "none",
        factorization=tests,
        distribution=summary.weight_counts(sample.weights),
        columns={name: summary.column_shares(values, sample.weights) for name, values in shown.items()},
    )


def _stored(path: Path) -> dict[str, Any]:
    """What a file says about its weights; nothing, if it isn't JSON."""
    try:
        return stored_part(read_provenance(path))
    except ValueError:
        return {}


def _species(
    source: Source,
    columns: Columns,
    table: Mapping[str, FloatArray],
    *,
    expressions: Mapping[str, str],
    sample: _Sample,
) -> dict[str, SpeciesNumbers]:
    edges = {name: column_edges(table[name], summary.N_BINS) for name in columns.context}
    group = shared_keys(sample.table[EVENT])
    rows = {name: summary.largest(weight) for name, weight in sample.weights.items()}
    known = _identified(source, columns, sample.key[np.concatenate(list(rows.values()))])
    species = {}
    for name, weight in sample.weights.items():
        events = [
            {"row": int(row), **known.get(int(sample.key[row]), {}), "weight": float(weight[row])}
            | {column: float(values[row]) for column, values in table.items()}
            for row in rows[name]
        ]
        moments = {column: summary.weighted_moments(values, weight, group) for column, values in table.items()}
        bins = {
            column: summary.in_bins(table[column], weight, edges=cuts, group=group) for column, cuts in edges.items()
        }
        species[name] = SpeciesNumbers(expressions[name], summary.weight_numbers(weight, group), events, moments, bins)
    return species


def _identified(source: Source, columns: Columns, wanted: KeyArray) -> dict[int, dict[str, int]]:
    """Values of the key branches of these keys, exactly, read once more; empty without key branches."""
    if not columns.key:
        return {}
    request = Request({}, columns.key, columns.candidate, columns.cut, branches=columns.key_branches)
    known = {}
    for chunk in source.chunks(request):
        for row in np.flatnonzero(np.isin(chunk.key, wanted)):
            known[int(chunk.key[row])] = {name: int(chunk.branches[name][row]) for name in columns.key_branches}
    return known


def _tests(splot: SPlot, columns: Columns, table: Mapping[str, FloatArray]) -> list[Dependence]:
    """Factorization of every column."""
    results = splot.tests(splot.fit(table), table, columns.totals(table))
    return [test for result in results if (test := dependence(vars(result)))]
