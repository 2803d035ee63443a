"""Expressions and cuts on branches, as a physicist writes them, evaluated by numexpr.

Python's operators and numexpr's functions (`sqrt`, `exp`, `log`, `arctan2`, `where`, ...) are understood, and
also ``&&``, ``||``, ``and``, ``or``, ``not`` and chained comparisons.  Nothing else is: a checkpoint carries its
expressions along, and loading a stranger's must not run code.  As in C, a number is a condition: it holds unless zero.
`weight_replica[3]` is one entry of a fixed-size array; `label == "TT"` and `label != "TT"` compare a branch of text.
Back-quotes enclose the name of any branch, such as `` `B.pt` `` or `` `K-pt`[2] ``.
All is evaluated in double precision; an integer that double precision can't hold is an error.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numexpr
import numpy as np
from numpy.typing import NDArray

from calorefine.errors import BranchError, ExpressionError, nearest
from calorefine.events import Arrays
from calorefine.io.names import identifier, mangled, readable

FUNCTIONS = frozenset(
    [
        "where",
        "sin",
        "cos",
        "tan",
        "arcsin",
        "arccos",
        "arctan",
        "arctan2",
        "sinh",
        "cosh",
        "tanh",
        "arcsinh",
        "arccosh",
        "arctanh",
        "log",
        "log10",
        "log1p",
        "exp",
        "expm1",
        "sqrt",
        "abs",
        "floor",
        "ceil",
    ]
)
_ALLOWED = (
    ast.Expression,
    ast.BoolOp,
    ast.BinOp,
    ast.UnaryOp,
    ast.Compare,
    ast.Call,
    ast.Name,
    ast.Constant,
    ast.Load,
    ast.boolop,
    ast.Add,
    ast.Sub,
    ast.Mult,
    ast.Div,
    ast.FloorDiv,
    ast.Mod,
    ast.Pow,
    ast.BitAnd,
    ast.BitOr,
    ast.unaryop,
    ast.Eq,
    ast.NotEq,
    ast.Lt,
    ast.LtE,
    ast.Gt,
    ast.GtE,
)
_LARGEST_EXACT = 2**53


class _Logic(ast.NodeTransformer):
    """Turn `and`, `or`, `not` and chained comparisons into the operators that act on arrays."""

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        values = [self._condition(value) for value in node.values]
        operator = ast.BitAnd() if isinstance(node.op, ast.And) else ast.BitOr()
        return self._join(values, operator)

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        sides = [self.visit(side) for side in (node.left, *node.comparators)]
        pairs = [ast.Compare(left, [op], [right]) for left, op, right in zip(sides, node.ops, sides[1:], strict=False)]
        return self._join(pairs, ast.BitAnd())

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        if isinstance(node.op, ast.Not):
            return ast.UnaryOp(ast.Invert(), self._condition(node.operand))
        return ast.UnaryOp(node.op, self.visit(node.operand))

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        """Make integers floating-point numbers, whose powers can't grow without limit."""
        return ast.Constant(float(node.value)) if type(node.value) is int else node

    def _condition(self, node: ast.expr) -> Any:
        truth = isinstance(node, ast.Compare | ast.BoolOp) or (
            isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)
        )
        return self.visit(node) if truth else ast.Compare(self.visit(node), [ast.NotEq()], [ast.Constant(0.0)])

    @staticmethod
    def _join(parts: Sequence[ast.expr], operator: ast.operator) -> ast.AST:
        joined: ast.expr = parts[0]
        for part in parts[1:]:
            joined = ast.BinOp(joined, operator, part)
        return joined


def as_python(text: str) -> str:
    """Write C's logical operators as Python's, on one line; what is in quotes stays.

    >>> as_python("a > 1 && !b")
    'a > 1 and not b'
    """
    parts = re.split(r"""("[^"]*"|'[^']*')""", text)
    for k, part in enumerate(parts[::2]):
        python = re.sub(r"!(?!=)", " not ", part.replace("&&", " and ").replace("||", " or "))
        parts[2 * k] = re.sub(r"\s+", " ", python)
    return "".join(parts).strip()


@contextmanager
def parsing(text: str) -> Iterator[None]:
    """Turn what Python says of an expression that it can't parse into `ExpressionError`."""
    try:
        yield
    except SyntaxError as error:
        msg = f"expression '{text}' can't be parsed: {error.msg} at character {error.offset}"
        msg += "; for a choice write where(condition, a, b)" if "?" in text else ""
        raise ExpressionError(msg) from error
    except (ValueError, OverflowError, RecursionError, MemoryError) as error:
        raise ExpressionError(f"expression '{text[:80]}' can't be parsed: {error}") from error


@lru_cache(maxsize=1024)
def _parse(text: str) -> tuple[str, tuple[str, ...]]:
    """Return the expression for numexpr and the branches that it needs."""
    with parsing(text):
        tree = ast.parse(as_python(mangled(text)), mode="eval")
        names = tuple(readable(name) for name in _names(tree, readable(text)))
        return ast.unparse(ast.fix_missing_locations(_Logic().visit(tree))), names


