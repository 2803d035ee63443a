"""`systematics.root`, `.json` and `.npz`: three views of the same numbers, written together.

All are complete before the first one is moved into place.  Each holds the same digest of the values and covariances,
so that files of different runs that were mixed (a process killed between two moves) can be told.

=========================  ==========================================================================================
`systematics.npz`
=========================  ==========================================================================================
`nominal`                   (n,) all bins of all observables, in the order of `observables`
`observables`               names; `edges_<observable>`, and `bins` with titles and units as JSON
`covariance`                (n, n) total; `correlation`; `errors` (n,); `dof` (n,)
`covariance_<source>`       (n, n); `sources` with rules and degrees of freedom as JSON
`replicas_<source>`         (K, n)
`shape_names`, `shapes`     (c,), (c, n) components; `remainder` (n,) variances that they leave
`provenance`                JSON
=========================  ==========================================================================================
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calorefine.errors import ConfigError, FileError
from calorefine.io.provenance import PROVENANCE, made_by, read_provenance
from calorefine.io.writer import replacing
from calorefine.systematics.histfactory import Fit, cabinetry_entries, fragment, workspace
from calorefine.systematics.principal_components import FRACTION, Decomposition
from calorefine.systematics.root_file import require_folder_name, write_root
from calorefine.systematics.sources import ErrorSource
from calorefine.systematics.systematics import ObservableBins, Systematics

SUFFIXES = (".root", ".json", ".npz")


@dataclass(frozen=True)
class Saved:
    """What was written.

    Attributes:
        root: histograms.
        json: pyhf and cabinetry.
        npz: arrays.
        n_components: shapes.
        notes: on all three, and on observables that pyhf doesn't get.
    """

    root: Path
    json: Path
    npz: Path
    n_components: int
    notes: list[str]


def save(
    systematics: Systematics,
    output: Path,
    *,
    fit: Fit | None = None,
    fraction: float = FRACTION,
    overwrite: bool = False,
    provenance: Mapping[str, Any] | None = None,
) -> Saved:
    """Write the three files.

    Args:
        systematics: what to write.
        output: path without suffix, as `runs/systematics`; the suffix of one of the files is dropped.
        fit: names, signal and data for pyhf.
        fraction: of each source's variance that its shapes make up.
        overwrite: whether existing files may be replaced.
        provenance: of the run that made it.

    Raises:
        ConfigError: a file exists and may not be replaced, or an observable's name is none of a folder.
        FileError: the folder doesn't exist.
    """
    fit = fit or Fit()
    for name in systematics.bins:
        require_folder_name(name)
    paths = output_paths(output)
    parts = systematics.components(fraction=fraction)
    channels, notes = fragment(systematics, parts, fit)
    described = _provenance(systematics, parts, fraction, [*systematics.notes, *notes], provenance or {})
    document = {
        "fragment": {"channels": channels},
        "workspace": workspace(channels, fit) if channels else None,
        "cabinetry": cabinetry_entries(channels, parts, fit, paths[0].name),
        "notes": described["notes"],
        PROVENANCE: described,
    }
    text = json.dumps(document, indent=1, allow_nan=False)
    with ExitStack() as stack:
        beside = [stack.enter_context(replacing(path, overwrite=overwrite)) for path in paths]
        write_root(beside[0], systematics, parts, described)
        beside[1].write_text(text + "\n")
        with beside[2].open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **_arrays(systematics, parts, described))
    return Saved(paths[0], paths[1], paths[2], len(parts.components), described["notes"])


def output_paths(output: Path) -> list[Path]:
    """The three files of an output without suffix; the suffix of one of them is dropped."""
    stem = output.with_suffix("") if output.suffix in SUFFIXES else output
    return [stem.with_name(stem.name + suffix) for suffix in SUFFIXES]


def _provenance(
    systematics: Systematics, parts: Decomposition, fraction: float, notes: list[str], given: Mapping[str, Any]
) -> dict[str, Any]:
    """The run's provenance, with what was done here."""
    added = {
        "digest": content_digest(systematics),
        "fraction": fraction,
        "components": {part.name: part.share for part in parts.components},
        "notes": notes,
    }
    return dict(given) | made_by() | systematics.summary() | added


def content_digest(systematics: Systematics) -> str:
    """SHA-256 of nominal values and covariances."""
    arrays = [systematics.nominal, *(source.covariance for source in systematics.sources.values())]
    return hashlib.sha256(b"".join(np.ascontiguousarray(array, np.float64).tobytes() for array in arrays)).hexdigest()


def _arrays(systematics: Systematics, parts: Decomposition, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays of the third file."""
    n = len(systematics.nominal)
    described = {name: {**vars(bins)} for name, bins in systematics.bins.items()}
    edges = {f"edges_{name}": np.asarray(bins.pop("edges"), np.float64) for name, bins in described.items()}
    arrays: dict[str, Any] = {
        "nominal": systematics.nominal,
        "observables": np.array(list(systematics.bins)),
        "bins": np.array(json.dumps(described)),
        "covariance": systematics.total,
        "correlation": systematics.correlation(),
        "errors": systematics.errors(),
        "dof": systematics.dof,
        "sources": np.array(json.dumps(systematics.summary()["sources"])),
        "shape_names": np.array([part.name for part in parts.components], dtype=str),
        "shapes": np.array([part.shape for part in parts.components]).reshape(-1, n),
        "remainder": parts.uncorrelated(n),
        "provenance": np.array(json.dumps(provenance)),
    }
    arrays |= edges | {f"covariance_{name}": source.covariance for name, source in systematics.sources.items()}
    return arrays | {f"replicas_{name}": rows for name, rows in systematics.replicas.items()}


def load(path: Path) -> Systematics:
    """Systematics from `systematics.npz`.

    Raises:
        FileError: no such file, or it isn't one of `save`.
    """
    if not path.is_file():
        raise FileError(f"{path}: no such file")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        return _from_arrays(arrays)
    except (ValueError, KeyError, OSError, EOFError) as error:
        raise FileError(f"{path}: not a systematics.npz of calorefine ({error})") from error


def _from_arrays(arrays: Mapping[str, Any]) -> Systematics:
    described, rules = json.loads(str(arrays["bins"])), json.loads(str(arrays["sources"]))
    bins = {str(k): ObservableBins(arrays[f"edges_{k}"], **described[str(k)]) for k in arrays["observables"]}
    sources = {}
    for name, rule in rules.items():
        dof = np.inf if rule["degrees_of_freedom"] is None else rule["degrees_of_freedom"]
        covariance = arrays[f"covariance_{name}"]
        sources[name] = ErrorSource(name, covariance, dof, rule["part_of"], rule["rule"], rule["scale"])
    replicas = {name: arrays[f"replicas_{name}"] for name in rules if f"replicas_{name}" in arrays}
    notes = tuple(json.loads(str(arrays["provenance"]))["notes"])
    return Systematics(arrays["nominal"], bins, sources, replicas, notes)


def require_same(saved: Saved) -> None:
    """Refuse files of different runs.

    Raises:
        ConfigError: their digests differ.
    """
    with np.load(saved.npz, allow_pickle=False) as file:
        arrays = json.loads(str(file["provenance"]))
    document = json.loads(saved.json.read_text())[PROVENANCE]
    pairs = zip((saved.root, saved.json, saved.npz), (read_provenance(saved.root), document, arrays), strict=True)
    digests = {path.name: provenance.get("digest") for path, provenance in pairs}
    if len(set(digests.values())) > 1:
        raise ConfigError(f"{saved.root.parent}: files of different runs, digests {digests}; write them again")
