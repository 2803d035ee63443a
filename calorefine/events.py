"""Columns say which branch means what, in which unit; Events are the record that flows.

`Columns` is the one description of a dataset: it is written in the configuration, used by every stage, and stored in
the checkpoint.  Its context may hold categories (charge, species, sector), which become one 0/1 column each.  Of
showers it also tells where their cells are, so that nothing else is written for one detector.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from types import UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calorefine.errors import ConfigError, KeyColumnError, ValueRangeError, nearest
from calorefine.keys import KeyArray, make_keys
from calorefine.shower_columns import ShowerColumns

Arrays = Mapping[str, NDArray[Any]]
_BLOCK = "\0block "
COARSE = 1e-3  # step of single precision, in widths of a column

UNITS = {
    "energy": {"eV": 1e-6, "keV": 1e-3, "MeV": 1.0, "GeV": 1e3, "TeV": 1e6},
    "length": {"um": 1e-3, "mm": 1.0, "cm": 10.0, "m": 1e3},
    "angle": {"mrad": 1e-3, "rad": 1.0, "deg": np.pi / 180},
    "time": {"ps": 1e-3, "ns": 1.0, "us": 1e3},
}
_SUFFIXES = {f"_{unit.lower()}": unit for units in UNITS.values() for unit in units if len(unit) > 1}


@dataclass(frozen=True)
class Column:
    """Where one column comes from, and how it is treated.

    Args:
        expression: branch, or expression of branches; the column's own name if left out.
        unit: unit of the column in calorefine; taken from the suffix of its name (`p_gev`) if left out.
        branch_unit: unit of the expression in the file, if it is another one: values are converted.
        transform: preprocessing of a numeric column; "integer" for a count, which is generated as one.
        bounds: lowest and highest possible value of a feature, either of them null for none; nothing is generated
            outside.
        categories: allowed values of a categorical context; it is one-hot encoded in this order.
        shape: of a feature that is an array of numbers in each event, such as [504] for the cells of a calorimeter;
            left out for a single number.
        offset: constant that is taken off before a value is kept in single precision; found at set-up, and given to the
            columns that need one, if left out.
    """

    expression: str | None = None
    unit: str | None = None
    branch_unit: str | None = None
    transform: Literal["quantile", "standard", "integer"] = "quantile"
    bounds: tuple[float | None, float | None] | None = None
    categories: list[int | float] | None = None
    shape: list[int] | None = None
    offset: float | None = None

    def encoded(self, values: ArrayLike) -> NDArray[np.float32]:
        """Values in single precision, less the offset."""
        if self.offset is None:
            return np.asarray(values, np.float32)
        return (np.asarray(values, np.float64) - self.offset).astype(np.float32)

    def decoded(self, values: NDArray[np.float32]) -> NDArray[Any]:
        """Inverse of `encoded`: in double precision where there is an offset."""
        return values if self.offset is None else values.astype(np.float64) + self.offset

    def centered(self, values: NDArray[Any]) -> Column:
        """Column with an offset, if values (n,) in single precision would be coarse against their spread."""
        low, center, high = np.quantile(values, [0.16, 0.5, 0.84])
        width = (high - low) / 2
        step = float(np.spacing(np.float32(np.abs(values).max())))
        if self.offset is not None or width == 0 or step < COARSE * width:
            return self
        digit = 10.0 ** math.floor(math.log10(width))
        return replace(self, offset=float(np.round(center / digit) * digit))

    @property
    def size(self) -> int | None:
        """How many numbers an array holds; None for a single number."""
        return None if self.shape is None else math.prod(self.shape)


def _suffix(name: str) -> str | None:
    return next((unit for end, unit in _SUFFIXES.items() if name.endswith(end)), None)


def unit_of(name: str, column: Column) -> str | None:
    """Unit of a column: the one that was given, or the one in its name."""
    return column.unit or _suffix(name)


def _factor(name: str, column: Column) -> float:
    """Factor from the unit in the file to the unit of the column."""
    suffix, unit = _suffix(name), unit_of(name, column)
    if suffix and unit != suffix:
        msg = f"column '{name}': its name says {suffix}, its unit says {unit}; rename it or correct the unit"
        raise ConfigError(msg)
    if column.branch_unit is None or column.branch_unit == unit:
        return 1.0
    for units in UNITS.values():
        if unit in units and column.branch_unit in units:
            return units[column.branch_unit] / units[unit]
    known = [symbol for units in UNITS.values() for symbol in units]
    found = column.branch_unit if column.branch_unit not in known else unit
    hint = nearest(str(found), known)
    msg = f"column '{name}': can't convert from {column.branch_unit} to {unit}{hint}; known units: {', '.join(known)}"
    raise ConfigError(msg)


def _filled(columns: Mapping[str, Column | None]) -> dict[str, Column]:
    """Descriptions by name, with the default one for those left out."""
    return {name: column or Column() for name, column in columns.items()}


def _check_shape(name: str, column: Column, *, is_context: bool) -> None:
    if is_context:
        raise ConfigError(f"context '{name}': shape {column.shape} given; only features can be arrays")
    if not column.shape or min(column.shape) < 1:
        raise ConfigError(f"feature '{name}': shape {column.shape} found, expected positive numbers such as [504]")


@dataclass(frozen=True)
class Columns:
    """The description of a dataset.

    Args:
        features: what is generated; null stands for a column without options.
        context: the conditions it depends on, likewise.
        key: integer branches that identify an event, such as run and event; all that is random goes by it.
        candidate: integer branch that tells the candidates of one event apart.
        cut: selection, in terms of branches of the file.
        block: integer branches that name the group an event belongs to, such as the run, where events of a group are
            correlated: bootstrap counts then go by group instead of by event.
        collection: what the names of lists begin with (`Electron` for `Electron_pt`) whose entries are the candidates
            of their event; branches of one number per event count for each of them.
        showers: of showers in a calorimeter: its geometry, and which columns are the incident energy and the point of
            entry.  The cells, in MeV, are the only feature that is an array.

    Raises:
        ConfigError: no feature, a name used twice, a categorical feature, units that don't fit, or showers with other
            cells than their geometry has.
    """

    features: dict[str, Column | None]
    context: dict[str, Column | None]
    key: list[str] = field(default_factory=list)
    candidate: str | None = None
    cut: str | None = None
    block: list[str] = field(default_factory=list)
    collection: str | None = None
    showers: ShowerColumns | None = None

    def __post_init__(self) -> None:
        """Fill in left-out columns and check them."""
        object.__setattr__(self, "features", _filled(self.features))
        object.__setattr__(self, "context", _filled(self.context))
        if not self.features:
            raise ConfigError("columns: no feature given, expected at least one to generate")
        if both := set(self.features) & set(self.context):
            raise ConfigError(f"columns: {sorted(both)} are both features and context; expected one or the other")
        if self.candidate and not self.key:
            raise ConfigError(
                "columns: 'candidate' needs 'key' branches that identify the event, such as run and event"
            )
        if self.candidate and self.collection:
            msg = f"columns: candidate '{self.candidate}' and collection '{self.collection}' given, expected one of "
            raise ConfigError(f"{msg}them: the entries of a collection are told apart by their place")
        for name, column in (self.feature_columns | self.context_columns).items():
            _factor(name, column)
            if column.shape is not None:
                _check_shape(name, column, is_context=name in self.context)
            if column.categories is not None and name in self.features:
                raise ConfigError(f"feature '{name}' is categorical; only context columns can be")
            if column.categories is not None and len(set(column.categories)) < 2:
                raise ConfigError(
                    f"context '{name}': expected at least two distinct categories, not {column.categories}"
                )
        if self.showers is not None:
            self._check_showers(self.showers)

    def _check_showers(self, showers: ShowerColumns) -> None:
        """Refuse cells, or columns of the incident energy and of the point of entry, that can't be those of showers."""
        n_cells, sizes = showers.calorimeter.n_cells, {name: math.prod(shape) for name, shape in self.shapes.items()}
        if list(sizes.values()) != [n_cells]:
            found = ", ".join(f"'{name}' with {size} numbers" for name, size in sizes.items()) or "none"
            msg = f"showers: arrays among the features: {found}; expected one, of {n_cells} cells as the geometry has"
            raise ConfigError(msg)
        for name in (showers.e_inc, *showers.entry):
            if name not in self.context:
                msg = f"showers: there is no context column '{name}'{nearest(name, self.context)}"
                raise ConfigError(f"{msg}; there are {', '.join(self.context)}")
        self.mev(showers.e_inc)
        for name in (self.cells, *showers.entry):
            column = self.feature_columns.get(name) or self.context_columns[name]
            expected = "MeV" if name == self.cells else "mm"
            if (unit := unit_of(name, column)) not in (None, expected):
                raise ConfigError(f"showers: '{name}': unit {unit} found, expected {expected} (branch_unit converts)")

    @property
    def cells(self) -> str:
        """Name of the feature that holds the cells of showers: the only array."""
        return next(iter(self.shapes))

    def mev(self, name: str) -> float:
        """Factor from the unit of a context column to MeV.

        Raises:
            ConfigError: it is no energy.
        """
        unit = unit_of(name, self.context_columns[name])
        if unit not in UNITS["energy"]:
            raise ConfigError(f"context '{name}': unit {unit} found, expected one of {', '.join(UNITS['energy'])}")
        return UNITS["energy"][unit]

    @property
    def feature_columns(self) -> dict[str, Column]:
        """Descriptions of the features, by name."""
        return _filled(self.features)

    @property
    def context_columns(self) -> dict[str, Column]:
        """Descriptions of the context, by name."""
        return _filled(self.context)

    def expressions(self, *groups: Literal["features", "context"]) -> dict[str, str]:
        """Return the expression of each column of these groups, unit conversion included."""
        out = {}
        for group in groups:
            for name, column in _filled(getattr(self, group)).items():
                factor = _factor(name, column)
                text = column.expression or name
                out[name] = text if factor == 1.0 else f"({text}) * {factor!r}"
        return out

    @property
    def key_branches(self) -> list[str]:
        """The integer branches to read: key, then candidate."""
        return [*self.key, *([self.candidate] if self.candidate else [])]

    @property
    def block_expressions(self) -> dict[str, str]:
        """Name in a table to branch, for `bootstrap_key`."""
        return {f"{_BLOCK}{name}": name for name in self.block}

    def bootstrap_key(self, table: Arrays, event_key: KeyArray) -> KeyArray:
        """Keys (n,) that bootstrap counts go by: the event's, or its block's.

        Args:
            table: arrays (n,) with the names of `block_expressions`.
            event_key: (n,) keys of the events.

        Raises:
            KeyColumnError: a block branch has values that are no integers, or too large for a float64.
        """
        if not self.block:
            return event_key
        numbers = []
        for name in self.block:
            values = np.asarray(table[f"{_BLOCK}{name}"], np.float64)
            if np.any((values != np.floor(values)) | (np.abs(values) >= 2**53)):
                raise KeyColumnError(f"block '{name}': has values that are no integers below 2^53, expected a number")
            numbers.append(values.astype(np.int64))
        return make_keys(numbers)

    def branch(self, name: str) -> str:
        """Name of the branch that holds a generated column."""
        return in_collection(name, self.collection)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the features that are arrays, by name."""
        return {name: tuple(column.shape) for name, column in self.feature_columns.items() if column.shape}

    @property
    def slices(self) -> dict[str, slice]:
        """Place of each feature among the d columns of `Events.x`, by name."""
        sizes = [column.size or 1 for column in self.feature_columns.values()]
        ends = list(itertools.accumulate(sizes))
        return {name: slice(end - size, end) for name, end, size in zip(self.features, ends, sizes, strict=True)}

    @property
    def n_features(self) -> int:
        """Number d of columns of `Events.x`."""
        return sum(column.size or 1 for column in self.feature_columns.values())

    @property
    def feature_names(self) -> list[str]:
        """Names of the d columns of `Events.x`; those of an array end with the cell, as in `cells[17]`."""
        names = []
        for name, column in self.feature_columns.items():
            cells = np.ndindex(*column.shape) if column.shape else [()]
            names += [f"{name}[{','.join(map(str, cell))}]" if cell else name for cell in cells]
        return names

    @property
    def context_names(self) -> list[str]:
        """Names of the encoded context columns: one for each numeric column, one for each category."""
        names = []
        for name, column in self.context_columns.items():
            names += [name] if column.categories is None else [f"{name}={value:.15g}" for value in column.categories]
        return names

    def encode_features(self, table: Arrays) -> NDArray[np.float32]:
        """Put the features side by side: (n, d) float32.

        Args:
            table: arrays (n,) by name of feature, (n, *shape) of one with a shape.

        Raises:
            ValueRangeError: an array has another shape.
        """
        parts = []
        for name, column in self.feature_columns.items():
            values, shape = column.encoded(table[name]), tuple(column.shape or ())
            if values.shape[1:] != shape:
                msg = f"feature '{name}': {values.shape[1:]} numbers in each event found, expected {shape}"
                raise ValueRangeError(f"{msg}: the shape of the column")
            parts.append(values.reshape(len(values), column.size or 1))
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def totals(self, table: Arrays) -> dict[str, NDArray[Any]]:
        """Columns (n,) for statistics of one number for each event: of an array the sum, `sum of <name>`."""
        sums = {f"sum of {name}": np.asarray(table[name]).reshape(len(table[name]), -1).sum(1) for name in self.shapes}
        return {name: table[name] for name in [*self.features, *self.context] if name not in self.shapes} | sums

    def decode_features(self, x: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """Inverse of `encode_features`: arrays (n,) or (n, *shape) by name, float64 of columns with an offset."""
        shapes, described = self.shapes, self.feature_columns
        return {
            name: described[name].decoded(np.ascontiguousarray(x[:, columns]).reshape(len(x), *shapes.get(name, ())))
            for name, columns in self.slices.items()
        }

    def centered(self, table: Arrays) -> Columns:
        """Columns with the offsets that numbers in a table (n,) need, to be kept in single precision."""
        groups: list[dict[str, Column | None]] = [
            {
                name: column if column.shape or column.categories else column.centered(np.asarray(table[name]))
                for name, column in group.items()
            }
            for group in (self.feature_columns, self.context_columns)
        ]
        return replace(self, features=groups[0], context=groups[1])

    @property
    def offsets(self) -> dict[str, float]:
        """Offsets of the columns that have one, by name."""
        described = self.feature_columns | self.context_columns
        return {name: column.offset for name, column in described.items() if column.offset is not None}

    def encode_context(self, table: Arrays, *, strict: bool = True) -> NDArray[np.float32]:
        """Stack the context to (n, c) float32, with categories one-hot encoded.

        Args:
            table: arrays (n,) by name of context column.
            strict: raise for an unknown category; otherwise its columns are all 0 and the event is outside the domain.

        Raises:
            ValueRangeError: unknown categories, with their number.
        """
        n = len(next(iter(table.values()))) if self.context else len(next(iter(table.values()), ()))
        parts = []
        for name, column in self.context_columns.items():
            values = np.asarray(table[name])
            if column.categories is None:
                parts.append(column.encoded(values)[:, None])
                continue
            encoded = values[:, None] == np.asarray(column.categories)
            if strict and not encoded.any(axis=1).all():
                unknown = np.unique(values[~encoded.any(axis=1)])
                count = int(np.sum(~encoded.any(axis=1)))
                msg = (
                    f"context '{name}': {count} of {n} events have values {unknown[:5].tolist()}, "
                    f"expected one of the categories {column.categories}"
                )
                raise ValueRangeError(msg)
            parts.append(encoded)
        return np.concatenate(parts, axis=1, dtype=np.float32) if parts else np.zeros((n, 0), np.float32)

    def inside(self, encoded: NDArray[np.float32], domain: NDArray[np.float64]) -> dict[str, NDArray[np.bool_]]:
        """Tell by context column which rows (n,) lie in a domain; an unknown category lies outside.

        Args:
            encoded: (n, c) encoded context.
            domain: (c, 2) lowest and highest value of each encoded column.
        """
        low, high = domain.astype(np.float32).T
        within = (encoded >= low) & (encoded <= high)
        out: dict[str, NDArray[np.bool_]] = {}
        first = 0
        for name, column in self.context_columns.items():
            width = len(column.categories or [0])
            columns = slice(first, first + width)
            out[name] = np.all(within[:, columns], axis=1)
            if column.categories:
                out[name] &= encoded[:, columns].any(axis=1)
            first += width
        return out

    def in_domain(self, encoded: NDArray[np.float32], domain: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Tell which rows (n,) lie in a domain in every context column; arguments as `inside`."""
        everywhere = np.ones(len(encoded), bool)
        return np.asarray(np.logical_and.reduce([everywhere, *self.inside(encoded, domain).values()]))

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, for the checkpoint and the provenance."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Columns:
        """Inverse of `to_dict`.

        Raises:
            ConfigError: something is missing, is unknown, or is of another kind than it should be.
        """
        try:
            told = {g: {k: _typed(Column, v) for k, v in values[g].items()} for g in ("features", "context")}
            if (showers := values.get("showers")) is not None:
                told["showers"] = _typed(ShowerColumns, showers)
            return cast(Columns, _typed(cls, {**values, **told}))
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise ConfigError(f"columns that can't be: {error}") from error


