"""What may be written in an expression, and the same for numexpr.

Python's operators and numexpr's functions are understood, and C's ``&&``, ``||``, ``!`` and ``condition ? a : b``.
Nothing else is: a checkpoint carries its expressions along, and loading a stranger's must not run code.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numexpr

from calorefine.errors import ExpressionError, nearest
from calorefine.io import c_forms
from calorefine.io.names import mangled, readable, variable

_TRIGONOMETRY = ("sin", "cos", "tan", "arcsin", "arccos", "arctan", "arctan2")
_HYPERBOLIC = ("sinh", "cosh", "tanh", "arcsinh", "arccosh", "arctanh")
_POWERS = ("log", "log10", "log1p", "exp", "expm1", "sqrt")
_PIECEWISE = ("where", "abs", "floor", "ceil")
FUNCTIONS = frozenset([*_TRIGONOMETRY, *_HYPERBOLIC, *_POWERS, *_PIECEWISE])
_NODES = (ast.Expression, ast.BoolOp, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Call, ast.IfExp, ast.Name, ast.Constant)
_ARITHMETIC = (ast.unaryop, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow)
_CONDITIONS = (ast.boolop, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE)
_BITWISE = (ast.BitAnd, ast.BitOr, ast.LShift, ast.RShift)
_ALLOWED = (*_NODES, ast.Load, *_ARITHMETIC, *_CONDITIONS, *_BITWISE)
_HABITS = {
    "fabs": "abs(x)",
    "pow": "x ** y",
    "sq": "x ** 2",
    **{f"a{name}": f"arc{name}(x)" for name in ("sin", "cos", "tan", "sinh", "cosh", "tanh")},
    "atan2": "arctan2(y, x)",
    "int": "floor(x)",
    "TMath::*": "the function's name here, in small letters",
    "Sum$": "sum(x), max(x), count(x > 0)",
}
BITS = "bits_of_"  # before the identifier of a branch that is taken as an integer


@dataclass(frozen=True)
class Expression:
    """An expression that is understood.

    Attributes:
        code: for numexpr.
        names: branches that it needs, in order of appearance.
        numbers: those that the code takes in double precision.
        bits: those that it takes as integers, or as conditions, by identifiers with `BITS` before them.
    """

    code: str
    names: tuple[str, ...]
    numbers: tuple[str, ...]
    bits: tuple[str, ...]


@lru_cache(maxsize=1024)
def parse(text: str) -> Expression:
    """Understand an expression.

    Raises:
        ExpressionError: it can't be parsed, or uses more than arithmetic.
    """
    with parsing(text):
        tree = c_forms.tree(mangled(text))
        names = _names(tree, readable(text))
        translated = ast.fix_missing_locations(_ForArrays(readable(text)).visit(tree))
        used = {node.id for node in ast.walk(translated) if isinstance(node, ast.Name)}
        bits = tuple(readable(name) for name in names if BITS + name in used)
        numbers = tuple(readable(name) for name in names if variable(name) in used)
        return Expression(ast.unparse(translated), tuple(map(readable, names)), numbers, bits)


@contextmanager
def parsing(text: str) -> Iterator[None]:
    """Turn what Python says of an expression that it can't parse into `ExpressionError`."""
    try:
        yield
    except SyntaxError as error:
        habit = re.search(r"(\w+\$)\s*\(|(TMath::)\w", text)
        hint = f"; write {_HABITS['Sum$' if habit[1] else 'TMath::*']}" if habit else ""
        msg = f"expression '{text}' can't be parsed: {error.msg} at character {error.offset}{hint}"
        raise ExpressionError(msg) from error
    except (ValueError, OverflowError, RecursionError, MemoryError) as error:
        raise ExpressionError(f"expression '{text[:80]}' can't be parsed: {error}") from error


