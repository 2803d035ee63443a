r"""Weights of a reweighter for the events of ROOT files: as a branch, or by keeping each event with a probability.

The weight of a generated event is its own weight times the reweighter's factor f(x, context), times one number:

- normalization "mean": 1.  In the conditional case the mean factor is 1 at each context; in the joint case it is 1 over
  the generated events that the reweighter was trained on.
- normalization "reference": what makes the file's weights sum to those of the reference that it was trained on.

Unweighting keeps an event with probability w / w_max, so that the events kept need no weight.  The decision is a
function of the event's key and the seed.
"""

from __future__ import annotations

import hashlib
import platform
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from calorefine import keys, stats
from calorefine.errors import (
    BranchError,
    CalorefineWarning,
    ConfigError,
    EmptySelectionError,
    KeyWarning,
    WeightError,
)
from calorefine.events import Events
from calorefine.io.expressions import branches
from calorefine.io.root import Chunk, Request, RootFiles, warn_of_row_keys
from calorefine.io.writer import PROVENANCE, TreeFormat, not_an_input, read_provenance, write_tree
from calorefine.reweighting.refine import accepted
from calorefine.reweighting.reweighter import Reweighter
from calorefine.stats import FloatArray
from calorefine.validation.samples import file_expressions

Normalization = Literal["mean", "reference"]
_WEIGHT = "\0weight"


@dataclass(frozen=True)
class Weighed:
    """Consecutive events with their weights.

    Attributes:
        chunk: the rows.
        generated: (n,) weights that they had.
        factor: (n,) on those; 1 where `outside`.
        outside: (n,) whether nothing is known at the event's context.
    """

    chunk: Chunk
    generated: FloatArray
    factor: FloatArray
    outside: NDArray[np.bool_]

    def __len__(self) -> int:
        """Return the number of events."""
        return len(self.factor)

    @property
    def weight(self) -> FloatArray:
        """Weights (n,) of the reweighted events."""
        return self.generated * self.factor


