"""Read a generated sample and its reference, and find out which of their events share their conditions.

A generated file may lack the context: `calorefine sample` writes the features, in the order of the conditions.  The
context is then that of the reference event of the same key, where both files have the key branches, or of the same row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from calorefine import stats
from calorefine.errors import BranchError, ConfigError, EmptySelectionError, KeyColumnError
from calorefine.events import Columns, Events
from calorefine.io.chunks import NonFinite, Request
from calorefine.io.expressions import branches
from calorefine.io.formats import open_source
from calorefine.io.provenance import read_provenance
from calorefine.io.sources import Source
from calorefine.io.table import why_empty
from calorefine.keys import KeyArray
from calorefine.stats import FloatArray

Twins = Literal["keys", "rows", "none"]
_WEIGHT = "\0weight"


@dataclass(frozen=True)
class Samples:
    """Both samples, with the same columns.

    Attributes:
        columns: what they are.
        generated: its `event_key` is that of the reference where the conditions are shared.
        reference: the reference.
        twins: how events that share their conditions are known: by equal keys, or by their row; "none" if the samples
            are taken to be independent.
    """

    columns: Columns
    generated: Events
    reference: Events
    twins: Twins


@dataclass(frozen=True)
class Rows:
    """Columns (n,) by name, weights and keys (n,) of one sample."""

    table: dict[str, FloatArray]
    weight: FloatArray
    key: KeyArray
    event_key: KeyArray

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.weight)

    def events(self, columns: Columns) -> Events:
        """Return the rows as events."""
        x, context = columns.encode_features(self.table), columns.encode_context(self.table)
        return Events(x, context, self.weight, self.key, self.event_key)


def read_samples(generated: Source, reference: Source, *, columns: Columns | None, weights: tuple[str, str]) -> Samples:
    """Read both samples.

    Args:
        generated: files of generated events.
        reference: files of reference events.
        columns: features, context, key and cut, which is applied to both; from the generated file's provenance,
            without the cut of the training sample, if left out.
        weights: branch or expression of either sample's weight, or "none".

    Raises:
        ConfigError: no columns are given and the generated file doesn't tell them.
        BranchError: a branch is missing, or the generated file has neither context nor anything to find it by.
        KeyColumnError: generated events without context have keys that the reference hasn't.
        WeightError: weights without a positive sum.
    """
    provenance = read_provenance(generated.paths[0])
    columns = columns or replace(provenance_columns(provenance, generated), cut=None)
    names = set(generated.branch_names())
    wanted = file_expressions(columns, "features", names, by_name="columns" in provenance)
    context = file_expressions(columns, "context", names, by_name=False)
    has_context = all(set(branches(text)) <= names for text in context.values())
    keyed = [bool(columns.key) and set(columns.key_branches) <= set(f.branch_names()) for f in (generated, reference)]
    made = read_rows(
        generated, wanted | (context if has_context else {}), weights[0], columns if keyed[0] else None, columns.cut
    )
    everything = columns.expressions("features", "context")
    target = read_rows(reference, everything, weights[1], columns if keyed[1] else None, columns.cut)
    if all(keyed):
        twins: Twins = "keys"
        made = made if has_context else _with_context(made, target, _matches(made, target, generated), columns)
    else:
        made, twins = _by_row(made, target, int(provenance.get("n_per_event", 1)), columns, generated)
    return Samples(columns, made.events(columns), target.events(columns), twins)


def provenance_columns(provenance: dict[str, Any], source: Source) -> Columns:
    """Columns that a generated file was made with, the cut of its training sample included.

    Raises:
        ConfigError: the file doesn't tell.
    """
    if "columns" not in provenance:
        raise ConfigError(
            f"{source}: has no provenance that names its columns; describe them with the option `columns`"
        )
    return Columns.from_dict(provenance["columns"])


def read_training(path: str, tree: str, columns: Columns) -> Events:
    """Training events, of weight 1; rows with NaN or infinite values are left out, with a warning."""
    source = open_source(path, tree)
    keyed = columns if set(columns.key_branches) <= set(source.branch_names()) else None
    return read_rows(source, columns.expressions("features", "context"), "none", keyed, columns.cut, "drop").events(
        columns
    )


def file_expressions(
    columns: Columns, group: Literal["features", "context"], names: set[str], *, by_name: bool
) -> dict[str, str]:
    """Expressions of a group in the generated file: the columns' own, or the bare name if those can't be evaluated."""
    own = columns.expressions(group)
    return {
        name: name if name in names and (by_name or not set(branches(text)) <= names) else text
        for name, text in own.items()
    }


def read_rows(
    source: Source,
    wanted: dict[str, str],
    weight: str,
    keyed: Columns | None = None,
    cut: str | None = None,
    nonfinite: NonFinite = "error",
) -> Rows:
    """Read all rows that pass the cut, with keys from the key branches or, without, from file and row.

    Raises:
        EmptySelectionError: no row is left.
        WeightError: weights without a positive sum.
    """
    texts = wanted | ({} if weight == "none" else {_WEIGHT: weight})
    key, candidate = (keyed.key, keyed.candidate) if keyed else ([], None)
    request = Request(texts, key, candidate, cut, nonfinite=nonfinite)
    chunks = list(source.chunks(request))
    if not chunks:
        raise EmptySelectionError(f"{source}: {why_empty(source.n_entries(), request)}, expected some events")
    table = {name: np.concatenate([chunk.values[name] for chunk in chunks]).astype(np.float64) for name in texts}
    rows = sum(map(len, chunks))
    w = table.pop(_WEIGHT, np.ones(rows))
    stats.require_positive_sum(w, f"{source}, weight '{weight}'")
    own, event = (np.concatenate([getattr(chunk, name) for chunk in chunks]) for name in ("key", "event_key"))
    return Rows(table, w, own, event)


def _matches(made: Rows, target: Rows, source: Source) -> NDArray[np.intp]:
    """Row of the reference (n,) with the key of each generated event."""
    order = np.argsort(target.key, kind="stable")
    place = np.minimum(np.searchsorted(target.key, made.key, sorter=order), len(order) - 1)
    index = order[place]
    if missing := int(np.sum(target.key[index] != made.key)):
        msg = f"{source}: {missing} of {len(made)} events have keys that the reference doesn't have; expected the same "
        raise KeyColumnError(msg + "events, or context branches in the file: pass them through when sampling")
    return index


def _by_row(made: Rows, target: Rows, copies: int, columns: Columns, source: Source) -> tuple[Rows, Twins]:
    """Give twins the same keys, and the generated ones their context, if row i belongs to condition i // copies."""
    fits = len(made) == copies * len(target)
    index = np.repeat(np.arange(len(target)), copies) if fits else None
    if all(name in made.table for name in columns.context):
        same = index is not None and all(
            np.array_equal(made.table[name].astype(np.float32), target.table[name][index].astype(np.float32))
            for name in columns.context
        )
        if not same or index is None or not columns.context:
            return made, "none"
    elif index is None:
        msg = f"{source}: lacks context branches and has {len(made)} rows, expected {copies * len(target)} as for the "
        raise BranchError(msg + "conditions in the reference; pass key or context branches through when sampling")
    made = _with_context(made, target, index, columns)
    return replace(made, key=target.key[index], event_key=target.event_key[index]), "rows"


def _with_context(made: Rows, target: Rows, index: NDArray[np.intp], columns: Columns) -> Rows:
    return replace(made, table={**made.table, **{name: target.table[name][index] for name in columns.context}})
