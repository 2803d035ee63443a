r"""Classifiers of showers with what their AUC has to be read by: the floor, the number of showers, the smearing seen.

An AUC grows with the number of showers, and a network on cells is weak with few of them.  How weak, it says itself: one
half of the reference, its cells smeared, :math:`E_i \to E_i \max(0, 1 + s z_i)` with standard normal :math:`z_i`, is
told from the other half, which is as it was, by the same classifier.  The smallest s from which on all AUCs are more
than two errors above 1/2, and above that of the halves as they are, is what it sees with half as many showers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from calorefine import keys, stats
from calorefine.data.frame import Frame
from calorefine.geometry import Geometry
from calorefine.shower_observables import Cells
from calorefine.stats import FloatArray
from calorefine.twosample.distances import Points
from calorefine.twosample.embedding import halves
from calorefine.twosample.shower_classifier import (
    LogPosterior,
    NetworkOptions,
    ShowerTest,
    boosting_test,
    log_posterior,
    network_test,
)
from calorefine.twosample.showers import Showers, frame_inputs, high_level, linear_inputs

SMEARINGS = (0.05, 0.1, 0.2, 0.4)
SEEN = 2.0  # errors that an AUC is above 1/2, and above the floor, by where something is seen
Test = Callable[[Points, Points], ShowerTest]
Rows = Callable[[Showers], Points]
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Judgment:
    """What one classifier says.

    Attributes:
        about: what it looks at, and what it is.
        auc: generated against reference; 0.5 if it can't tell them.
        auc_error: standard error.
        jsd: Jensen-Shannon divergence in bits.
        n_generated: numbers of showers.
        n_reference: likewise.
        floor: AUC of one half of the reference against the other.
        floor_error: standard error.
        floor_jsd: divergence of the halves.
        n_floor: numbers of showers of the halves.
        smeared: relative smearing of the cells of the first half to its AUC against the other one.
        smeared_error: likewise, its standard error.
    """

    about: str
    auc: float
    auc_error: float
    jsd: float | None
    n_generated: int
    n_reference: int
    floor: float
    floor_error: float
    floor_jsd: float | None
    n_floor: tuple[int, int]
    smeared: dict[str, float]
    smeared_error: dict[str, float]

    @property
    def sees(self) -> float | None:
        """Smallest smearing that is seen, and all larger ones with it; None if the largest isn't."""
        found = None
        for level in reversed(self.smeared):
            if self.smeared[level] - max(self.floor, 0.5) <= SEEN * self.smeared_error[level]:
                break
            found = float(level)
        return found

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self) | {"n_floor": list(self.n_floor), "sees_smearing": self.sees}


def canonical(geometry: Geometry) -> Callable[[Cells, FloatArray], tuple[Cells, FloatArray]]:
    """Map of cells (n, N) and entry points (n, 2) to the frame in which all showers enter at the same cell."""
    frame = Frame(geometry)

    def apply(cells: Cells, entry: FloatArray) -> tuple[Cells, FloatArray]:
        if frame.is_trivial:
            return cells, entry
        points = torch.from_numpy(entry)
        return frame.canonical(torch.from_numpy(cells), points).numpy(), frame.entry(points).numpy()

    return apply


def rows_of(geometry: Geometry) -> dict[str, Rows]:
    """What each classifier looks at; none is in the entry's frame where there is no threshold to see cells by."""
    rows: dict[str, Rows] = {"lin": lambda showers: linear_inputs(showers, geometry)}
    if geometry.threshold_mev > 0:
        frame = canonical(geometry)
        rows["frame"] = lambda showers: frame_inputs(showers, geometry, frame=frame)
    return {**rows, "high": lambda showers: high_level(showers, geometry)}


def about(options: NetworkOptions) -> dict[str, str]:
    """What each classifier looks at, and what it is, in words."""
    network = f"network of {' x '.join(map(str, options.hidden))}"
    return {
        "lin": f"cells over E_inc, {network}",
        "frame": f"cells in the entry's frame, {network}",
        "high": "observables, boosted trees",
    }


