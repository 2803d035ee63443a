"""Numbers and errors as text, for tables, messages and pages."""

from __future__ import annotations

import math
from collections.abc import Sequence


def number(value: float | None, digits: int = 4) -> str:
    """Write a number with so many significant digits; integers in full, and a dash for None.

    >>> number(13868.2), number(0.00012344), number(31160), number(-1.5e-9), number(None)
    ('13870', '0.0001234', '31160', '-1.5e-09', '-')
    """
    if value is None:
        return "-"
    if isinstance(value, int):
        return str(value)
    if value == 0 or not math.isfinite(value):
        return f"{value + 0.0:g}"
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])
    if not -5 < exponent < 7:
        return f"{value:.{digits}g}"
    return _fixed(value, digits - 1 - exponent)


def with_error(value: float | None, error: float | None, sign: str = "\N{PLUS-MINUS SIGN}") -> str:
    """Write a value with its error: two significant digits of the error, and the value to the same place.

    >>> with_error(13868.2, 134.16, "+-"), with_error(0.98765, 0.0123, "+-"), with_error(1.5, 0.0, "+-")
    ('13870 +- 130', '0.988 +- 0.012', '1.500 +- 0')
    """
    if value is None or error is None or not (error > 0 and math.isfinite(error) and math.isfinite(value)):
        return number(value) if error is None else f"{number(value)} {sign} {number(error, 2)}"
    exponent = int(f"{error:.1e}".partition("e")[2])
    size = int(f"{value:.3e}".partition("e")[2]) if value else exponent
    if max(exponent, size) >= 7 or exponent < -7:
        return f"{value:.{max(size - exponent + 1, 1)}e} {sign} {error:.1e}"
    return f"{_fixed(value, 1 - exponent)} {sign} {_fixed(error, 1 - exponent)}"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table: the first column to the left, the others to the right.

    >>> aligned([["name", "n"], ["x", "10"]])
    ['name   n', 'x     10']
    """
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    cells = ([f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)] for row in rows)
    return ["  ".join([f"{row[0]:<{widths[0]}}", *rest]).rstrip() for row, rest in zip(rows, cells, strict=True)]


def _fixed(value: float, decimals: int) -> str:
    """Round to a decimal place, also to one before the point, without an exponent and without a negative zero."""
    return f"{round(value, decimals) + 0.0:.{max(decimals, 0)}f}"


def percent(value: float | None) -> str:
    """Write a share in percent; a dash for None.

    >>> percent(0.01234), percent(None)
    ('1.23 %', '-')
    """
    return "-" if value is None else f"{number(100 * value, 3)} %"


def share_text(value: float, error: float, sign: str = "\N{PLUS-MINUS SIGN}") -> str:
    """Write a share in percent, with its error."""
    return f"{100 * value:.2f} {sign} {100 * error:.2f} %"


def short(value: float | None) -> str:
    """Write a number, without a point if it is an integer.

    >>> short(3.0), short(0.25)
    ('3', '0.2500')
    """
    return number(int(value) if value is not None and float(value).is_integer() else value)


def interval(low: float, high: float, *, closed: bool = True) -> str:
    """Write an interval, or its only value.

    >>> interval(0.0, 0.5), interval(0.0, 0.5, closed=False), interval(2.0, 2.0)
    ('[0, 0.5000]', '[0, 0.5000)', '2')
    """
    return short(low) if low == high else f"[{short(low)}, {short(high)}{']' if closed else ')'}"


def labelled(name: str, unit: str | None) -> str:
    """Name with its unit, unless the name tells it already.

    >>> labelled("momentum", "GeV"), labelled("momentum [GeV]", "GeV"), labelled("E/p", "")
    ('momentum [GeV]', 'momentum [GeV]', 'E/p')
    """
    return f"{name} [{unit}]" if unit and not name.endswith(f"[{unit}]") else name


def first_three(names: Sequence[str]) -> str:
    """Names of files, the first three of many."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
