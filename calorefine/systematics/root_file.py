"""`systematics.root`: histograms of every observable and source.

========================================  =============================================================================
`<observable>/nominal`                     TH1D; errors are the generated sample's own statistics
`<observable>/nominal_with_remainder`      TH1D; errors hold also what the shapes leave, for tools that take the errors
                                           of a histogram as those of its statistics
`<observable>/nominal_total`               TH1D; errors are the total ones
`<observable>/<source>_<k>Up`, `...Down`   TH1D nominal +- shape; no errors
`<observable>/<source>_remainder`          TH1D of 0; errors are what the shapes of the source leave
`<observable>/covariance`, `correlation`   TH2D of the total, by number of the bin from 0
`<observable>/covariance_<source>`         TH2D
`covariance`, `correlation`, ...           TH2D of all observables jointly, in the order of the provenance
`calorefine_provenance`                    JSON string
========================================  =============================================================================

All observables have all shapes, so that one name means one nuisance parameter everywhere.  An axis with several values
in each bin (quantiles at several levels) numbers them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hist
import numpy as np
import uproot

from calorefine.errors import ConfigError
from calorefine.io.provenance import PROVENANCE
from calorefine.stats import FloatArray
from calorefine.systematics.principal_components import Decomposition
from calorefine.systematics.sources import GENERATED
from calorefine.systematics.systematics import ObservableBins, Systematics

RESERVED = ("covariance", "correlation", PROVENANCE)


def write_root(path: Path, systematics: Systematics, parts: Decomposition, provenance: Mapping[str, Any]) -> None:
    """Write the file.

    Args:
        path: the file; replaced if it exists.
        systematics: what to write; the names of its observables were checked (`require_folder_name`).
        parts: its components.
        provenance: of the run.
    """
    with uproot.recreate(path, compression=uproot.ZSTD(1)) as file:
        for name in systematics.bins:
            for key, histogram in _histograms(systematics, name, parts).items():
                file[f"{name}/{key}"] = histogram
            for key, matrix in _matrices(systematics.only(name)).items():
                file[f"{name}/{key}"] = _square(matrix, name)
        for key, matrix in _matrices(systematics).items():
            file[key] = _square(matrix, ", ".join(systematics.bins))
        file[PROVENANCE] = json.dumps(provenance)


def require_folder_name(name: str) -> None:
    """Refuse names of observables that can't be one of a folder, a channel and an array.

    Raises:
        ConfigError: it can't.
    """
    if not name.isidentifier() or name.startswith(RESERVED):
        raise ConfigError(
            f"observable '{name}': expected letters, digits and underscores, not beginning with any of {RESERVED}"
        )


def _histograms(systematics: Systematics, name: str, parts: Decomposition) -> dict[str, hist.Hist[Any]]:
    """One-dimensional histograms of an observable."""
    bins, where = systematics.bins[name], systematics.part(name)
    nominal, nothing = systematics.nominal[where], np.zeros(bins.n)
    has_generated = GENERATED in systematics.sources
    values = {
        "nominal": (nominal, np.diag(systematics.covariance(GENERATED))[where] if has_generated else nothing),
        "nominal_with_remainder": (nominal, parts.uncorrelated(len(systematics.nominal))[where]),
        "nominal_total": (nominal, np.diag(systematics.total)[where]),
    }
    for part in parts.components:
        for way, sign in (("Up", 1), ("Down", -1)):
            values[f"{part.name}{way}"] = nominal + sign * part.shape[where], nothing
    for source, variance in parts.remainder.items():
        if source != GENERATED and variance[where].any():
            values[f"{source}_remainder"] = nothing, variance[where]
    return {key: _line(bins, *pair) for key, pair in values.items()}


def _matrices(systematics: Systematics) -> dict[str, FloatArray]:
    """Two-dimensional ones."""
    matrices = {"covariance": systematics.total, "correlation": systematics.correlation()}
    return matrices | {f"covariance_{name}": source.covariance for name, source in systematics.sources.items()}


def _line(bins: ObservableBins, values: FloatArray, variances: FloatArray) -> hist.Hist[Any]:
    """Histogram of values with variances."""
    label = f"{bins.title} [{bins.unit}]" if bins.unit else bins.title
    edges = bins.edges if bins.per_bin == 1 else np.arange(bins.n + 1.0)
    histogram = hist.Hist(hist.axis.Variable(edges, label=label), storage=hist.storage.Weight())
    histogram.view()["value"], histogram.view()["variance"] = values, variances
    return histogram


def _square(matrix: FloatArray, label: str) -> hist.Hist[Any]:
    """Matrix by number of the bin."""
    axes = [hist.axis.Regular(len(matrix), 0, len(matrix), label=f"bin of {label}", name=name) for name in "xy"]
    histogram = hist.Hist(*axes, storage=hist.storage.Double())
    histogram.view()[...] = matrix
    return histogram
