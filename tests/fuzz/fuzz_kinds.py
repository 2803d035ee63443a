"""The kinds of cases by name; each module is imported when its kind is wanted."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib import import_module

from fuzz_harness import Case


def _of(module: str, function: str) -> Callable[[], Case]:
    """Import a module, and make what its cases share, which counts for none of them."""

    def made() -> Case:
        cases = import_module(module)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            getattr(cases, f"prepare_{function}", lambda: None)()
        return getattr(cases, function)  # type: ignore[no-any-return]

    return made


KINDS: dict[str, Callable[[], Case]] = {
    "expressions": _of("fuzz_expressions", "case"),
    "root": _of("fuzz_root", "case"),
    "checkpoints": _of("fuzz_saved", "checkpoints"),
    "reweighters": _of("fuzz_saved", "reweighters"),
    "configs": _of("fuzz_configs", "case"),
    "provenance": _of("fuzz_provenance", "case"),
    "showers": _of("fuzz_showers", "case"),
    "binning": _of("fuzz_binning", "case"),
}


def plant(name: str) -> None:
    """Switch on a planted fault in this process."""
    import_module("fuzz_planted").PLANTED[name][2]()
