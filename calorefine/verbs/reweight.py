"""`calorefine reweight`: learn weights that make generated events the reference's (`fit`), and write them to files."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from calorefine.errors import ConfigError
from calorefine.events import Columns
from calorefine.io.provenance import recorded
from calorefine.io.sources import TreeFormat
from calorefine.reweighting.ratio import RatioEstimator
from calorefine.verbs.reweight_apply import ApplySummary, Normalization, apply_reweighter
from calorefine.verbs.reweight_fit import FitSummary, fit_reweighter
from calorefine.verbs.unweight import UnweightSummary, unweight_files

SHARED = ("generated", "output", "tree", "generated_weight", "tree_format", "overwrite")
FIT_ONLY = (
    *("reference", "reference_tree", "reference_weight", "columns", "estimator", "conditional", "rounds"),
    *("replicas", "bootstrap_seed"),
)
WEIGHTS_ONLY = ("branch", "normalization", "in_place", "replace_branch")


@recorded("reweight")
def reweight_files(
    *,
    generated: str,
    output: str | None = None,
    apply: str | None = None,
    tree: str = "events",
    generated_weight: str = "none",
    reference: str | None = None,
    reference_tree: str | None = None,
    reference_weight: str = "none",
    columns: Columns | None = None,
    estimator: RatioEstimator | None = None,
    conditional: bool = True,
    rounds: int = 1,
    replicas: int = 0,
    bootstrap_seed: int = 0,
    branch: str = "weight",
    normalization: Normalization = "mean",
    in_place: bool = False,
    replace_branch: bool = False,
    unweight: bool = False,
    max_factor: float | None = None,
    tree_format: TreeFormat | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> FitSummary | ApplySummary | UnweightSummary:
    """Learn weights that turn generated events into the reference's; with --apply, write them to files.

    A fit writes a reweighter, its diagnostics as JSON, and a page of them beside it.  Applying it writes all rows of
    the generated files with a branch of their weight or, with `unweight`, some rows that need none.  Events that fail
    the cut of the fit, or have a context outside of its range, have factor 1 and are counted.

    Args:
        generated: ROOT files of generated events; a path or a glob.
        output: the file to write: the reweighter, which ends in .pt; with `apply` a ROOT file.
        apply: the reweighter to apply; a fit, if left out.
        tree: name of the tree of generated events.
        generated_weight: branch or expression of the weights that they have, or "none"; not negative in a fit.
        reference: fit: ROOT files of reference events; a path or a glob.
        reference_tree: fit: name of their tree, if it is another one.
        reference_weight: fit: branch or expression of their weights, signed ones included, or "none".
        columns: fit: features, context, key and cut; those that the generated file was made with, if left out.
        estimator: fit: of the density ratio; NetworkRatio, if left out.
        conditional: fit: correct the features given the context, whose spectrum stays; false corrects both.
        rounds: fit: how many corrections at most, each on top of the last.
        replicas: fit: of how many bootstrap copies of the reference to learn the correction, too.  Weights in replica k
            are entry k - 1 of the branch `<reference_weight>_replica` if there is one (`calorefine splot --replicas`),
            else their counts times the weight.
        bootstrap_seed: fit: seed of the counts, where the reference doesn't tell the one of its replicas.
        branch: apply: name of the branch to write; float64, generated weight times factor.  With replicas, the array
            `<branch>_replica` holds the complete weight in each.
        normalization: apply: "mean" leaves the factors as they are, of mean 1 at each context (not conditional: over
            the events of the fit); "reference" makes the weights of the files sum to those of the reference.
        in_place: apply: replace the generated file by the one with weights, once that is complete.
        replace_branch: apply: write the branch anew if it exists.
        unweight: apply: keep each event with probability weight / largest weight, and write no branch.
        max_factor: unweight: weight from which on all events are kept; the largest of the files, if left out.
        tree_format: apply: "ttree" or "rntuple"; that of the generated file, if left out.
        seed: of folds, training and tests; of the decisions with `unweight`.
        overwrite: replace existing outputs.

    Returns:
        What was written.

    Raises:
        CalorefineError: bad input; nothing is written.
    """
    given = dict(locals())

    def options(*names: str) -> dict[str, Any]:
        return {name: given[name] for name in names}

    if apply is None:
        _refuse(given, (*WEIGHTS_ONLY, "unweight", "max_factor", "tree_format"), "needs --apply, the reweighter")
        fit = options(*FIT_ONLY, "generated", "output", "tree", "generated_weight", "seed", "overwrite")
        return fit_reweighter(**fit)
    _refuse(given, FIT_ONLY, "belongs to a fit, and --apply uses a reweighter as it is; leave it out")
    if unweight:
        _refuse(given, WEIGHTS_ONLY, "doesn't go with --unweight true, which leaves rows out and writes no weights")
        if output is None:
            raise ConfigError("output: none given, expected the ROOT file to write")
        return unweight_files(reweighter=apply, **options(*SHARED, "max_factor", "seed"))
    _refuse(given, ("max_factor",), "needs --unweight true")
    return apply_reweighter(reweighter=apply, **options(*SHARED, *WEIGHTS_ONLY))


def _refuse(given: dict[str, Any], names: Sequence[str], why: str) -> None:
    """Raise `ConfigError` for the first of these options that is not the default."""
    parameters = inspect.signature(reweight_files).parameters
    for name in names:
        if given[name] != parameters[name].default:
            raise ConfigError(f"{name}: {given[name]} found, but this option {why}")