def _names(tree: ast.Expression, text: str) -> tuple[str, ...]:
    """Return the branches in an expression, after refusing all that is not arithmetic."""
    called = {id(node.func): node.func for node in ast.walk(tree) if isinstance(node, ast.Call)}
    names = []
    for node in ast.walk(tree):
        constant = isinstance(node, ast.Constant) and type(node.value) not in (bool, int, float)
        if not isinstance(node, _ALLOWED) or constant:
            is_operator = isinstance(node, ast.operator | ast.cmpop)
            what = type(node).__name__ if is_operator else f"'{readable(ast.unparse(node))}'"
            hint = "; write ** for powers" if isinstance(node, ast.BitXor) else ""
            hint = "; write where(condition, a, b)" if isinstance(node, ast.IfExp) else hint
            hint = "; of arrays write one entry, from 0, as in v[3]" if isinstance(node, ast.Subscript) else hint
            hint = '; text is compared with a branch, as in label == "TT"' if _is_text(node) else hint
            raise ExpressionError(
                f"expression '{text}': {what} is not understood{hint}; expected arithmetic, comparisons, &&, ||, !, "
                f"and the functions {', '.join(sorted(FUNCTIONS))}"
            )
        if isinstance(node, ast.Name) and id(node) not in called:
            names.append(node)
    for function in called.values():
        name = readable(ast.unparse(function))
        if name not in FUNCTIONS:
            hint = nearest(name, FUNCTIONS) or f"; there are {', '.join(sorted(FUNCTIONS))}"
            raise ExpressionError(f"expression '{text}': there is no function '{name}'{hint}")
    return tuple(dict.fromkeys(node.id for node in sorted(names, key=lambda node: node.col_offset)))


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def plain_branches(text: str) -> tuple[str, ...]:
    """Return the branches that an expression needs, in order of appearance.

    Raises:
        ExpressionError: it can't be parsed, or uses more than arithmetic.

    >>> plain_branches("sqrt(px**2 + py**2) > 1 && 2 < eta < 5")
    ('px', 'py', 'eta')
    >>> plain_branches("2 * weight_replica[3]")
    ('weight_replica[3]',)
    >>> plain_branches("label != 'TT' && p > 2")
    ('label == "TT"', 'p')
    """
    return _parse(text)[1]


def evaluate_arrays(text: str, table: Arrays, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Evaluate an expression cell by cell, where branches of one number per event count for each cell.

    Args:
        text: the expression.
        table: arrays (n,) or (n, ...) by branch, the latter with as many numbers per event as `shape` has cells.
        shape: of the value for each event.

    Returns:
        (n, *shape) float32; infinite where that can't hold the value.

    Raises:
        ExpressionError: it can't be parsed or evaluated.
        BranchError: a branch isn't in the table or has another number of cells, or none has cells.

    >>> evaluate_arrays("cells / e", {"cells": np.array([[2.0, 4.0]]), "e": np.array([2.0])}, (2,))
    array([[1., 2.]], dtype=float32)
    """
    expression, names = _parse(text)
    size, n = math.prod(shape), len(next(iter(table.values())))
    columns = {name: table[name].reshape(n, math.prod(table[name].shape[1:])) for name in names if name in table}
    for name, array in columns.items():
        if table[name].ndim > 1 and array.shape[1] != size:
            msg = f"expression '{text}': branch '{name}' has {array.shape[1]} numbers per event, expected {size}"
            raise BranchError(f"{msg} as for shape {list(shape)}")
    if columns and all(table[name].ndim == 1 for name in columns):
        msg = f"expression '{text}' gives one number per event, expected an array of shape {list(shape)}"
        raise BranchError(f"{msg}, of a branch with {size} numbers per event")
    with np.errstate(over="ignore"):
        values = columns[expression] if expression in columns else _evaluated(text, columns)
        return values.astype(np.float32, copy=False).reshape(n, *shape)


def evaluate_plain(text: str, table: Arrays) -> NDArray[Any]:
    """Evaluate an expression on a table, in double precision.

    Args:
        text: the expression.
        table: arrays (n,) by branch.

    Returns:
        (n,) float64, or bool for a condition.

    Raises:
        ExpressionError: it can't be parsed or evaluated, or needs an integer that a double can't hold exactly.
        BranchError: it needs a branch that isn't in the table.

    >>> evaluate_plain("a > 1 || !(b < 4)", {"a": np.array([0.0, 2.0]), "b": np.array([3.0, 3.0])})
    array([False,  True])
    """
    result = _evaluated(text, table)
    return np.broadcast_to(
        result if result.dtype == bool else result.astype(np.float64, copy=False), (len(next(iter(table.values()))),)
    )


def _evaluated(text: str, table: Arrays) -> NDArray[Any]:
    """Evaluate in double precision, on arrays that broadcast."""
    expression, names = _parse(text)
    arrays = {identifier(name): _widen(name, table, text) for name in names}
    if expression in arrays:
        return arrays[expression]
    try:
        return np.asarray(numexpr.evaluate(expression, local_dict=arrays, global_dict={}, sanitize=False))
    except (ValueError, TypeError, KeyError, NotImplementedError, ArithmeticError) as error:
        is_bits = re.search(r"'(and|or|invert)_", str(error))
        hint = "; &, | and ~ act on conditions, and the bit of value 4 is floor(flags / 4) % 2" if is_bits else ""
        raise ExpressionError(f"expression '{text}' can't be evaluated: {readable(str(error))}{hint}") from error


def _widen(name: str, table: Arrays, text: str) -> NDArray[Any]:
    """Return a branch as bool or float64."""
    if name not in table:
        raise BranchError(f"expression '{text}' needs a branch '{name}', which isn't there{nearest(name, table)}")
    values = table[name]
    if values.dtype.kind in "iu" and values.dtype.itemsize == 8 and len(values):
        largest = max(int(values.max()), -int(values.min()))
        if largest > _LARGEST_EXACT:
            msg = f"expression '{text}': branch '{name}' holds integers up to {largest}, expected at most 2**53 in "
            raise ExpressionError(
                msg + "an expression, which is evaluated in double precision; pass it through, or use it as key"
            )
    return values if values.dtype == bool else values.astype(np.float64)
