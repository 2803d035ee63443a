"""`calorefine splot`: files in, the same events with sWeight branches out."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from calorefine.errors import FactorizationError
from calorefine.events import Arrays, Columns
from calorefine.io.chunks import NonFinite
from calorefine.io.formats import open_source
from calorefine.io.provenance import recorded
from calorefine.io.sources import TreeFormat
from calorefine.io.writer import check_outputs
from calorefine.pages.figures.spectator import fit_figure
from calorefine.pages.style import save_picture
from calorefine.weights.factorization import FactorizationResult, tests_table
from calorefine.weights.source import Dependence
from calorefine.weights.splot import SPlot, SPlotResult
from calorefine.weights.weighted_files import Replicas, WeightedInput, WeightedOutput, WeightsSummary

TITLE = "factorization: does the spectator's shape depend on a column?"


@recorded("splot")
def splot_file(
    *,
    files: str | list[str],
    tree: str,
    columns: Columns,
    splot: SPlot,
    output: str,
    replicas: int = 0,
    seed: int = 0,
    refit: bool = True,
    dependence: Dependence = "error",
    friends: list[str] | None = None,
    friends_by: list[str] | None = None,
    nonfinite: NonFinite = "error",
    tree_format: TreeFormat = "ttree",
    overwrite: bool = False,
) -> WeightsSummary:
    """Fit the spectator, test that it factorizes, and write the input with one sWeight branch for each species.

    The branches are `sw_<species>`, `sw_<species>_<alternative>` for alternative shapes and, with replicas, the
    fixed-size arrays `sw_<species>_replica`, bootstrap counts included.  Beside the output, a JSON file holds the fit
    with its uncertainties, and a picture shows it with its pulls.  Rows that fail the cut are left out; those outside
    the spectator's range stay, with weight 0.

    Args:
        files: ROOT files; a path, a glob, or a list.
        tree: name of the tree.
        columns: features and context, against which factorization is tested, key, cut and block.
        splot: the fit: spectator, range and the shape of each species.
        output: the ROOT file to write.
        replicas: number of bootstrap replicas to write; entry k of the arrays is replica k + 1 (0 is the nominal).
        seed: seed of their counts.
        refit: redo the fit in each replica; without, their spread lacks the fit's uncertainty.
        dependence: what to do if the spectator's shape depends on a column at p < 1e-3: write nothing, or warn.
        friends: files with further branches of the same rows, one for each of `files`, in their order.
        friends_by: integer branches of both by which the rows of friends are found, if those are in another order.
        nonfinite: what to do about rows with NaN or infinite values in the columns or the spectator.
        tree_format: "ttree", or "rntuple", which ROOT reads from version 6.34 on.
        overwrite: replace existing outputs.

    Returns:
        The fit and the tests.

    Raises:
        CalorefineError: bad input, a fit that fails, or a shape that depends on a column.

    Warns:
        FactorizationWarning: the spectator's shape depends on a column.
    """
    target = Path(output)
    check_outputs(target, target.with_suffix(".json"), _picture(target, 0), overwrite=overwrite)
    source = WeightedInput([open_source(files, tree, friends, friends_by)], columns, splot, nonfinite)
    table, key = source.read()
    bootstrap = Replicas(splot, table, key, n=replicas, seed=seed, refit=refit, block=columns.block)
    fit = bootstrap.nominal
    if not isinstance(fit, SPlotResult):
        raise TypeError(type(fit))
    tested = columns.totals(table)
    tests = _tested(splot, fit, table, tested, dependence, "")
    others = {name: splot.alternative(name).fit(table) for name in splot.alternatives}
    content = fit.to_dict() | {"factorization": [vars(r) for r in tests]}
    for name, other in others.items():
        found = _tested(splot.alternative(name), other, table, tested, dependence, f"alternative '{name}': ")
        alternative = other.to_dict() | {"factorization": [vars(r) for r in found]}
        content.setdefault("alternatives", {})[name] = alternative
    titles = fit.bins.labels if fit.bins.edges else [""]
    pictures = {
        _picture(target, n): partial(save_picture, fit_figure(part, title=titles[n])) for n, part in enumerate(fit.fits)
    }
    lines = [*tests_table(TITLE, tests), *_alternatives_table(fit, others), *bootstrap.lines()]
    lines += [f"WARNING: {text}" for text in fit.warnings]
    written = WeightedOutput("splot", "sw_", target, content, pictures, tree_format, overwrite)
    return WeightsSummary(target, fit, written.write(source, bootstrap, others), lines, tests, list(pictures))


def _tested(
    splot: SPlot, fit: SPlotResult, table: Arrays, columns: Arrays, dependence: Dependence, what: str
) -> list[FactorizationResult]:
    """Test factorization; a refusal shows fit and tests, since nothing is written then."""
    try:
        return splot.check(fit, table, columns, dependence=dependence, what=what)
    except FactorizationError as error:
        msg = "\n".join([str(error), "nothing is written", "", fit.summary(), ""])
        tests = splot.tests(fit, table, columns)
        raise FactorizationError("\n".join([msg, *tests_table(TITLE, tests)])) from error


def _picture(output: Path, number: int) -> Path:
    return output.with_suffix(".png") if number == 0 else output.with_name(f"{output.stem}_{number}.png")


def _alternatives_table(fit: SPlotResult, others: dict[str, SPlotResult]) -> list[str]:
    """Yields and p-values of the alternative shapes beside the nominal ones."""
    if not others:
        return []
    lines = [
        "alternative shapes: yields",
        f"{'':<20}" + "".join(f"{name:>14}" for name in fit.species) + "  fit's p",
    ]
    for name, other in {"nominal": fit, **others}.items():
        yields = "".join(f"{size:>14.1f}" for size in other.yields.values())
        lines.append(f"{name:<20}{yields}{min(part.p_value for part in other.fits):>12.3g}")
    return [*lines, ""]
