"""Expressions: random trees, evaluated here by numpy and there from their text; and texts that mean nothing.

A tree renders itself as text, in Python's or in C's form, and knows its value without its text.  Comparisons are of
what numpy and numexpr round alike (sums, products, quotients of small multiples of 1/4), so that they don't depend on
the last bit of a logarithm.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
from fuzz_harness import Refused, Silent

from calorefine.errors import CalorefineError
from calorefine.io import reductions

N = 6
NUMBERS, INTEGERS, FLAGS, LISTS = (
    ("a", "b2", "`K-pt`", "x_µ"),
    ("k", "flags"),
    ("passed", "`is-mu`"),
    ("jet_pt", "jet_eta"),
)
ENTRIES = ("v[0]", "v[-1]", "m[1][0]")
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "sqrt": np.sqrt,
    "exp": np.exp,
    "log": np.log,
    "log1p": np.log1p,
    "sin": np.sin,
    "cos": np.cos,
    "arctan": np.arctan,
    "tanh": np.tanh,
    "abs": np.abs,
    "floor": np.floor,
    "ceil": np.ceil,
}
EXACT = ("abs", "floor", "ceil")
ARITHMETIC: dict[str, Callable[..., Any]] = {"+": np.add, "-": np.subtract, "*": np.multiply, "/": np.divide}
COMPARISONS: dict[str, Callable[..., Any]] = {
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
    "==": np.equal,
    "!=": np.not_equal,
}
BITS: dict[str, Callable[..., Any]] = {
    "&": np.bitwise_and,
    "|": np.bitwise_or,
    "<<": np.left_shift,
    ">>": np.right_shift,
}
CONDITIONS = ("count", "any", "all")
HOW: dict[str, Callable[..., Any]] = {"sum": np.sum, "count": np.sum, "max": np.max, "min": np.min, "mean": np.mean}
HOW |= {"any": np.any, "all": np.all, "first": lambda one: one[0]}
EMPTY = {"sum": 0.0, "count": 0.0, "any": 0.0, "all": 1.0}
GARBAGE = "abk0123456789.()[]{}<>=!&|?:,+-*/%^~`'\"@#$\\ \t\n\0µ√ "
WORDS = (
    "__import__('os').system('false')", "a.__class__", "lambda: a", "[x for x in a]", "sum(", "max()", "where(a)",
    "a if", "b2 ?", ": :", "jet_pt[0]", "**" * 20, "1e999", "10**10**10", "0x1F", "1j", "'text'", 'f"{a}"', "a := 3",
    "*a", "a;b2", "not", "&&", "||", "nan", "inf", "True", "None", "v[0:1]", "v[99]", "m[1]", "sum(a)",
    "count(jet_pt > a, 1)", "print(a)", "(" * 300, "-" * 4000 + "a", "a" + "+a" * 3000, "k << 99", "~a", "a & b2",
    "min(a)", "sum(sum(jet_pt))", "first(jet_pt, 1, 2, 3)",
)  # fmt: skip


@dataclass(frozen=True)
class Node:
    """A part of an expression: its text, and its value by numpy; whether it needs parentheses inside another one."""

    text: str
    value: Any
    whole: bool = True

    @property
    def inner(self) -> str:
        """Text for use inside another part."""
        return self.text if self.whole else f"({self.text})"


@dataclass
class Trees:
    """Random trees.

    Args:
        rng: decides.
        table: arrays by branch; of lists, one value for each element where `elements` is true.
        elements: whether it is of the elements of lists.
        counts: lengths of the lists.
    """

    rng: random.Random
    table: dict[str, Any]
    counts: np.ndarray
    elements: bool = False
    lists: dict[str, Any] = field(default_factory=dict)

    def leaf(self, names: tuple[str, ...]) -> Node:
        """A branch."""
        name = self.rng.choice(names)
        values = np.asarray(self.table[name])
        return Node(name, np.repeat(values, self.counts) if self.elements else values)

    def integers(self, depth: int) -> Node:
        """Bits of integers."""
        if depth <= 0 or self.rng.random() < 0.4:
            return self.leaf(INTEGERS)
        operator = self.rng.choice(list(BITS))
        if operator in ("<<", ">>"):
            shift = self.rng.randint(0, 5)
            left = self.leaf(INTEGERS)
            return Node(
                f"{left.text} {operator} {shift}", BITS[operator](left.value.astype(np.int64), shift), whole=False
            )
        left, mask = self.integers(depth - 1), self.rng.randint(0, 15)
        return Node(f"{left.inner} {operator} {mask}", BITS[operator](left.value.astype(np.int64), mask), whole=False)

    def number(self, depth: int, *, exact: bool = False) -> Node:
        """A number; `exact`, if its last bit must not depend on who computes it."""
        draw = self.rng.random()
        if depth <= 0 or draw < 0.15:
            return self._simple()
        if draw < 0.6:
            return self._binary(depth, exact=exact)
        if draw < 0.75:
            return self._called(depth, exact=exact)
        if draw < 0.85:
            return self._choice(depth, exact=exact)
        if draw < 0.92 and not self.elements:
            return self._reduced(depth)
        one = self.number(depth - 1, exact=exact)
        if self.rng.random() < 0.5:
            return Node(f"-{one.inner}", -_float(one.value), whole=False)
        return Node(f"{one.inner} ** 2", _float(one.value) * _float(one.value), whole=False)

    def _simple(self) -> Node:
        draw = self.rng.random()
        if self.elements and draw < 0.6:
            name = self.rng.choice(LISTS)
            return Node(name, np.asarray(ak.flatten(self.lists[name])))
        if draw < 0.25:
            value = self.rng.choice([0, 1, 2, 3, 0.5, 2.5, 1e3])
            return Node(repr(value), np.full(int(self.counts.sum()) if self.elements else N, float(value)))
        if draw < 0.4 and not self.elements:
            return self.leaf(ENTRIES)
        return self.leaf(NUMBERS + INTEGERS)

    def _binary(self, depth: int, *, exact: bool) -> Node:
        operator = self.rng.choice(list(ARITHMETIC))
        left, right = self.number(depth - 1, exact=exact), self.number(depth - 1, exact=exact)
        value = ARITHMETIC[operator](_float(left.value), _float(right.value))
        return Node(f"{left.inner}{self._space()}{operator}{self._space()}{right.inner}", value, whole=False)

    def _called(self, depth: int, *, exact: bool) -> Node:
        name = self.rng.choice(EXACT if exact else list(FUNCTIONS))
        one = self.number(depth - 1, exact=exact)
        return Node(f"{name}({one.text})", FUNCTIONS[name](_float(one.value)))

    def _choice(self, depth: int, *, exact: bool) -> Node:
        test, yes, no = (
            self.condition(depth - 1),
            self.number(depth - 1, exact=exact),
            self.number(depth - 1, exact=exact),
        )
        value = np.where(test.value, _float(yes.value), _float(no.value))
        form = self.rng.randrange(3)
        if form == 0:
            return Node(f"where({test.text}, {yes.text}, {no.text})", value)
        if form == 1:
            return Node(f"{yes.inner} if {test.inner} else {no.inner}", value, whole=False)
        return Node(f"{test.inner} ? {yes.inner} : {no.inner}", value, whole=False)

    def _reduced(self, depth: int) -> Node:
        """Lists, reduced; a list in every part, so that its elements can be told."""
        if self.rng.random() < 0.25:
            function, by = self.rng.choice([("max", np.maximum), ("min", np.minimum)])
            left, right = self.number(depth - 1, exact=True), self.number(depth - 1, exact=True)
            return Node(f"{function}({left.text}, {right.text} + 0)", by(_float(left.value), _float(right.value)))
        inside = Trees(self.rng, self.table, self.counts, elements=True, lists=self.lists)
        name = self.rng.choice(LISTS)
        function = self.rng.choice([*CONDITIONS, "sum", "max", "min", "mean", "first"])
        if function in CONDITIONS:
            part = inside.condition(1)
            arguments, values = [f"{part.inner} && {name} == {name}"], part.value
        else:
            part = inside.number(1, exact=True)
            arguments, values = [f"{part.inner} + {name} * 0"], _float(part.value) + 0
        mask, fallback = np.ones(len(values), bool), EMPTY.get(function, np.nan)
        if self.rng.random() < 0.5:
            selected = inside.condition(1)
            mask = selected.value
            arguments.append(f"{selected.inner} && {name} == {name}")
            if function in ("max", "min", "mean", "first") and self.rng.random() < 0.5:
                fallback = self.rng.randint(-9, 9)
                arguments.append(str(fallback))
        text = f"{function}({', '.join(arguments)})"
        return Node(
            text if function not in ("any", "all") else f"where({text}, 1, 0)",
            _by_event(HOW[function], values, mask, self.counts, fallback),
        )

    def condition(self, depth: int) -> Node:
        """A condition."""
        draw = self.rng.random()
        if depth <= 0 and draw < 0.3:
            return self.leaf(FLAGS)
        if depth <= 0 or draw < 0.45:
            return self._comparison(depth)
        if draw < 0.6:
            return self._negated(depth)
        if draw < 0.7:
            bits = self.integers(depth)
            return Node(f"({bits.text}) != 0", bits.value != 0, whole=False)
        left, right = self.condition(depth - 1), self.condition(depth - 1)
        both = self.rng.random() < 0.5
        operator = self.rng.choice(("&&", "and", "&") if both else ("||", "or", "|"))
        value = left.value & right.value if both else left.value | right.value
        return Node(f"{left.inner} {operator} {right.inner}", value, whole=False)

    def _comparison(self, depth: int) -> Node:
        operator = self.rng.choice(list(COMPARISONS))
        left, right = self.number(depth - 1, exact=True), self.number(depth - 1, exact=True)
        value = COMPARISONS[operator](_float(left.value), _float(right.value))
        text = f"{left.inner} {operator} {right.inner}"
        if self.rng.random() < 0.2:
            further = self.number(depth - 1, exact=True)
            value = value & np.less(_float(right.value), _float(further.value))
            text = f"{text} < {further.inner}"
        return Node(text, value, whole=False)

    def _negated(self, depth: int) -> Node:
        one = self.condition(depth - 1)
        if self.rng.random() < 0.3:  # C's operator binds more tightly than a comparison, as `!a == 1`
            number = self.leaf(NUMBERS + INTEGERS + FLAGS)
            operator, to = self.rng.choice(["==", "!="]), self.rng.randint(0, 1)
            return Node(
                f"!{number.text} {operator} {to}", COMPARISONS[operator]((number.value == 0) * 1, to), whole=False
            )
        form = self.rng.choice(["!{}", "not {}", "~{}"])
        return Node(form.format(one.inner), ~one.value, whole=form.startswith("!"))

    def _space(self) -> str:
        return self.rng.choice(["", " ", "  ", "\n "])


def _float(values: Any) -> Any:
    return np.asarray(values, np.float64)


def _by_event(how: Callable[..., Any], values: Any, mask: Any, counts: Any, empty: float) -> Any:
    """Reduce the selected elements of each event in turn."""
    out, first = [], 0
    for count in counts:
        one = values[first : first + count][mask[first : first + count]]
        first += count
        out.append(float(how(one)) if len(one) else empty)
    return np.array(out)


def _quarters(rng: random.Random, n: int) -> np.ndarray:
    return np.array([rng.randint(-20, 20) / 4 for _ in range(n)])


def table(rng: random.Random) -> tuple[dict[str, Any], dict[str, Any], np.ndarray]:
    """Branches of one number, lists, and their lengths."""
    numbers = {name: _quarters(rng, N) for name in (*NUMBERS, *ENTRIES)}
    numbers["b2"] = numbers["b2"].astype(np.float32)
    numbers["k"] = np.array([rng.randint(-5, 5) for _ in range(N)], rng.choice([np.int8, np.int32, np.int64]))
    numbers["flags"] = np.array([rng.randint(0, 31) for _ in range(N)], rng.choice([np.uint8, np.uint32, np.int64]))
    numbers |= {name: np.array([rng.random() < 0.5 for _ in range(N)]) for name in FLAGS}
    counts = np.array([rng.randint(0, 3) for _ in range(N)])
    lists = {name: ak.unflatten(_quarters(rng, int(counts.sum())), counts) for name in LISTS}
    return numbers, lists, counts


def _plain(name: str) -> str:
    return name.strip("`")


def valid(rng: random.Random, folder: Path) -> str:
    """A tree's text has the tree's value."""
    del folder
    numbers, lists, counts = table(rng)
    trees = Trees(rng, numbers, counts, lists=lists)
    with np.errstate(all="ignore"):
        node = trees.condition(3) if rng.random() < 0.4 else trees.number(3)
    branches = {_plain(name): values for name, values in (numbers | lists).items()}
    try:
        found = reductions.evaluate(node.text, branches, N)
    except CalorefineError as error:
        if "division by zero" in str(error):
            return "error"  # by a constant
        raise Refused(f"{node.text!r}: {error}") from error
    expected = np.asarray(node.value)
    same = np.array_equal(found, expected) if expected.dtype == bool else _close(found, expected)
    if found.shape != (N,) or not same:
        raise Silent(f"{node.text!r} of { {k: v.tolist() for k, v in branches.items()} }: {found}, expected {expected}")
    return "ok"


def _close(found: Any, expected: Any) -> bool:
    """Equal up to the last bits; which sign a zero has, and an infinity by it, isn't specified."""
    found, expected = (np.where(np.isinf(values), np.inf, values) for values in (_float(found), _float(expected)))
    return bool(np.allclose(found, expected, rtol=1e-9, atol=1e-12, equal_nan=True))


