"""Read a generated sample and its reference, and find out which of their events share their conditions.

A generated file may lack the context: `calorefine sample` writes the features, in the order of the conditions.  The
context is then that of the reference event of the same key, where both files have the key branches, or of the same row.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from calorefine.data.remarks import coarse, remarks_on_pair
from calorefine.errors import BranchError, CalorefineWarning, ColumnWarning, KeyColumnError
from calorefine.events import Columns, Events
from calorefine.io.sample import CONTEXTS, SampleRows, WeightedFiles
from calorefine.io.sources import Source
from calorefine.stats import FloatArray

Twins = Literal["keys", "rows", "none"]


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

    def features(self, events: Events) -> FloatArray:
        """Features of one of the samples (d, n), with the offsets that single precision is kept without."""
        described = self.columns.feature_columns
        offsets = np.concatenate([np.full(one.size or 1, one.offset or 0.0) for one in described.values()])
        return np.asarray(events.x.T.astype(np.float64) + offsets[:, None])


def read_samples(generated: WeightedFiles, reference: WeightedFiles, *, columns: Columns | None) -> Samples:
    """Read both samples.

    Args:
        generated: files of generated events.
        reference: files of reference events.
        columns: features, context, key and cut, which is applied to both; from the generated file's provenance,
            without the cut of the training sample, if left out.

    Raises:
        ConfigError: no columns are given and the generated file doesn't tell them.
        BranchError: a branch is missing, or the generated file has neither context nor anything to find it by.
        KeyColumnError: generated events without context have keys that the reference hasn't.
        WeightError: weights without a positive sum.

    Warns:
        ColumnWarning: single precision loses the digits of a column.
        CalorefineWarning: the reference has no weight, but the branch of the one that the generator was trained with.
    """
    _warn_of_weights(generated, reference)
    columns = columns or replace(generated.columns, cut=None)
    wanted, context = generated.texts(columns, "features"), generated.texts(columns, "context")
    has_context = not generated.lacking(context.values())
    made = generated.rows(generated.request(columns, wanted | (context if has_context else {})))
    target = reference.rows(reference.request(columns, columns.expressions("features", "context")))
    if generated.is_keyed(columns) and reference.is_keyed(columns):
        twins: Twins = "keys"
        matches = None if has_context else _matches(made, target, generated.source)
        made = made if matches is None else _with_context(made, target, matches, columns)
    else:
        made, twins = _by_row(made, target, int(generated.provenance.get("n_per_event", 1)), columns, generated.source)
        if not has_context:
            _require_conditions(generated, target, reference)
    for text in coarse(target.table, columns):
        warnings.warn(f"{reference.source}: {text}", ColumnWarning, stacklevel=2)
    return Samples(columns, made.events(columns), target.events(columns), twins)


def _warn_of_weights(generated: WeightedFiles, reference: WeightedFiles) -> None:
    """Warn of a reference without weights that has the weight branch which the generator was trained with."""
    trained = generated.provenance.get("training", {}).get("weights")
    if reference.weight == "none" and trained in reference.branches:
        text = f"{reference.source}: no weight is given, but the generator was trained with its branch '{trained}'"
        warnings.warn(f"{text}; give it, with --reference.weight {trained}", CalorefineWarning, stacklevel=3)


def warn_of_columns(samples: Samples, where: str) -> None:
    """Warn of features that spoil a comparison or a reweighting."""
    for text in remarks_on_pair(samples.generated, samples.reference, samples.columns):
        warnings.warn(f"{where}: {text}", ColumnWarning, stacklevel=3)


def read_training(path: str, tree: str, columns: Columns) -> Events:
    """Training events, of weight 1; rows with NaN or infinite values are left out, with a warning."""
    files = WeightedFiles(path, tree)
    return files.rows(files.request(columns, columns.expressions("features", "context"), nonfinite="drop")).events(
        columns
    )


def _matches(made: SampleRows, target: SampleRows, source: Source) -> NDArray[np.intp]:
    """Row of the reference (n,) with the key of each generated event."""
    order = np.argsort(target.key, kind="stable")
    place = np.minimum(np.searchsorted(target.key, made.key, sorter=order), len(order) - 1)
    index = order[place]
    if missing := int(np.sum(target.key[index] != made.key)):
        msg = f"{source}: {missing} of {len(made)} events have keys that the reference doesn't have; expected the same "
        raise KeyColumnError(msg + "events, or context branches in the file: pass them through when sampling")
    return index


def _by_row(
    made: SampleRows, target: SampleRows, copies: int, columns: Columns, source: Source
) -> tuple[SampleRows, Twins]:
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


def _require_conditions(generated: WeightedFiles, target: SampleRows, reference: WeightedFiles) -> None:
    """Refuse a reference whose rows aren't those that events were generated at, where the file tells.

    Raises:
        BranchError: they aren't.
    """
    told = generated.provenance
    if told.get("n_conditions") != len(target) or CONTEXTS not in told:
        return
    wanted = generated.columns
    if not set(wanted.context) <= set(target.table):
        return
    if hashlib.sha256(wanted.encode_context(target.table).tobytes()).hexdigest() != told[CONTEXTS]:
        msg = f"{generated.source}: lacks context and key branches, and was generated at other conditions than the "
        raise BranchError(f"{msg}rows of {reference.source}, or in another order; pass them through when sampling")


def _with_context(made: SampleRows, target: SampleRows, index: NDArray[np.intp], columns: Columns) -> SampleRows:
    return replace(made, table={**made.table, **{name: target.table[name][index] for name in columns.context}})
