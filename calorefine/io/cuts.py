"""What a cut says of one expression: the interval of its values that the cut lets pass.

Only conditions that hold all together count: comparisons of the expression with numbers, joined by ``&&``.  All else in
a cut is about other things; a comparison of the expression elsewhere (below ``||``, after ``!``) leaves no one
interval, and is refused.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calorefine.errors import ExpressionError
from calorefine.io import c_forms
from calorefine.io.expressions import evaluate_plain
from calorefine.io.names import HIDDEN, mangled, quoted, readable
from calorefine.io.syntax import parsing
from calorefine.stats import FloatArray

MOST_CUTS = 30
_Operator = type[ast.cmpop]
_MIRRORED: dict[_Operator, _Operator] = {
    ast.Lt: ast.Gt,
    ast.LtE: ast.GtE,
    ast.Gt: ast.Lt,
    ast.GtE: ast.LtE,
    ast.Eq: ast.Eq,
    ast.NotEq: ast.NotEq,
}


@dataclass(frozen=True)
class Interval:
    """Numbers from `low` to `high`.

    Args:
        low: lower end; -inf for none.
        high: upper end; inf for none.
        with_low: whether the lower end belongs to it.
        with_high: whether the upper end does.

    >>> print(Interval(0.8, 1.5, with_low=True), Interval(high=0.8), Interval(1, 1, with_low=True, with_high=True))
    [0.8, 1.5) (-inf, 0.8) 1
    """

    low: float = -math.inf
    high: float = math.inf
    with_low: bool = False
    with_high: bool = False

    @classmethod
    def rounded(cls, low: float, high: float, offset: float = 0.0) -> Interval:
        """All numbers that are `low` to `high` in single precision, once `offset` has been taken off."""
        first, last = np.float32(low), np.float32(high)
        below, above = np.nextafter(first, np.float32(-np.inf)), np.nextafter(last, np.float32(np.inf))
        return cls(offset + (float(first) + float(below)) / 2, offset + (float(last) + float(above)) / 2)

    @property
    def empty(self) -> bool:
        """Whether it holds no number."""
        return not (self.low < self.high or (self.low == self.high and self.with_low and self.with_high))

    @property
    def point(self) -> float | None:
        """The only number that it holds; None if there are more."""
        return self.low if self.low == self.high else None

    def within(self, other: Interval) -> Interval:
        """Numbers that are in both."""
        low, high = max(self.low, other.low), min(self.high, other.high)
        with_low = all(one.with_low for one in (self, other) if one.low == low)
        return Interval(low, high, with_low, all(one.with_high for one in (self, other) if one.high == high))

    def scaled(self, factor: float) -> Interval:
        """All numbers times a positive factor."""
        return Interval(self.low * factor, self.high * factor, self.with_low, self.with_high)

    def holds(self, values: FloatArray) -> NDArray[np.bool_]:
        """Tell which values (n,) are in it; NaN is not."""
        above = values >= self.low if self.with_low else values > self.low
        return np.asarray(above & (values <= self.high if self.with_high else values < self.high))

    def distance(self, values: FloatArray) -> FloatArray:
        """How far values (n,) are from it: 0 inside and at its ends, NaN for NaN."""
        return np.maximum(np.maximum(self.low - values, values - self.high), 0.0)

    def __str__(self) -> str:
        """Write it as in mathematics."""
        if self.point is not None:
            return f"{self.low:.6g}"
        return f"{'(['[self.with_low]}{self.low:.6g}, {self.high:.6g}{')]'[self.with_high]}"

    def to_dict(self) -> dict[str, Any]:
        """Plain containers; None for an end that there is not, which JSON has no number for."""
        low, high = (None if math.isinf(end) else end for end in (self.low, self.high))
        return {"low": low, "high": high, "with_low": self.with_low, "with_high": self.with_high}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Interval:
        """Inverse of `to_dict`.

        Raises:
            ValueError: it holds no number.
        """
        low = -math.inf if values["low"] is None else float(values["low"])
        high = math.inf if values["high"] is None else float(values["high"])
        interval = cls(low, high, bool(values["with_low"]), bool(values["with_high"]))
        if interval.empty:
            raise ValueError(f"interval {interval} found, which holds no number")
        return interval


def interval_of(cut: str, expression: str) -> Interval | None:
    """Interval of an expression's values that a cut lets pass, or None if the cut doesn't compare it with a number.

    Args:
        cut: condition on branches.
        expression: of branches; a number times another expression is known by comparisons of that one as well.

    Raises:
        ExpressionError: one of them can't be parsed, or what the cut says of the expression is no one interval.

    >>> print(interval_of("charge > 0 && 0.8 <= abs(eta) && abs( eta ) < 1.5", "abs(eta)"))
    [0.8, 1.5)
    >>> print(interval_of("pt > 5000 && tight", "pt * 0.001"))
    (5, inf)
    """
    wanted, factor = _scaled(_tree(expression))
    interval: Interval | None = None
    for condition in _together(_tree(cut)):
        read = _Comparisons(wanted, condition, cut, expression)
        for bound in read.intervals():
            interval = bound if interval is None else interval.within(bound)
    if interval and interval.empty:
        raise ExpressionError(f"cut '{cut}': lets no value of '{expression}' pass, expected an interval")
    return interval.scaled(factor) if interval else None


class _Comparisons:
    """What one condition of a cut says of an expression.

    Args:
        wanted: the expression, as Python writes it.
        condition: to read.
        cut: that it is a part of, for messages.
        expression: as written, for messages.
    """

    def __init__(self, wanted: str, condition: ast.expr, cut: str, expression: str) -> None:
        self._wanted, self._condition, self._cut, self._expression = wanted, condition, cut, expression

    def intervals(self) -> Iterator[Interval]:
        """Intervals whose values pass, one for each comparison.

        Raises:
            ExpressionError: the expression is compared with a number in a way that leaves no one interval.
        """
        condition = self._condition
        top = list(_pairs(condition)) if isinstance(condition, ast.Compare) else []
        for left, operator, right in top:
            if bound := self._bound(left, operator, right):
                yield bound
        inner = (node for node in ast.walk(condition) if isinstance(node, ast.Compare) and node is not condition)
        if any(self._value(*pair) for node in inner for pair in _pairs(node)) or self._is_bare(condition):
            raise self._refusal()

    def _bound(self, left: ast.expr, operator: _Operator, right: ast.expr) -> Interval | None:
        """Interval of one comparison; None if it is about something else."""
        known = self._value(left, operator, right)
        if known is None:
            return None
        kind, value = known
        match kind:
            case ast.Lt | ast.LtE:
                return Interval(high=value, with_high=kind is ast.LtE)
            case ast.Gt | ast.GtE:
                return Interval(low=value, with_low=kind is ast.GtE)
            case ast.Eq:
                return Interval(value, value, with_low=True, with_high=True)
        raise self._refusal()

    def _value(self, left: ast.expr, operator: _Operator, right: ast.expr) -> tuple[_Operator, float] | None:
        """Operator after the expression, and the number that follows, if a comparison is one of the two."""
        for first, second, kind in ((left, right, operator), (right, left, _MIRRORED.get(operator, operator))):
            if ast.unparse(first) == self._wanted and not _branches(second):
                return kind, float(evaluate_plain(readable(ast.unparse(second)), {"": np.zeros(1)})[0])
        return None

    def _is_bare(self, condition: ast.expr) -> bool:
        """Whether the expression itself stands for a condition, as `isolated` and `!isolated` do."""
        inner = condition.operand if isinstance(condition, ast.UnaryOp) else condition
        return ast.unparse(inner) == self._wanted

    def _refusal(self) -> ExpressionError:
        said = readable(ast.unparse(self._condition))
        msg = f"cut '{self._cut}': says '{said}' of '{self._expression}', which is no one interval; expected "
        return ExpressionError(f"{msg}comparisons of it with numbers, joined by &&")


def _tree(text: str) -> ast.expr:
    with parsing(text):
        return c_forms.tree(mangled(text)).body


def _scaled(node: ast.expr) -> tuple[str, float]:
    """What an expression is a positive number times of, as Python writes it, and that number."""
    match node:
        case ast.BinOp(left=inner, op=ast.Mult(), right=ast.Constant(value=int() | float() as factor)) if factor > 0:
            return ast.unparse(inner), float(factor)
    return ast.unparse(node), 1.0


def _together(node: ast.expr) -> Iterator[ast.expr]:
    """Conditions that have to hold all together."""
    match node:
        case ast.BoolOp(op=ast.And(), values=values):
            parts = values
        case ast.BinOp(left=ast.Compare() | ast.BoolOp() | ast.BinOp() as left, op=ast.BitAnd(), right=right):
            parts = [left, right]
        case _:
            yield node
            return
    for part in parts:
        yield from _together(part)


def _pairs(node: ast.Compare) -> Iterator[tuple[ast.expr, _Operator, ast.expr]]:
    """Comparisons of a chain."""
    sides = [node.left, *node.comparators]
    for left, operator, right in zip(sides, node.ops, sides[1:], strict=False):
        yield left, type(operator), right


def _branches(node: ast.expr) -> list[str]:
    """Names of branches in it."""
    called = {id(inner.func) for inner in ast.walk(node) if isinstance(inner, ast.Call)}
    return [inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name) and id(inner) not in called]


def substituted(expression: str, columns: Mapping[str, str]) -> str:
    """Write an expression of columns as one of branches.

    Args:
        expression: of names.
        columns: expression of branches by name; other names stay as they are.

    >>> substituted("abs(eta) + n", {"eta": "el_eta - 1", "n": "`n-pv`"})
    'abs(el_eta - 1) + `n-pv`'
    """
    tree = ast.Expression(_tree(expression))
    inner = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}

    class Columns(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.AST:
            name = readable(node.id)
            return _tree(columns[name]) if id(node) not in inner and name in columns else node

    return _written(ast.fix_missing_locations(Columns().visit(tree)))


def any_of(cuts: Sequence[str | None]) -> str | None:
    """Cut that lets pass what at least one of these cuts does.

    Of more than `MOST_CUTS` different ones, which numexpr couldn't evaluate, what they all share: it lets more pass.

    Args:
        cuts: conditions on branches; None for one that lets everything pass.

    >>> any_of(["p > 2 && eta < 1", "p > 2 && eta >= 1 && tight", "p > 2 && eta < 1"])
    'p > 2 && (eta < 1 || eta >= 1 && tight)'
    """
    different = list(dict.fromkeys(cuts))
    if len(different) == 1 or None in different:
        return None if None in different else different[0]
    every = [list(dict.fromkeys(map(_written, _together(_tree(cut or ""))))) for cut in different]
    shared = [one for one in every[0] if all(one in conditions for conditions in every)]
    own = [[_grouped(one) for one in conditions if one not in shared] for conditions in every]
    parts = [_grouped(one) for one in shared]
    if all(own) and len(own) <= MOST_CUTS:
        either = " || ".join(" && ".join(one) for one in own)
        parts.append(f"({either})" if parts else either)
    return " && ".join(parts) or None


def _grouped(text: str) -> str:
    """A condition as part of a longer one."""
    node = _tree(text)
    return f"({text})" if isinstance(node, ast.BoolOp | ast.IfExp | ast.BinOp) or text.startswith("not ") else text


def _written(node: ast.AST) -> str:
    """A tree as text, with the names of branches in back-quotes where they need them."""
    return HIDDEN.sub(lambda match: quoted(readable(match[0])), ast.unparse(node))
