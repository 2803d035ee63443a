"""Expressions of columns as tensors, with a gradient: what a training makes of generated events.

They are written as everywhere (`expressions`, `reductions`), and evaluated by torch: arithmetic, comparisons, choices
and functions, and of arrays `sum`, `mean`, `max` and `min` over the elements, `sum` with a condition as well.  What
only counts or acts on bits (`count`, `any`, `&` of integers, `%`) has no gradient, and is refused.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from calorefine.errors import ConfigError, ExpressionError, nearest
from calorefine.io import syntax
from calorefine.io.names import variable
from calorefine.io.reductions import Parsed, Reduction, branches, parse

_OVER_ELEMENTS: dict[str, Callable[..., Tensor]] = {
    "sum": torch.sum,
    "mean": torch.mean,
    "max": torch.amax,
    "min": torch.amin,
}
_FUNCTIONS: dict[str, Callable[..., Tensor]] = {name: getattr(torch, name) for name in syntax.FUNCTIONS}
_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    **{ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv},
    **{ast.Pow: operator.pow, ast.USub: operator.neg, ast.UAdd: operator.pos},
    **{ast.BitAnd: operator.and_, ast.BitOr: operator.or_, ast.Invert: operator.invert},
    **{ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge},
    **{ast.Eq: operator.eq, ast.NotEq: operator.ne},
}


def check(text: str, known: Iterable[str], *, option: str) -> None:
    """Refuse an expression that `evaluate` can't evaluate from these columns.

    Args:
        text: the expression.
        known: names of columns, and of elements of arrays.
        option: where it is given, for messages.

    Raises:
        ConfigError: it can't be parsed, needs a column that isn't there, or has no gradient.
    """
    try:
        names, problem = branches(text), _without_gradient(parse(text))
    except ExpressionError as error:
        raise ConfigError(f"{option}: {error}") from error
    known = list(known)
    for name in names:
        if name not in known:
            msg = f"{option}: '{text}' needs a column '{name}', which isn't there{nearest(name, known)}"
            raise ConfigError(f"{msg}; there are {', '.join(known[:20])}{', ...' if len(known) > 20 else ''}")
    if not names:
        raise ConfigError(f"{option}: '{text}' names no column, expected one of {', '.join(known[:20])}")
    if problem:
        msg = f"{option}: '{text}' has {problem}, which has no gradient; expected arithmetic, choices, functions"
        raise ConfigError(f"{msg}, and {', '.join(_OVER_ELEMENTS)} of the elements of an array")


def _without_gradient(parsed: Parsed) -> str:
    """What of an expression torch isn't asked for; nothing if all is well."""
    expression = syntax.parse(parsed.outer)
    operators = {type(node) for node in ast.walk(_tree(expression)) if isinstance(node, ast.operator)}
    if expression.bits or not operators <= _OPERATORS.keys():
        return "an operator of integers"
    for reduction in parsed.reductions.values():
        several = reduction.fallback or (reduction.selected and reduction.function != "sum")
        if reduction.function not in _OVER_ELEMENTS or several:
            return f"'{reduction.text}'"
        if problem := next(filter(None, map(_without_gradient, reduction.of_elements())), ""):
            return problem
    return ""


def evaluate(text: str, table: Mapping[str, Tensor]) -> Tensor:
    """Evaluate an expression that `check` has passed.

    Args:
        text: the expression.
        table: float64 tensors by column, (..., B, 1) of a number, (..., B, k) of an array.

    Returns:
        (..., B), float64.

    Raises:
        ExpressionError: it can't be evaluated, or gives an array.

    >>> cells = torch.tensor([[1.0, 3.0], [0.0, 4.0]], dtype=torch.float64)
    >>> evaluate("sum(cells, cells > 2) / p", {"cells": cells, "p": torch.tensor([[2.0], [8.0]])})
    tensor([1.5000, 0.5000], dtype=torch.float64)
    """
    shape = next(iter(table.values())).shape[:-1]
    try:
        values = torch.as_tensor(_evaluated(parse(text), table), dtype=torch.float64)
    except (TypeError, RuntimeError, ArithmeticError) as error:
        raise ExpressionError(f"expression '{text}' can't be evaluated: {error}") from error
    if values.dim() and values.shape[-1] != 1:
        msg = f"expression '{text}' gives {values.shape[-1]} numbers for each event, expected one, as by sum(...)"
        raise ExpressionError(msg)
    return values[..., 0].expand(shape) if values.dim() else values.expand(shape)


def _evaluated(parsed: Parsed, table: Mapping[str, Tensor]) -> Any:
    reduced = {name: _reduced(reduction, table) for name, reduction in parsed.reductions.items()}
    expression = syntax.parse(parsed.outer)
    names = {variable(name): (reduced if name in reduced else table)[name] for name in expression.numbers}
    return _value(_tree(expression), names)


@lru_cache(maxsize=1024)
def _tree(expression: syntax.Expression) -> ast.expr:
    return ast.parse(expression.code, mode="eval").body


def _value(node: ast.expr, names: Mapping[str, Tensor]) -> Any:
    """Value of a tree, of which `syntax` has left arithmetic, comparisons and functions: a tensor or a number."""
    match node:
        case ast.Constant():
            return node.value
        case ast.Name():
            return names[node.id]
        case ast.UnaryOp():
            return _OPERATORS[type(node.op)](_value(node.operand, names))
        case ast.BinOp():
            return _OPERATORS[type(node.op)](_value(node.left, names), _value(node.right, names))
        case ast.Compare():
            return _OPERATORS[type(node.ops[0])](_value(node.left, names), _value(node.comparators[0], names))
        case ast.Call(func=ast.Name(id=function)):
            return _FUNCTIONS[function](*(_tensor(_value(argument, names)) for argument in node.args))
    raise ExpressionError(f"'{ast.unparse(node)}' is not understood, expected arithmetic")


def _tensor(value: Any) -> Tensor:
    """What functions of torch take, of a number as well."""
    if isinstance(value, Tensor):
        return value
    return torch.as_tensor(value, dtype=torch.bool if isinstance(value, bool) else torch.float64)


def _reduced(reduction: Reduction, table: Mapping[str, Tensor]) -> Tensor:
    elements, *selected = (_evaluated(part, table) for part in reduction.of_elements())
    if selected:
        elements = torch.where(selected[0], elements, torch.zeros_like(elements))
    return _OVER_ELEMENTS[reduction.function](elements, dim=-1, keepdim=True)