def _typed(kind: type, values: Mapping[str, Any]) -> Any:
    """Make a record of plain containers, whose values are of the kinds that its fields have.

    Raises:
        TypeError: one is of another.
    """
    hints = get_type_hints(kind)
    for name, value in values.items():
        if name not in hints or not _is(value, hints[name]):
            raise TypeError(f"{name} {value!r} found, expected {hints.get(name, 'no such entry')}")
    return kind(**values)


def _is(value: Any, hint: Any) -> bool:
    """Whether a value of plain containers is of a kind; a list may stand for a tuple."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin is Literal:
        return value in inner
    if origin in (Union, UnionType):
        return any(_is(value, one) for one in inner)
    if origin is dict:
        return isinstance(value, dict) and all(_is(one, inner[1]) for one in value.values())
    if origin is list:
        return isinstance(value, list | tuple) and all(_is(one, inner[0]) for one in value)
    if origin is tuple:
        return isinstance(value, list | tuple) and len(value) == len(inner) and all(map(_is, value, inner))
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, {float: Real, int: Integral}.get(hint, hint))


def units_of(columns: Columns) -> dict[str, str]:
    """Unit of every feature and context column; an empty text for none."""
    described = columns.feature_columns | columns.context_columns
    return {name: unit_of(name, column) or "" for name, column in described.items()}


@dataclass(frozen=True)
class Events:
    """Weighted events.

    Args:
        x: (n, d) float32 features, in the units of `Columns`.
        context: (n, c) float32 encoded conditions.
        weight: (n,) float64, may be negative.
        key: (n,) uint64, one for each candidate: latent noise goes by it.
        event_key: (n,) uint64, shared by the candidates of an event: splits and bootstrap weights go by it.
    """

    x: NDArray[np.float32]
    context: NDArray[np.float32]
    weight: NDArray[np.float64]
    key: KeyArray
    event_key: KeyArray

    def __len__(self) -> int:
        """Return the number of events."""
        return len(self.weight)

    @property
    def table(self) -> NDArray[np.float32]:
        """Features and context side by side (n, d + c)."""
        return np.concatenate([self.x, self.context], axis=1)

    def take(self, index: NDArray[Any]) -> Events:
        """Events at these indices, or where this mask is true."""
        return Events(*(getattr(self, f.name)[index] for f in dataclasses.fields(self)))


def in_collection(name: str, collection: str | None) -> str:
    """Name of a branch that holds a column of a collection's entries; the name itself without a collection."""
    return name if collection is None or name.startswith(f"{collection}_") else f"{collection}_{name}"


def unknown_columns(wanted: Iterable[str], known: Iterable[str], *, option: str) -> None:
    """Raise `ConfigError` for the first name that isn't known, naming the nearest one."""
    names = list(known)
    for name in wanted:
        if name not in names:
            raise ConfigError(f"{option}: '{name}' is no column{nearest(name, names)}; there are {', '.join(names)}")


def adapted_columns(columns: Columns, changed: Mapping[str, Column], *, option: str) -> Columns:
    """Columns of a checkpoint with the expressions and file units of another file, and without cut and block.

    Raises:
        ConfigError: a column is given another unit than in training.
    """
    groups: dict[str, dict[str, Column | None]] = {
        "features": {**columns.feature_columns},
        "context": {**columns.context_columns},
    }
    for group in groups.values():
        for name in changed.keys() & group.keys():
            column, known = changed[name], group[name] or Column()
            if column.unit not in (None, unit_of(name, known)):
                msg = f"{option} {name}: unit {column.unit} found, expected {unit_of(name, known)} as in training; "
                raise ConfigError(msg + "give the unit in the file as branch_unit")
            group[name] = replace(known, expression=column.expression, branch_unit=column.branch_unit)
    return replace(columns, features=groups["features"], context=groups["context"], cut=None, block=[])