def _names(tree: ast.Expression, text: str) -> tuple[str, ...]:
    """Return the branches in an expression, after refusing all that is not arithmetic."""
    called = {id(node.func): node.func for node in ast.walk(tree) if isinstance(node, ast.Call)}
    names = []
    for node in ast.walk(tree):
        constant = isinstance(node, ast.Constant) and type(node.value) not in (bool, int, float)
        if not isinstance(node, _ALLOWED) or constant:
            is_operator = isinstance(node, ast.operator | ast.cmpop)
            what = type(node).__name__ if is_operator else f"'{readable(ast.unparse(node))}'"
            raise ExpressionError(
                f"expression '{text}': {what} is not understood{_hint(node)}; expected arithmetic, comparisons, &&, "
                f"||, !, ?:, &, |, ~ and shifts of integers, and the functions {', '.join(sorted(FUNCTIONS))}"
            )
        if isinstance(node, ast.Name) and id(node) not in called:
            names.append(node)
    for function in called.values():
        require_function(readable(ast.unparse(function)), text, FUNCTIONS)
    return tuple(dict.fromkeys(node.id for node in sorted(names, key=lambda node: node.col_offset)))


def _hint(node: ast.AST) -> str:
    """What to write for a node that isn't understood."""
    if isinstance(node, ast.BitXor):
        return "; write ** for powers"
    if isinstance(node, ast.Subscript):
        return "; of arrays write one entry, from 0, as in v[3] or cov[1][2]"
    if isinstance(node, ast.Attribute):
        return "; a name with a dot stands in back-quotes, unless it is an observable of showers, as in shower.e_tot"
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return '; text is compared with a branch, as in label == "TT"'
    return ""


def require_function(name: str, text: str, known: frozenset[str]) -> None:
    """Refuse a function that isn't known.

    Raises:
        ExpressionError: it says what to write for one of C or ROOT, or else which one is near.
    """
    if name not in known:
        hint = f"; write {_HABITS[name]}" if name in _HABITS else nearest(name, known)
        raise ExpressionError(
            f"expression '{text}': there is no function '{name}'{hint or '; there are ' + ', '.join(sorted(known))}"
        )


