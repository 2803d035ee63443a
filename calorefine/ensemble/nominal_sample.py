"""The nominal sample of an ensemble: where it comes from, what to read of it, and conditions to draw others at."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from calorefine import keys
from calorefine.ensemble.members import Ensemble
from calorefine.ensemble.ratios import DrawConditions
from calorefine.errors import BranchError, CalorefineWarning, ConfigError, EmptySelectionError, nearest
from calorefine.events import Column, Columns, adapted_columns, unknown_columns
from calorefine.io.chunks import Request
from calorefine.io.provenance import digest, read_provenance
from calorefine.io.sample import WeightedFiles
from calorefine.io.sources import Source


def check_origin(source: Source, members: Ensemble) -> None:
    """Refuse events of another generator; warn if the files don't tell."""
    wanted = digest(members.checkpoint("nominal"))
    for path in source.paths:
        provenance = read_provenance(path)
        found = provenance.get("checkpoint_sha256")
        if found is None:
            msg = f"{path}: doesn't tell its generator; expected events of {members.checkpoint('nominal')}"
            warnings.warn(msg, CalorefineWarning, stacklevel=3)
        elif found != wanted:
            msg = f"{path}: was sampled from a {provenance['checkpoint']} with SHA-256 {found[:12]}, expected the "
            raise ConfigError(f"{msg}nominal one, {members.checkpoint('nominal')} with {wanted[:12]}; sample from that")


def sample_request(sample: WeightedFiles, columns: Columns, changed: Mapping[str, Column]) -> Request:
    """What to read of the events, and their weights.

    Raises:
        BranchError: a branch of the context is missing.
    """
    unknown_columns(changed, [*columns.features, *columns.context], option="--columns")
    wanted = sample.texts(adapted_columns(columns, changed, option="--columns"), "features", "context")
    if missing := sample.lacking(wanted.values()):
        msg = f"{sample.source}: there is no branch '{missing[0]}', which the densities depend on"
        msg += f"{nearest(missing[0], sample.branches)}; sample again with --pass_through {missing[0]}, or name "
        raise BranchError(f"{msg}another one with --columns")
    return sample.request(columns, wanted, cut=None)


def sample_conditions(source: Source, request: Request, columns: Columns, n_train: int) -> DrawConditions:
    """Different conditions of the file, chosen by key, and how many events to draw at each for about `n_train`.

    Raises:
        ConfigError: `n_train` is less than 1.
        EmptySelectionError: no row is left.
    """
    if n_train < 1:
        raise ConfigError(f"n_train: {n_train} found, expected at least 1")
    n, wanted = source.n_rows(request), {name: request.expressions[name] for name in columns.context}
    parts = []
    for chunk in source.chunks(replace(request, expressions=wanted, branches=())):
        taken = keys.uniform(keys.stream(chunk.key, "replica_weights")) * n < n_train
        parts.append([chunk.key[taken], *(chunk.values[name][taken] for name in wanted)])
    if sum(len(part[0]) for part in parts) == 0:
        raise EmptySelectionError(f"{source}: {n} rows, none of them chosen to learn from; expected more, or n_train")
    key, *context = (np.concatenate(column) for column in zip(*parts, strict=True))
    key, first = np.unique(key, return_index=True)  # copies of an event have the same
    table = {name: values[first] for name, values in zip(wanted, context, strict=True)}
    return DrawConditions(table, key, math.ceil(n_train / len(key)))
