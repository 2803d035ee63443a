"""`calorefine splot`: a ROOT file in, its spectator fitted, the same file with sWeight branches out."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calorefine.errors import ConfigError
from calorefine.events import Columns
from calorefine.io.root import NonFinite, Request, RootFiles, read_table
from calorefine.io.writer import TreeFormat, replacing, write_tree
from calorefine.weights.factorization import FactorizationResult, factorization_test, warn_if_dependent
from calorefine.weights.plots import fit_figure
from calorefine.weights.splot import SPlot
from calorefine.weights.splot_fit import SPlotFit


@dataclass(frozen=True)
class SPlotReport:
    """The fit, its factorization tests, and the file written."""

    output: Path
    fit: SPlotFit
    factorization: list[FactorizationResult]

    def __str__(self) -> str:
        """Tables for the terminal."""
        lines = [self.fit.summary(), "", "factorization: does the spectator's shape depend on a column?"]
        lines.append(f"{'column':<20}{'chi2/ndf':>12}{'p':>10}{'p corrected':>13}")
        for r in self.factorization:
            lines.append(f"{r.column:<20}{f'{r.chi2:.1f}/{r.ndf}':>12}{r.p_value:>10.2g}{r.p_corrected:>13.2g}")
        branches = ", ".join(f"sw_{name}" for name in self.fit.yields)
        lines += ["", f"{self.output}: input with branches {branches}; fit in {self.output.stem}.json and .png"]
        return "\n".join(lines)


def splot_file(
    *,
    files: str | list[str],
    tree: str,
    columns: Columns,
    splot: SPlot,
    output: str,
    nonfinite: NonFinite = "error",
    tree_format: TreeFormat = "ttree",
    overwrite: bool = False,
) -> SPlotReport:
    """Fit the spectator, test that it factorizes, and write the input with one sWeight branch for each species.

    Beside the output, a JSON file holds the fit with its uncertainties, and a picture shows it with its pulls.
    Rows that fail the cut are left out; those outside the spectator's range stay, with weight 0.

    Args:
        files: ROOT files; a path, a glob, or a list.
        tree: name of the tree.
        columns: features and context, against which factorization is tested, key and cut.
        splot: the fit: spectator, range and the shape of each species.
        output: the ROOT file to write.
        nonfinite: what to do about rows with NaN or infinite values in the columns or the spectator.
        tree_format: "ttree", or "rntuple", which ROOT reads from version 6.34 on.
        overwrite: replace existing outputs.

    Returns:
        The fit and the tests.

    Raises:
        CalorefineError: bad input, or a fit that fails.

    Warns:
        FactorizationWarning: the spectator's shape depends on a column.
    """
    source, target = RootFiles(files, tree), Path(output)
    request = _request(columns, splot, source, nonfinite)
    table, _, _ = read_table(source, request)
    spectator = table[splot.spectator]
    fit = splot.fit(spectator)
    tested = {name: table[name] for name in [*columns.features, *columns.context]}
    results = factorization_test(splot, spectator, tested, fit=fit)
    warn_if_dependent(results)
    report = SPlotReport(target, fit, results)
    _write(report, source, request, splot.spectator, tree_format, overwrite=overwrite)
    return report


def _request(columns: Columns, splot: SPlot, source: RootFiles, nonfinite: NonFinite) -> Request:
    names = source.branch_names()
    if clash := {f"sw_{name}" for name in splot.species} & set(names):
        raise ConfigError(f"{source}: has a branch {sorted(clash)[0]} already; expected an input without sWeights")
    wanted = columns.expressions("features", "context") | splot.branches
    return Request(wanted, columns.key, columns.candidate, columns.cut, branches=names, nonfinite=nonfinite)


def _write(
    report: SPlotReport,
    source: RootFiles,
    request: Request,
    spectator: str,
    tree_format: TreeFormat,
    *,
    overwrite: bool,
) -> None:
    """Write JSON and picture, and stream the input to the output with its weights."""
    fit, output = report.fit, report.output
    content: dict[str, Any] = fit.to_dict() | {"factorization": [vars(r) for r in report.factorization]}
    with write_tree(output, source.tree, tree_format=tree_format, overwrite=overwrite) as writer:
        for chunk in source.chunks(request):
            m = chunk.values[spectator]
            writer.extend({**chunk.branches, **{f"sw_{name}": fit.weights(m, name) for name in fit.yields}})
        writer.finish({"splot": content, "files": [path.name for path in source.paths]})
        with replacing(output.with_suffix(".json"), overwrite=overwrite) as beside:
            beside.write_text(json.dumps(content, indent=1, default=_plain))
        with replacing(output.with_suffix(".png"), overwrite=overwrite) as beside:
            fit_figure(fit).savefig(beside, format="png", dpi=120)


def _plain(value: NDArray[Any] | np.generic) -> Any:
    return value.tolist()
