"""Files of generated events, read with the weights that a reweighter gives them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calorefine import stats
from calorefine.errors import BranchError, CalorefineWarning, ConfigError, EmptySelectionError, KeyWarning
from calorefine.events import Events
from calorefine.io.expressions import branches
from calorefine.io.root import Chunk, Request, RootFiles, warn_of_row_keys
from calorefine.io.writer import PROVENANCE, digest, read_provenance, versions
from calorefine.reweighting.reweighter import Reweighter
from calorefine.stats import FloatArray
from calorefine.validation.samples import file_expressions

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
        if digest(reweighter) in [one.get("reweighter_sha256") for one in made]:
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


def provenance(files: GeneratedFiles, reweighter: Path) -> dict[str, Any]:
    """Versions, reweighter and files, as JSON types."""
    return {
        **versions(),
        "reweighter": reweighter.name,
        "reweighter_sha256": digest(reweighter),
        "conditional": files.reweighter.conditional,
        "fit": files.reweighter.provenance,
        "files": [path.name for path in files.source.paths],
        "generated_weight": files.weight,
    }
