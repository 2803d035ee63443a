"""What each stage of the pipeline adds to the page: a section, its main numbers, and what is missing."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calorefine.errors import CalorefineWarning, FileError, nearest
from calorefine.pages.page import Section
from calorefine.text import number

SIGN = "\N{PLUS-MINUS SIGN}"


@dataclass(frozen=True)
class Part:
    """One stage.

    Attributes:
        section: of the page; its alarms and warnings are repeated at the top.
        numbers: pairs of a name and a value for the table at the top.
        missing: what isn't there.
    """

    section: Section
    numbers: Sequence[tuple[str, str]] = ()
    missing: Sequence[str] = ()


def absent(title: str, option: str, what: str) -> Part:
    """Part of a stage whose files aren't given.

    Args:
        title: of its section.
        option: that would name the files.
        what: the files, for the reader.
    """
    text = f"{title}: not given ({option}: {what})"
    return Part(Section(title, [f"Not given. It needs {option}: {what}."]), (), [text])


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


def read_json(path: Path, keys: Sequence[str], made_by: str) -> dict[str, Any]:
    """Read a JSON file of an earlier stage.

    Raises:
        FileError: there is no such file, or it isn't one of that stage.
    """
    if not path.is_file():
        siblings = [str(one) for one in path.parent.glob("*")] if path.parent.is_dir() else []
        raise FileError(f"{path}: no such file{nearest(str(path), siblings)}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FileError(f"{path}: not JSON ({error}), expected a file of '{made_by}'") from error
    if lacking := [key for key in keys if not isinstance(content, dict) or key not in content]:
        raise FileError(f"{path}: has no '{lacking[0]}', expected a file of '{made_by}'")
    return dict(content)


def percent(value: float) -> str:
    """Write a share in percent.

    >>> percent(0.01234)
    '1.23 %'
    """
    return f"{number(100 * value, 3)} %"


def labelled(name: str, unit: str | None) -> str:
    """Name with its unit, unless the name tells it already.

    >>> labelled("momentum", "GeV"), labelled("momentum [GeV]", "GeV"), labelled("E/p", "")
    ('momentum [GeV]', 'momentum [GeV]', 'E/p')
    """
    return f"{name} [{unit}]" if unit and not name.endswith(f"[{unit}]") else name
