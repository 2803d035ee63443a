"""Files of generated events, read with the weights that a reweighter gives them.

A reweighter that was learned with a cut (`columns.cut`) knows nothing of events outside of it.  They keep their weight
(factor 1), whatever their features and context are, NaN included.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from calorefine.errors import BranchError, ConfigError, EmptySelectionError, KeyWarning, nearest
from calorefine.events import Columns, Events
from calorefine.io.chunks import CHUNK_ROWS, Chunk
from calorefine.io.provenance import digest, made_by
from calorefine.io.reductions import branches
from calorefine.io.rewrite import Rewriter
from calorefine.io.sample import WeightedFiles
from calorefine.io.table import warn_of_row_keys
from calorefine.stats import FloatArray

if TYPE_CHECKING:
    from calorefine.reweighting.reweighter import Reweighter

LEAST_ROWS = 20_000  # in a chunk
CUT = "\0cut"


def within_cut(columns: Columns, texts: dict[str, str]) -> dict[str, str]:
    """Expressions that are 0 for events which fail the cut, and with a cut the condition `CUT` of these events."""
    if not columns.cut:
        return texts
    within = {name: f"where(!(!({columns.cut})), {text}, 0)" for name, text in texts.items()}
    return {**within, CUT: f"!({columns.cut})"}


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
        sample: the files, with the weights that the events have.
        replicas: whether to weigh by the reweighter's replicas, too.

    Raises:
        BranchError: a branch of the context or of the reweighter's cut is missing.
        ConfigError: a feature stands for something else than where the reweighter was learned.
    """

    def __init__(self, reweighter: Reweighter, sample: WeightedFiles, *, replicas: bool = False) -> None:
        """Find out what to read; events without key branches go by file and row, with a warning."""
        self.n_replicas = reweighter.n_replicas if replicas else 0
        self.reweighter, self.sample = reweighter, sample
        if "columns" in sample.provenance:
            reweighter.require_same_features(sample.columns, str(sample.source))
        columns = reweighter.columns
        wanted = sample.texts(columns, "features", "context")
        self._require("context", [wanted[name] for name in columns.context])
        if columns.cut:
            self._require(f"cut '{columns.cut}'", [columns.cut])
        wanted = within_cut(columns, wanted)
        keyed = sample.is_keyed(columns)
        if not keyed:
            warn_of_row_keys(sample.source)
        self._warn_of_other_keys("branches" if keyed else "rows")
        self.request = sample.request(columns, wanted, cut=None)

    def _require(self, what: str, texts: Iterable[str]) -> None:
        if missing := self.sample.lacking(texts):
            columns, names = self.reweighter.columns, self.sample.branches
            msg = f"{self.sample.source}: there is no branch '{missing[0]}' of the {what}, which the weights depend on"
            wanted = dict.fromkeys(name for text in texts for name in branches(text) if name not in columns.features)
            hint = f"sample again with --pass_through {','.join([*columns.key, *wanted])}"
            raise BranchError(f"{msg}{nearest(missing[0], names)}; {hint}")

    def _warn_of_other_keys(self, found: str) -> None:
        """Warn if events trained on can't be known as such, and are weighed by networks that saw them."""
        trained = self.reweighter.provenance.get("generated", {})
        names = {path.name for path in self.sample.source.paths} & set(trained.get("files", ()))
        if names and trained["keys"] != found:
            msg = f"{min(names)}: the reweighter was trained on a file of this name, with events known by "
            msg += f"{trained['keys']}, now by {found}: their weights are not cross-fitted; sample with key branches"
            warnings.warn(msg, KeyWarning, stacklevel=3)

    def refuse_corrected(self, reweighter: Path) -> None:
        """Raise `ConfigError` if these events were drawn or kept with the same reweighter's correction."""
        made = (self.sample.provenance, self.sample.provenance.get("unweight", {}))
        if digest(reweighter) in [one.get("reweighter_sha256") for one in made]:
            msg = f"{self.sample.source}: these events were corrected by {reweighter.name} already, and need no weight "
            raise ConfigError(f"{msg}of it; expected events without its correction")

    def weighed(self, copy: Rewriter | None = None) -> Iterator[Weighed]:
        """All events in order, with the branches to copy; memory use doesn't depend on the size of the files.

        Raises:
            EmptySelectionError: there is none.
            ValueRangeError: NaN or infinite values; unknown categories in the joint case.
        """
        empty = True
        rows = max(CHUNK_ROWS // (1 + self.n_replicas // 10), LEAST_ROWS)
        for chunk in copy.chunks(rows=rows) if copy else self.sample.source.chunks(self.request, rows=rows):
            empty = False
            yield self._weighed(chunk)
        if empty:
            raise EmptySelectionError(f"{self.sample.source}: the tree has no rows, expected generated events")

    def _weighed(self, chunk: Chunk) -> Weighed:
        """Weigh the events that pass the cut; the others have factor 1."""
        columns, n = self.reweighter.columns, len(chunk)
        generated = self.sample.weights(chunk)
        cut = np.asarray(chunk.values.get(CUT, np.zeros(n)), bool)
        factor, outside = np.ones(n), np.zeros(n, bool)
        table = {name: values[~cut] for name, values in chunk.values.items()}
        context = columns.encode_context(table, strict=not self.reweighter.conditional)
        rows = generated[~cut], chunk.key[~cut], chunk.event_key[~cut]
        events = Events(columns.encode_features(table), context, *rows)
        factor[~cut] = self.reweighter.factors(events)
        outside[~cut] = ~self.reweighter.in_domain(context)
        replicas = np.ones((n, self.n_replicas))
        if self.n_replicas:
            replicas[~cut] = factor[~cut, None] * self.reweighter.replica_ratios(events)
        return Weighed(chunk, generated, factor, cut, outside, context, replicas)

    def described(self, reweighter: Path) -> dict[str, Any]:
        """Versions, reweighter and files, as JSON types."""
        return {
            **made_by(),
            "reweighter": reweighter.name,
            "reweighter_sha256": digest(reweighter),
            "conditional": self.reweighter.conditional,
            "cut": self.reweighter.columns.cut,
            "fit": self.reweighter.provenance,
            "files": [path.name for path in self.sample.source.paths],
            "generated_weight": self.sample.weight,
        }
