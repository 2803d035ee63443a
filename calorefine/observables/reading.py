"""Weights, and branches with lists, read from files in chunks of rows."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calorefine.errors import BranchError, ConfigError, KeyWarning, ValueRangeError
from calorefine.io import reductions
from calorefine.io.chunks import Content, require_integers
from calorefine.io.names import exact
from calorefine.io.provenance import read_provenance
from calorefine.io.sources import Source
from calorefine.keys import KeyArray, combine, make_keys, stream
from calorefine.observables.grid import GridFinder
from calorefine.observables.observable import Mask, Observable
from calorefine.observables.quantiles import Quantile
from calorefine.stats import FloatArray, IntArray

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
        array = table.get(self.text.strip("`"))
        if isinstance(array, np.ndarray) and array.ndim == 2:
            return array.astype(np.float64)
        return np.asarray(reductions.evaluate(self.text, table, n), np.float64)[:, None]


def names_of(source: Source, weights: Iterable[Weights]) -> list[str]:
    """Name each weight of the files, those of an array by their index: "weight_replica[0]".

    Raises:
        BranchError: the arrays in two files have different lengths.
    """
    names = []
    for weight in weights:
        arrays: dict[Path, int] = {}
        for path in source.paths:
            with source.open(path) as tree:
                branch = weight.text.strip("`")
                if branch in tree.paths() and (shape := tree.shape(branch)) and shape != "list":
                    arrays[path] = int(shape[0])
        if len(set(arrays.values())) > 1 or (arrays and len(arrays) < len(source.paths)):
            shown = ", ".join(f"{path}: {arrays.get(path, 'none')}" for path in source.paths[:5])
            msg = f"weights '{weight.text}': arrays of different lengths found ({shown}), expected equal ones"
            raise BranchError(msg)
        length = next(iter(arrays.values()), None)
        names += [weight.expression] if length is None else [f"{weight.expression}[{k}]" for k in range(length)]
    return names


def domain_condition(source: Source, in_domain: str | None) -> str | None:
    """The branch that tells which events are inside the training domain, or None if all are.

    Raises:
        BranchError: a branch that isn't the default one is missing, or only some of the files have it.
    """
    if in_domain is None:
        return None
    without = []
    for path in source.paths:
        with source.open(path) as tree:
            without += [path] if in_domain not in tree.names() else []
    if without == source.paths and in_domain == IN_DOMAIN:
        return None
    if without:
        why = "was asked for" if without == source.paths else "other files have"
        msg = f"{without[0]}, tree '{source.tree}': there is no branch '{in_domain}', which {why}"
        raise BranchError(f"{msg}; `in_domain: null` counts all as inside")
    return in_domain


@dataclass(frozen=True)
class Identity:
    """What tells which rows belong to one event, and are not independent.

    Attributes:
        key: integer branches of the event, equal for its candidates and for copies generated at its conditions.
        copies: without key branches, how many rows that follow one another are copies at the same conditions.
    """

    key: tuple[str, ...] = ()
    copies: int = 1

    def __str__(self) -> str:
        """Tell what counts as independent."""
        if self.key:
            return f"rows of equal {', '.join(self.key)} count as one event"
        return f"each {self.copies} rows, copies, count as one event" if self.copies > 1 else "each row is an event"

    def keys(self, table: reductions.Branches, at: range, path: Path) -> KeyArray | None:
        """Keys (n,) of these rows of a file; None if each is an event of its own."""
        if self.key:
            require_integers(table, self.key, path)
            return make_keys([table[name] for name in self.key])
        if self.copies == 1:
            return None
        return combine(stream(np.zeros(1, np.uint64), str(path)), np.arange(at.start, at.stop) // self.copies)


def event_identity(source: Source, key: Sequence[str] | None) -> Identity:
    """By what the events of files are known: these key branches, or if None, what the first file's provenance tells.

    Warns:
        KeyWarning: rows of one event can't be told, and count as independent.
    """
    if key is not None:
        return Identity(tuple(key))
    told = read_provenance(source.paths[0])
    columns, names, copies = told.get("columns", {}), source.branch_names("number"), int(told.get("n_per_event", 1))
    for branches in (told.get("options", {}).get("key"), columns.get("key")):
        if isinstance(branches, list) and branches and all(name in names for name in branches):
            return Identity(tuple(branches))
    in_order = "unweight" not in told and all(n % copies == 0 for n in source.lengths())
    if columns.get("candidate") or not in_order:
        msg = f"{source}: lacks the key branches {columns.get('key')}, so that rows of one event count as independent, "
        warnings.warn(f"{msg}and errors are too small; pass the key through when sampling", KeyWarning, stacklevel=3)
    return Identity(copies=copies if in_order else 1)


def chunks(source: Source, texts: Iterable[str], rows: int, events: Identity | None = None) -> Iterator[Evaluated]:
    """Yield the branches that expressions need, and keys of the events if they are told how to know them.

    Raises:
        FileError: a file is missing, truncated or damaged.
        BranchError: a branch is missing, or holds neither numbers nor lists of them.
        KeyColumnError: a key branch is no integer.
    """
    known = source.branch_paths()
    exactly = [exact(text, known) for text in texts]
    needed: dict[str, Content] = dict.fromkeys((name for text in exactly for name in reductions.branches(text)), "list")
    events = events or Identity()
    needed |= dict.fromkeys(events.key, "number")
    for path, table, at in source.tables(needed, rows):
        yield Evaluated(table, len(at), events.keys(table, at, path), known)


class Evaluated:
    """Expressions of one chunk, each evaluated once.

    Args:
        table: its branches.
        n: its rows.
        key: (n,) equal for rows of one event; None if each is an event.
        known: names of the files' branches, which win over what an expression says.
    """

    def __init__(
        self, table: reductions.Branches, n: int, key: KeyArray | None = None, known: Sequence[str] = ()
    ) -> None:
        """Evaluate nothing yet."""
        self._table, self.n, self.key, self._branches = table, n, key, known
        self._known: dict[tuple[str, str], NDArray[Any]] = {}

    def condition(self, text: str | None) -> Mask:
        """A condition (n,); None holds for all."""
        return np.ones(self.n, bool) if text is None else np.asarray(self._once("condition", text), bool)

    def number(self, text: str) -> FloatArray:
        """An expression (n,)."""
        return np.asarray(self._once("evaluate", text), np.float64)

    def weights(self, weights: Iterable[Weights]) -> FloatArray:
        """All weights (n, V)."""
        exactly = [Weights(exact(weight.expression, self._branches)) for weight in weights]
        return np.concatenate([weight.columns(self._table, self.n) for weight in exactly], axis=1)

    def selected(self, name: str, observable: Observable, bad: Counter[str]) -> tuple[IntArray, list[FloatArray]]:
        """Rows (m,) that an observable selects, and its expressions (m,) there; counts those that are not finite."""
        keep = np.flatnonzero(self.condition(observable.selection))
        columns = [self.number(text)[keep] for text in observable.expressions()]
        for text, column in zip(observable.expressions(), columns, strict=True):
            bad[f"{name}: {text}"] += int(np.sum(~np.isfinite(column)))
        return keep, columns

    def _once(self, how: str, text: str) -> NDArray[Any]:
        if (how, text) not in self._known:
            self._known[how, text] = getattr(reductions, how)(exact(text, self._branches), self._table, self.n)
        return self._known[how, text]


def require_finite(source: Source, bad: Counter[str]) -> None:
    """Raise if NaN or infinite values were counted, which names them all at once.

    Raises:
        ValueRangeError: with the numbers of such values.
    """
    if bad.total():
        shown = ", ".join(f"{what}: {n}" for what, n in bad.items() if n)
        msg = (
            f"{source}: NaN or infinite values in selected events ({shown}), expected finite ones; leave these events "
        )
        raise ValueRangeError(
            f"{msg}out by a selection, or say what the value is where a list is empty, as in max(jet_pt, True, 0)"
        )


def prepared(source: Source, observables: Mapping[str, Observable]) -> dict[str, Observable]:
    """Choose the sub-cells of quantiles that have none yet, by a look at the first events.

    It stops when it has seen enough of each bin, and doesn't depend on the size of chunks.

    Raises:
        EmptySelectionError: no event is selected.
        ValueRangeError: NaN or infinite values.
    """
    quantiles = {name: kind for name, kind in observables.items() if isinstance(kind, Quantile) and kind.grid is None}
    finders = {name: GridFinder(quantile) for name, quantile in quantiles.items()}
    bad: Counter[str] = Counter()
    texts = [text for quantile in quantiles.values() for text in quantile.texts()]
    for chunk in chunks(source, texts, SCOUT_ROWS) if quantiles else ():
        for name, finder in finders.items():
            finder.add(*chunk.selected(name, finder.observable, bad)[1])
        if bad.total() or all(finder.done for finder in finders.values()):
            break
    require_finite(source, bad)
    return dict(observables) | {
        name: quantile.with_grid(finders[name].grid(quantile.n_cells)) for name, quantile in quantiles.items()
    }


def require_some(observables: Mapping[str, Observable], weights: Iterable[Weights]) -> None:
    """Raise if there is nothing to measure.

    Raises:
        ConfigError: no observable, or no weight.
    """
    for what, given in (("observables", list(observables)), ("weights", list(weights))):
        if not given:
            raise ConfigError(f"{what}: none given, expected at least one")
