"""Sections of texts, tables and pictures, and the self-contained HTML page that they make.

Knows nothing about what it shows.  All texts are escaped; pictures are embedded; there is no script, and no reference
to any other file.  Each stage of the pipeline has a module here that turns its record into sections; its own page, and
the report on a whole run, are lists of them.
"""

from __future__ import annotations

import base64
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from calorefine.errors import CalorefineWarning, ConfigError
from calorefine.io.writer import replacing

Record = Mapping[str, Any]  # of what a JSON file holds
_PNG = b"\x89PNG\r\n\x1a\n"
PIXELS = 2  # of an embedded file, on each pixel of the page in both directions: sharp on dense screens


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

    @classmethod
    def of(
        cls,
        caption: str,
        records: Iterable[Any],
        columns: Mapping[str, Callable[[Any], str]],
        marked: Callable[[Any], bool] = lambda _: False,
    ) -> Table:
        """Table with a row for each record.

        Args:
            caption: what the table shows.
            records: of any kind.
            columns: header to the text of a record's cell.
            marked: which records to point out.
        """
        records = list(records)
        rows = [[text(record) for text in columns.values()] for record in records]
        return cls(caption, list(columns), rows, [k for k, record in enumerate(records) if marked(record)])


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
    def most(self) -> int | None:
        """Largest width on the page for two pixels of the file at each of the page; None if it is drawn at any size."""
        return int.from_bytes(self.data[16:20], "big") // PIXELS if self.data.startswith(_PNG) else None

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
        tables: after the text; those without rows are left out.
        figures: after the tables.
        alarms: paragraphs in red, before the warnings.
        code: commands or files, shown line by line after the figures.
        numbers: name and value of what the summary of the page shows.
        missing: what isn't there, for the summary.
    """

    title: str
    text: Sequence[str] = ()
    warnings: Sequence[str] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[Picture] = ()
    alarms: Sequence[str] = ()
    code: Sequence[str] = ()
    numbers: Sequence[tuple[str, str]] = ()
    missing: Sequence[str] = ()

    def told(self, kind: str) -> list[str]:
        """Alarms, warnings or what is missing, with the title before each."""
        return [f"{self.title}: {text}" for text in getattr(self, kind)]


def absent(title: str, option: str, what: str) -> Section:
    """Section of a stage whose files aren't given: `option` would name them, and `what` says what they are."""
    return Section(title, [f"Not given. It needs {option}: {what}."], missing=[f"not given ({option}: {what})"])


def merged(title: str, sections: Sequence[Section]) -> Section:
    """One section of all that several have."""
    kinds: dict[str, Any] = {
        kind.name: [item for one in sections for item in getattr(one, kind.name)] for kind in fields(Section)
    }
    return Section(**kinds | {"title": title})


def summary(sections: Sequence[Section]) -> Section:
    """First section of a page: alarms, warnings, main numbers and what is missing, of all the others."""
    told: dict[str, Any] = {
        kind: [text for one in sections for text in one.told(kind)] for kind in ("alarms", "warnings", "missing")
    }
    text = [] if told["alarms"] or told["warnings"] else ["Nothing conspicuous was found."]
    text += [f"Missing: {'; '.join(told['missing'])}."] if told["missing"] else []
    rows = [pair for one in sections for pair in one.numbers]
    return Section("Summary", text, tables=[Table("Main numbers", ("", "value"), rows)], **told)


@contextmanager
def collected() -> Iterator[list[str]]:
    """Collect the warnings of calorefine that are raised inside, to show them on the page; others pass."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", CalorefineWarning)
        yield texts
    for one in caught:
        if isinstance(one.message, CalorefineWarning):
            texts.append(str(one.message))
        else:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    texts[:] = list(dict.fromkeys(texts))


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
