r"""`calorefine replica-weights`: one nominal sample that stands for those of all members, by weights.

Entry k of the branch `weight_replica` is the complete weight :math:`w \, p_k(x|c) / p_0(x|c)` of an event in replica
k + 1, with its nominal weight w; `weight_seed` is the same for trainings with other seeds.  The spread of an observable
over the entries is that over samples of the members, without their statistical errors: all are the same events.

The mean ratio is 1 at each context in expectation, and is not normalized to be 1 in the file: how far it is off shows
whether the ratios can be relied on, and is reported.  A correction that the nominal weight holds, as that of a
reweighter, stays what it is; if it is not 1 on average at each context, neither is the mean of its product.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calorefine.ensemble.members import Ensemble, MemberKind
from calorefine.ensemble.nominal_sample import check_origin, sample_conditions, sample_request
from calorefine.ensemble.ratio_checks import MemberSums
from calorefine.ensemble.ratios import LikelihoodRatios, MomentRatios, Ratios, learn
from calorefine.errors import CalorefineWarning, ConfigError
from calorefine.events import Column
from calorefine.io.chunks import Chunk, Request
from calorefine.io.provenance import digest, made_by, recorded
from calorefine.io.rewrite import rewriting
from calorefine.io.sample import WeightedFiles
from calorefine.io.sources import Source, TreeFormat
from calorefine.io.table import warn_of_row_keys
from calorefine.reweighting.resolved import TERMS, terms_record
from calorefine.simulator import AnySimulator
from calorefine.simulator_map import load_simulator
from calorefine.stats import FloatArray

BRANCHES: dict[MemberKind, str] = {"replica": "weight_replica", "seed": "weight_seed"}
MOST_ROWS = 50_000  # in a chunk


@dataclass(frozen=True)
class ReplicaWeightsSummary:
    """What was written.

    Attributes:
        output: the file.
        names: members by branch, in the order of its entries.
        method: "likelihood" or "moments".
        sums: what is known of the weights.
        slope: moments: part of the members' shifts in bins of the features that the weights recover.
    """

    output: Path
    names: dict[str, list[str]]
    method: str
    sums: MemberSums
    slope: float | None

    def __str__(self) -> str:
        """Report for the terminal."""
        written = " and ".join(f"{branch}[{len(names)}]" for branch, names in self.names.items())
        first = f"{self.output}: {self.sums.n} events with {written}, ratios by {self.method}"
        recovered = [] if self.slope is None else [f"part of the members' shifts that they recover: {self.slope:.3f}"]
        return "\n".join([first, *recovered, *self.sums.lines()])


@recorded("replica-weights")
def replica_weights(
    *,
    ensemble: str,
    generated: str | list[str],
    output: str,
    tree: str = "events",
    weight: str = "none",
    columns: dict[str, Column] | None = None,
    n_train: int = 100_000,
    max_ratio: float = 100.0,
    seed: int = 0,
    tree_format: TreeFormat | None = None,
    overwrite: bool = False,
) -> ReplicaWeightsSummary:
    """Write a nominal sample with the weights that turn it into each member's: `weight_replica`, `weight_seed`.

    Each entry of these arrays is a complete weight: the nominal one times the ratio of the member's density of the
    features given the context to the nominal one's.  It is exact for flows; for others it is a sum of functions of the
    columns that gives the member's means, from events that are drawn at conditions of the file.  The mean ratio is
    about 1 and is not made to be 1.

    Args:
        ensemble: folder of `calorefine ensemble`.
        generated: ROOT files sampled from its `nominal/best.ckpt`, with the branches of the context passed through.
        output: the ROOT file to write, with the same rows in the same order.
        tree: name of the tree.
        weight: branch or expression of the weights that the events have, or "none".
        columns: expressions of columns where these files name or scale them otherwise.
        n_train: moments: about how many events of each generator to learn from; their statistics adds to the spread,
            and should be several times the calibration sample's.
        max_ratio: largest ratio; higher ones are cut off and counted.
        seed: moments: of the events drawn.
        tree_format: "ttree" or "rntuple"; that of the input, if left out.
        overwrite: replace an existing output.

    Returns:
        What was written.

    Raises:
        CalorefineError: bad input, such as events of another generator, or ratios that recover less than 0.9 of the
            members' shifts; nothing is left under the output's name.

    Warns:
        CalorefineWarning: a member with an effective number of events below 10 % of the nominal one's, or with a mean
            ratio that is not 1.
    """
    if not max_ratio > 1:
        raise ConfigError(f"max_ratio: {max_ratio} found, expected a number above 1")
    members, sample = Ensemble.load(ensemble), WeightedFiles(generated, tree, weight)
    names = _entries(members)
    everyone = [name for entries in names.values() for name in entries]
    simulators = {name: load_simulator(members.checkpoint(name)) for name in ["nominal", *everyone]}
    check_origin(sample.source, members)
    request = sample_request(sample, simulators["nominal"].columns, columns or {})
    with rewriting(
        sample.source,
        request,
        output,
        adds=names,
        hint="expected a sample without replica weights",
        inputs=map(members.checkpoint, simulators),
        expects="generated events",
        tree_format=tree_format,
        overwrite=overwrite,
    ) as copy:
        ratios = _ratios(simulators, sample.source, request, n_train, seed)
        known = ("moments", ratios.slope) if isinstance(ratios, MomentRatios) else ("likelihood", None)
        summary = ReplicaWeightsSummary(Path(output), names, known[0], MemberSums(everyone), known[1])
        for chunk in copy.chunks(rows=MOST_ROWS):
            weights = _weights(chunk, sample.weights(chunk), ratios, max_ratio, summary.sums)
            copy.extend(chunk, _arrays(weights, names))
        entry = _provenance(summary, members, sample) | {"max_ratio": max_ratio}
        entry |= {"seed": seed, "n_train": n_train, "slope": summary.slope} if summary.method == "moments" else {}
        told = sample.provenance | {"replica_weights": entry}
        if isinstance(ratios, MomentRatios):
            told[TERMS] = dict.fromkeys(names, terms_record(ratios.columns, ratios.tilt.terms))
        copy.finish(told)
    for text in summary.sums.warnings():
        warnings.warn(text, CalorefineWarning, stacklevel=2)
    return summary


def _entries(members: Ensemble) -> dict[str, list[str]]:
    """Names of the members by branch, in the order of its entries.

    Raises:
        ConfigError: there is none, or one is missing in between.

    Warns:
        CalorefineWarning: some were not trained well.
    """
    names = {branch: members.names(kind) for kind, branch in BRANCHES.items() if members.names(kind)}
    if not names:
        raise ConfigError(f"{members.folder}: no replica and no other seed found, expected some beside the nominal one")
    for own in names.values():
        for number, name in enumerate(own, 1):
            if members.records[name]["index"] != number:
                msg = f"{members.folder}: '{name}' found as number {number}: one before it is missing; run 'calorefine "
                raise ConfigError(f"{msg}ensemble' to its end")
    if failed := [name for name, record in members.records.items() if record["failed"]]:
        msg = f"{members.folder}: {', '.join(failed)} not trained well: events differ from held-out ones"
        warnings.warn(msg, CalorefineWarning, stacklevel=3)
    return names


def _arrays(weights: FloatArray, names: Mapping[str, list[str]]) -> dict[str, FloatArray]:
    """Columns of weights (n, K), divided into branches."""
    ends = np.cumsum([len(own) for own in names.values()])[:-1]
    parts = zip(names, np.split(weights, ends, axis=1), strict=True)
    return {branch: np.ascontiguousarray(part) for branch, part in parts}


def _weights(chunk: Chunk, weight: FloatArray, ratios: Ratios, max_ratio: float, sums: MemberSums) -> FloatArray:
    """Complete weights (n, K) of one chunk, counted."""
    ratio = ratios.ratios(chunk.values)
    impossible = np.isnan(ratio[:, 0])
    ratio[impossible] = 1.0
    sums.n_impossible += int(np.sum(impossible))
    cut_off = ratio > max_ratio
    ratio = np.minimum(ratio, max_ratio)
    sums.add(weight, ratio, cut_off, chunk.event_key)
    return weight[:, None] * ratio


def _ratios(
    simulators: Mapping[str, AnySimulator], source: Source, request: Request, n_train: int, seed: int
) -> Ratios:
    """Ratios of all members but the first to it."""
    nominal = simulators["nominal"]
    others = {name: simulator for name, simulator in simulators.items() if name != "nominal"}
    if nominal.has_likelihood:
        return LikelihoodRatios(nominal, others)
    if not request.key:
        warn_of_row_keys(source)
    at = sample_conditions(source, request, nominal.columns, n_train)
    return learn(nominal, list(others.values()), at, seed=seed)


def _provenance(summary: ReplicaWeightsSummary, members: Ensemble, sample: WeightedFiles) -> dict[str, Any]:
    """Versions, members and what their weights are, as JSON types."""
    everyone = ["nominal", *summary.sums.names]
    return {
        **made_by(),
        "ensemble": members.folder.resolve().name,
        "checkpoint_sha256": {name: digest(members.checkpoint(name)) for name in everyone},
        "branches": summary.names,
        "method": summary.method,
        "files": [path.name for path in sample.source.paths],
        "weight": sample.weight,
        "n": summary.sums.n,
        "n_impossible": summary.sums.n_impossible,
        **summary.sums.to_dict(),
    }
