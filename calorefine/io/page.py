"""Write one self-contained HTML page of texts, tables and pictures: no script, no reference to any other file.

Knows nothing about what it shows.  All texts are escaped; pictures are embedded.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from calorefine.errors import ConfigError
from calorefine.io.writer import replacing

_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Table:
    """Texts in rows; the first of each row is its heading.

    Args:
        caption: what the table shows.
        header: one text for each column.
        rows: as many texts in each.
        marked: indices of rows to point out.

    Raises:
        ConfigError: a row is not as long as the header.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    marked: Sequence[int] = ()

    def __post_init__(self) -> None:
        """Check the lengths."""
        for number, row in enumerate(self.rows):
            if len(row) != len(self.header):
                msg = f"table '{self.caption}', row {number}: {len(row)} cells found, expected {len(self.header)}"
                raise ConfigError(msg)


@dataclass(frozen=True)
class Picture:
    """A picture, as the content of an SVG or PNG file.

    Args:
        data: the bytes.
        alt: what is seen, for those who can't see it.
        caption: text below.
        wide: whether it takes the whole width of the page.
    """

    data: bytes
    alt: str
    caption: str
    wide: bool = False

    @property
    def source(self) -> str:
        """The picture as a data URI."""
        kind = "png" if self.data.startswith(_PNG) else "svg+xml"
        return f"data:image/{kind};base64,{base64.b64encode(self.data).decode()}"


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Args:
        title: its heading.
        text: paragraphs.
        warnings: paragraphs to point out.
        tables: after the text.
        figures: after the tables.
        alarms: paragraphs in red, before the warnings.
        code: commands or files, shown line by line after the figures.
    """

    title: str
    text: Sequence[str] = ()
    warnings: Sequence[str] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[Picture] = ()
    alarms: Sequence[str] = ()
    code: Sequence[str] = ()


def write_page(path: Path, title: str, *, sections: Sequence[Section], lead: str = "", overwrite: bool = False) -> None:
    """Write the page; it appears under `path` when it is complete.

    Args:
        path: the HTML file.
        title: heading of the page, and name of the browser's tab.
        sections: its parts, in order.
        lead: a sentence below the title.
        overwrite: replace an existing file.

    Raises:
        ConfigError: the file exists and may not be replaced.
        FileError: its folder doesn't exist.
    """
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = environment.get_template("page.html.j2").render(title=title, lead=lead, sections=sections)
    with replacing(path, overwrite=overwrite) as beside:
        beside.write_text(text, encoding="utf-8")


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


def _fixed(value: float, decimals: int) -> str:
    """Round to a decimal place, also to one before the point, without an exponent and without a negative zero."""
    return f"{round(value, decimals) + 0.0:.{max(decimals, 0)}f}"
