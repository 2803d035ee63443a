"""Weights, and branches with lists, read from ROOT files in chunks of rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calorefine.errors import BranchError, ConfigError, EmptySelectionError, ValueRangeError
from calorefine.io import reductions
from calorefine.io.sources import Source
from calorefine.observables.grid import GridFinder
from calorefine.observables.observable import Observable
from calorefine.observables.quantiles import Quantile
from calorefine.stats import FloatArray

NO_WEIGHT = "none"
IN_DOMAIN = "in_domain"
SCOUT_ROWS = 100_000


@dataclass(frozen=True)
class Weights:
    """One or more weights of each event.

    Each column is a *complete* weight, not a factor on the nominal one: entry k of `weight_replica` stands where the
    nominal `weight` stands.

    Args:
        expression: branch or expression of one number per event; or a branch that is an array of k numbers for each
            event, which gives k weights; or "none" for 1.
    """

    expression: str = NO_WEIGHT

    def __post_init__(self) -> None:
        """Check the expression."""
        reductions.branches(self.text)

    @property
    def text(self) -> str:
        """The expression to evaluate."""
        return "1" if self.expression == NO_WEIGHT else self.expression

    def columns(self, table: reductions.Branches, n: int) -> FloatArray:
        """Weights (n, k) of a table of n rows."""
        array = table.get(self.text)
        if isinstance(array, np.ndarray) and array.ndim == 2:
            return array.astype(np.float64)
        return np.asarray(reductions.evaluate(self.text, table, n), np.float64)[:, None]


def names_of(source: Source, weights: Iterable[Weights]) -> list[str]:
    """Name each weight of the files, those of an array by their index: "weight_replica[0]".

    Raises:
        BranchError: the arrays in two files have different lengths.
    """
    names = []
    for one in weights:
        arrays = {}
        for path in source.paths:
            with source.open(path) as tree:
                if one.text in tree.names() and (shape := tree.shape(one.text)) and shape != "list":
                    arrays[path] = shape[0]
        if len(set(arrays.values())) > 1 or (arrays and len(arrays) < len(source.paths)):
            shown = ", ".join(f"{path}: {arrays.get(path, 'none')}" for path in source.paths[:5])
            raise BranchError(f"weights '{one.text}': arrays of different lengths found ({shown}), expected equal ones")
        length = next(iter(arrays.values()), None)
        names += [one.expression] if length is None else [f"{one.expression}[{k}]" for k in range(length)]
    return names


def domain_condition(source: Source, in_domain: str | None) -> str | None:
    """The branch that tells which events are inside the training domain, or None if all are.

    Raises:
        BranchError: a branch that isn't the default one is missing, or only some of the files have it.
    """
    if in_domain is None:
        return None
    has = []
    for path in source.paths:
        with source.open(path) as tree:
            has.append(in_domain in tree.names())
    if not any(has) and in_domain == IN_DOMAIN:
        return None
    if not all(has):
        path = source.paths[has.index(False)]
        msg = f"{path}, tree '{source.tree}': there is no branch '{in_domain}', "
        raise BranchError(
            f"{msg}which {'other files have' if any(has) else 'was asked for'}; `in_domain: null` counts all as inside"
        )
    return in_domain


def tables(source: Source, texts: Iterable[str], rows: int) -> Iterator[tuple[reductions.Branches, int]]:
    """Yield the branches that expressions need, and the number of rows.

    Raises:
        FileError: a file is missing, truncated or damaged.
        BranchError: a branch is missing, or holds neither numbers nor lists of them.
    """
    needed = list(dict.fromkeys(name for text in texts for name in reductions.branches(text)))
    for _, table, at in source.tables([], rows, lists=needed):
        yield table, len(at)


class Values:
    """Evaluated expressions of one chunk, each once, and what is not finite in them.

    Args:
        table: its branches.
        n: its rows.
    """

    def __init__(self, table: reductions.Branches, n: int) -> None:
        """Evaluate nothing yet."""
        self._table, self.n = table, n
        self._known: dict[str, NDArray[np.generic]] = {}

    def condition(self, text: str | None) -> NDArray[np.bool_]:
        """A condition (n,); None holds for all."""
        if text is None:
            return np.ones(self.n, bool)
        key = f"\0{text}"
        if key not in self._known:
            self._known[key] = reductions.condition(text, self._table, self.n)
        return np.asarray(self._known[key], bool)

    def number(self, text: str) -> FloatArray:
        """An expression (n,)."""
        if text not in self._known:
            self._known[text] = np.asarray(reductions.evaluate(text, self._table, self.n), np.float64)
        return np.asarray(self._known[text], np.float64)

    def weights(self, weights: Iterable[Weights]) -> FloatArray:
        """All weights (n, V)."""
        return np.concatenate([one.columns(self._table, self.n) for one in weights], axis=1)


class NonFinite:
    """Counts values that are NaN or infinite over all chunks, to name them all at once."""

    def __init__(self) -> None:
        """Nothing found yet."""
        self.found: dict[str, int] = {}

    def count(self, what: str, values: FloatArray) -> None:
        """Look at values of any shape."""
        if n := int(np.sum(~np.isfinite(values))):
            self.found[what] = self.found.get(what, 0) + n

    def report(self, source: Source) -> None:
        """Raise if there are any.

        Raises:
            ValueRangeError: with the numbers of such values.
        """
        if self.found:
            shown = ", ".join(f"{what}: {n}" for what, n in self.found.items())
            msg = f"{source}: NaN or infinite values in selected events ({shown}), expected finite ones; leave these "
            msg += (
                "events out by a selection, or say what the value is where a list is empty, as in max(jet_pt, True, 0)"
            )
            raise ValueRangeError(msg)


def prepared(source: Source, observables: Mapping[str, Observable]) -> dict[str, Observable]:
    """Choose the sub-cells of quantiles that have none yet, by a look at the first events.

    It stops when it has seen enough of each bin, and doesn't depend on the size of chunks.

    Raises:
        EmptySelectionError: no event is selected.
        ValueRangeError: NaN or infinite values.
    """
    finders = {
        name: (one, GridFinder(one.binning))
        for name, one in observables.items()
        if isinstance(one, Quantile) and one.grid is None
    }
    if not finders:
        return dict(observables)
    texts = [text for one, _ in finders.values() for text in [*one.expressions(), one.selection or "1"]]
    bad = NonFinite()
    for table, n in tables(source, texts, SCOUT_ROWS):
        chunk = Values(table, n)
        for name, (one, finder) in finders.items():
            keep = chunk.condition(one.selection)
            columns = [chunk.number(text)[keep] for text in one.expressions()]
            for text, column in zip(one.expressions(), columns, strict=True):
                bad.count(f"{name}: {text}", column)
            finder.add(*columns)
        if bad.found or all(finder.done for _, finder in finders.values()):
            break
    bad.report(source)
    grids: dict[str, Observable] = {
        name: one.with_grid(finder.grid(one.n_sub - 2)) for name, (one, finder) in finders.items()
    }
    return {name: grids.get(name, one) for name, one in observables.items()}


def require_events(name: str, observable: Observable, n_selected: int, source: Source) -> None:
    """Raise if no event is selected.

    Raises:
        EmptySelectionError: naming the observable and its selection.
    """
    if n_selected == 0:
        reason = f"after the selection '{observable.selection}'" if observable.selection else "in the tree"
        raise EmptySelectionError(f"{source}: observable '{name}': no event is left {reason}, expected some")


def require_some(observables: Mapping[str, Observable], weights: Iterable[Weights]) -> None:
    """Raise if there is nothing to measure.

    Raises:
        ConfigError: no observable, or no weight.
    """
    for what, given in (("observables", list(observables)), ("weights", list(weights))):
        if not given:
            raise ConfigError(f"{what}: none given, expected at least one")
