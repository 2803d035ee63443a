"""Which bins does a closure's residual take for wrong?  Toys of independent bins with known errors, without events.

Deviations are in units of a bin's standard deviation.  Keys:

null_toys              share of toys without a deviation that have a residual anywhere
beside_K_bins_S        mean share of the correct bins that have a residual where one bin is too low and the next one
                       too high by S, of K bins
beside_K_toys_S        share of toys with a residual in any correct bin
rms_beside_K_S         root mean square of the residual in the correct bins
found_all_K_S          mean share of the bins that have a residual where all K are too high by S
found_half_K_S         the same for the wrong ones where the first half is; correct_half_K_S for the correct ones

    python benchmarks/closure_residual.py --json closure_residual.json      # 2000 toys, seed 8, two minutes
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from calorefine.systematics.closure import deviating
from calorefine.systematics.sources import beyond_noise

SEED, SHIFTS, SIZES = 8, (1.5, 2.0, 3.0, 4.5, 7.0), (10, 16)


def residuals(truth: np.ndarray, toys: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Whether each bin has a residual, and how large it is (toys, n)."""
    inside, left = [], []
    for _ in range(toys):
        difference = truth + rng.normal(size=len(truth))
        inside.append(deviating(difference, np.eye(len(truth)))[1])
        left.append(np.where(inside[-1], beyond_noise(difference, np.ones(len(truth))), 0.0))
    return np.array(inside), np.array(left)


def figures(toys: int) -> dict[str, float]:
    """All keys."""
    rng, out = np.random.default_rng(SEED), {}
    out["null_toys"] = residuals(np.zeros(10), toys, rng)[0].any(axis=1).mean()
    for n in SIZES:
        for shift in SHIFTS:
            truth, name = np.zeros(n), f"{n}_{shift:g}"
            truth[[3, 4]] = -shift, shift
            inside, left = (found[:, truth == 0] for found in residuals(truth, toys, rng))
            out |= {
                f"beside_{n}_bins_{shift:g}": inside.mean(),
                f"beside_{n}_toys_{shift:g}": inside.any(axis=1).mean(),
            }
            out[f"rms_beside_{name}"] = np.sqrt(np.mean(left**2))
            out[f"found_all_{name}"] = residuals(np.full(n, shift), toys, rng)[0].mean()
            half = residuals(np.where(np.arange(n) < n // 2, shift, 0.0), toys, rng)[0]
            out |= {f"found_half_{name}": half[:, : n // 2].mean(), f"correct_half_{name}": half[:, n // 2 :].mean()}
    return {key: float(value) for key, value in out.items()}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--toys", type=int, default=2000)
    options = parser.parse_args()
    found = figures(options.toys)
    for key, value in found.items():
        print(f"{key:>24} {value:.4f}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