class GeneratedFiles:
    """Files of generated events, weighed chunk by chunk.

    Args:
        reweighter: of the same features and context.
        source: the files.
        weight: branch or expression of the weights that the events have, or "none".

    Raises:
        BranchError: a context branch is missing.
    """

    def __init__(self, reweighter: Reweighter, source: RootFiles, weight: str) -> None:
        """Find out what to read; events without key branches go by file and row, with a warning."""
        self.reweighter, self.source, self.weight = reweighter, source, weight
        self.provenance = read_provenance(source.paths[0])
        columns, names = reweighter.columns, set(source.branch_names())
        features = file_expressions(columns, "features", names, by_name="columns" in self.provenance)
        context = file_expressions(columns, "context", names, by_name=False)
        self._require_context(context, names)
        wanted = features | context | ({} if weight == "none" else {_WEIGHT: weight})
        keyed = bool(columns.key) and set(columns.key_branches) <= names
        if not keyed:
            warn_of_row_keys(source)
        self._warn_of_other_keys("branches" if keyed else "rows")
        self.request = Request(wanted, columns.key if keyed else [], columns.candidate if keyed else None)

    def _require_context(self, context: dict[str, str], names: set[str]) -> None:
        needed = list(dict.fromkeys(name for text in context.values() for name in branches(text)))
        if missing := [name for name in needed if name not in names]:
            msg = (
                f"{self.source}: there is no branch '{missing[0]}' of the context, which the weights depend on; sample "
            )
            raise BranchError(f"{msg}again with --pass_through {','.join([*self.reweighter.columns.key, *needed])}")

    def _warn_of_other_keys(self, found: str) -> None:
        """Warn if events trained on can't be known as such, and are weighed by networks that saw them."""
        trained = self.reweighter.provenance.get("generated", {})
        names = {path.name for path in self.source.paths} & set(trained.get("files", ()))
        if names and trained["keys"] != found:
            msg = f"{min(names)}: the reweighter was trained on a file of this name, with events known by "
            msg += f"{trained['keys']}, now by {found}: their weights are not cross-fitted; sample with key branches"
            warnings.warn(msg, KeyWarning, stacklevel=3)

    def refuse_corrected(self, reweighter: Path) -> None:
        """Raise `ConfigError` if these events were drawn or kept with the same reweighter's correction."""
        made = (self.provenance, self.provenance.get("unweight", {}))
        if _digest(reweighter) in [one.get("reweighter_sha256") for one in made]:
            msg = f"{self.source}: these events were corrected by {reweighter.name} already, and need no weight of it; "
            raise ConfigError(f"{msg}expected events without its correction")

    def weighed(self, carried: list[str]) -> Iterator[Weighed]:
        """All events in order, with these branches; memory use doesn't depend on the size of the files.

        Raises:
            EmptySelectionError: there is none.
            ValueRangeError: NaN or infinite values; unknown categories in the joint case.
        """
        empty = True
        for chunk in self.source.chunks(replace(self.request, branches=carried)):
            empty = False
            yield self._weighed(chunk)
        if empty:
            raise EmptySelectionError(f"{self.source}: the tree has no rows, expected generated events")

    def _weighed(self, chunk: Chunk) -> Weighed:
        columns, table = self.reweighter.columns, chunk.values
        generated = table.get(_WEIGHT, np.ones(len(chunk)))
        context = columns.encode_context(table, strict=not self.reweighter.conditional)
        events = Events(columns.encode_features(table), context, generated, chunk.key, chunk.event_key)
        return Weighed(chunk, generated, self.reweighter.factors(events), ~self.reweighter.in_domain(context))

    def carried(self, *, without: str | None, complete: bool) -> list[str]:
        """Branches that can be written on: one number, or a fixed-size array of them, for each event.

        Args:
            without: a branch to leave out.
            complete: whether a branch or object that can't be written on is an error, not a warning.

        Raises:
            BranchError, ConfigError: there are such ones.
        """
        kept = self.source.fixed_branch_names()
        others = [name for name in self.source.other_objects() if name != PROVENANCE]
        if complete and others:
            msg = f"{self.source}: the file also holds {', '.join(others)}, which would be lost in place"
            raise ConfigError(f"{msg}; give an output instead of --in_place true")
        if lost := [name for name in self.source.branch_names() if name not in kept]:
            msg = f"{self.source}: branches {', '.join(lost)} are not one number or a fixed-size array for each event"
            if complete:
                raise BranchError(f"{msg} and would be lost in place; give an output instead of --in_place true")
            warnings.warn(f"{msg}; they are left out", CalorefineWarning, stacklevel=3)
        return [name for name in kept if name != without]


@dataclass
class Totals:
    """Sums over weighed events.

    Attributes:
        n: number of events.
        n_outside: of those without a correction.
        sum_w: sum of the weights.
        sum_w2: of their squares.
        largest_weight: the largest absolute one.
        largest_factor: the largest one.
    """

    n: int = 0
    n_outside: int = 0
    sum_w: float = 0.0
    sum_w2: float = 0.0
    largest_weight: float = 0.0
    largest_factor: float = 0.0

    def add(self, part: Weighed, weight: FloatArray) -> None:
        """Count these events with these weights (n,)."""
        self.n += len(part)
        self.n_outside += int(np.sum(part.outside))
        self.sum_w += stats.sum_w(weight)
        self.sum_w2 += stats.sum_w2(weight)
        self.largest_weight = max(self.largest_weight, float(np.abs(weight).max()))
        self.largest_factor = max(self.largest_factor, float(part.factor.max()))

    @property
    def n_eff(self) -> float:
        """Effective number of events; 0 where all weights are 0."""
        return self.sum_w**2 / self.sum_w2 if self.sum_w2 > 0 else 0.0

    def to_dict(self) -> dict[str, float]:
        """For the provenance."""
        return {**vars(self), "n_eff": self.n_eff}

    def outside(self) -> str:
        """One line for the terminal."""
        share = self.n_outside / max(self.n, 1)
        return f"outside the domain of the training context (factor 1): {self.n_outside} events, {share:.2%}"


