"""Expressions and cuts on branches, as a physicist writes them, evaluated by numexpr.

`syntax` tells what is understood.  As in C, a number is a condition: it holds unless zero; `flags & 4` and `flags >> 3`
act on the bits of integers.  `weight_replica[3]`, `cov[1][2]` and `v[-1]` are entries of a fixed-size array;
`label == "TT"` and `label != "TT"` compare a branch of text.  Back-quotes enclose the name of any branch, such as
`` `B.pt` `` or `` `K-pt`[2] ``.  All else is evaluated in double precision; an integer that double precision can't hold
is an error.
"""

from __future__ import annotations

import math
from typing import Any

import numexpr
import numpy as np
from numpy.typing import NDArray

from calorefine.errors import BranchError, ExpressionError, nearest
from calorefine.events import Arrays
from calorefine.io.names import identifier, readable, variable
from calorefine.io.syntax import BITS, parse

_LARGEST_EXACT = 2**53


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
    return parse(text).names


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
    code, names = parse(text).code, parse(text).names
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
        alone = [name for name in columns if variable(name) == code]
        values = columns[alone[0]] if alone else _evaluated(text, columns)
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
    """Evaluate in double precision, and bits in integers, on arrays that broadcast."""
    expression = parse(text)
    arrays = {variable(name): _widen(name, table, text) for name in expression.numbers}
    arrays |= {BITS + identifier(name): _integers(name, table, text) for name in expression.bits}
    if expression.code in arrays:
        return arrays[expression.code]
    try:
        return np.asarray(numexpr.evaluate(expression.code, local_dict=arrays, global_dict={}, sanitize=False))
    except (ValueError, TypeError, KeyError, NotImplementedError, ArithmeticError) as error:
        is_bits = any(f"'{operator}_" in str(error) for operator in ("and", "or", "invert"))
        hint = "; &, | and ~ act on conditions or on integers, not on both" if is_bits else ""
        shown = readable(str(error)).replace(BITS, "")
        raise ExpressionError(f"expression '{text}' can't be evaluated: {shown}{hint}") from error


def _found(name: str, table: Arrays, text: str) -> NDArray[Any]:
    if name not in table:
        raise BranchError(f"expression '{text}' needs a branch '{name}', which isn't there{nearest(name, table)}")
    return table[name]


def _integers(name: str, table: Arrays, text: str) -> NDArray[Any]:
    """Return a branch as bool or int64."""
    values = _found(name, table, text)
    if values.dtype.kind not in "biu":
        msg = f"expression '{text}': branch '{name}' is of type {values.dtype}, expected integers beside &, |, ~ or a "
        raise ExpressionError(f"{msg}shift; of a condition write it out, as in {name} > 0")
    if values.dtype == np.uint64 and len(values) and values.max() > np.iinfo(np.int64).max:
        msg = f"expression '{text}': branch '{name}' holds integers up to {values.max()}, expected at most 2**63 - 1"
        raise ExpressionError(msg)
    return values if values.dtype == bool else values.astype(np.int64)


def _widen(name: str, table: Arrays, text: str) -> NDArray[Any]:
    """Return a branch as bool or float64."""
    values = _found(name, table, text)
    if values.dtype.kind in "iu" and values.dtype.itemsize == 8 and len(values):
        largest = max(int(values.max()), -int(values.min()))
        if largest > _LARGEST_EXACT:
            msg = f"expression '{text}': branch '{name}' holds integers up to {largest}, expected at most 2**53 in "
            raise ExpressionError(
                msg + "an expression, which is evaluated in double precision; pass it through, or use it as key"
            )
    return values if values.dtype == bool else values.astype(np.float64)
