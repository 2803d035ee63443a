"""Files of generated events, read with the weights that a reweighter gives them.

A reweighter that was learned with a cut (`columns.cut`) knows nothing of events outside of it.  They keep their weight
(factor 1), whatever their features and context are, NaN included.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calorefine.errors import BranchError, CalorefineWarning, ConfigError, EmptySelectionError, KeyWarning, nearest
from calorefine.events import Events
from calorefine.io.expressions import branches
from calorefine.io.provenance import PROVENANCE, digest, made_by, read_provenance
from calorefine.io.root import CHUNK_ROWS, Chunk, Request, RootFiles, warn_of_row_keys
from calorefine.reweighting.reweighter import Reweighter
from calorefine.stats import FloatArray
from calorefine.twosample.pair import file_expressions

LEAST_ROWS = 20_000  # in a chunk
_WEIGHT, _CUT = "\0weight", "\0cut"


@dataclass(frozen=True)
class Weighed:
    """Consecutive events with their weights.

    Attributes:
        chunk: the rows.
        generated: (n,) weights that they had.
        factor: (n,) on those; 1 where `cut` or `outside`.
        cut: (n,) whether the event fails the reweighter's cut.
        outside: (n,) whether it passes the cut, but nothing is known at its context.
        context: (m, c) encoded, of the events that pass the cut.
        replicas: (n, K) factors of the reweighter's replicas, if asked for; K = 0 without.
    """

    chunk: Chunk
    generated: FloatArray
    factor: FloatArray
    cut: NDArray[np.bool_]
    outside: NDArray[np.bool_]
    context: NDArray[np.float32]
    replicas: FloatArray

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
        replicas: whether to weigh by the reweighter's replicas, too.

    Raises:
        BranchError: a branch of the context or of the reweighter's cut is missing.
    """

    def __init__(self, reweighter: Reweighter, source: RootFiles, weight: str, *, replicas: bool = False) -> None:
        """Find out what to read; events without key branches go by file and row, with a warning."""
        self.n_replicas = len(reweighter.replicas) if replicas else 0
        self.reweighter, self.source, self.weight = reweighter, source, weight
        self.provenance = read_provenance(source.paths[0])
        columns, names = reweighter.columns, set(source.branch_names())
        features = file_expressions(columns, "features", names, by_name="columns" in self.provenance)
        context = file_expressions(columns, "context", names, by_name=False)
        self._require("context", context.values(), names)
        wanted = features | context
        if columns.cut:
            self._require(f"cut '{columns.cut}'", [columns.cut], names)
            wanted = {name: f"where(!(!({columns.cut})), {text}, 0)" for name, text in wanted.items()}
            wanted[_CUT] = f"!({columns.cut})"
        wanted |= {} if weight == "none" else {_WEIGHT: weight}
        keyed = bool(columns.key) and set(columns.key_branches) <= names
        if not keyed:
            warn_of_row_keys(source)
        self._warn_of_other_keys("branches" if keyed else "rows")
        self.request = Request(wanted, columns.key if keyed else [], columns.candidate if keyed else None)

    def _require(self, what: str, texts: Iterable[str], names: set[str]) -> None:
        needed = list(dict.fromkeys(name for text in texts for name in branches(text)))
        if missing := [name for name in needed if name not in names]:
            msg = f"{self.source}: there is no branch '{missing[0]}' of the {what}, which the weights depend on"
            made = self.reweighter.columns.features
            wanted = [*self.reweighter.columns.key, *(name for name in needed if name not in made)]
            hint = f"sample again with --pass_through {','.join(wanted)}"
            raise BranchError(f"{msg}{nearest(missing[0], names)}; {hint}")

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
        rows = max(CHUNK_ROWS // (1 + self.n_replicas // 10), LEAST_ROWS)
        for chunk in self.source.chunks(replace(self.request, branches=carried), rows=rows):
            empty = False
            yield self._weighed(chunk)
        if empty:
            raise EmptySelectionError(f"{self.source}: the tree has no rows, expected generated events")

    def _weighed(self, chunk: Chunk) -> Weighed:
        """Weigh the events that pass the cut; the others have factor 1."""
        columns, n = self.reweighter.columns, len(chunk)
        generated = chunk.values.get(_WEIGHT, np.ones(n))
        cut = np.asarray(chunk.values.get(_CUT, np.zeros(n)), bool)
        factor, outside = np.ones(n), np.zeros(n, bool)
        table = {name: values[~cut] for name, values in chunk.values.items()}
        context = columns.encode_context(table, strict=not self.reweighter.conditional)
        rows = generated[~cut], chunk.key[~cut], chunk.event_key[~cut]
        events = Events(columns.encode_features(table), context, *rows)
        factor[~cut] = self.reweighter.factors(events)
        outside[~cut] = ~self.reweighter.in_domain(context)
        replicas = np.ones((n, self.n_replicas))
        if self.n_replicas:
            replicas[~cut] = self.reweighter.replica_factors(events)
        return Weighed(chunk, generated, factor, cut, outside, context, replicas)

    def carried(self, *, without: Collection[str], complete: bool) -> list[str]:
        """Branches that can be written on: one number, or a fixed-size array of them, for each event.

        Args:
            without: branches to leave out.
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
        return [name for name in kept if name not in without]


def provenance(files: GeneratedFiles, reweighter: Path) -> dict[str, Any]:
    """Versions, reweighter and files, as JSON types."""
    return {
        **made_by(),
        "reweighter": reweighter.name,
        "reweighter_sha256": digest(reweighter),
        "conditional": files.reweighter.conditional,
        "cut": files.reweighter.columns.cut,
        "fit": files.reweighter.provenance,
        "files": [path.name for path in files.source.paths],
        "generated_weight": files.weight,
    }