@dataclass(frozen=True)
class ApplySummary:
    """What was written.

    Attributes:
        output: the file.
        branch: that of the weights.
        totals: of these weights.
        normalization: which one.
        scale: the number that all factors were multiplied by for it.
    """

    output: Path
    branch: str
    totals: Totals
    normalization: Normalization
    scale: float

    def __str__(self) -> str:
        """Report for the terminal."""
        t = self.totals
        share = t.largest_weight / abs(t.sum_w) if t.sum_w else float("inf")
        return "\n".join(
            [
                f"{self.output}: {t.n} events with branch {self.branch}, sum of weights {t.sum_w:.6g}",
                f"effective number of events {t.n_eff:.1f}, {t.n_eff / max(t.n, 1):.1%}",
                f"largest weight {share:.2g} of the sum, largest factor {t.largest_factor:.3g}",
                t.outside(),
                f"normalization {self.normalization}: factors times {self.scale:.6g}",
            ]
        )

    def to_dict(self) -> dict[str, Any]:
        """For the provenance."""
        return {"normalization": self.normalization, "scale": self.scale, **self.totals.to_dict()}


@dataclass(frozen=True)
class UnweightSummary:
    """What was kept.

    Attributes:
        output: the file.
        totals: of the weights before.
        n_kept: number of events kept.
        maximum: weight that is kept for sure.
        n_above: number of events with a larger one, of which too few are kept.
    """

    output: Path
    totals: Totals
    n_kept: int
    maximum: float
    n_above: int

    def __str__(self) -> str:
        """Report for the terminal."""
        n = self.totals.n
        lines = [f"{self.output}: {self.n_kept} of {n} events kept, {self.n_kept / max(n, 1):.2%}, of weight 1 each"]
        lines.append(
            f"effective number of events before {self.totals.n_eff:.1f}; kept for certain from {self.maximum:.3g} on"
        )
        if self.n_above:
            lines.append(f"WARNING: {self.n_above} events have a weight above --max_factor and are kept too rarely")
        return "\n".join([*lines, self.totals.outside()])

    def to_dict(self) -> dict[str, Any]:
        """For the provenance."""
        own = {"n_kept": self.n_kept, "maximum": self.maximum, "n_above": self.n_above}
        return {**own, **self.totals.to_dict()}


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
    model, source = Reweighter.load(reweighter), RootFiles(generated, tree)
    path = _output(source, output, in_place=in_place)
    _check_branch(source, branch, generated_weight, replace_branch=replace_branch)
    files = GeneratedFiles(model, source, generated_weight)
    files.refuse_corrected(Path(reweighter))
    carried = files.carried(without=branch, complete=in_place)
    not_an_input(path, [Path(reweighter)] if in_place else [*source.paths, Path(reweighter)])
    kind = tree_format or source.tree_format()
    totals = Totals()
    with write_tree(path, tree, tree_format=kind, overwrite=overwrite or in_place) as writer:
        scale = _scale(files, normalization)
        for part in files.weighed(carried):
            weight = scale * part.weight
            writer.extend({**{name: part.chunk.branches[name] for name in carried}, branch: weight})
            totals.add(part, weight)
        summary = ApplySummary(path, branch, totals, normalization, scale)
        entry = provenance(files, Path(reweighter)) | summary.to_dict()
        known = files.provenance.get("reweight", {})
        writer.finish(files.provenance | {"reweight": known | {branch: entry}})
    return summary


