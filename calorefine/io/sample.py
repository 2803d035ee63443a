"""A sample: files of events with their weights, the argument of every verb that takes one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from calorefine import stats
from calorefine.errors import ConfigError, ExpressionError
from calorefine.events import Columns, Events
from calorefine.io import reductions
from calorefine.io.chunks import Chunk, Request
from calorefine.io.formats import open_source
from calorefine.io.names import exact, owner, quoted
from calorefine.io.provenance import read_provenance
from calorefine.io.shower_branches import PREFIX, ShowerBranches
from calorefine.io.sources import Source
from calorefine.io.table import read_table
from calorefine.keys import KeyArray
from calorefine.stats import FloatArray

CONTEXTS = "contexts_sha256"  # in the provenance of a generated file, of the encoded contexts that it was made at
WEIGHT = "\0weight"
WRITTEN = ("in_domain", "copy")
"""Branches that `calorefine sample` writes beside the features."""


@dataclass(frozen=True)
class SampleRows:
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


@dataclass(frozen=True)
class WeightedFiles:
    """Files of events with a weight.

    Args:
        files: paths or globs.
        tree: name of the tree; that of the other samples, if left out.
        weight: branch or expression of the events' weight, signed ones included, or "none".
        friends: files with further branches of the same rows, one for each file, in their order.
        friends_by: integer branches by which the rows of friends are found, if those are in another order.
    """

    files: str | list[str]
    tree: str | None = None
    weight: str = "none"
    friends: list[str] | None = None
    friends_by: list[str] | None = None
    described: Columns | None = field(default=None, init=False, repr=False)

    def within(self, tree: str, columns: Columns | None = None) -> WeightedFiles:
        """Return the same with this tree, if none is named, and columns that tell of its showers."""
        named = replace(self, tree=self.tree or tree)
        object.__setattr__(named, "described", columns or self.described)
        return named

    @cached_property
    def source(self) -> Source:
        """The files.

        Raises:
            FileError: a path or glob matches no file.
        """
        return open_source(self.files, self.tree or "events", self.friends, self.friends_by).with_showers(self.showers)

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """What the first file says of its making, empty if nothing."""
        return read_provenance(self.source.paths[0])

    @cached_property
    def branches(self) -> list[str]:
        """Names of the branches and of their members."""
        return self.source.branch_paths()

    def __str__(self) -> str:
        """Name files, tree and weight, for messages."""
        return f"{self.source}, weight '{self.weight}'"

    @property
    def columns(self) -> Columns:
        """Columns that generated files were made with, the cut of their training sample included.

        Raises:
            ConfigError: the files don't tell, or what no column can be.
        """
        if not self.provenance.get("columns"):
            msg = f"{self.source}: has no provenance that names its columns; describe them with the option `columns`"
            raise ConfigError(msg)
        try:
            return Columns.from_dict(self.provenance["columns"])
        except ConfigError as error:
            raise ConfigError(f"{self.source}: its provenance names {error}") from error

    def texts(self, columns: Columns, *groups: Literal["features", "context"]) -> dict[str, str]:
        """Expressions of these groups: the columns' own, or a branch of the column's name if those can't be evaluated.

        In a file that was generated, features always go by their names.
        """
        out = {}
        for group in groups:
            by_name = group == "features" and "columns" in self.provenance
            for name, text in columns.expressions(group).items():
                branch = columns.branch(name)
                named = branch in self.branches and (by_name or bool(self.lacking([text])))
                out[name] = quoted(branch) if named else text
        return out

    def showers(self, columns: Columns | None = None) -> ShowerBranches | None:
        """Where the files hold showers; None if `shower_columns` are none.  Generated ones needn't be possible."""
        told = self.shower_columns(columns)
        if told is None:
            return None
        generated = bool(self.provenance.get("columns"))
        return ShowerBranches.of(told, self.texts(told, "features", "context"), generated=generated)

    def shower_columns(self, columns: Columns | None = None) -> Columns | None:
        """Columns that tell of showers: these, those that were described, or those that the files were made with."""
        made_with = self.columns if self.provenance.get("columns", {}).get("showers") else None
        return next((told for told in (columns, self.described, made_with) if told and told.showers), None)

    def lacking(self, texts: Iterable[str]) -> list[str]:
        """Branches that expressions need and the files don't have; observables of showers are none."""
        known = self.branches
        needed = dict.fromkeys(
            name for text in texts for name in reductions.branches(exact(text, known)) if not name.startswith(PREFIX)
        )
        return [name for name in needed if not {name, owner(name)} & set(known)]

    def is_keyed(self, columns: Columns) -> bool:
        """Whether the files have key branches by which their events are known."""
        return bool(columns.key) and set(columns.key_branches) <= set(self.branches)

    def request(self, columns: Columns | None, texts: Mapping[str, str], **options: Any) -> Request:
        """Request of these expressions and the weight; events go by file and row where there are no key branches."""
        wanted = {**texts} if self.weight == "none" else {**texts, WEIGHT: self.weight}
        options = {"showers": self.showers(columns)} | options
        if columns is None:
            return Request(wanted, **options)
        keyed: dict[str, Any] = {} if self.is_keyed(columns) else {"key": [], "candidate": None}
        return Request.of(columns, wanted, **keyed, **options)

    def weights(self, chunk: Chunk) -> FloatArray:
        """Weights (n,) of a chunk of such a request; 1 if there are none."""
        return chunk.values.get(WEIGHT, np.ones(len(chunk)))

    def rows(self, request: Request) -> SampleRows:
        """Read all selected rows.

        Raises:
            EmptySelectionError: no row is left.
            WeightError: weights without a positive sum.
        """
        table, key, event_key = read_table(self.source, request, distinct=False)
        weight = table.pop(WEIGHT, np.ones(len(key)))
        stats.require_positive_sum(weight, str(self))
        return SampleRows(table, weight, key, event_key)

    def numbers(self, weight: FloatArray) -> dict[str, Any]:
        """Tree, weight, number of events and sums of their weights (n,), for the provenance."""
        sums = {"n": len(weight), "sum_w": stats.sum_w(weight), "n_eff": stats.n_eff(weight)}
        return {"tree": self.source.tree, "weight": self.weight, **sums}


def require_readable(features: Iterable[str]) -> None:
    """Refuse features whose branches in a generated file would be taken for something else.

    Raises:
        ConfigError: a name is an expression of other branches, or that of a branch that is written anyway.
    """
    for name in features:
        try:
            is_branch = reductions.branches(name) == (name,) and not name.endswith("]")
        except ExpressionError:  # is no expression, so that it can only be a name
            is_branch = "`" not in name
        if name in WRITTEN:
            problem, alias = "`sample` writes a branch of this name beside the features", f"own_{name}"
        elif not is_branch:
            problem, alias = "in a generated file its name would be read as an expression", re.sub(r"\W+", "_", name)
        else:
            continue
        msg = f"feature '{name}': {problem}; expected another name, as in {alias}: {{expression: \"{quoted(name)}\"}}"
        raise ConfigError(msg)