def garbage(rng: random.Random, folder: Path) -> str:
    """Texts that mean nothing, or anything: an error or a value for each row, never code that runs."""
    del folder
    numbers, lists, counts = table(rng)
    branches = {_plain(name): values for name, values in (numbers | lists).items()}
    draw = rng.random()
    if draw < 0.3:
        text = "".join(rng.choice(GARBAGE) for _ in range(rng.randint(0, 25)))
    elif draw < 0.55:
        text = rng.choice(["", " + ", " && ", ", ", " ? "]).join(rng.choice(WORDS) for _ in range(rng.randint(1, 3)))
    else:
        with np.errstate(all="ignore"):
            text = Trees(rng, numbers, counts, lists=lists).condition(2).text
        at = rng.randrange(len(text) + 1)
        cut = at + rng.randint(0, 3)
        text = text[:at] + "".join(rng.choice(GARBAGE) for _ in range(rng.randint(0, 2))) + text[cut:]
    found = reductions.evaluate(text, branches, N)
    if not isinstance(found, np.ndarray) or found.shape != (N,) or found.dtype.kind not in "bf":
        raise Silent(f"{text!r}: {found!r}, expected {N} numbers or conditions")
    return "ok"


def case(rng: random.Random, folder: Path) -> str:
    """A valid expression, or garbage."""
    return valid(rng, folder) if rng.random() < 0.65 else garbage(rng, folder)
