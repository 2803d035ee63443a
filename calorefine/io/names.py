"""Names of branches in expressions: the exact name wins, and back-quotes enclose any.

Of names with a dot, only observables of showers (`shower.e_tot`) need none.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Collection

import numexpr

ENTRY, TEXT = re.compile(r"(.+?)((?:\[-?\d+\])+)"), re.compile(r'(.+) == "([^"]*)"')
"""Names of one entry of an array and of a comparison with text, which sources make of other branches."""
_BRANCH = re.compile(
    r"""(?P<name>`[^`]+`|\bshower\.[^\W\d]\w*|\b[^\W\d]\w*)(?:(?P<entry>(?:\s*\[\s*-?\s*\d+\s*\])+)|\s*(?P<operator>==|!=)\s*(["'])(?P<text>[^"']*)\4)?"""
)
HIDDEN = re.compile(r"branch_([0-9a-f]+)__")
"""An identifier that stands for a branch whose name is none."""
_CONVERTED = re.compile(r"\((.*)\)( \* [\d.e+-]+)")
"""An expression with a conversion of units, as `calorefine.events.Columns` writes it."""


def mangled(text: str) -> str:
    """Write branches in back-quotes, entries of arrays and comparisons with text as identifiers.

    So are names with letters outside ASCII, which Python would fold (the micro sign to a Greek letter).

    >>> readable(mangled("`K-pt` > 1"))
    'K-pt > 1'
    """

    def stand_in(match: re.Match[str]) -> str:
        name, entry, operator, value = match.group("name", "entry", "operator", "text")
        branch = name.strip("`") + (re.sub(r"\s", "", entry) if entry else "")
        if operator:
            comparison = identifier(f'{branch} == "{value}"')
            return f"({'not ' * (operator == '!=')}{comparison})"
        is_word = branch == name and branch.isascii() and "." not in branch  # a keyword as well
        return branch if is_word else identifier(branch)

    return _BRANCH.sub(stand_in, text)


def owner(name: str) -> str:
    """The branch whose entry, or whose comparison with text, this is; any other name itself.

    >>> owner("entry_mm[0]"), owner('label == "TT"'), owner("pt")
    ('entry_mm', 'label', 'pt')
    """
    derived = ENTRY.fullmatch(name) or TEXT.fullmatch(name)
    return derived[1] if derived else name


def is_plain(name: str) -> bool:
    """Whether a branch of this name needs no back-quotes."""
    return name.isidentifier() and name.isascii() and not keyword.iskeyword(name)


def quoted(name: str) -> str:
    """Name of a branch as an expression.

    >>> quoted("pt"), quoted("E/p")
    ('pt', '`E/p`')
    """
    return name if is_plain(name) else f"`{name}`"


def exact(text: str, branches: Collection[str]) -> str:
    """Put an expression in back-quotes if it is the name of one of these branches, which wins over what it says.

    >>> exact("E/p", ["E", "p"]), exact("E/p", ["E", "p", "E/p"]), exact("(K-pt) * 0.001", ["K-pt"])
    ('E/p', '`E/p`', '`K-pt` * 0.001')
    """
    name, factor = match.groups() if (match := _CONVERTED.fullmatch(text)) else (text.strip(), "")
    return quoted(name) + factor if name in branches else text


def identifier(branch: str) -> str:
    """The identifier that stands for a branch."""
    return branch if is_plain(branch) else _hidden(branch)


def variable(branch: str) -> str:
    """The identifier that stands for a branch in numexpr, which takes the name of a function for that alone."""
    return _hidden(branch) if branch in numexpr.expressions.functions else identifier(branch)


def _hidden(branch: str) -> str:
    return f"branch_{branch.encode().hex()}__"


def readable(text: str) -> str:
    """Inverse of `mangled`, for names and messages."""
    return HIDDEN.sub(lambda match: bytes.fromhex(match[1]).decode(), text)
