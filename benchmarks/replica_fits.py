"""Do replicas whose fits run away leave the band as wide as it should be?

A double Gaussian of 1000 events on an exponential of 3000: in about one replica of six the wide Gaussian takes part of
the background, or MIGRAD doesn't converge.  For each toy the yield's spread over bootstrap replicas is compared with
the spread of the toys' own yields.  Toys whose own fit runs away (a yield above 1300, five errors) are left out of
both.  `width` is the mean over the toys of the replicas' spread, in units of theirs; `unguarded` is the same without
the refits of `calorefine.weights.refits`.

    python benchmarks/replica_fits.py --json replica_fits.json          (about 2 minutes on one core)
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from calorefine import keys
from calorefine.errors import FitError
from calorefine.weights import DoubleGaussian, Exponential, Replica, SPlot, replica_fit
from calorefine.weights.mixture import Mixture
from calorefine.weights.spectator import SpectatorFit

RANGE, SEED = (60.0, 120.0), 20270111
SPECIES = {"signal": DoubleGaussian(91, 2.5, 2.2, 0.75), "background": Exponential(-0.02)}
SOURCE = SPlot(spectator="m", range=RANGE, species=SPECIES)
BARE = SpectatorFit("m", Mixture(SPECIES, *RANGE), "signal", 200_000, 2000)


def toy(index: int) -> np.ndarray:
    """Masses (n,) in the range."""
    rng = np.random.default_rng([SEED, index])
    n_signal, n_background = rng.poisson(1000), rng.poisson(3000)
    signal = rng.normal(91, np.where(rng.random(n_signal) < 0.75, 2.5, 5.5))
    background = 60 - 50 * np.log1p(rng.random(n_background) * np.expm1(-60 / 50))
    m = np.concatenate([signal, background])
    return m[(m > RANGE[0]) & (m < RANGE[1])]


def yields_of(index: int, n_replicas: int) -> tuple[float, list[float], list[float], int] | None:
    """Yield of a toy, of its replicas, of those without refits, and the number of replicas with a complaint."""
    m = toy(index)
    try:
        nominal = SOURCE.fit({"m": m})
    except FitError:
        return None
    if nominal.yields["signal"] > 1300:
        return None
    key, found, bare, told = keys.make_keys([np.arange(len(m))]), [], [], 0
    for r in range(1, n_replicas + 1):
        fit = replica_fit(SOURCE, nominal, {"m": m}, key, Replica(r))
        found.append(fit.yields["signal"])
        told += bool(fit.refits)
        try:
            bare.append(BARE.fit(m, multiplicity=Replica(r).counts(key), near=nominal.fits[0]).yields["signal"])
        except FitError:
            continue
    return nominal.yields["signal"], found, bare, told


def main() -> None:
    """Run the toys, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--toys", type=int, default=80)
    parser.add_argument("--replicas", type=int, default=12)
    options = parser.parse_args()
    toys = [found for index in range(options.toys) if (found := yields_of(index, options.replicas))]
    truth = float(np.std([nominal for nominal, *_ in toys], ddof=1))
    widths = np.array([[np.std(values, ddof=1) for values in (found, bare)] for _, found, bare, _ in toys]) / truth
    figures = {
        "truth": truth,
        "width": float(np.mean(widths[:, 0])),
        "width_median": float(np.median(widths[:, 0])),
        "width_unguarded": float(np.mean(widths[:, 1])),
        "width_unguarded_median": float(np.median(widths[:, 1])),
        "toys": len(toys),
        "share_with_complaint": sum(told for *_, told in toys) / len(toys) / options.replicas,
    }
    print("\n".join(f"{name:<22}{value:.3f}" for name, value in figures.items()))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
