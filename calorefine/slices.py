"""The parts of a map of simulators: which slice each is for, that they belong together, and what they are as a whole.

What a simulator's slice is says its training:

1. the cut of its training sample, where that compares the expression with numbers, as `abs(eta) < 0.8` does: the edges
   are exact, and slices that meet leave no gap;
2. or else, if the expression is a column of the context, the range that training events had in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import combinations
from typing import Any

import numpy as np

from calorefine.errors import ConfigError, ExpressionError
from calorefine.events import Column, Columns, unit_of
from calorefine.io.cuts import Interval, any_of, interval_of, substituted
from calorefine.io.expressions import plain_branches
from calorefine.io.names import exact
from calorefine.simulator import Simulator
from calorefine.stats import FloatArray

Slice = dict[str, Interval]
"""Interval of each expression by which slices are told apart."""


@dataclass(frozen=True)
class Part:
    """One simulator of a map.

    Args:
        name: of its file, as far as that tells it from the others.
        sha256: digest of its file.
        simulator: the simulator.
        slice: what it is for.
    """

    name: str
    sha256: str
    simulator: Simulator
    slice: Slice

    def __str__(self) -> str:
        """Name the slice: it is what users know, and the same for members of ensembles."""
        return ", ".join(
            f"{text} {'in' if interval.point is None else '='} {interval}" for text, interval in self.slice.items()
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, without the simulator."""
        slices = {text: interval.to_dict() for text, interval in self.slice.items()}
        return {"name": self.name, "sha256": self.sha256, "slice": slices}


def slice_of(simulator: Simulator, by: Sequence[str], where: str) -> Slice:
    """Slice that a simulator was trained in.

    Args:
        simulator: one that tells its cut or has the expressions in its context.
        by: expressions of context columns and branches.
        where: name of the file, for messages.

    Raises:
        ConfigError: the training doesn't tell; it says what is expected.
    """
    columns, found = simulator.columns, {}
    known = {name: exact(text, [name]) for name, text in columns.expressions("context").items()}
    for text in by:
        try:
            interval = interval_of(columns.cut, substituted(text, known)) if columns.cut else None
        except ExpressionError as error:
            raise ConfigError(f"{where}: {error}") from error
        interval = interval or _trained(simulator, text)
        if interval is None:
            told = f"the cut '{columns.cut}', which doesn't compare '{text}' with a number" if columns.cut else "no cut"
            msg = f"{where}: was trained with {told}, and '{text}' is no column of its context; expected one of them "
            raise ConfigError(f"{msg}to tell the slice, as in columns.cut: {text} >= 0 && {text} < 1 at its training")
        found[text] = interval
    return found


def _trained(simulator: Simulator, text: str) -> Interval | None:
    """Range of the training events, if the expression is a column of the context."""
    described, names = simulator.columns.context_columns, simulator.columns.context_names
    named = {exact(name, [name]): name for name in described}
    if text not in named:
        return None
    name = named[text]
    column = described[name]
    if column.categories is None:
        low, high = simulator.domain[names.index(name)]
        return Interval.rounded(low, high, column.offset or 0.0)
    first = names.index(f"{name}={column.categories[0]:.15g}")
    there = [value for k, value in enumerate(column.categories) if simulator.domain[first + k, 1] > 0]
    return Interval(min(there), max(there), with_low=True, with_high=True) if there else None


def spelled(by: Iterable[str], columns: Columns) -> list[str]:
    """Expressions as they are evaluated: the exact name of a column wins over what it says.

    Raises:
        ConfigError: there is none, one is given twice, or needs a feature or no column at all.
    """
    texts = [exact(text, columns.context) for text in by]
    if not texts:
        raise ConfigError("by: nothing found, expected expressions that tell the slices apart, as in charge,abs(eta)")
    for text in texts:
        try:
            names = plain_branches(text)
        except ExpressionError as error:
            raise ConfigError(f"by: {error}") from error
        if texts.count(text) > 1:
            raise ConfigError(f"by: '{text}' found {texts.count(text)} times, expected once")
        if not names:
            raise ConfigError(f"by: '{text}' is the same for all rows, expected an expression of conditions")
        if generated := set(names) & set(columns.features):
            msg = f"by: '{text}' needs '{min(generated)}', which is generated, expected an expression of conditions"
            raise ConfigError(msg)
    return texts


def require_disjoint(parts: Sequence[Part]) -> None:
    """Refuse slices that overlap.

    Raises:
        ConfigError: two do; it names them.
    """
    for one, other in combinations(parts, 2):
        if all(not interval.within(other.slice[text]).empty for text, interval in one.slice.items()):
            msg = f"by: the slices of '{one.name}' ({one}) and '{other.name}' ({other}) overlap, expected ones that "
            raise ConfigError(f"{msg}don't: by further expressions, or with cuts of the trainings that tell them apart")


def require_alike(parts: Sequence[Part]) -> None:
    """Refuse parts that don't generate the same features from the same context.

    Raises:
        ConfigError: one differs from the first one; it says in what.
    """
    first, *others = parts
    expected = _described(first.simulator.columns)
    for part in others:
        found = _described(part.simulator.columns)
        for what, value in expected.items():
            if found.get(what) != value:
                msg = f"{part.name}: {what} {found.get(what)!r} found, expected {value!r} as in '{first.name}'"
                raise ConfigError(f"{msg}: the simulators of a map have the same columns")


