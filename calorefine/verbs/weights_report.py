"""`calorefine weights-report`: what the weights of a file are worth, on one page, whoever made them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from calorefine.errors import ConfigError, FileError, KeyWarning
from calorefine.events import Arrays, Columns
from calorefine.io.chunks import NonFinite, Request
from calorefine.io.formats import open_source
from calorefine.io.provenance import made_by, read_provenance, recorded, write_json
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


@recorded("weights-report")
def weights_report(
    *,
    files: str | list[str],
    tree: str,
    columns: Columns,
    weights: dict[str, str],
    output: str,
    splot: SPlot | None = None,
    friends: list[str] | None = None,
    friends_by: list[str] | None = None,
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
        friends: files with further branches of the same rows, one for each of `files`, in their order.
        friends_by: integer branches of both by which the rows of friends are found, if those are in another order.
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
    source = open_source(files, tree, friends, friends_by)
    with (
        replacing(target, overwrite=overwrite) as page,
        replacing(target.with_suffix(".json"), overwrite=overwrite) as numbers,
    ):
        report = _report(target, source, columns, weights, splot, nonfinite)
        write_json(numbers, report.to_dict() | {"provenance": made_by()})
        title = f"Weights of {first_three(report.files)}"
        write_page(page, title, sections=weights_sections(report, columns), lead=lead(report), overwrite=True)
    return report


def _report(
    output: Path,
    source: Source,
    columns: Columns,
    expressions: Mapping[str, str],
    splot: SPlot | None,
    nonfinite: NonFinite,
) -> WeightsReport:
    hidden = {f"\0weight of {name}": text for name, text in expressions.items()}
    wanted = columns.expressions("features", "context") | (splot.branches if splot else {}) | hidden
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", KeyWarning)  # nothing here goes by the key
        table, key, event = read_table(source, Request.of(columns, wanted, nonfinite=nonfinite))
    table[EVENT] = event
    weights = {name: table.pop(column) for name, column in zip(expressions, hidden, strict=True)}
    parts = [_stored(path) for path in source.paths]
    tests = _tests(splot, columns, table) if splot else stored_tests(parts)
    shown = columns.totals(table)
    group = shared_keys(event)
    largest = _largest(source, columns, shown, weights, key)
    edges = {name: column_edges(shown[name], summary.N_BINS) for name in columns.context}
    species = {
        name: SpeciesNumbers(
            expression=expressions[name],
            weights=summary.weight_numbers(weight, group),
            largest=largest[name],
            moments={column: summary.weighted_moments(values, weight, group) for column, values in shown.items()},
            bins={
                column: summary.in_bins(shown[column], weight, edges=cuts, group=group)
                for column, cuts in edges.items()
            },
        )
        for name, weight in weights.items()
    }
    return WeightsReport(
        output=output,
        files=[path.name for path in source.paths],
        tree=source.tree,
        cut=columns.cut,
        n_rows=source.n_entries(),
        n_events=len(key),
        species=species,
        sum_rules=summary.sum_rules(weights, stored_yields(expressions, parts)),
        factorization_from="test" if splot else "file" if tests else "none",
        factorization=tests,
        distribution=summary.weight_counts(weights),
        columns={name: summary.column_shares(values, weights) for name, values in shown.items()},
    )


def _stored(path: Path) -> dict[str, Any]:
    """What a file says about its weights; nothing, if that isn't calorefine's, whoever wrote it."""
    try:
        return stored_part(read_provenance(path))
    except FileError:
        return {}


def _largest(
    source: Source, columns: Columns, table: Arrays, weights: Mapping[str, FloatArray], key: KeyArray
) -> dict[str, list[dict[str, float | int]]]:
    """Events of the largest weights of each species; values of the key branches exactly, read once more."""
    rows = {name: summary.largest(weight) for name, weight in weights.items()}
    wanted = key[np.concatenate(list(rows.values()))]
    request = Request({}, columns.key, columns.candidate, columns.cut, branches=columns.key_branches)
    known: dict[int, dict[str, int]] = {}
    for chunk in source.chunks(request) if columns.key else ():
        for row in np.flatnonzero(np.isin(chunk.key, wanted)):
            known[int(chunk.key[row])] = {name: int(chunk.branches[name][row]) for name in columns.key_branches}
    return {
        name: [
            {"row": int(row), **known.get(int(key[row]), {}), "weight": float(weights[name][row])}
            | {column: float(values[row]) for column, values in table.items()}
            for row in chosen
        ]
        for name, chosen in rows.items()
    }


def _tests(splot: SPlot, columns: Columns, table: Arrays) -> list[Dependence]:
    """Factorization of every column."""
    results = splot.tests(splot.fit(table), table, columns.totals(table))
    return [test for result in results if (test := dependence(vars(result)))]
