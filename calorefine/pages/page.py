"""Write one self-contained HTML page of texts, tables and pictures: no script, no reference to any other file.

Knows nothing about what it shows.  All texts are escaped; pictures are embedded.
"""

from __future__ import annotations

import base64
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
