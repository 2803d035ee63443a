"""Provenances in ROOT files: changed JSON, read as the verbs read it.

An error, or nothing of what was changed matters; a text that is no JSON, or columns of other kinds, that are taken are
`silent`.
"""

from __future__ import annotations

import copy
import json
import random
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import uproot
from fuzz_harness import Silent
from fuzz_saved import OTHER, _places, checkpoint

from calorefine.errors import CalorefineError
from calorefine.io.provenance import PROVENANCE, read_provenance, recorded, stamped
from calorefine.io.sample import WeightedFiles
from calorefine.observables.reading import event_identity
from calorefine.pages.provenance import provenance_section
from calorefine.simulator import Simulator, provenance
from calorefine.verbs.judged_files import training_n_eff
from calorefine.verbs.propagate import _data_dof

KEYS = {"run": np.zeros(6, np.int64), "event": np.arange(6)}


@cache
def whole() -> dict[str, Any]:
    """What `calorefine sample` writes, with entries of further verbs."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.ckpt"
        path.write_bytes(checkpoint("WGAN"))
        told = provenance(Simulator.load(path), path)

    @recorded("sample")
    def command(*, checkpoint: str, seed: int = 1, key: list[str] | None = None) -> dict[str, Any]:
        del checkpoint, seed, key
        return stamped(told | {"seed": 1, "n_per_event": 2, "unweight": {"number": 1}})

    made = command(checkpoint="model.ckpt", key=["run", "event"])
    earlier = [{"verb": "splot", "options": {"output": "a.root"}, "changed": ["output"]}]
    return json.loads(json.dumps(made | {"earlier": earlier, "reweight": {"weight": {"reweighter_sha256": "ab"}}}))  # type: ignore[no-any-return]


def _changed(rng: random.Random) -> str:
    """Text with a change to its characters, or to its content."""
    text = json.dumps(whole())
    if rng.random() < 0.3:
        at = rng.randrange(len(text))
        cut = at + rng.choice([0, 1, 3, len(text)])
        return text[:at] + "".join(rng.choice('{}[]",:0aN\\ é') for _ in range(rng.randint(0, 2))) + text[cut:]
    content = copy.deepcopy(whole())
    for _ in range(rng.choice([1, 1, 2])):
        places = [place for place in _places(content) if rng.random() < 1 / len(place)]
        if not places:
            return json.dumps(rng.choice([one for one in OTHER if not isinstance(one, bytes)]))
        *parents, last = rng.choice(places)
        parent: Any = content
        for name in parents:
            parent = parent[name]
        if rng.random() < 0.3:
            del parent[last]
        else:
            parent[last] = rng.choice([one for one in OTHER if not isinstance(one, bytes)])
    return json.dumps(content)


def prepare_case() -> None:
    """Make the whole provenance."""
    whole()


def case(rng: random.Random, folder: Path) -> str:
    """Write a changed provenance, and read it as the verbs do."""
    path, text = folder / "generated.root", _changed(rng)
    with uproot.recreate(path) as file:
        file["events"] = KEYS | {"x": np.arange(6.0)}
        file[PROVENANCE] = text
    told, errors = read_provenance(path), 0
    if told != json.loads(text) and "NaN" not in text:
        raise Silent(f"{told}, expected {text}")
    sample = WeightedFiles(str(path), "events")
    uses = (
        lambda: sample.columns.expressions("features", "context"),
        lambda: event_identity(sample.source, None),
        lambda: _data_dof(sample.source),
        lambda: training_n_eff(told),
        lambda: provenance_section({"generated": [path]}, {path: "ab"}, {"generated": told}, {}),
    )
    for use in uses:
        try:
            use()
        except CalorefineError:
            errors += 1
    return "error" if errors else "ok"
