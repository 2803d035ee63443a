"""C's ways to write an expression, as Python's: ``&&``, ``||``, ``!`` and ``condition ? a : b``.

C's ``!`` binds more tightly than Python's ``not``: ``!a == 1`` says that ``!a`` is 1, ``not a == 1`` that a isn't.
"""

from __future__ import annotations

import ast
import re

_QUOTED = re.compile(r"""("[^"]*"|'[^']*')""")
_PARENTHESES, _KEPT = re.compile(r"\(([^()]*)\)"), re.compile("\0([0-9]+)\0")
_NOT = "~\t"  # of C, until the tree is known; no other white space is a tab then


def tree(text: str) -> ast.Expression:
    """Python's tree of an expression in either form.

    >>> ast.unparse(tree("!a == 1 && not b == 1"))
    '(not a) == 1 and (not b == 1)'
    """
    python = _translated(text)
    parsed = ast.parse(python, mode="eval")
    _Negations(python).visit(parsed)
    return parsed


def _translated(text: str) -> str:
    """Write C's logical operators and choices as Python's, on one line; what is in quotes stays.

    >>> _translated("a > 1 && !b").replace(_NOT, "not ")
    'a > 1 and not b'
    >>> _translated("2 * (a > 1 ? b : -b)")
    '2 * (where(a > 1, b, -b))'
    """
    parts = _QUOTED.split(text)
    for k, part in enumerate(parts[::2]):
        python = re.sub(r"\s+", " ", part.replace("&&", " and ").replace("||", " or "))
        parts[2 * k] = re.sub(r"!(?!=) ?", _NOT, python)
    return _with_choices("".join(parts).strip())


class _Negations(ast.NodeTransformer):
    """Tell C's ``!`` from ``~``, as which Python has read it: both bind equally.

    Args:
        text: of the tree.
    """

    def __init__(self, text: str) -> None:
        self._text = text.encode()

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        if self._text[node.col_offset :].startswith(_NOT.encode()):
            node.op = ast.Not()
        return self.generic_visit(node)


def _with_choices(text: str) -> str:
    """Write C's `condition ? a : b` as where(condition, a, b), from the innermost parentheses outwards."""
    if "?" not in text or "\0" in text:
        return text
    kept: list[str] = []

    def keep(part: str) -> str:
        kept.append(part)
        return f"\0{len(kept) - 1}\0"

    text = _QUOTED.sub(lambda match: keep(match[0]), text)
    while _PARENTHESES.search(text):
        text = _PARENTHESES.sub(lambda match: keep(f"({_choices(match[1])})"), text)
    text = _choices(text)
    while _KEPT.search(text):
        text = _KEPT.sub(lambda match: kept[int(match[1])], text)
    return text


def _choices(arguments: str) -> str:
    return ",".join(map(_choice, arguments.split(",")))


def _choice(text: str) -> str:
    """Write a choice without parentheses as a call; its second part may be one again."""
    condition, _, rest = text.partition("?")
    depth = 0
    for k, character in enumerate(rest):
        if character == ":" and depth == 0:
            return f"where({condition.strip()}, {_choice(rest[:k]).strip()}, {_choice(rest[k + 1 :]).strip()})"
        depth += (character == "?") - (character == ":")
    return text
