"""Expressions with lists: what a list of numbers per event (jets, cells, clusters) comes to, as one number per event.

A reduction stands where a branch may stand.  Its first argument is an expression of elements, in which branches of one
number per event count for each element; the second one, if given, is a condition that selects elements:

    sum(jet_pt), sum(jet_pt * cosh(jet_eta), jet_pt > 20), count(jet_pt > 20 && abs(jet_eta) < 2.5),
    max(jet_pt), min(jet_pt), mean(jet_pt), first(jet_pt), any(jet_pt > 20), all(jet_pt > 20),
    sum(jet_pt, jet_pt < max(jet_pt)) / p_gev

Lists in one reduction have the same lengths in every event; fixed-size arrays are lists as well.  Of no elements, `sum`
and `count` are 0, `any` is false, `all` is true, and `max`, `min`, `mean` and `first` are NaN, unless a third argument
says what they are: `max(jet_pt, jet_pt > 20, 0)`.  Where no list is, `max(px, py, 0)` is the largest of the numbers.
An element that is NaN makes the result NaN.  As everywhere in `expressions`, a number is a condition that holds unless
it is zero, but a NaN is none.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import awkward as ak  # type: ignore[import-untyped]  # neither py.typed nor stubs exist
import numpy as np
from numpy.typing import NDArray

from calorefine.errors import BranchError, ExpressionError, ValueRangeError, nearest
from calorefine.io import c_forms, expressions, syntax
from calorefine.io.names import mangled, readable

Branches = Mapping[str, Any]
"""Arrays (n,), fixed-size arrays (n, k) or awkward arrays (n, var) by branch."""

_HOW = {"max": ak.max, "min": ak.min, "mean": ak.mean, "first": ak.firsts, "any": ak.any, "all": ak.all}
_HOW |= {"sum": ak.sum, "count": ak.sum}
_CONDITIONS = ("count", "any", "all")
REDUCTIONS = frozenset(_HOW)
_CALL = re.compile(rf"\b({'|'.join(sorted(REDUCTIONS))})\s*\(")
_OF_NUMBERS = {"max": np.maximum, "min": np.minimum}
_WITH_FALLBACK = ("max", "min", "mean", "first")


@dataclass(frozen=True)
class Parsed:
    """An expression whose reductions are taken out.

    Attributes:
        text: as written.
        outer: with a name in place of each reduction.
        names: branches in `outer`.
        reductions: those names to the reductions.
    """

    text: str
    outer: str
    names: tuple[str, ...]
    reductions: dict[str, Reduction]

    def all_names(self) -> Iterator[str]:
        """Every branch, those in reductions included; may repeat."""
        yield from self.names
        for reduction in self.reductions.values():
            for part in reduction.parts():
                yield from part.all_names()


@dataclass(frozen=True)
class Reduction:
    """One call of a reduction: expression of elements, condition on elements, fallback per event.

    Attributes:
        by_number: whether a number stands where the condition on elements does.
    """

    function: str
    text: str
    elements: Parsed
    selected: Parsed | None
    fallback: Parsed | None
    by_number: bool

    def of_elements(self) -> list[Parsed]:
        """The parts that are evaluated for each element."""
        return [self.elements, *([self.selected] if self.selected else [])]

    def parts(self) -> list[Parsed]:
        """All parts."""
        return [*self.of_elements(), *([self.fallback] if self.fallback else [])]


@lru_cache(maxsize=1024)
def parse(text: str) -> Parsed:
    """Take the reductions out of an expression and check the rest.

    Raises:
        ExpressionError: it can't be parsed, or uses more than arithmetic and reductions.
    """
    if not _CALL.search(text):
        return Parsed(readable(text), text, expressions.plain_branches(text), {})
    with syntax.parsing(text):
        tree = c_forms.tree(mangled(text))
        taken = _TakeOut(text)
        outer = ast.unparse(taken.visit(tree))
    try:
        names = tuple(name for name in expressions.plain_branches(outer) if name not in taken.reductions)
    except ExpressionError as error:
        raise ExpressionError(_as_written(str(error), taken.reductions)) from error
    return Parsed(readable(text), outer, names, taken.reductions)


def _as_written(message: str, reductions: Mapping[str, Reduction]) -> str:
    for name, reduction in reductions.items():
        message = message.replace(name, reduction.text)
    return message


def _is_number(node: ast.expr) -> bool:
    value = node.operand if isinstance(node, ast.UnaryOp) else node
    return isinstance(value, ast.Constant) and type(value.value) is not bool


class _TakeOut(ast.NodeTransformer):
    """Replace each outermost reduction by a name."""

    def __init__(self, text: str) -> None:
        self.text = readable(text)
        self.reductions: dict[str, Reduction] = {}

    def visit_Call(self, node: ast.Call) -> ast.AST:
        name = ast.unparse(node.func)
        if name not in REDUCTIONS:
            if name.isidentifier():
                syntax.require_function(name, self.text, syntax.FUNCTIONS | REDUCTIONS)
            return self.generic_visit(node)
        stand_in = f"__reduction_{len(self.reductions)}__"
        self.reductions[stand_in] = self._reduction(name, node)
        return ast.Name(stand_in)

    def _reduction(self, name: str, node: ast.Call) -> Reduction:
        written = readable(ast.unparse(node))
        shown = f"expression '{self.text}': {written}"
        most = 3 if name in _WITH_FALLBACK else 2
        if node.keywords or not 1 <= len(node.args) <= most:
            usage = f"{name}({'condition' if name in _CONDITIONS else 'expression'}[, condition on elements"
            usage += "[, value for no elements]])" if most == 3 else "])"
            raise ExpressionError(f"{shown}: expected {usage}")
        parts = [parse(ast.unparse(argument)) for argument in node.args]
        selected, fallback = parts[1] if len(parts) > 1 else None, parts[2] if len(parts) > 2 else None
        by_number = len(node.args) > 1 and _is_number(node.args[1])
        return Reduction(name, written, parts[0], selected, fallback, by_number)


def branches(text: str) -> tuple[str, ...]:
    """Return the branches that an expression needs, also those in its reductions.

    Raises:
        ExpressionError: it can't be parsed, or uses more than arithmetic and reductions.

    >>> branches("sum(jet_pt, jet_pt > cut) / p_gev")
    ('p_gev', 'jet_pt', 'cut')
    """
    return tuple(dict.fromkeys(parse(text).all_names()))


def outside(text: str) -> tuple[str, ...]:
    """Return the branches that an expression needs outside of its reductions.

    >>> outside("sum(jet_pt, jet_pt > cut) / p_gev")
    ('p_gev',)
    """
    return parse(text).names


def evaluate(text: str, table: Branches, n: int) -> NDArray[Any]:
    """Evaluate an expression with reductions on a table, in double precision.

    Args:
        text: the expression.
        table: arrays (n,), (n, k) or (n, var) by branch.
        n: number of rows.

    Returns:
        (n,) float64, or bool for a condition.

    Raises:
        ExpressionError: it can't be parsed or evaluated.
        BranchError: it needs a branch that isn't there, has a list outside of a reduction, a reduction has none, or
            lists of different lengths.
        ValueRangeError: a NaN is taken for a condition on elements.

    >>> jets = ak.Array([[30.0, 10.0], []])
    >>> evaluate("count(jet_pt > 20) + max(jet_pt, True, -1)", {"jet_pt": jets}, 2)
    array([31., -1.])
    """
    return _evaluate(parse(text), table, n)


def evaluate_entries(text: str, table: Branches, counts: NDArray[np.int64], collection: str) -> NDArray[Any]:
    """Evaluate an expression for each entry of a collection; what an event has once counts for each of its entries.

    Args:
        text: the expression.
        table: arrays (n,) or (n, var) by branch.
        counts: number of entries of each event (n,).
        collection: what the names of its lists begin with.

    Returns:
        (sum of counts,) float64, or bool for a condition.

    Raises:
        ExpressionError, BranchError, ValueRangeError: as `evaluate`.
        BranchError: a list outside of a reduction is none of the collection, or has other lengths.

    >>> table = {"e_pt": ak.Array([[30.0, 10.0], []]), "met": np.array([5.0, 7.0])}
    >>> evaluate_entries("e_pt / max(e_pt) + met", table, np.array([2, 0]), "e")
    array([6.        , 5.33333333])
    """
    for name in parse(text).names:
        array = table.get(name)
        if array is None or array.ndim == 1:
            continue
        if not name.startswith(f"{collection}_"):
            msg = f"expression '{text}': branch '{name}' holds a list of numbers for each event, but none of collection"
            raise BranchError(f"{msg} '{collection}'; reduce it, as in sum({name}) or count({name} > 0)")
        _require_equal(f"expression '{text}'", {f"{collection}_*": counts, name: _lengths(array)})
    return _elements(parse(text), table, counts, len(counts))


def condition(text: str, table: Branches, n: int) -> NDArray[np.bool_]:
    """Evaluate a condition on a table, as `evaluate` does: (n,) bool; a number holds unless it is zero.

    Raises:
        ValueRangeError: a number is NaN.
    """
    return _truth(evaluate(text, table, n), text)


def _truth(values: NDArray[Any], text: str) -> NDArray[np.bool_]:
    if values.dtype == bool:
        return values
    if missing := int(np.isnan(values).sum()):
        msg = f"expression '{text}': the condition is NaN {missing} times, expected true or false"
        raise ValueRangeError(msg + "; compare with a number, as in x > 0, which is false for NaN")
    return np.asarray(values != 0)


def _evaluate(parsed: Parsed, table: Branches, n: int) -> NDArray[Any]:
    for name in parsed.names:
        if name in table and table[name].ndim != 1:
            msg = f"expression '{parsed.text}': branch '{name}' holds a list of numbers for each event, expected one"
            raise BranchError(msg + f" number; reduce it, as in sum({name}) or count({name} > 0)")
    reduced = {name: _reduce(reduction, table, n) for name, reduction in parsed.reductions.items()}
    return _flat(parsed, {name: table[name] for name in parsed.names if name in table} | reduced, n)


def _flat(parsed: Parsed, columns: dict[str, NDArray[Any]], n: int) -> NDArray[Any]:
    """Evaluate on columns (n,); messages show the reductions as written."""
    try:
        return expressions.evaluate_plain(parsed.outer, {**columns, "\0rows": np.zeros(n, bool)})
    except (ExpressionError, BranchError) as error:
        raise type(error)(_as_written(str(error), parsed.reductions)) from error


def _reduce(reduction: Reduction, table: Branches, n: int) -> NDArray[Any]:
    """Evaluate a reduction for each event: (n,); `max` and `min` of numbers are those of their arguments."""
    lists = _lists(reduction, table)
    if not lists and reduction.function in _OF_NUMBERS and reduction.selected:
        return _of_numbers(reduction, table, n)
    counts = _counts(reduction, lists)
    values, *selected = [_elements(part, table, counts, n) for part in reduction.of_elements()]
    if reduction.function in _CONDITIONS:
        values = _truth(values, reduction.elements.text)
    elements = ak.unflatten(values, counts)
    if reduction.selected:
        elements = elements[ak.unflatten(_truth(selected[0], reduction.selected.text), counts)]
    result = np.asarray(ak.fill_none(_HOW[reduction.function](elements, axis=1), np.nan))
    if reduction.function in ("max", "min"):  # which ignore NaN in awkward
        result = np.where(ak.any(np.isnan(elements), axis=1), np.nan, result)
    if reduction.fallback:
        result = np.where(ak.num(elements, axis=1) == 0, _evaluate(reduction.fallback, table, n), result)
    return np.asarray(result)


def _of_numbers(reduction: Reduction, table: Branches, n: int) -> NDArray[Any]:
    """The largest or smallest argument in each event (n,), NaN where one is."""
    values = [_evaluate(part, table, n) for part in reduction.parts()]
    if any(argument.dtype == bool for argument in values[1:]):
        msg = f"'{reduction.text}': no branch in it holds a list of numbers for each event, expected one beside a "
        raise BranchError(f"{msg}condition, or two numbers")
    return np.asarray(_OF_NUMBERS[reduction.function].reduce(values))


def _lists(reduction: Reduction, table: Branches) -> dict[str, NDArray[np.int64]]:
    """Lengths (n,) of the lists in the parts that are evaluated for each element.

    Raises:
        BranchError: a branch isn't there.
    """
    names = list(dict.fromkeys(name for part in reduction.of_elements() for name in part.names))
    if absent := [name for name in names if name not in table]:
        hint = nearest(absent[0], table)
        raise BranchError(f"'{reduction.text}' needs a branch '{absent[0]}', which isn't there{hint}")
    return {name: _lengths(table[name]) for name in names if table[name].ndim == 2}


def _counts(reduction: Reduction, lists: Mapping[str, NDArray[np.int64]]) -> NDArray[np.int64]:
    """Number of elements of each event (n,)."""
    if not lists:
        raise BranchError(f"'{reduction.text}': no branch in it holds a list of numbers for each event, expected one")
    if reduction.selected and reduction.by_number:
        msg = f"'{reduction.text}': the second argument selects elements, expected a condition"
        value = f"{reduction.function}(..., True, {reduction.selected.text})"
        hint = f"; for a value where there are none write {value}" if reduction.function in _WITH_FALLBACK else ""
        raise ExpressionError(msg + hint)
    _require_equal(f"'{reduction.text}'", lists)
    return next(iter(lists.values()))


def _require_equal(where: str, lists: Mapping[str, NDArray[np.int64]]) -> None:
    """Refuse lists (n,) of different lengths."""
    (first, counts), *others = lists.items()
    for name, other in others:
        if len(different := np.flatnonzero(counts != other)):
            row = different[0]
            msg = f"{where}: branches '{first}' and '{name}' have {counts[row]} and {other[row]} elements in an event "
            raise BranchError(f"{msg}({len(different)} of {len(counts)} differ), expected equal numbers")


def _lengths(array: Any) -> NDArray[np.int64]:
    if isinstance(array, np.ndarray):
        return np.full(len(array), array.shape[1], np.int64)
    return np.asarray(ak.num(array, axis=1), np.int64)


def _elements(part: Parsed, table: Branches, counts: NDArray[np.int64], n: int) -> NDArray[Any]:
    """Evaluate an expression for each element of all events: (sum of counts,)."""
    reduced = {name: np.repeat(_reduce(one, table, n), counts) for name, one in part.reductions.items()}
    columns = {}
    for name in (name for name in part.names if name in table):
        array = table[name]
        is_list = array.ndim == 2
        columns[name] = np.asarray(ak.flatten(array, axis=1)) if is_list else np.repeat(np.asarray(array), counts)
    return _flat(part, columns | reduced, int(counts.sum()))
