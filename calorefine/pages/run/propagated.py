"""The file of `calorefine propagate` as the report needs it: numbers, what was measured, and from which files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import ArgumentParser

from calorefine.errors import ConfigError, FileError, nearest
from calorefine.observables import Observable
from calorefine.systematics import Systematics, load

DEFINITIONS = "definitions"


@dataclass(frozen=True)
class Propagated:
    """Systematics with their provenance.

    Attributes:
        path: the file.
        systematics: values and covariance.
        provenance: what `calorefine propagate` says of it.
    """

    path: Path
    systematics: Systematics
    provenance: dict[str, Any]

    @classmethod
    def load(cls, name: str) -> Propagated:
        """Read `systematics.npz`.

        Raises:
            FileError: no such file, or it isn't one of `calorefine propagate`.
        """
        path = Path(name)
        if not path.is_file():
            siblings = [str(one) for one in path.parent.glob("*.npz")]
            raise FileError(f"{path}: no such file{nearest(name, siblings)}")
        if path.suffix != ".npz":
            raise FileError(f"{path}: expected the file of 'calorefine propagate' that ends in .npz")
        systematics = load(path)
        with np.load(path, allow_pickle=False) as file:
            return cls(path, systematics, json.loads(str(file["provenance"])))

    def observables(self) -> dict[str, Observable]:
        """What was measured; empty if the file doesn't tell."""
        given: Mapping[str, Any] = self.provenance.get(DEFINITIONS) or {}
        return {name: _observable(described) for name, described in given.items()}

    def require_observables(self) -> dict[str, Observable]:
        """What was measured.

        Raises:
            ConfigError: the file doesn't tell, so that nothing else can be measured in the same way.
        """
        found = self.observables()
        if set(found) != set(self.systematics.bins):
            msg = f"{self.path}: doesn't say how {', '.join(self.systematics.bins)} were measured, so that truth can't "
            raise ConfigError(f"{msg}be measured; run 'calorefine propagate' again")
        return found

    def label(self, name: str) -> str:
        """What the values of an observable are."""
        found = self.observables().get(name)
        return found.value_label if found else "value"


def _observable(described: Mapping[str, Any]) -> Observable:
    """Observable from its class and options."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("observable", type=Observable)
    made = parser.instantiate(parser.parse_object({"observable": dict(described)}))
    found = made["observable"]
    if not isinstance(found, Observable):
        raise TypeError(type(found))
    return found