class _ForArrays(ast.NodeTransformer):
    """Turn `and`, `or`, `not`, choices and chained comparisons into what acts on arrays, and integers for their bits.

    Args:
        text: as written, for messages.
    """

    def __init__(self, text: str) -> None:
        self._text = text

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        values = [self._condition(value) for value in node.values]
        operator = ast.BitAnd() if isinstance(node.op, ast.And) else ast.BitOr()
        return self._join(values, operator)

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        sides = [self.visit(side) for side in (node.left, *node.comparators)]
        pairs = [
            _settled(ast.Compare(left, [op], [right]))
            for left, op, right in zip(sides, node.ops, sides[1:], strict=False)
        ]
        return self._join(pairs, ast.BitAnd())

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        if isinstance(node.op, ast.Not):
            return _negated(self._condition(node.operand))
        if isinstance(node.op, ast.Invert):
            is_condition = self._is_condition(node.operand)
            return _negated(self.visit(node.operand) if is_condition else self._bits(node.operand))
        return ast.UnaryOp(node.op, self.visit(node.operand))

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        if isinstance(node.op, _BITWISE) and not (self._is_condition(node.left) or self._is_condition(node.right)):
            return ast.BinOp(self._bits(node.left), node.op, self._bits(node.right))
        if isinstance(node.op, ast.BitAnd | ast.BitOr):
            both = [self.visit(node.left), self.visit(node.right)]
            if self._is_condition(node.left) and self._is_condition(node.right):
                return self._join(both, node.op)
            left, right = sorted(both, key=_is_known)  # numexpr takes a Python constant on the right alone
            return ast.BinOp(left, node.op, right)
        return self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        choice = [self._condition(node.test), self.visit(node.body), self.visit(node.orelse)]
        return ast.Call(ast.Name("where"), choice, [])

    def visit_Call(self, node: ast.Call) -> ast.AST:
        first = self._condition if ast.unparse(node.func) == "where" else self.visit
        arguments = [(self.visit if k else first)(argument) for k, argument in enumerate(node.args)]
        return ast.Call(node.func, arguments, [])

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Name(variable(node.id))

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        """Make integers floating-point numbers, whose powers can't grow without limit."""
        return ast.Constant(float(node.value)) if type(node.value) is int else node

    def _condition(self, node: ast.expr) -> Any:
        visited = self.visit(node)
        if self._is_condition(node):
            return visited
        return _settled(ast.Compare(visited, [ast.NotEq()], [ast.Constant(0.0)]))

    def _is_condition(self, node: ast.expr) -> bool:
        """Whether it is one whatever its branches are, as `a & (b > 1)` is and `a & b` isn't."""
        if isinstance(node, ast.UnaryOp):
            return isinstance(node.op, ast.Not) or (
                isinstance(node.op, ast.Invert) and self._is_condition(node.operand)
            )
        if isinstance(node, ast.BinOp):
            logical = isinstance(node.op, ast.BitAnd | ast.BitOr)
            return logical and (self._is_condition(node.left) or self._is_condition(node.right))
        return isinstance(node, ast.Compare | ast.BoolOp) or (
            isinstance(node, ast.Constant) and isinstance(node.value, bool)
        )

    def _bits(self, node: ast.expr) -> Any:
        """Return what acts on the bits of integers, or on conditions in branches."""
        if isinstance(node, ast.Name):
            return ast.Name(BITS + node.id)
        if isinstance(node, ast.Constant) and type(node.value) is int:
            return node
        if isinstance(node, ast.BinOp) and isinstance(node.op, _BITWISE):
            folded = _shifted(node)
            return folded if isinstance(folded, ast.Constant) else self.visit(node)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Invert):
            return self.visit(node)
        msg = f"expression '{self._text}': '{readable(ast.unparse(node))}' stands beside &, |, ~, << or >>, expected a "
        raise ExpressionError(f"{msg}branch of integers, an integer, or conditions on both sides")

    @staticmethod
    def _join(parts: Sequence[ast.expr], operator: ast.operator) -> ast.AST:
        """Join conditions; of those that are known already, one decides or none counts."""
        known = [part.value for part in parts if isinstance(part, ast.Constant) and type(part.value) is bool]
        decisive = isinstance(operator, ast.BitOr)
        joined, *others = [part for part in parts if not _is_known(part)] or [ast.Constant(not decisive)]
        if decisive in known:
            return ast.Constant(decisive)
        for part in others:
            joined = ast.BinOp(joined, operator, part)
        return joined


def _is_known(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) is bool


def _settled(condition: ast.expr) -> ast.expr:
    """Return true or false for a condition without a branch, which numexpr would leave to Python, whose ~True is -2."""
    called = {id(node.func) for node in ast.walk(condition) if isinstance(node, ast.Call)}
    if any(isinstance(node, ast.Name) and id(node) not in called for node in ast.walk(condition)):
        return condition
    with suppress(ValueError, TypeError, NotImplementedError, ArithmeticError):  # as the whole will say
        code = ast.unparse(ast.fix_missing_locations(condition))
        return ast.Constant(bool(numexpr.evaluate(code, local_dict={}, global_dict={}, sanitize=False)))
    return condition


def _negated(condition: ast.expr) -> ast.expr:
    if isinstance(condition, ast.Constant) and type(condition.value) is bool:
        return ast.Constant(not condition.value)
    return ast.UnaryOp(ast.Invert(), condition)


def _shifted(node: ast.BinOp) -> ast.expr:
    """Return the constant that `1 << k` is: numexpr would make it of 32 bits."""
    match node:
        case ast.BinOp(left=ast.Constant(value=int(bit)), op=ast.LShift(), right=ast.Constant(value=int(k))) if k < 63:
            return ast.Constant(bit << k)
    return node
