"""Ensembles of several slices as one ensemble, whose members are maps of their members.

Replica r of the map is that of all slices, which count events by the same Poisson numbers: an event that is in two
slices (two electrons of one event, say) counts equally often in both, so that the replicas' spread is that of the
sample as a whole.  The slices are those of the nominal members: a replica's events may reach less far.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from math import hypot
from pathlib import Path
from typing import Any

from calorefine.ensemble.members import CHECKPOINT, RECORD, SHARED, Ensemble
from calorefine.errors import ConfigError
from calorefine.io.provenance import digest
from calorefine.simulator import Simulator
from calorefine.simulator_map import SimulatorMap
from calorefine.slices import Slice

BOOTSTRAP = {"seed": "the seed of the counts", "refit": "whether the weights' fit is redone", "block": "blocks"}
"""What replicas of events that slices share have to agree on, by the entry in their record."""
TOLD = ("replica", "n_train", "sum_w", "n_eff_signed", "digest")
"""Entries of a record that the training tells."""


def require_paired(ensembles: Mapping[str, Ensemble]) -> None:
    """Refuse ensembles whose members don't belong together one by one.

    Args:
        ensembles: by name.

    Raises:
        ConfigError: a member of one is missing in another one, or their replicas count events by other numbers.
    """
    (first, expected), *others = ensembles.items()
    for name, ensemble in others:
        _require_all(expected, ensemble, first, name)
        _require_all(ensemble, expected, name, first)
        for member in expected.names("replica"):
            found, known = (whole.records[member]["replica"] for whole in (ensemble, expected))
            for entry, what in BOOTSTRAP.items():
                if found.get(entry) != known.get(entry):
                    msg = f"{name}: '{member}' has data.replica.{entry} {found.get(entry)!r} ({what}), expected "
                    msg += f"{known.get(entry)!r} as in '{first}': an event of both would count otherwise in each"
                    raise ConfigError(msg)


def _require_all(whole: Ensemble, other: Ensemble, name: str, where: str) -> None:
    """Refuse an ensemble without a member of another one."""
    if missing := [member for member in whole.records if member not in other.records]:
        msg = f"{where}: there is no '{missing[0]}', which '{name}' has; expected the same members in all: run "
        raise ConfigError(f"{msg}'calorefine ensemble' to its end, or with as many replicas and seeds")


def write_merged(ensembles: Mapping[str, Ensemble], by: Sequence[str], folder: Path) -> SimulatorMap:
    """Write the members to a folder, each with its map and its record.

    Args:
        ensembles: of the slices, by name.
        by: expressions that tell the slices apart.
        folder: an empty one.

    Returns:
        The nominal map.

    Raises:
        ConfigError: as by `require_paired` and `SimulatorMap.merge`.
    """
    require_paired(ensembles)
    first, *others = next(iter(ensembles.values())).records
    nominal = _write_member(ensembles, first, by, folder / first)
    slices = [part.slice for part in nominal.parts]
    for member in others:
        _write_member(ensembles, member, by, folder / member, slices)
    return nominal


def _write_member(
    ensembles: Mapping[str, Ensemble], member: str, by: Sequence[str], folder: Path, slices: list[Slice] | None = None
) -> SimulatorMap:
    """Write one member; its slices are those of the nominal one, or else what its trainings tell."""
    paths = {name: ensemble.checkpoint(member) for name, ensemble in ensembles.items()}
    simulators = {name: Simulator.load(path) for name, path in paths.items()}
    digests = {name: digest(path) for name, path in paths.items()}
    merged = SimulatorMap.merge(simulators, by, digests=digests, slices=slices)
    folder.mkdir()
    merged.save(folder / CHECKPOINT)
    record = _record({name: ensemble.records[member] for name, ensemble in ensembles.items()}, merged)
    record["checkpoint_sha256"] = digest(folder / CHECKPOINT)
    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return merged


def _record(records: Mapping[str, Mapping[str, Any]], merged: SimulatorMap) -> dict[str, Any]:
    """What is known of a member: means over its slices, by their sums of weights, and the record of each."""
    every, training = list(records.values()), merged.spec["provenance"]
    shares = [one["sum_w"] / sum(other["sum_w"] for other in every) for one in every]
    pairs = list(zip(shares, every, strict=True))
    return {
        **{key: every[0][key] for key in ("name", "kind", "index")},
        "distance": sum(share * one["distance"] for share, one in pairs),
        "distance_error": hypot(*(share * one["distance_error"] for share, one in pairs)),
        "failed": any(one["failed"] for one in every),
        **{key: training.get(key) for key in TOLD},
        **{key: sha256("".join(one[key] for one in every).encode()).hexdigest() for key in SHARED},
        "parts": dict(records),
    }
