"""Checks of what a simulator is given in Python: keys, conditions and features as arrays by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calorefine import keys
from calorefine.errors import ConfigError, ValueRangeError, nearest
from calorefine.events import Columns


def keys_of(key: keys.KeyArray | None, n: int, n_per_event: int) -> keys.KeyArray:
    """Keys (n,) of the conditions; numbers of rows serve if none are given.

    Raises:
        ConfigError: there are others than n, or `n_per_event` is less than 1.
    """
    if n_per_event < 1:
        raise ConfigError(f"n_per_event: {n_per_event} found, expected at least 1")
    key = keys.make_keys([np.arange(n)]) if key is None else np.asarray(key, np.uint64)
    if len(key) != n:
        raise ConfigError(f"key: {len(key)} keys found for {n} conditions, expected one for each")
    return key


def conditions_of(context: Mapping[str, ArrayLike], columns: Columns) -> dict[str, NDArray[Any]]:
    """Arrays (n,) of the context columns, by name.

    Raises:
        ConfigError: one is missing or has another length.
        ValueRangeError: values are NaN, infinite, or no numbers.
    """
    table = {}
    for name in columns.context:
        if name not in context:
            raise ConfigError(f"context: column '{name}' is missing{nearest(name, context)}")
        table[name] = _finite(name, np.atleast_1d(np.asarray(context[name])))
    shapes = {name: array.shape for name, array in table.items()}
    if len(set(shapes.values())) > 1 or any(len(shape) > 1 for shape in shapes.values()):
        raise ConfigError(f"context: arrays of shapes {shapes} found, expected one number for each condition")
    return table


def feature_of(table: Mapping[str, ArrayLike], name: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Array of this shape of a feature.

    Raises:
        ConfigError: it is missing or has another shape.
        ValueRangeError: values are NaN, infinite, or no numbers.
    """
    if name not in table:
        raise ConfigError(f"features: column '{name}' is missing{nearest(name, table)}")
    values = _finite(name, np.atleast_1d(np.asarray(table[name])))
    if values.shape != shape:
        raise ConfigError(f"feature '{name}': shape {values.shape} found, expected {shape} as for the context")
    return values


def _finite(name: str, values: NDArray[Any]) -> NDArray[Any]:
    """Return numbers as they are; raise `ValueRangeError` for anything else."""
    if not (np.issubdtype(values.dtype, np.number) or values.dtype == bool):
        raise ValueRangeError(f"context '{name}': values of type {values.dtype} found, expected numbers")
    if n_bad := int(np.sum(~np.isfinite(values))):
        raise ValueRangeError(f"context '{name}': {n_bad} of {values.size} values are NaN or infinite, expected none")
    return values
