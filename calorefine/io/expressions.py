"""Expressions and cuts on branches, as a physicist writes them, evaluated by numexpr.

Python's operators and numexpr's functions (`sqrt`, `exp`, `log`, `sin`, `arctan2`, `where`, ...) are understood, and also
``&&``, ``||``, ``and``, ``or``, ``not`` and chained comparisons.  Nothing else is: a checkpoint carries its expressions
along, and loading a stranger's must not run code.
"""

from __future__ import annotations

import ast
import re
from functools import lru_cache
from typing import Any

import numexpr
import numpy as np
from numpy.typing import NDArray

from calorefine.errors import ExpressionError, nearest
from calorefine.events import Table

_FUNCTIONS = frozenset(
    ["where", "sin", "cos", "tan", "arcsin", "arccos", "arctan", "arctan2", "sinh", "cosh", "tanh", "arcsinh", "arccosh", "arctanh", "log", "log10", "log1p", "exp", "expm1", "sqrt", "abs", "floor", "ceil"]
)
_ALLOWED = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Call, ast.Name, ast.Constant, ast.Load,
    ast.operator, ast.unaryop, ast.cmpop,
)  # fmt: skip


class _Logic(ast.NodeTransformer):
    """Turn `and`, `or`, `not` and chained comparisons into the operators that act on arrays."""

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        values = [self.visit(value) for value in node.values]
        operator = ast.BitAnd() if isinstance(node.op, ast.And) else ast.BitOr()
        return self._join(values, operator)

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        sides = [self.visit(side) for side in (node.left, *node.comparators)]
        pairs = [ast.Compare(left, [op], [right]) for left, op, right in zip(sides, node.ops, sides[1:], strict=False)]
        return self._join(pairs, ast.BitAnd())

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        operand = self.visit(node.operand)
        return ast.UnaryOp(ast.Invert() if isinstance(node.op, ast.Not) else node.op, operand)

    @staticmethod
    def _join(parts: list[Any], operator: ast.operator) -> ast.AST:
        joined = parts[0]
        for part in parts[1:]:
            joined = ast.BinOp(joined, operator, part)
        return joined


@lru_cache(maxsize=1024)
def _parse(text: str) -> tuple[str, tuple[str, ...]]:
    """Return the expression for numexpr and the branches that it needs."""
    python = re.sub(r"!(?!=)", " not ", text.replace("&&", " and ").replace("||", " or ")).strip()
    try:
        tree = ast.parse(python, mode="eval")
    except SyntaxError as error:
        raise ExpressionError(
            f"expression '{text}' can't be parsed: {error.msg} at character {error.offset}"
        ) from error
    tree = ast.fix_missing_locations(_Logic().visit(tree))
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    names = []
    for node in ast.walk(tree):
        if not isinstance(node, _ALLOWED) or (isinstance(node, ast.Constant) and isinstance(node.value, str | bytes)):
            raise ExpressionError(
                f"expression '{text}': '{ast.unparse(node)}' is not understood, expected arithmetic, comparisons, "
                f"and the functions {', '.join(sorted(_FUNCTIONS))}"
            )
        if isinstance(node, ast.Name) and id(node) in called and node.id not in _FUNCTIONS:
            hint = nearest(node.id, _FUNCTIONS)
            raise ExpressionError(f"expression '{text}': there is no function '{node.id}'{hint}")
        if isinstance(node, ast.Name) and id(node) not in called:
            names.append(node.id)
    return ast.unparse(tree), tuple(dict.fromkeys(names))


def branches(text: str) -> tuple[str, ...]:
    """Return the branches that an expression needs, in order of appearance.

    Raises:
        ExpressionError: it can't be parsed, or uses more than arithmetic.

    >>> branches("sqrt(px**2 + py**2) > 1 && 2 < eta < 5")
    ('px', 'py', 'eta')
    """
    return _parse(text)[1]


def evaluate(text: str, table: Table) -> NDArray[Any]:
    """Evaluate an expression on a table, in double precision.

    Args:
        text: the expression.
        table: arrays (n,) by branch.

    Returns:
        (n,) float64, or bool for a condition.

    Raises:
        ExpressionError: it can't be parsed or evaluated.

    >>> evaluate("a > 1 || !(b < 4)", {"a": np.array([0.0, 2.0]), "b": np.array([3.0, 3.0])})
    array([False,  True])
    """
    expression, names = _parse(text)
    arrays = {name: _widen(table[name]) for name in names}
    if expression in arrays:
        return arrays[expression]
    try:
        result = numexpr.evaluate(expression, local_dict=arrays, global_dict={}, sanitize=False)
    except (ValueError, TypeError, KeyError, NotImplementedError, OverflowError) as error:
        raise ExpressionError(f"expression '{text}' can't be evaluated: {error}") from error
    n = len(next(iter(table.values())))
    return np.broadcast_to(result if result.dtype == bool else result.astype(np.float64), (n,))


def _widen(values: NDArray[Any]) -> NDArray[Any]:
    return values if values.dtype == bool else values.astype(np.float64)