def _described(columns: Columns) -> dict[str, Any]:
    """What has to be the same, by what it is called; names come first, so that all further entries are there."""
    groups = {"feature": columns.feature_columns, "context": columns.context_columns}
    told: dict[str, Any] = {"features": [*columns.features], "context": [*columns.context]}
    told |= {name: getattr(columns, name) for name in ("key", "candidate", "block", "collection", "showers")}
    for group, described in groups.items():
        for name, column in described.items():
            told[f"{group} '{name}': unit"] = unit_of(name, column)
            for what in ("expression", "branch_unit", "shape", "categories"):
                told[f"{group} '{name}': {what}"] = getattr(column, what)
            told[f"{group} '{name}': integer"] = column.transform == "integer"
    return told


def columns_of(parts: Sequence[Part]) -> Columns:
    """Columns of the map: those of the parts, and the branches that tell their slices among the context.

    A branch in which each slice has one value is a category.  The cut lets pass what that of any part does (`any_of`).
    """
    every = [part.simulator.columns for part in parts]
    features: dict[str, Column | None] = {
        name: _with_offset([one.feature_columns[name] for one in every]) for name in every[0].features
    }
    context: dict[str, Column | None] = {
        name: _with_offset([one.context_columns[name] for one in every]) for name in every[0].context
    }
    for text in parts[0].slice:
        points = sorted({interval.point for part in parts if (interval := part.slice[text]).point is not None})
        single = len(points) > 1 and all(part.slice[text].point is not None for part in parts)
        for name in plain_branches(text):
            categories = (
                [int(x) if x == int(x) else x for x in points] if single and text == exact(name, [name]) else None
            )
            context.setdefault(name, Column(categories=categories))
    return replace(every[0], features=features, context=context, cut=any_of([one.cut for one in every]))


def _with_offset(columns: Sequence[Column]) -> Column:
    """The first of these columns, with the offset of the first that has one."""
    return replace(columns[0], offset=next((one.offset for one in columns if one.offset is not None), None))


def domain_of(parts: Sequence[Part], columns: Columns) -> FloatArray:
    """Range (c, 2) of all parts' training events in each encoded column of the map; of a branch, that of the slices."""
    rows = []
    for name, column in columns.context_columns.items():
        for encoded in [name] if column.categories is None else [f"{name}={x:.15g}" for x in column.categories]:
            ends = np.array([_range(part, name, encoded, column) for part in parts])
            rows.append([ends[:, 0].min(), ends[:, 1].max()])
    return np.array(rows)


def _range(part: Part, name: str, encoded: str, column: Column) -> tuple[float, float]:
    """Range of one part in an encoded column of the map."""
    own = part.simulator.columns
    if name in own.context:
        low, high = part.simulator.domain[own.context_names.index(encoded)]
        shift = (own.context_columns[name].offset or 0.0) - (column.offset or 0.0)
        return low + shift, high + shift
    if column.categories is not None:
        return 0.0, 1.0
    interval = part.slice.get(exact(name, [name]), Interval())
    return interval.low, interval.high


def training_of(parts: Sequence[Part]) -> dict[str, Any]:
    """What the parts' trainings come to, with the entries of one training that all of them have, and each of them.

    The sizes are those of all events together; an event that is in several slices counts in each.
    """
    trainings = [part.simulator.spec["provenance"] for part in parts]
    shared = [name for name in trainings[0] if all(one.get(name) is not None for one in trainings)]
    told: dict[str, Any] = {}
    for name in shared:
        values = [one[name] for one in trainings]
        if name in ("digest", "rows_digest"):
            told[name] = sha256("".join(values).encode()).hexdigest()
        elif name in ("n_train", "n_validation", "sum_w"):
            told[name] = sum(values)
        elif name == "files":
            told[name] = list(dict.fromkeys(file for files in values for file in files))
        elif name == "weights":
            told[name] = ", ".join(dict.fromkeys(values))
        elif all(value == values[0] for value in values):
            told[name] = values[0]
    own = [
        part.to_dict() | {"cut": part.simulator.columns.cut, "training": one}
        for part, one in zip(parts, trainings, strict=True)
    ]
    return told | _sizes(trainings, shared) | {"parts": own}


def _sizes(trainings: Sequence[Mapping[str, Any]], shared: Sequence[str]) -> dict[str, float]:
    r"""Effective numbers of all events: :math:`(\sum W)^2 / \sum W^2 / n`, with the sum W of each part's weights.

    Degrees of freedom of sums of squares add by Satterthwaite's rule.
    """
    out: dict[str, float] = {}
    for name in ("n_eff", "n_eff_signed"):
        if {name, "sum_w"} <= set(shared):
            sums, sizes = (np.array([one[key] for one in trainings], float) for key in ("sum_w", name))
            out[name] = float(sums.sum() ** 2 / np.sum(sums**2 / sizes))
            if "weights_dof" in shared:
                dof, squares = np.array([one["weights_dof"] for one in trainings], float), sums**2 / sizes
                out["weights_dof"] = float(squares.sum() ** 2 / np.sum(squares**2 / dof))
    return out
