"""`calorefine splot` and `calorefine fractions`: ROOT files in, the same events with weight branches out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from calorefine.errors import ConfigError, FactorizationError, nearest
from calorefine.events import Columns
from calorefine.io.provenance import recorded
from calorefine.io.root import NonFinite, RootFiles
from calorefine.io.writer import TreeFormat
from calorefine.pages.figures.spectator import fit_figure
from calorefine.weights.factorization import FactorizationResult, factorization_test, reject_if_dependent
from calorefine.weights.fractions import LabelFractions, LabelProbabilities
from calorefine.weights.source import WeightFit, WeightSource
from calorefine.weights.splot import SPlot, SPlotResult
from calorefine.weights.weighted_files import Replicas, WeightedInput, WeightedOutput

Table = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class WeightsSummary:
    """What was found, and the file written."""

    output: Path
    fit: WeightFit
    branches: list[str]
    lines: list[str] = field(default_factory=list)
    factorization: list[FactorizationResult] = field(default_factory=list)
    pictures: list[Path] = field(default_factory=list)

    def __str__(self) -> str:
        """Tables for the terminal."""
        beside = ", ".join(path.name for path in [self.output.with_suffix(".json"), *self.pictures])
        last = f"{self.output}: with {', '.join(self.branches)}; beside it {beside}"
        return "\n".join([self.fit.summary(), "", *self.lines, last])


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
    dependence: Literal["error", "warn"] = "error",
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
    source = WeightedInput([RootFiles(files, tree)], columns, splot, nonfinite)
    table, key = source.read()
    bootstrap = Replicas(splot, table, key, n=replicas, seed=seed, refit=refit, block=columns.block)
    fit = bootstrap.nominal
    if not isinstance(fit, SPlotResult):
        raise TypeError(type(fit))
    tested = {name: table[name] for name in [*columns.features, *columns.context]}
    tests = _tested(splot, fit, table, tested, dependence, "")
    others = {name: splot.alternative(name).fit(table) for name in splot.alternatives}
    content = fit.to_dict() | {"factorization": [vars(r) for r in tests]}
    for name, other in others.items():
        found = _tested(splot.alternative(name), other, table, tested, dependence, f"alternative '{name}': ")
        alternative = other.to_dict() | {"factorization": [vars(r) for r in found]}
        content.setdefault("alternatives", {})[name] = alternative
    titles = fit.bins.labels if fit.bins.edges else [""]
    pictures = {_picture(Path(output), n): fit_figure(part, title=titles[n]) for n, part in enumerate(fit.fits)}
    lines = [*_factorization_table(tests), *_alternatives_table(fit, others)]
    lines += [f"WARNING: {text}" for text in fit.warnings]
    written = WeightedOutput("splot", "sw_", Path(output), content, pictures, tree_format, overwrite)
    return WeightsSummary(Path(output), fit, written.write(source, bootstrap, others), lines, tests, list(pictures))


@recorded("fractions")
def fractions_file(
    *,
    files: str | list[str] | dict[str, str | list[str]],
    tree: str | dict[str, str],
    columns: Columns,
    weights: LabelFractions | LabelProbabilities,
    output: str,
    replicas: int = 0,
    seed: int = 0,
    refit: bool = True,
    nonfinite: NonFinite = "error",
    tree_format: TreeFormat = "ttree",
    overwrite: bool = False,
) -> WeightsSummary:
    """Solve for the weights of labelled samples, and write their events with one weight branch for each species.

    The branches are `w_<species>` and, with replicas, the fixed-size arrays `w_<species>_replica`, bootstrap counts
    included.  If the samples are files or trees of their own, they are written one after the other, with a branch
    `sample` that numbers them as `fractions` does.  Beside the output, a JSON file holds yields and checks.

    Args:
        files: ROOT files; a path, a glob, or a list.  Or sample to its files, if a sample is a file or a tree.
        tree: name of the tree; or sample to its tree.
        columns: features and context, key, cut and block.
        weights: the fractions of the samples, or the events' own probabilities.
        output: the ROOT file to write.
        replicas: number of bootstrap replicas to write; entry k of the arrays is replica k + 1 (0 is the nominal).
        seed: seed of their counts.
        refit: solve again in each replica, with fractions drawn from their errors.
        nonfinite: what to do about rows with NaN or infinite values in the columns.
        tree_format: "ttree", or "rntuple", which ROOT reads from version 6.34 on.
        overwrite: replace existing outputs.

    Returns:
        Yields and checks.

    Raises:
        CalorefineError: bad input, or samples that can't separate the species.
    """
    source = WeightedInput(
        _samples(files, tree, weights), columns, weights, nonfinite, numbered=isinstance(files, dict)
    )
    table, key = source.read()
    bootstrap = Replicas(weights, table, key, n=replicas, seed=seed, refit=refit, block=columns.block)
    written = WeightedOutput("fractions", "w_", Path(output), bootstrap.nominal.to_dict(), {}, tree_format, overwrite)
    return WeightsSummary(Path(output), bootstrap.nominal, written.write(source, bootstrap, {}))


def _samples(
    files: str | list[str] | dict[str, str | list[str]], tree: str | dict[str, str], weights: WeightSource
) -> list[RootFiles]:
    """Files in the order in which the fractions name the samples."""
    if not isinstance(files, dict):
        if isinstance(tree, dict):
            raise ConfigError("tree: one for each sample given, expected `files` of each sample as well")
        source = RootFiles(files, tree)
        if isinstance(weights, LabelFractions) and "sample" == weights.sample not in source.branch_names():
            wanted = ", ".join(f"{name}: ..." for name in weights.fractions)
            msg = (
                f"{source}: there is no branch 'sample', the default of `sample`; give an expression that numbers the "
            )
            raise ConfigError(msg + f"samples, or their files one by one, files: {{{wanted}}}")
        return [source]
    if not isinstance(weights, LabelFractions):
        raise ConfigError("files: one set for each sample given, expected LabelFractions, which tells their fractions")
    if weights.sample != "sample":
        msg = f"sample: '{weights.sample}' given, expected the default, since the samples are told apart by their files"
        raise ConfigError(msg)
    names = list(weights.fractions)
    for option, given in (("files", files), ("tree", tree)):
        for name in given if isinstance(given, dict) else ():
            if name not in names:
                msg = f"{option}: sample '{name}' is not among those of `fractions`, {', '.join(names)}"
                raise ConfigError(msg + nearest(name, names))
        if isinstance(given, dict) and (missing := [name for name in names if name not in given]):
            raise ConfigError(f"{option}: none for sample '{missing[0]}', expected some for each of `fractions`")
    return [RootFiles(files[name], tree[name] if isinstance(tree, dict) else tree) for name in names]


def _tested(
    splot: SPlot, fit: SPlotResult, table: Table, columns: Table, dependence: str, what: str
) -> list[FactorizationResult]:
    """Test factorization; a refusal shows fit and tests, since nothing is written then."""
    tests = factorization_test(splot, table[splot.spectator], columns | _bin_columns(splot, table), result=fit)
    try:
        reject_if_dependent(tests, what=what, raise_below=1e-3 if dependence == "error" else 0.0)
    except FactorizationError as error:
        msg = "\n".join([str(error), "nothing is written; --dependence warn goes on", "", fit.summary(), ""])
        raise FactorizationError("\n".join([msg, *_factorization_table(tests)])) from error
    return tests


def _bin_columns(splot: SPlot, table: Table) -> Table:
    return {name: table[name] for name in splot.context_bins.edges}


def _picture(output: Path, number: int) -> Path:
    return output.with_suffix(".png") if number == 0 else output.with_name(f"{output.stem}_{number}.png")


def _factorization_table(tests: list[FactorizationResult]) -> list[str]:
    lines = ["factorization: does the spectator's shape depend on a column?"]
    lines.append(f"{'column':<20}{'chi2/ndf':>12}{'p':>10}{'p corrected':>13}")
    for r in tests:
        lines.append(f"{r.column:<20}{f'{r.chi2:.1f}/{r.ndf}':>12}{r.p_value:>10.2g}{r.p_corrected:>13.2g}")
    return [*lines, ""]


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
