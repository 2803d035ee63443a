"""The house in figures: its size, its functions, its modules, import circles and names that mean two things.

python benchmarks/house.py --json house.json

All is read from the source of `calorefine/`; nothing is imported.  Code lines are those that hold code: no docstring,
no comment, no blank line.  A function counts its code lines, with signature, decorators and what is nested in it.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import tokenize
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

PACKAGE = Path(__file__).resolve().parents[1] / "calorefine"
LONG_MODULE = 300
BY_CONTRACT = {"sections"}
"""Names that every module of a room has by contract, such as what makes a stage's part of a page."""
NO_CODE = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass
class Module:
    """One file.

    Args:
        name: dotted.
        text: its source.
    """

    name: str
    text: str
    tree: ast.Module = field(init=False)

    def __post_init__(self) -> None:
        """Parse it."""
        self.tree = ast.parse(self.text)

    @cached_property
    def code(self) -> set[int]:
        """Numbers of the lines that hold code."""
        lines: set[int] = set()
        for token in tokenize.generate_tokens(io.StringIO(self.text).readline):
            if token.type not in NO_CODE:
                lines |= set(range(token.start[0], token.end[0] + 1))
        for node in ast.walk(self.tree):
            if (
                isinstance(node, ast.Expr)
                and isinstance(node.value, ast.Constant)
                and isinstance(node.value.value, str)
            ):
                lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        return lines

    def function_sizes(self) -> list[int]:
        """Code lines of each function."""
        functions = [node for node in ast.walk(self.tree) if isinstance(node, FUNCTIONS)]
        return [len(self.code & set(range(_first(node), (node.end_lineno or 0) + 1))) for node in functions]

    def public_names(self) -> set[str]:
        """What it defines at its top level, without a leading underscore."""
        names: set[str] = set()
        for node in self.tree.body:
            if isinstance(node, (ast.ClassDef, *FUNCTIONS)):
                names.add(node.name)
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names |= {target.id for target in targets if isinstance(target, ast.Name)}
        return {name for name in names if not name.startswith("_")} - BY_CONTRACT

    def imports(self, modules: set[str]) -> set[str]:
        """Modules of the package that it imports, at its top or in a function, for types as well."""
        out: set[str] = set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                out |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                named = {f"{node.module}.{alias.name}" for alias in node.names}
                out |= {name if name in modules else node.module for name in named}
        return (out & modules) - {self.name}


def _first(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


def read(package: Path) -> list[Module]:
    """Read all modules of a package."""
    modules = []
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        modules.append(Module(".".join(parts[:-1] if parts[-1] == "__init__" else parts), path.read_text()))
    return modules


def circles(modules: list[Module]) -> list[list[str]]:
    """Groups of modules that import each other, in a circle of any length."""
    names = {module.name for module in modules}
    edges = {module.name: module.imports(names) for module in modules}
    reach = {name: _reachable(name, edges) for name in names}
    groups = {frozenset({name, *(n for n in reach[name] if name in reach[n])}) for name in names if name in reach[name]}
    return sorted(sorted(group) for group in groups)


def _reachable(start: str, edges: dict[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    ahead = list(edges[start])
    while ahead:
        name = ahead.pop()
        if name not in seen:
            seen.add(name)
            ahead += edges[name]
    return seen


def repeated(modules: list[Module]) -> dict[str, list[str]]:
    """Public names that several modules define, with those modules."""
    homes: dict[str, list[str]] = defaultdict(list)
    for module in modules:
        for name in module.public_names():
            homes[name].append(module.name)
    return {name: where for name, where in sorted(homes.items()) if len(where) > 1}


def main() -> None:
    """Measure the package and write one flat JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, help="file to write")
    options = parser.parse_args()
    modules = read(PACKAGE)
    sizes = [size for module in modules for size in module.function_sizes()]
    long = [module.name for module in modules if len(module.text.splitlines()) > LONG_MODULE]
    figures = {
        "code_lines": sum(len(module.code) for module in modules),
        "modules": len(modules),
        "functions": len(sizes),
        "function_median": float(np.median(sizes)),
        "function_p90": float(np.quantile(sizes, 0.9)),
        "function_max": max(sizes),
        "modules_above_300": len(long),
        "circles": len(circles(modules)),
        "repeated_names": len(repeated(modules)),
    }
    for name, value in figures.items():
        print(f"{name:>20}  {value}")
    for title, items in (("above 300 lines", long), ("circle", circles(modules))):
        print(*(f"{title}: {item}" for item in items), sep="\n")
    print(*(f"{name}: {', '.join(where)}" for name, where in repeated(modules).items()), sep="\n")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