def judgments(
    samples: tuple[Showers, Showers],
    geometry: Geometry,
    options: NetworkOptions,
    *,
    n_trainings: int,
    seed: int,
    tell: Tell,
) -> dict[str, Judgment]:
    """Let each classifier judge.

    Args:
        samples: generated and reference showers; weights that are not negative.
        geometry: of the cells.
        options: of the networks.
        n_trainings: of each AUC.
        seed: of all that is random.
        tell: is told what begins.

    Raises:
        EmptySelectionError: too few showers.
        TrainingError: the cross entropy is NaN or infinite.
        WeightError: negative weights.
    """
    found = {}
    for name, rows in rows_of(geometry).items():
        tell(f"classifier: {about(options)[name]}")
        found[name] = _judged(samples, rows, _test(name, options, n_trainings, seed), about(options)[name], seed)
    return found


def _test(name: str, options: NetworkOptions, n_trainings: int, seed: int) -> Test:
    if name == "high":
        return lambda a, b: boosting_test(a, b, n_trainings=n_trainings, seed=seed)
    return lambda a, b: network_test(a, b, options, n_trainings=n_trainings, seed=seed)


def _judged(samples: tuple[Showers, Showers], rows: Rows, test: Test, text: str, seed: int) -> Judgment:
    made, target = map(rows, samples)
    first, second = halves(target, seed=seed)
    found, floor = test(made, target), test(first, second)
    smeared = {f"{level:g}": test(_smeared_half(samples[1], rows, level, seed), second) for level in SMEARINGS}
    return Judgment(
        about=text,
        auc=found.separation.auc,
        auc_error=found.separation.auc_error,
        jsd=found.separation.jsd,
        n_generated=found.n[0],
        n_reference=found.n[1],
        floor=floor.separation.auc,
        floor_error=floor.separation.auc_error,
        floor_jsd=floor.separation.jsd,
        n_floor=floor.n,
        smeared={level: one.separation.auc for level, one in smeared.items()},
        smeared_error={level: one.separation.auc_error for level, one in smeared.items()},
    )


def _smeared_half(reference: Showers, rows: Rows, level: float, seed: int) -> Points:
    """First half of the reference, with smeared cells."""
    return halves(rows(smeared(reference, level, seed=seed)), seed=seed)[0]


def smeared(showers: Showers, level: float, *, seed: int) -> Showers:
    """Showers with each cell times max(0, 1 + level * z), z standard normal by key, seed and cell.

    Args:
        showers: weights play no part.
        level: relative standard deviation.
        seed: of z.
    """
    noise = keys.normal(keys.stream(showers.key, "smearing", seed=seed), showers.cells.shape[1])
    factor = np.maximum(1 + np.float32(level) * noise, 0)
    return replace(showers, cells=showers.cells * factor.astype(showers.cells.dtype))


def ranked(
    models: Mapping[str, Showers],
    reference: Showers,
    geometry: Geometry,
    options: NetworkOptions,
    *,
    n_trainings: int,
    seed: int,
) -> LogPosterior:
    """Rank models by a network that tells them apart, on cells in the entry's frame where there is a threshold.

    Args:
        models: name to showers; weights that are not negative.
        reference: weights of any sign.
        geometry: of the cells.
        options: of the network.
        n_trainings: how many.
        seed: of all that is random.

    Raises:
        WeightError: negative weights of a model.
    """
    rows = rows_of(geometry)
    inputs = rows.get("frame", rows["lin"])
    for showers in models.values():
        stats.require_nonnegative(showers.weight, "log posterior: its cross entropy has no lower bound")
    points = {name: inputs(showers) for name, showers in models.items()}
    return log_posterior(points, inputs(reference), options, n_trainings=n_trainings, seed=seed)
