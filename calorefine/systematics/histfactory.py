r"""`systematics.json`: a fragment of a HistFactory workspace for pyhf, and entries for cabinetry.

Channels are the observables whose values are sums of weights; efficiencies, means and normalized histograms have no
Poisson likelihood and are left out, as is a histogram with a negative bin, which has none either, and one without
events.  Modifiers of the sample:

* `histosys` for a shape, under one name in all channels, so that the correlation between them is kept; `normsys`
  where it is a pure scale of the channel to 1e-3;
* `staterror` named `staterror_<channel>` for the generated sample's own statistics: the name and the Gaussian
  constraint that other simulated samples of the channel share;
* `shapesys` named `<sample>_remainder_<channel>` for what the shapes leave: uncorrelated between bins, and of this
  sample only, so that it isn't mixed with statistics.  It has a Poisson constraint, the same as a Gaussian one for
  small errors.

A bin with fewer expected events than a tenth of its error, such as an empty one, gets that many: its expectation is
positive, and the factor of its `staterror`, which pyhf lets go from 0 to 10, reaches what its error allows.

To first order in the nuisance parameters the expected values then have the total covariance, apart from the
correlations of the remainder.  The covariance is taken as known: that it comes from K replicas is not in the fit, and
neither is Student's t.  Take at least as many replicas as there are bins with a systematic error that matters.

References: HistFactory, CERN-OPEN-2012-016; pyhf, doi:10.21105/joss.02823; cabinetry, doi:10.5281/zenodo.4742752.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from calorefine.errors import ConfigError, nearest
from calorefine.stats import FloatArray
from calorefine.systematics.principal_components import UNCORRELATED, Decomposition
from calorefine.systematics.sources import GENERATED
from calorefine.systematics.systematics import Systematics

PURE_SCALE = 1e-3
NEGLIGIBLE = 1e-9
LEAST_EXPECTED = 0.1  # of the error
VERSION = "1.0.0"


@dataclass(frozen=True)
class Fit:
    """What goes beside the sample to make a complete workspace.

    Attributes:
        sample: name of the sample.
        signal: observable to expected events in its bins; none for a workspace without a parameter of interest.
        observed: observable to observed events; without it the expected ones are taken (Asimov data).
        poi: strength of the signal.
    """

    sample: str = "generated"
    signal: Mapping[str, ArrayLike] | None = None
    observed: Mapping[str, ArrayLike] | None = None
    poi: str = "mu"


def fragment(systematics: Systematics, parts: Decomposition, fit: Fit) -> tuple[list[dict[str, Any]], list[str]]:
    """Channels with one sample, and notes.

    Args:
        systematics: nominal and covariance.
        parts: its components.
        fit: names.

    Returns:
        Channels, and what a reader has to know about them.
    """
    channels, notes = [], []
    for name, bins in systematics.bins.items():
        nominal = systematics.value_of(name)
        if not bins.counts:
            notes.append(f"'{name}' is not in the pyhf workspace: its values are not sums of weights")
        elif not nominal.any():
            notes.append(f"'{name}' is not in the pyhf workspace: it has no events")
        elif np.any(nominal < 0):
            notes.append(f"'{name}' is not in the pyhf workspace: {int(np.sum(nominal < 0))} bins are negative")
        else:
            where = systematics.part(name)
            least = LEAST_EXPECTED * systematics.errors()[where]
            if raised := int(np.sum(nominal < least)):
                notes.append(f"'{name}': {raised} bins with nearly no events get a tenth of their error in pyhf")
            nominal = np.maximum(nominal, least)
            shapes = {part.name: part.shape[where] for part in parts.components if part.shape[where].any()}
            modifiers = [_shape(key, nominal, shape) for key, shape in shapes.items()]
            modifiers += _uncorrelated(systematics, parts, name, fit.sample)
            sample = {"name": fit.sample, "data": nominal.tolist(), "modifiers": modifiers}
            channels.append({"name": name, "samples": [sample]})
            largest = np.abs([np.zeros(len(nominal)), *shapes.values()]).max(axis=0)
            if below := int(np.sum(largest > nominal * (1 + UNCORRELATED))):
                notes.append(f"'{name}': in {below} bins a variation is negative; take wider bins")
    return channels, notes


def _uncorrelated(systematics: Systematics, parts: Decomposition, name: str, sample: str) -> list[dict[str, Any]]:
    """Modifiers of one channel for errors that are independent from bin to bin."""
    n, where = len(systematics.nominal), systematics.part(name)
    generated = parts.remainder.get(GENERATED, np.zeros(n))[where]
    left = parts.uncorrelated(n)[where] - generated
    left = np.where(left > NEGLIGIBLE * np.diag(systematics.total)[where], left, 0.0)
    variances = {("staterror", f"staterror_{name}"): generated, ("shapesys", f"{sample}_remainder_{name}"): left}
    return [
        {"name": key, "type": kind, "data": np.sqrt(variance).tolist()}
        for (kind, key), variance in variances.items()
        if variance.any()
    ]


def _shape(name: str, nominal: FloatArray, shape: FloatArray) -> dict[str, Any]:
    """`normsys` for a pure scale below 1, `histosys` for anything else."""
    scale = float(shape @ nominal / (nominal @ nominal)) if nominal.any() else 0.0
    if abs(scale) < 1 and np.linalg.norm(shape - scale * nominal) <= PURE_SCALE * np.linalg.norm(shape):
        return {"name": name, "type": "normsys", "data": {"lo": 1 - scale, "hi": 1 + scale}}
    data = {"lo_data": (nominal - shape).tolist(), "hi_data": (nominal + shape).tolist()}
    return {"name": name, "type": "histosys", "data": data}


def workspace(channels: list[dict[str, Any]], fit: Fit) -> dict[str, Any]:
    """Complete workspace: the fragment, the signal and data.

    Raises:
        ConfigError: signal or data have other bins, or are of an observable that isn't a channel.
    """
    sizes = {channel["name"]: len(channel["samples"][0]["data"]) for channel in channels}
    signal, observed = _checked("signal", fit.signal, sizes), _checked("observed", fit.observed, sizes)
    normfactor = {"name": fit.poi, "type": "normfactor", "data": None}
    complete, observations = [], []
    for channel in channels:
        name, samples = channel["name"], list(channel["samples"])
        if name in signal:
            samples.append({"name": "signal", "data": signal[name].tolist(), "modifiers": [normfactor]})
        expected = np.sum([sample["data"] for sample in samples], axis=0)
        complete.append({"name": name, "samples": samples})
        observations.append({"name": name, "data": observed.get(name, expected).tolist()})
    measurement = {"name": "calorefine", "config": {"poi": fit.poi if signal else "", "parameters": []}}
    return {"channels": complete, "observations": observations, "measurements": [measurement], "version": VERSION}


def _checked(what: str, given: Mapping[str, ArrayLike] | None, sizes: Mapping[str, int]) -> dict[str, FloatArray]:
    """Arrays of the right observables and lengths."""
    arrays = {name: np.asarray(values, np.float64) for name, values in (given or {}).items()}
    for name, array in arrays.items():
        if name not in sizes:
            raise ConfigError(f"{what}: '{name}' is no channel, only {list(sizes)}{nearest(name, sizes)}")
        if array.shape != (sizes[name],) or not np.isfinite(array).all():
            raise ConfigError(f"{what} of '{name}': shape {array.shape}, expected ({sizes[name]},) finite numbers")
    return arrays


def cabinetry_entries(channels: list[dict[str, Any]], parts: Decomposition, fit: Fit, root: str) -> dict[str, Any]:
    """Entries of a cabinetry configuration that read the shapes from the ROOT file.

    Regions, the sample and systematics; to these an analysis adds its data, its signal and a `NormFactors` entry.

    Args:
        channels: of the fragment.
        parts: components.
        fit: names.
        root: name of the ROOT file.
    """
    names = {channel["name"]: {m["name"] for m in channel["samples"][0]["modifiers"]} for channel in channels}
    systematics = [
        {
            "Name": part.name,
            "Type": "NormPlusShape",
            "Samples": fit.sample,
            "Regions": [name for name, modifiers in names.items() if part.name in modifiers],
            **{way: {"VariationPath": f"{part.name}{way}"} for way in ("Up", "Down")},
        }
        for part in parts.components
        if any(part.name in modifiers for modifiers in names.values())
    ]
    general = {
        "Measurement": "calorefine",
        "POI": fit.poi if fit.signal else "",
        "InputPath": "{SamplePath}:{RegionPath}/{VariationPath}",
        "HistogramFolder": "histograms",
        "VariationPath": "nominal_with_remainder",
    }
    return {
        "General": general,
        "Regions": [{"Name": name, "RegionPath": name} for name in names],
        "Samples": [{"Name": fit.sample, "SamplePath": root}],
        "Systematics": systematics,
    }
