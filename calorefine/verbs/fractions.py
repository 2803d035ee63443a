"""`calorefine fractions`: files of labelled samples in, the same events with weight branches out."""

from __future__ import annotations

from pathlib import Path

from calorefine.errors import ConfigError, nearest
from calorefine.events import Columns
from calorefine.io.chunks import NonFinite
from calorefine.io.formats import open_source
from calorefine.io.provenance import recorded
from calorefine.io.sources import Source, TreeFormat
from calorefine.io.writer import check_outputs
from calorefine.weights.factorization import tests_table
from calorefine.weights.fractions import LabelFractions, LabelProbabilities
from calorefine.weights.source import Dependence, WeightSource
from calorefine.weights.weighted_files import Replicas, WeightedInput, WeightedOutput, WeightsSummary

TITLE = "consistency: are the samples mixtures of the same species, with these fractions?"


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
    dependence: Dependence = "error",
    friends: list[str] | None = None,
    friends_by: list[str] | None = None,
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
        dependence: what to do if more samples than species disagree with their fractions at p < 1e-3: write nothing,
            or warn.
        friends: files with further branches of the same rows, one for each of `files`, in their order.
        friends_by: integer branches of both by which the rows of friends are found, if those are in another order.
        nonfinite: what to do about rows with NaN or infinite values in the columns.
        tree_format: "ttree", or "rntuple", which ROOT reads from version 6.34 on.
        overwrite: replace existing outputs.

    Returns:
        Yields and checks.

    Raises:
        CalorefineError: bad input, samples that can't separate the species, or that disagree with their fractions.
    """
    target = Path(output)
    check_outputs(target, target.with_suffix(".json"), overwrite=overwrite)
    source = WeightedInput(
        _samples(files, tree, weights, friends, friends_by),
        columns,
        weights,
        nonfinite,
        numbered=isinstance(files, dict),
    )
    table, key = source.read()
    bootstrap = Replicas(weights, table, key, n=replicas, seed=seed, refit=refit, block=columns.block)
    tests = weights.check(bootstrap.nominal, table, columns.totals(table), dependence=dependence)
    content = bootstrap.nominal.to_dict() | {"consistency": [vars(r) for r in tests]}
    written = WeightedOutput("fractions", "w_", target, content, {}, tree_format, overwrite)
    lines = tests_table(TITLE, tests) if tests else []
    branches = written.write(source, bootstrap, {})
    return WeightsSummary(target, bootstrap.nominal, branches, [*lines, *bootstrap.lines()])


def _samples(
    files: str | list[str] | dict[str, str | list[str]],
    tree: str | dict[str, str],
    weights: WeightSource,
    friends: list[str] | None,
    friends_by: list[str] | None,
) -> list[Source]:
    """Files in the order in which the fractions name the samples."""
    if not isinstance(files, dict):
        if isinstance(tree, dict):
            raise ConfigError("tree: one for each sample given, expected `files` of each sample as well")
        source = open_source(files, tree, friends, friends_by)
        if isinstance(weights, LabelFractions) and "sample" == weights.sample not in source.branch_names():
            wanted = ", ".join(f"{name}: ..." for name in weights.fractions)
            msg = (
                f"{source}: there is no branch 'sample', the default of `sample`; give an expression that numbers the "
            )
            raise ConfigError(msg + f"samples, or their files one by one, files: {{{wanted}}}")
        return [source]
    if friends:
        raise ConfigError("friends: given beside files for each sample, expected files of all samples together")
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
    return [open_source(files[name], tree[name] if isinstance(tree, dict) else tree) for name in names]
