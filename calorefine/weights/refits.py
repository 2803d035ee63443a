r"""Fits of replicas: each starts from the nominal result, and one that runs away from it is refitted.

A fit has run away if a species' yield, as a share of the replica's events, is more than `OUTLIER` of its standard
deviations off the nominal one (a wide Gaussian that takes the background, say), if a parameter is at a limit where the
nominal one is not, or if it doesn't converge.  Then follow

1. a fit with the shapes kept within `NEAR` standard deviations of the nominal ones: it finds a minimum nearby, if there
   is one;
2. a fit with all but the `probes` of the shapes (mean and width of a peak) at their nominal values;
3. a fit of the yields alone, whose likelihood is concave.

The first that has not run away counts, the last in any case: yields alone can't run away.  A fit whose only fault is a
parameter at its limit is kept if the first of these does not cure it: the limit belongs to the model, and to its
spread.  `SPlotFit.refit` says what was done.  A replica whose shapes are held lacks their spread: where this happens to
more than a few, fix or constrain the shapes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calorefine import keys, stats
from calorefine.errors import FitError
from calorefine.weights.spectator import SpectatorFit
from calorefine.weights.splot_fit import SPlotFit

OUTLIER, NEAR = 4.0, 4.0


def refit(
    model: SpectatorFit,
    m: NDArray[Any],
    *,
    multiplicity: NDArray[Any] | None,
    near: SPlotFit,
    key: NDArray[Any] | None = None,
) -> SPlotFit:
    """Fit a replica, again if it has run away.

    Args:
        model: what to fit.
        m: (n,) spectator.
        multiplicity: (n,) bootstrap counts.
        near: the nominal result.
        key: (n,) what the counts go by, such as runs; events, if left out.

    Raises:
        FitError: no fit converges; the message says how the first one ended.
    """
    units = _units(near, np.asarray(m, np.float64), key)
    first: SPlotFit | None = None
    reason = ""
    for done, start, held in _attempts(model, near):
        try:
            fit = model.fit(m, multiplicity=multiplicity, near=start, held=held)
        except FitError as error:
            reason = reason or str(error).partition(". Last values")[0]
            continue
        outlier, limits = _outlier(fit, near, units), _new_limits(fit, near)
        reason = reason or outlier or limits
        if held == near.names[len(near.mixture.shapes) :] or not (outlier or limits):
            return replace(fit, limits=near.limits, refit=f"{reason}; {done}" if done else "")
        if not done and not outlier:
            first = replace(fit, refit=reason)
        elif first is not None:
            return first
    if first is None:
        raise FitError(f"{reason}; nor does any fit near the nominal result")
    return first


def _attempts(model: SpectatorFit, near: SPlotFit) -> Iterator[tuple[str, SPlotFit, tuple[str, ...]]]:
    """What is done, where it starts, and what it holds."""
    yield "", near, ()
    n = len(near.mixture.shapes)
    box = [
        (max(low, value - NEAR * error), min(high, value + NEAR * error)) if k >= n and error > 0 else (low, high)
        for k, (value, error, (low, high)) in enumerate(zip(near.values, near.errors, near.limits, strict=True))
    ]
    yield "refitted near the nominal shapes", replace(near, limits=tuple(box)), ()
    shapes = near.names[n:]
    probes = {f"{term}.{name}" for term, shape in model.mixture.shapes.items() for name in shape.probes}
    for held in (tuple(name for name in shapes if name not in probes), shapes):
        if free := [name for name in held if name not in near.fixed]:
            yield f"refitted with the nominal {', '.join(free)}", near, held


def _units(near: SPlotFit, m: NDArray[np.float64], key: NDArray[Any] | None) -> dict[str, float]:
    """Standard deviation of each species' yield over bootstraps, as a share of the replica's events.

    The nominal error counts, unless parameters at limits make it smaller than that with known shapes; times what its
    weights' sums over blocks fluctuate more than those of single events.
    """
    units = {}
    for name, size in near.yields.items():
        alone = max(near.yield_error(name), abs(size) / np.sqrt(near.n_effective[name]))
        influence = near.weights(m, name) - size / near.n_events
        groups = influence if key is None else stats.group_sums(influence, keys.group(key))
        units[name] = alone * float(np.sqrt(max(stats.sum_w2(groups) / stats.sum_w2(influence), 1)))
    return units


def _outlier(fit: SPlotFit, near: SPlotFit, units: Mapping[str, float]) -> str:
    """Species whose yield is off the nominal one, for the events of the replica, in these units."""
    for name, size in fit.yields.items():
        expected = near.yields[name] * fit.n_events / near.n_events
        off = (size - expected) / units[name]
        if not abs(off) < OUTLIER:
            return (
                f"yield of {name} {size:.0f} where {expected:.0f} was expected, off by {off:+.1f} standard deviations"
            )
    return ""


def _new_limits(fit: SPlotFit, near: SPlotFit) -> str:
    names = [name for name in fit.at_limit if name not in near.at_limit]
    return f"{', '.join(names)} at the limit" if names else ""
