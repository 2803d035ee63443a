"""Weights of a reweighter for the events of ROOT files, as a branch.

The weight of a generated event is its own weight times the reweighter's factor f(x, context), times one number:

- normalization "mean": 1.  In the conditional case the mean factor is 1 at each context; in the joint case it is 1 over
  the generated events that the reweighter was trained on.
- normalization "reference": what makes the file's weights sum to those of the reference that it was trained on.

A reweighter with replicas writes a second branch, `<branch>_replica`: entry k is the complete weight in replica k + 1,
with the normalization of that replica.

Where the reweighter was learned with a cut, this is about the events that pass it: they make up the sums on either
side.  Events that fail it are written, too, with factor 1 times that number, counted, and left out of all sums.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from calorefine import stats
from calorefine.errors import ConfigError
from calorefine.io.reductions import branches
from calorefine.io.rewrite import rewriting
from calorefine.io.sample import WeightedFiles
from calorefine.io.sources import Source, TreeFormat
from calorefine.reweighting.replicas import SUFFIX
from calorefine.reweighting.resolved import TERMS, terms_record
from calorefine.reweighting.reweighted_files import GeneratedFiles
from calorefine.reweighting.reweighter import Reweighter
from calorefine.reweighting.sums import MeanFactors, ReplicaTotals, Totals
from calorefine.stats import FloatArray

Normalization = Literal["mean", "reference"]


@dataclass(frozen=True)
class ApplySummary:
    """What was written.

    Attributes:
        output: the file.
        branch: that of the weights.
        totals: of these weights.
        normalization: which one.
        scale: the number that all factors were multiplied by for it.
        cut: of the reweighter.
        replicas: sums over the weights of each replica.
    """

    output: Path
    branch: str
    totals: Totals
    normalization: Normalization
    scale: float
    cut: str | None
    replicas: ReplicaTotals

    def __str__(self) -> str:
        """Report for the terminal."""
        t = self.totals
        share = t.largest_weight / abs(t.sum_w) if t.sum_w else float("inf")
        return "\n".join(
            [
                f"{self.output}: {t.n} events with branch {self.branch}, sum of weights {t.sum_w:.6g}",
                f"effective number of events {t.n_eff:.1f}, {t.n_eff / max(t.n_keys, 1):.1%}",
                f"largest weight {share:.2g} of the sum, largest factor {t.largest_factor:.3g}",
                *t.mean_factors(),
                *t.left_out(self.cut),
                f"normalization {self.normalization}: factors times {self.scale:.6g}",
                *self.replicas.lines(f"{self.branch}{SUFFIX}"),
            ]
        )

    def to_dict(self) -> dict[str, Any]:
        """For the provenance."""
        own = {"normalization": self.normalization, "scale": self.scale}
        return {**own, **self.totals.to_dict(), "replicas": self.replicas.to_dict()}


def apply_reweighter(
    *,
    reweighter: str,
    generated: str,
    output: str | None,
    tree: str = "events",
    generated_weight: str = "none",
    branch: str = "weight",
    normalization: Normalization = "mean",
    in_place: bool = False,
    replace_branch: bool = False,
    tree_format: TreeFormat | None = None,
    overwrite: bool = False,
) -> ApplySummary:
    """Write generated events with their weight as a further branch: the same rows in the same order.

    Events outside of the reweighter's cut or of its domain get factor 1 and are counted.  A reweighter with replicas
    also writes `<branch>_replica`, a fixed-size array with a complete weight for each.

    Args:
        reweighter: a file of `calorefine reweight`.
        generated: ROOT files with features and context; a path or a glob.
        output: the ROOT file to write; None in place.
        tree: name of the tree.
        generated_weight: branch or expression of the weights that the events have, or "none".
        branch: name of the branch to write; float64, generated weight times factor.
        normalization: "mean" leaves the factors as they are; "reference" gives the weights the reference's sum.
        in_place: put the new file in the old one's place when it is complete.
        replace_branch: write the branch anew if it exists.
        tree_format: "ttree" or "rntuple"; that of the input, if left out.
        overwrite: replace an existing output.

    Returns:
        What was written.

    Raises:
        CalorefineError: bad input; nothing is changed then.
    """
    model, sample = Reweighter.load(reweighter), WeightedFiles(generated, tree, generated_weight)
    path = _output(sample.source, output, in_place=in_place)
    written = [branch, f"{branch}{SUFFIX}"]  # an array of another weight's replicas must not stay beside this one
    files = GeneratedFiles(model, sample, replicas=True)
    files.refuse_corrected(Path(reweighter))
    with rewriting(
        sample.source,
        files.request,
        path,
        adds=written,
        hint="choose another one with --branch, or replace it with --replace_branch true",
        replaces=replace_branch,
        complete=in_place,
        inputs=[Path(reweighter)],
        tree_format=tree_format,
        overwrite=overwrite,
    ) as copy:
        _refuse_own_weight(sample, written)
        totals, replicas = Totals(MeanFactors(model)), ReplicaTotals(model.n_replicas)
        scale, replica_scales = _scales(files, normalization)
        for part in files.weighed(copy):
            weight = scale * part.weight
            every = part.generated[:, None] * (replica_scales * part.replicas)
            copy.extend(part.chunk, {branch: weight} | ({written[1]: every} if model.n_replicas else {}))
            totals.add(part, weight)
            replicas.add(part, every)
        summary = ApplySummary(path, branch, totals, normalization, scale, model.columns.cut, replicas)
        entry = files.described(Path(reweighter)) | summary.to_dict()
        known = sample.provenance.get("reweight", {})
        copy.finish(sample.provenance | {"reweight": known | {branch: entry}} | _told(sample, model, written[1]))
    return summary


def _told(sample: WeightedFiles, model: Reweighter, branch: str) -> dict[str, Any]:
    """What the provenance says of the terms that weights of replicas are tilts of."""
    others = {name: one for name, one in sample.provenance.get(TERMS, {}).items() if name != branch}
    return {TERMS: others | ({branch: terms_record(model.columns, model.replicas.terms)} if model.replicas else {})}


def _output(source: Source, output: str | None, *, in_place: bool) -> Path:
    """Where to write; a link is followed in place."""
    if in_place and output is not None:
        raise ConfigError(f"output: {output} found together with in_place; expected one of them")
    if not in_place and output is None:
        raise ConfigError("output: none given, expected the ROOT file to write, or --in_place true")
    if output is not None:
        return Path(output)
    if len(source.paths) > 1:
        raise ConfigError(f"{source}: {len(source.paths)} files found, expected one with --in_place true")
    return source.paths[0].resolve()


def _refuse_own_weight(sample: WeightedFiles, written: Collection[str]) -> None:
    """Refuse to replace a branch by one that is computed from it."""
    replaced = set(written) & set(sample.branches) & set(branches(sample.weight))
    if sample.weight != "none" and replaced:
        msg = f"generated_weight: '{sample.weight}' is made of the branch '{min(replaced)}' that would be replaced; a "
        raise ConfigError(f"{msg}second run would apply the factors twice; choose another --branch")


def _scales(files: GeneratedFiles, normalization: Normalization) -> tuple[float, FloatArray]:
    """Factors on all weights and on those of each replica (K,), from one pass over the events if any is needed."""
    model = files.reweighter
    if normalization == "mean":
        return 1.0, np.ones(model.n_replicas)
    wanted = model.provenance.get("reference", {}).get("sum_w")
    if wanted is None:
        msg = (
            "normalization: the reweighter doesn't tell the sum of the reference's weights; expected 'mean', or a file "
        )
        raise ConfigError(f"{msg}of 'calorefine reweight'")
    every = [wanted, *model.provenance.get("replicas", {}).get("sum_w", [])]
    total = np.zeros(1 + model.n_replicas)
    for part in files.weighed():
        weight = part.generated[:, None] * np.column_stack([part.factor, part.replicas])
        total += weight[~part.cut].sum(axis=0)
    what = f"{files.sample.source}, generated_weight '{files.sample.weight}' times factor"
    what += f", cut '{model.columns.cut}'" if model.columns.cut else ""
    for one in total:
        stats.require_positive_sum([one], what)
    scales = np.array(every) / total
    return float(scales[0]), scales[1:]
