"""What an output says of its making: versions, the verb with its options, digests, and where that is stored.

A verb is `recorded`: while it runs, every provenance that is written carries its name and all of its options, also
where the function is called from Python.  A file that is a copy with further branches keeps the earlier verbs.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import platform
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import fields, is_dataclass
from functools import wraps
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar, cast

from calorefine.errors import FileError
from calorefine.io.hdf5 import is_hdf5, open_hdf5
from calorefine.io.root import open_file, undamaged

PROVENANCE = "calorefine_provenance"
PROVENANCE_FILE = "provenance.json"  # of an output that is a folder
COMMAND = ("verb", "options", "changed")
_F = TypeVar("_F", bound=Callable[..., Any])
_RUNNING: ContextVar[Mapping[str, Any]] = ContextVar("running", default={})  # noqa: B039  # never changed in place


def recorded(verb: str) -> Callable[[_F], _F]:
    """Let the provenance of all that a function writes say which verb it is, and its options, defaults included."""

    def decorate(function: _F) -> _F:
        signature = inspect.signature(function)

        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            changed = [k for k, value in bound.arguments.items() if value != signature.parameters[k].default]
            token = _RUNNING.set({"verb": verb, "options": plain(bound.arguments), "changed": changed})
            try:
                return function(*args, **kwargs)
            finally:
                _RUNNING.reset(token)

        return cast(_F, run)

    return decorate


class Configured:
    """Base of the kinds of object that a configuration names: an instance remembers what it was made with."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Remember the arguments of the outermost constructor."""
        super().__init_subclass__(**options)
        if "__init__" not in cls.__dict__:
            return
        make: Any = cls.__init__
        signature = inspect.signature(make)

        @wraps(make)
        def remembering(self: Configured, *args: Any, **kwargs: Any) -> None:
            if not hasattr(self, "given"):
                bound = signature.bind(self, *args, **kwargs)
                bound.apply_defaults()
                object.__setattr__(self, "given", dict(list(bound.arguments.items())[1:]))
            make(self, *args, **kwargs)

        setattr(cls, "__init__", remembering)  # noqa: B010  # mypy allows no assignment

    def arguments(self) -> dict[str, Any]:
        """What the constructor was given; of a dataclass its fields."""
        parameters: Any = self
        if hasattr(self, "given"):
            return dict(parameters.given)
        return {item.name: getattr(self, item.name) for item in fields(parameters) if item.init}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file; NaN is an error."""
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def made_by() -> dict[str, Any]:
    """Versions, and `verb`, `options` and the names of those that are not the default (`changed`), if a verb runs."""
    versions = {"calorefine": version("calorefine"), "python": platform.python_version(), "torch": version("torch")}
    return versions | dict(_RUNNING.get())


def stamped(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Provenance of a file that is written now; the verb of the file that it was copied from goes to `earlier`."""
    now = made_by()
    before = {name: provenance[name] for name in COMMAND if name in provenance}
    copied = before and "verb" in now and before != {name: now[name] for name in COMMAND}
    earlier = {"earlier": [*provenance.get("earlier", []), before]} if copied else {}
    return {**provenance, **now, **earlier}


def plain(value: Any) -> Any:
    """Options as JSON types, in the form in which a configuration gives them.

    >>> plain({"path": Path("a.root"), "range": (0, 1)})
    {'path': 'a.root', 'range': [0, 1]}
    """
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Configured):
        kind = type(value)
        module = "" if kind.__module__.startswith("calorefine.") else f"{kind.__module__}."
        return {"class_path": module + kind.__qualname__, "init_args": plain(value.arguments())}
    if is_dataclass(value):
        return {item.name: plain(getattr(value, item.name)) for item in fields(value) if item.init}
    return str(value)


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_provenance(path: Path) -> dict[str, Any]:
    """Return the provenance of a file written by calorefine, empty if it has none.

    Raises:
        FileError: the file can't be read, or its provenance is no JSON, or an entry is of another kind than it was
            written as.
    """
    text = _stored(path)
    if text is None:
        return {}
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path}: its provenance is no JSON ({error}), expected what calorefine wrote") from error
    _require_known(content, path)
    return cast(dict[str, Any], content)


def _stored(path: Path) -> str | None:
    """Text of the provenance: an object of a ROOT file, an attribute of an HDF5 file; None if there is none."""
    if is_hdf5(path):
        with open_hdf5(path) as shower_file, undamaged(f"{path}: provenance"):
            return str(shower_file.attrs[PROVENANCE]) if PROVENANCE in shower_file.attrs else None
    with open_file(path) as file, undamaged(f"{path}: provenance"):
        return str(file[PROVENANCE]) if PROVENANCE in file else None


_NAME, _NUMBER, _NAMES = (str,), (float, int), [(str,)]
_COMMAND = {"verb": _NAME, "options": {}, "changed": _NAMES}
_RECORDS: dict[str, Any] = {"*": {}}
_COLUMNS = {"features": {}, "context": {}, "key": _NAMES, "candidate": _NAME, "cut": _NAME, "block": _NAMES}
_TRAINING = {"rows_digest": _NAME, "digest": _NAME, "n_eff": _NUMBER, "n_eff_signed": _NUMBER, "weights_dof": _NUMBER}
_KNOWN: dict[str, Any] = {
    **_COMMAND,
    **dict.fromkeys(("calorefine", "model", "checkpoint", "checkpoint_sha256", "reweighter_sha256", "digest"), _NAME),
    "seed": (int,),
    "n_per_event": (int,),
    "columns": _COLUMNS,
    "training": _TRAINING,
    "earlier": [_COMMAND],
    "versions": {},
    "unweight": {"number": (int,)},
    "reweight": _RECORDS,
    "replica_terms": _RECORDS,
}
"""Kinds of the entries that calorefine acts on: types, kinds by name (of every entry by `*`), or a list of one kind.

Null may stand for a name or a number with a fraction.
"""


def _require_known(content: Any, path: Path) -> None:
    """Refuse a provenance with an entry of another kind than calorefine writes.

    Raises:
        FileError: there is one.
    """
    if wrong := _misfit(content, _KNOWN, "provenance"):
        raise FileError(f"{path}: {wrong}; expected what calorefine wrote")
    records = [content, *(content.get("earlier") or [])]
    if any("verb" in record and not {"options", "changed"} <= set(record) for record in records):
        raise FileError(f"{path}: provenance: a verb without its options found; expected what calorefine wrote")


def _misfit(value: Any, kind: Any, where: str) -> str:
    """Say what is of another kind, if anything is."""
    if isinstance(kind, tuple):
        fits = (value is None and int not in kind[:1]) or (isinstance(value, kind) and not isinstance(value, bool))
        return (
            "" if fits else f"{where}: {value!r:.60} found, where {' or '.join(one.__name__ for one in kind)} belongs"
        )
    if isinstance(kind, list):
        if not isinstance(value, list):
            return f"{where}: {value!r:.60} found, where a list belongs"
        return next(filter(None, (_misfit(item, kind[0], f"{where}[{n}]") for n, item in enumerate(value))), "")
    if not isinstance(value, dict):
        return f"{where}: {value!r:.60} found, where entries by name belong"
    inner = dict.fromkeys(value, kind["*"]) if "*" in kind else kind
    known = (_misfit(value[name], inner[name], f"{where}.{name}") for name in value if name in inner)
    return next(filter(None, known), "")