def unweight_files(
    *,
    reweighter: str,
    generated: str,
    output: str,
    tree: str = "events",
    generated_weight: str = "none",
    max_factor: float | None = None,
    seed: int = 0,
    tree_format: TreeFormat | None = None,
    overwrite: bool = False,
) -> UnweightSummary:
    """Write the events that are kept with probability weight / largest weight, in their order and without a new branch.

    Args:
        reweighter: a file of `calorefine reweight`.
        generated: ROOT files with features and context; a path or a glob.
        output: the ROOT file to write.
        tree: name of the tree.
        generated_weight: branch or expression of not negative weights that the events have, or "none"; it is used up.
        max_factor: weight from which on all events are kept; the largest one of the files, if left out.  Give one to
            get the same events from parts of the files.
        seed: of the decisions.
        tree_format: "ttree" or "rntuple"; that of the input, if left out.
        overwrite: replace an existing output.

    Returns:
        What was kept.

    Raises:
        CalorefineError: bad input; nothing is written then.
        EmptySelectionError: no event is kept.
    """
    model, source = Reweighter.load(reweighter), RootFiles(generated, tree)
    if max_factor is not None and not (np.isfinite(max_factor) and max_factor > 0):
        raise ConfigError(f"max_factor: {max_factor} found, expected a positive number")
    files = GeneratedFiles(model, source, generated_weight)
    files.refuse_corrected(Path(reweighter))
    carried = files.carried(without=None, complete=False)
    path = Path(output)
    not_an_input(path, [*source.paths, Path(reweighter)])
    kind = tree_format or source.tree_format()
    totals, n_kept, n_above = Totals(), 0, 0
    number = 1 + files.provenance.get("unweight", {}).get("number", 0)  # decisions again would be those of before
    with write_tree(path, tree, tree_format=kind, overwrite=overwrite) as writer:
        maximum = max_factor or _largest(files)
        for part in files.weighed(carried):
            _require_nonnegative(files, part)
            kept = accepted(part.weight, _copy_key(part), largest=maximum, seed=seed, purpose=f"unweight {number}")
            if kept.any():
                writer.extend({name: part.chunk.branches[name][kept] for name in carried})
            totals.add(part, part.weight)
            n_kept, n_above = n_kept + int(np.sum(kept)), n_above + int(np.sum(part.weight > maximum))
        if n_kept == 0:
            raise EmptySelectionError(f"{source}: none of {totals.n} events is kept; lower --max_factor {maximum:g}")
        summary = UnweightSummary(path, totals, n_kept, maximum, n_above)
        entry = provenance(files, Path(reweighter)) | {"seed": seed, "number": number} | summary.to_dict()
        writer.finish(files.provenance | {"unweight": entry})
    return summary


def _output(source: RootFiles, output: str | None, *, in_place: bool) -> Path:
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


def _check_branch(source: RootFiles, branch: str, generated_weight: str, *, replace_branch: bool) -> None:
    """Refuse to write a branch twice, or one that it is computed from."""
    if branch not in source.branch_names():
        return
    if not replace_branch:
        msg = f"{source}: has a branch '{branch}' already; choose another one with --branch, or replace it with "
        raise ConfigError(f"{msg}--replace_branch true")
    if generated_weight != "none" and branch in branches(generated_weight):
        msg = (
            f"generated_weight: '{generated_weight}' is made of the branch '{branch}' that would be replaced; a second "
        )
        raise ConfigError(f"{msg}run would apply the factors twice; choose another --branch")


def _scale(files: GeneratedFiles, normalization: Normalization) -> float:
    """Factor on all weights, from one pass over the files if any is needed."""
    if normalization == "mean":
        return 1.0
    wanted = files.reweighter.provenance.get("reference", {}).get("sum_w")
    if wanted is None:
        msg = (
            "normalization: the reweighter doesn't tell the sum of the reference's weights; expected 'mean', or a file "
        )
        raise ConfigError(f"{msg}of 'calorefine reweight'")
    total = sum(stats.sum_w(part.weight) for part in files.weighed([]))
    what = f"{files.source}, generated_weight '{files.weight}' times factor"
    return float(wanted) / stats.require_positive_sum([total], what)


def _largest(files: GeneratedFiles) -> float:
    """Largest weight, from one pass over the files."""
    largest = max(float(part.weight.max()) for part in files.weighed([]))
    return stats.require_positive_sum([largest], f"{files.source}, generated_weight '{files.weight}', largest weight")


def _require_nonnegative(files: GeneratedFiles, part: Weighed) -> None:
    if bad := int(np.sum(~(part.generated >= 0))):
        msg = f"{files.source}: {bad} events have a negative generated_weight '{files.weight}', expected none: they "
        raise WeightError(f"{msg}can't be kept with a probability; leave out --unweight true")


def _copy_key(part: Weighed) -> keys.KeyArray:
    """Keys (n,) of the events; copies of an event at the same conditions have their own."""
    copy = part.chunk.branches.get("copy")
    return part.chunk.key if copy is None else keys.combine(part.chunk.key, copy)


def provenance(files: GeneratedFiles, reweighter: Path) -> dict[str, Any]:
    """Versions, reweighter and files, as JSON types."""
    return {
        "calorefine": version("calorefine"),
        "python": platform.python_version(),
        "torch": version("torch"),
        "reweighter": reweighter.name,
        "reweighter_sha256": _digest(reweighter),
        "conditional": files.reweighter.conditional,
        "fit": files.reweighter.provenance,
        "files": [path.name for path in files.source.paths],
        "generated_weight": files.weight,
    }


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
