"""Two histograms and an efficiency, with every source."""

from __future__ import annotations

import numpy as np
import pytest

from calorefine.systematics import ObservableBins, assemble

BINS = {
    "e_over_p": ObservableBins(np.linspace(0.5, 1.5, 9), "E / p", ""),
    "p_gev": ObservableBins(np.array([1.0, 2.0, 4.0, 8.0, 16.0]), "momentum", "GeV"),
    "efficiency": ObservableBins(np.array([1.0, 4.0, 8.0, 16.0]), "momentum", "GeV", counts=False),
}
NOMINAL = np.concatenate([[300, 700, 1500, 2500, 2400, 1400, 600, 350], [2000, 4000, 2500, 1250], [0.8, 0.9, 0.95]])


def smooth_covariance(n, length=3.0):
    return np.exp(-np.abs(np.subtract.outer(np.arange(n), np.arange(n))) / length)


def make_systematics(*, k=40, seed=1, **options):
    """All sources; relative errors of a few percent, correlated over neighboring bins."""
    rng = np.random.default_rng(seed)
    n = len(NOMINAL)
    root = np.linalg.cholesky(smooth_covariance(n)) * 0.05 * NOMINAL[:, None]
    given = {
        "calibration": NOMINAL + rng.normal(size=(k, n)) @ root.T,
        "training": NOMINAL + 0.5 * rng.normal(size=(8, n)) @ root.T,
        "alternatives": {"spectator": NOMINAL * (1 + 0.02 * np.linspace(-1, 1, n))},
        "retrained": (),
        "residual": 0.03 * NOMINAL,
        "generated": np.diag(np.where(NOMINAL > 1, NOMINAL, 1e-5)),
    }
    return assemble(NOMINAL, BINS, **(given | options))


@pytest.fixture
def systematics():
    """The example."""
    return make_systematics()


@pytest.fixture
def make():
    """The function `make_systematics`."""
    return make_systematics
